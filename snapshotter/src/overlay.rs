//! The mounts that a container is given: overlayfs over the layers, or a bind mount where one directory is all.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use d7y_proto::snapshots::Mount;

/// The directories of one snapshot.
#[derive(Debug, Clone)]
pub struct Stack {
    /// The snapshot's own directory and overlayfs's work directory; a view has none where it has a parent.
    pub upper: Option<Upper>,
    /// The topmost first.
    pub lowers: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub struct Upper {
    pub directory: PathBuf,
    pub work: PathBuf,
    pub access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadOnly,
    ReadWrite,
}

/// The index feature refuses an upper directory that was stacked on other layers before, and d7y's layers may be
/// mounted anew between two starts of a container.
static INDEX_OFF: LazyLock<bool> =
    LazyLock::new(|| Path::new("/sys/module/overlay/parameters/index").exists());

impl Stack {
    pub fn mounts(&self) -> Vec<Mount> {
        vec![match (&self.upper, self.lowers.as_slice()) {
            (Some(upper), []) => bind(&upper.directory, upper.access),
            (None, [only]) => bind(only, Access::ReadOnly),
            (upper, lowers) => overlay(upper.as_ref(), lowers, *INDEX_OFF),
        }]
    }
}

fn bind(directory: &Path, access: Access) -> Mount {
    let access = match access {
        Access::ReadOnly => "ro",
        Access::ReadWrite => "rw",
    };
    Mount {
        r#type: "bind".into(),
        source: text(directory),
        target: String::new(),
        options: vec![access.into(), "rbind".into()],
    }
}

fn overlay(upper: Option<&Upper>, lowers: &[PathBuf], index_off: bool) -> Mount {
    let mut options = Vec::new();
    if index_off {
        options.push("index=off".into());
    }
    if let Some(Upper { directory, work, .. }) = upper {
        options.push(format!("workdir={}", text(work)));
        options.push(format!("upperdir={}", text(directory)));
    }
    let lowers: Vec<_> = lowers.iter().map(|lower| text(lower)).collect();
    options.push(format!("lowerdir={}", lowers.join(":")));
    Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }
}

/// All paths are below configured directories, which are text.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_snapshot_has_its_mount() {
        let upper = |access| Some(Upper { directory: "/s/1/fs".into(), work: "/s/1/work".into(), access });
        let lowers = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let table = [
            (upper(Access::ReadWrite), lowers(&[]), "bind /s/1/fs rw,rbind"),
            (upper(Access::ReadOnly), lowers(&[]), "bind /s/1/fs ro,rbind"),
            (None, lowers(&["/m/2"]), "bind /m/2 ro,rbind"),
            (None, lowers(&["/m/2", "/m/1"]), "overlay overlay lowerdir=/m/2:/m/1"),
            (
                upper(Access::ReadWrite),
                lowers(&["/m/2"]),
                "overlay overlay workdir=/s/1/work,upperdir=/s/1/fs,lowerdir=/m/2",
            ),
        ];
        for (upper, lowers, expected) in table {
            let mounts = Stack { upper, lowers }.mounts();
            let options = mounts[0].options.iter().filter(|option| *option != "index=off").cloned();
            let options = options.collect::<Vec<_>>().join(",");
            assert_eq!(format!("{} {} {options}", mounts[0].r#type, mounts[0].source), expected);
        }
    }
}
