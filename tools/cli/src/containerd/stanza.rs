//! What containerd must be told about d7y, by the version of containerd and of its configuration file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use toml_edit::{Array, Item, Value};

use super::document::Document;
use super::version::Version;

/// containerd's name for d7y.
pub const NAME: &str = "d7y";
const CRI_1: &str = "io.containerd.grpc.v1.cri";
const CRI_2: &str = "io.containerd.cri.v1.images";
const TRANSFER: &str = "io.containerd.transfer.v1.local";
const UNPACK: &[&str] = &["plugins", TRANSFER, "unpack_config"];
/// The oldest containerd whose proxy snapshotters d7y is tested with.
const OLDEST: Version = Version { major: 1, minor: 6 };

pub struct Stanza {
    containerd: Version,
    socket: String,
    root: String,
    platform: String,
}

impl Stanza {
    pub fn new(containerd: Version, socket: &Path, root: &Path) -> Result<Self> {
        ensure!(containerd >= OLDEST, "containerd {containerd} is too old: d7y needs {OLDEST} or newer");
        Ok(Self { containerd, socket: absolute(socket)?, root: absolute(root)?, platform: platform()? })
    }

    /// The stanza as the whole of a file.
    pub fn alone(&self) -> String {
        let mut document = Document::empty();
        match self.apply(&mut document) {
            Ok(()) => document.to_string(),
            Err(error) => unreachable!("an empty document has nothing in the way: {error:#}"),
        }
    }

    /// Changes what has to be changed for containerd to use d7y.
    pub fn apply(&self, document: &mut Document) -> Result<()> {
        self.state_version(document)?;
        let proxy = |key| ["proxy_plugins", NAME, key];
        document.set(&proxy("type"), "snapshot")?;
        document.set(&proxy("address"), self.socket.as_str())?;
        if self.is_2() {
            document.set(&["proxy_plugins", NAME, "exports", "root"], self.root.as_str())?;
            document
                .set(&["proxy_plugins", NAME, "exports", "enable_remote_snapshot_annotations"], "true")?;
        }
        for images in self.images(document) {
            document.set(&[images, &["snapshotter"]].concat(), NAME)?;
            document.set(&[images, &["disable_snapshot_annotations"]].concat(), false)?;
        }
        if self.is_2() {
            self.unpack(document)?;
        }
        Ok(())
    }

    /// Where containerd 1.x measures the images' file system, whether or not anything lies there: without the
    /// directory the kubelet reports a node without room for images.
    pub fn image_fs_directory(&self, document: &Document) -> Option<std::path::PathBuf> {
        let root = document.get(&["root"]).and_then(Item::as_str).unwrap_or("/var/lib/containerd");
        (!self.is_2()).then(|| Path::new(root).join(format!("io.containerd.snapshotter.v1.{NAME}")))
    }

    /// Where the CRI plugin is switched off: what else is.
    pub fn without_cri(&self, document: &Document) -> Option<Vec<String>> {
        let disabled = document.get(&["disabled_plugins"]).and_then(Item::as_array).into_iter().flatten();
        let names: Vec<&str> = disabled.filter_map(Value::as_str).collect();
        let others = names.iter().filter(|name| ![CRI_1, CRI_2].contains(name));
        let others: Vec<String> = others.map(|name| (*name).to_owned()).collect();
        (others.len() < names.len()).then_some(others)
    }

    fn is_2(&self) -> bool {
        self.containerd.major >= 2
    }

