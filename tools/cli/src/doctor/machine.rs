//! What only a real machine can say; tests put another one in its place.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use containerd_client::Client;
use containerd_client::services::v1::PluginsRequest;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use d7y_fuse::mounts::{self, FileBackedErofs, OverlayUpper};
use d7y_fuse::{FuseDevice, MountOptions, Privileges};

use super::kernel::Scratch;
use super::network::PATIENCE;
use crate::containerd::NAME as PLUGIN;

pub trait Machine {
    /// Whether mounting may be tried.
    fn is_root(&self) -> bool;
    fn erofs(&self, scratch: &Scratch) -> io::Result<FileBackedErofs>;
    fn fuse(&self, scratch: &Scratch) -> Result<()>;
    fn overlay(&self, scratch: &Scratch) -> Result<()>;
    /// Of the file system that holds an existing directory.
    fn space(&self, directory: &Path) -> io::Result<Space>;
    fn now(&self) -> SystemTime;
    /// What the containerd at `socket` says of its plugin d7y.
    async fn plugin(&self, socket: &Path) -> Result<PluginState>;
}

#[derive(Debug, Clone, Copy)]
pub struct Space {
    pub size_bytes: u64,
    pub free_bytes: u64,
    /// 0 where inodes are made as they are needed.
    pub inodes: u64,
    pub inodes_free: u64,
}

#[derive(Debug, Clone)]
pub enum PluginState {
    Loaded,
    Missing,
    Broken(String),
}

/// The machine that `d7y` runs on. What is tried is removed again.
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn erofs(&self, scratch: &Scratch) -> io::Result<FileBackedErofs> {
        mounts::probe_file_backed_erofs(scratch.path())
    }

    fn fuse(&self, scratch: &Scratch) -> Result<()> {
        let target = scratch.directory("fuse")?;
        let device = FuseDevice::mount(&target, &MountOptions { privileges: Privileges::Sealed })?;
        drop(device);
        Ok(mounts::unmount_lazy(&target)?)
    }

    /// Two lower layers, a file made and one removed: the upper directory must take whiteouts.
    fn overlay(&self, scratch: &Scratch) -> Result<()> {
        let [one, two, upper, work, target] =
            ["one", "two", "upper", "work", "target"].map(|name| scratch.directory(name));
        let (one, two, upper, work, target) = (one?, two?, upper?, work?, target?);
        fs::write(one.join("removed"), "")?;
        let writable = OverlayUpper { upper: &upper, work: &work };
        mounts::mount_overlay(&[&two, &one], Some(writable), &target)?;
        fs::write(target.join("made"), "").context("cannot write through overlayfs")?;
        fs::remove_file(target.join("removed")).context("cannot remove through overlayfs")?;
        mounts::unmount(&target)?;
        Ok(())
    }

    fn space(&self, directory: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(directory)?;
        Ok(Space {
            size_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_favail,
        })
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    async fn plugin(&self, socket: &Path) -> Result<PluginState> {
        let asked = async {
            let client = Client::from_path(socket).await?;
            let filters = vec![format!("id=={PLUGIN}")];
            let answer =
                IntrospectionClient::new(client.channel()).plugins(PluginsRequest { filters }).await?;
            anyhow::Ok(answer.into_inner().plugins)
        };
        let plugins = tokio::time::timeout(PATIENCE, asked).await.context("no answer")??;
        let found = plugins.into_iter().find(|plugin| plugin.id == PLUGIN);
        Ok(match found {
            None => PluginState::Missing,
            Some(plugin) => match plugin.init_err {
                Some(error) => PluginState::Broken(error.message),
                None => PluginState::Loaded,
            },
        })
    }
}
