//! Ordinary gzip OCI images, made here from Debian packages or taken from the user.

mod app;
mod build;
mod data;
mod layer;
mod layout;
pub mod recipe;
mod small;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use data::{Data, Files, noise};
pub use layer::LayerBlob;
pub use layout::Layout;
pub use small::{Content, assemble, busybox};

use super::command::{command, run};
use super::lab::Lab;
use recipe::Recipe;

/// One tagged image in an OCI layout on disk.
#[derive(Clone, Debug)]
pub struct Image {
    pub layout: PathBuf,
    pub tag: String,
    /// `sha256:...` of the manifest.
    pub digest: String,
    /// Compressed size of each layer, the lowest first, with its digest.
    pub layers: Vec<(String, u64)>,
}

impl Image {
    /// Compressed bytes of all layers.
    pub fn blob_bytes(&self) -> u64 {
        self.layers.iter().map(|(_, size)| size).sum()
    }

    /// Reads a tag of a layout.
    ///
    /// # Errors
    /// No such tag, or the layout's JSON is not what the image specification says.
    pub fn open(layout: &Path, tag: &str) -> Result<Self> {
        let index = json(&layout.join("index.json"))?;
        let manifests = index["manifests"].as_array().context("index.json has no manifests")?;
        let name = |entry: &Value| entry["annotations"]["org.opencontainers.image.ref.name"] == *tag;
        let Some(entry) = manifests.iter().find(|entry| name(entry)) else {
            bail!("{} has no image {tag:?}", layout.display());
        };
        let digest = entry["digest"].as_str().context("a manifest without digest")?.to_owned();
        let manifest = json(&layout.join("blobs").join(digest.replace(':', "/")))?;
        let layers =
            manifest["layers"].as_array().context("no layers: is it an index of several platforms?")?;
        let layers =
            layers.iter().map(|layer| Some((layer["digest"].as_str()?.to_owned(), layer["size"].as_u64()?)));
        Ok(Self {
            layout: layout.to_path_buf(),
            tag: tag.to_owned(),
            digest,
            layers: layers.collect::<Option<_>>().context("a layer without digest or size")?,
        })
    }

    /// Copies whatever skopeo can read (`docker://...`, `oci:DIR:TAG`, `docker-archive:...`) into a layout of the lab.
    /// Without a transport it is a local layout, `DIR:TAG`, where there is one, or else a registry's image.
    ///
    /// # Errors
    /// skopeo's.
    pub fn import(lab: &Lab, reference: &str) -> Result<Self> {
        let layout = lab.dir().join("import");
        let from = with_transport(reference);
        let to = format!("oci:{}:user", layout.display());
        run(&mut command("skopeo", ["copy", "--quiet", "--src-tls-verify=false", &from, &to]))?;
        Self::open(&layout, "user")
    }
}

/// All versions of a recipe's image, built unless the cache has them.
///
/// # Errors
/// mmdebstrap, apt-get or the disk.
pub fn obtain(lab: &Lab, recipe: &Recipe) -> Result<Vec<Image>> {
    let layout = lab.places.cache.join("images").join(recipe.key());
    if !layout.join("index.json").is_file() {
        build::build(lab, recipe, &layout)?;
    }
    recipe.versions.iter().map(|version| Image::open(&layout, version.tag)).collect()
}

fn with_transport(reference: &str) -> String {
    let is_layout = |(directory, _): (&str, &str)| Path::new(directory).join("oci-layout").is_file();
    match reference {
        _ if has_transport(reference) => reference.to_owned(),
        _ if reference.rsplit_once(':').is_some_and(is_layout) => format!("oci:{reference}"),
        _ => format!("docker://{reference}"),
    }
}

fn has_transport(reference: &str) -> bool {
    const TRANSPORTS: [&str; 7] = [
        "docker://",
        "oci:",
        "oci-archive:",
        "docker-archive:",
        "dir:",
        "docker-daemon:",
        "containers-storage:",
    ];
    TRANSPORTS.iter().any(|transport| reference.starts_with(transport))
}

fn json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_on_disk_comes_before_a_registry() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("oci-layout"), "{}").unwrap();
        let layout = format!("{}:v1", directory.path().display());
        assert_eq!(with_transport(&layout), format!("oci:{layout}"));
        assert_eq!(with_transport("registry.example/app:v1"), "docker://registry.example/app:v1");
        assert_eq!(with_transport("oci:/elsewhere:v1"), "oci:/elsewhere:v1");
    }
}