    /// The tables that say which snapshotter the CRI plugin uses. containerd 2.x moves the old table's values to the
    /// new one, and forgets them when the file names no runtimes (2.4.2): the new one is always written there.
    fn images(&self, document: &Document) -> Vec<&'static [&'static str]> {
        let (old, new): (&[&str], &[&str]) = (&["plugins", CRI_1, "containerd"], &["plugins", CRI_2]);
        match (self.is_2(), document.get(old).is_some()) {
            (false, _) => vec![old],
            (true, true) => vec![old, new],
            (true, false) => vec![new],
        }
    }

    /// A file that says no version and nothing about plugins gets the newest version that fits.
    fn state_version(&self, document: &mut Document) -> Result<()> {
        match document.get(&["version"]).map(Item::as_integer) {
            Some(Some(2..=4)) => return Ok(()),
            Some(Some(1)) | None => {}
            _ => bail!("its version is not one of containerd's configuration that d7y knows (1 to 4)"),
        }
        let plugins = document.get(&["plugins"]).and_then(Item::as_table_like);
        ensure!(
            plugins.is_none_or(|plugins| plugins.is_empty()),
            "it is written for version 1 of containerd's configuration, which is no longer supported; \
             `containerd config migrate` of containerd 2.x, or a new file from `containerd config default`, makes it a newer one"
        );
        for key in ["disabled_plugins", "required_plugins"] {
            full_names(document, key)?;
        }
        document.set(&["version"], if self.is_2() { 3 } else { 2 })
    }

    /// A list of one's own replaces containerd's, so overlayfs must be named beside d7y.
    fn unpack(&self, document: &mut Document) -> Result<()> {
        let named = |document: &Document, snapshotter: &str| {
            entries(document.get(UNPACK)).any(|name| name.as_deref() == Some(snapshotter))
        };
        if document.get(UNPACK).is_none() {
            document.push(UNPACK, &[("platform", &self.platform), ("snapshotter", "overlayfs")])?;
        }
        if !named(document, NAME) {
            document.push(UNPACK, &[("platform", &self.platform), ("snapshotter", NAME)])?;
        }
        Ok(())
    }
}

/// The snapshotters that the CRI plugin uses by this configuration.
pub fn snapshotters(document: &Document) -> Vec<String> {
    let places: [&[&str]; 2] =
        [&["plugins", CRI_1, "containerd", "snapshotter"], &["plugins", CRI_2, "snapshotter"]];
    places.iter().filter_map(|path| Some(document.get(path)?.as_str()?.to_owned())).collect()
}

/// The snapshotter of each entry, however the array is written.
fn entries(item: Option<&Item>) -> impl Iterator<Item = Option<String>> {
    let tables = item.and_then(Item::as_array_of_tables).into_iter().flatten();
    let inline = item.and_then(Item::as_array).into_iter().flatten();
    let of_tables = tables.map(|table| table.get("snapshotter").and_then(Item::as_str));
    let of_inline = inline.map(|value| {
        value.as_inline_table().and_then(|table| table.get("snapshotter")).and_then(Value::as_str)
    });
    of_tables.chain(of_inline).map(|name| name.map(str::to_owned)).collect::<Vec<_>>().into_iter()
}

/// Version 1 calls plugins `cri`, later ones by their whole name.
fn full_names(document: &mut Document, key: &str) -> Result<()> {
    let Some(names) = document.get(&[key]).and_then(Item::as_array) else { return Ok(()) };
    let mut changed = Array::new();
    for name in names.iter().filter_map(Value::as_str) {
        match name {
            "cri" => changed.push(CRI_1),
            whole if whole.starts_with("io.containerd.") => changed.push(whole),
            other => bail!(
                "{key} names {other:?} in the way of version 1; write its whole name (containerd: ctr plugins ls)"
            ),
        }
    }
    document.set(&[key], changed)
}

fn absolute(path: &Path) -> Result<String> {
    ensure!(path.is_absolute(), "{} is not an absolute path", path.display());
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

/// This machine, as images name it.
fn platform() -> Result<String> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "arm" => "arm/v7",
        same @ ("riscv64" | "s390x") => same,
        "powerpc64" => "ppc64le",
        other => bail!("d7y does not know what images call the architecture {other}"),
    };
    Ok(format!("linux/{architecture}"))
}
