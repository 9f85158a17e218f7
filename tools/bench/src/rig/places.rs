//! Where things are on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::node::Containerd;

/// Directories that the rig reads and writes.
#[derive(Clone, Debug)]
pub struct Places {
    /// d7y's daemons, as built beside the program that runs.
    pub binaries: PathBuf,
    /// nerdctl and other tools that `cargo xtask setup` builds.
    pub tools: PathBuf,
    /// Images that are costly to build; survives between runs.
    pub cache: PathBuf,
    /// Results of benches.
    pub results: PathBuf,
    /// One directory per running lab. Short, because Unix socket paths are cut at 108 bytes.
    pub labs: PathBuf,
}

impl Places {
    /// Derives all from the running program, which cargo put into `TARGET/PROFILE` or
    /// `TARGET/PROFILE/deps`. `D7Y_TARGET_DIR` and `D7Y_LAB_DIR` override.
    ///
    /// # Errors
    /// The program is in neither.
    pub fn find() -> Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let mut binaries = program.parent().context("this program has no directory")?;
        if binaries.ends_with("deps") {
            binaries = binaries.parent().context("deps has no parent")?;
        }
        let target = match std::env::var_os("D7Y_TARGET_DIR") {
            Some(target) => PathBuf::from(target),
            None => binaries.parent().context("a profile's directory has a parent")?.to_path_buf(),
        };
        Ok(Self {
            binaries: binaries.to_path_buf(),
            tools: target.join("tools"),
            cache: target.join("demo"),
            results: target.join("bench"),
            labs: std::env::var_os("D7Y_LAB_DIR").map_or_else(|| "/var/tmp/d7y-lab".into(), PathBuf::from),
        })
    }

    /// One of d7y's own programs.
    ///
    /// # Errors
    /// It has not been built with the profile of the running program.
    pub fn daemon(&self, name: &str) -> Result<PathBuf> {
        let path = self.binaries.join(name);
        if !path.is_file() {
            bail!("{} is missing: build it with cargo build -p {name}", path.display());
        }
        Ok(path)
    }

    /// containerd 2.x, where Go was there to build it: its programs stand in this directory.
    pub fn containerd_2(&self) -> Option<Containerd> {
        let all = ["containerd", "containerd-shim-runc-v2", "ctr"];
        let here = all.iter().all(|name| self.tools.join(name).is_file());
        here.then(|| Containerd::Built(self.tools.clone()))
    }

    /// nerdctl, where Go was there to build it.
    pub fn nerdctl(&self) -> Option<PathBuf> {
        Some(self.tools.join("nerdctl")).filter(|path| path.is_file())
    }
}

/// Makes a directory and its parents.
///
/// # Errors
/// Names the directory.
pub fn make_dir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}
