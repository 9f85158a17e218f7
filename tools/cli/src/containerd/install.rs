//! The stanza in containerd's file: everything else kept, the old file kept beside it, tried before it counts.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::document::{Change, Document};
use super::stanza::Stanza;

/// The largest file that is taken for a configuration, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Mode of a file that was not there before.
const NEW_FILE_MODE: u32 = 0o644;

pub struct Installation {
    pub stanza: Stanza,
    pub path: PathBuf,
    /// The containerd that must accept the new file before it replaces the old one.
    pub checked_by: Option<PathBuf>,
}

pub enum Outcome {
    AlreadyThere,
    Would(Vec<Change>),
    Written { changes: Vec<Change>, backup: Option<PathBuf> },
}

/// A new file that containerd has accepted, not yet in place.
pub struct Prepared {
    path: PathBuf,
    old: Option<String>,
    document: Document,
    image_fs: Option<PathBuf>,
}

impl Installation {
    pub fn prepare(self) -> Result<Prepared> {
        // A link stays one: what it points to is replaced.
        let path = fs::canonicalize(&self.path).unwrap_or(self.path);
        let old = read(&path)?;
        let mut document = Document::parse(old.as_deref().unwrap_or_default()).context("it is not TOML")?;
        self.stanza.apply(&mut document)?;
        if let Some(program) = &self.checked_by {
            check(program, &document.to_string())?;
        }
        let image_fs = self.stanza.image_fs_directory(&document);
        Ok(Prepared { path, old, document, image_fs })
    }
}

impl Prepared {
    pub fn pretend(self) -> Outcome {
        match self.document.changes() {
            [] => Outcome::AlreadyThere,
            changes => Outcome::Would(changes.to_vec()),
        }
    }

    pub fn write(self) -> Result<Outcome> {
        if let Some(directory) = &self.image_fs {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let changes = self.document.changes().to_vec();
        if changes.is_empty() {
            return Ok(Outcome::AlreadyThere);
        }
        let backup = self.old.as_deref().map(|old| back_up(&self.path, old)).transpose()?;
        replace(&self.path, &self.document.to_string()).context("cannot write the new file")?;
        Ok(Outcome::Written { changes, backup })
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_FILE_BYTES => {
            bail!("it is larger than {MAX_FILE_BYTES} bytes and cannot be a configuration")
        }
        Ok(_) => Ok(Some(fs::read_to_string(path).context("cannot read it")?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("cannot read it"),
    }
}

/// Lets containerd read the file as it would at its start, imports included.
fn check(program: &Path, text: &str) -> Result<()> {
    let mut file =
        tempfile::Builder::new().suffix(".toml").tempfile().context("cannot make a temporary file")?;
    file.write_all(text.as_bytes()).context("cannot write a temporary file")?;
    let shown = program.display();
    let output = Command::new(program)
        .arg("--config")
        .arg(file.path())
        .args(["config", "dump"])
        .output()
        .with_context(|| format!("cannot run {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} refuses the file with the changes: {}", said.trim());
    }
    let dump = String::from_utf8_lossy(&output.stdout);
    let effective = Document::parse(&dump).with_context(|| format!("{shown} config dump printed no TOML"))?;
    in_effect(&effective)
}

/// An import may have the last word.
fn in_effect(effective: &Document) -> Result<()> {
    let name = super::stanza::snapshotters(effective);
    match name.iter().find(|name| *name != super::stanza::NAME) {
        Some(other) => bail!("a file that it imports sets the snapshotter to {other:?}; change it there"),
        None => Ok(()),
    }
}

/// Beside the file, under a name that is not taken.
fn back_up(path: &Path, text: &str) -> Result<PathBuf> {
    let mode = fs::metadata(path).map_or(NEW_FILE_MODE, |meta| meta.mode());
    let mut name = path.as_os_str().to_owned();
    name.push(".before-d7y");
    for number in 1_u32.. {
        let mut candidate = name.clone();
        if number > 1 {
            candidate.push(format!(".{number}"));
        }
        let candidate = PathBuf::from(candidate);
        let mut file = match File::create_new(&candidate) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            made => made.with_context(|| format!("cannot make {}", candidate.display()))?,
        };
        file.set_permissions(Permissions::from_mode(mode & 0o7777))
            .context("cannot set the backup's mode")?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).context("cannot write the backup")?;
        return Ok(candidate);
    }
    bail!("no name is left for a backup")
}

/// In one step: a reader sees the old file or the new one.
fn replace(path: &Path, text: &str) -> Result<()> {
    let directory = path.parent().context("it has no directory")?;
    fs::create_dir_all(directory)?;
    let mode = fs::metadata(path).map_or(NEW_FILE_MODE, |meta| meta.mode());
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(mode & 0o7777))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()?;
    Ok(())
}
