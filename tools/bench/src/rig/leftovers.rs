//! What a lab leaves in the kernel and on disk, found by the lab's name alone: so that the next
//! run can remove what a killed one could not.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::CRI_NAMESPACE;
use super::command::{command, output, run};
use super::daemon::LOOK_AGAIN;
use super::lab::random_bytes;

/// Interface names hold 15 bytes; ours are this, four hex digits, and a port's suffix.
const PREFIX: &str = "d7y";

/// Files of a host with this extension hold the id of a container of nerdctl's.
pub(super) const CONTAINER_ID: &str = "cid";

/// Holds the pid and start time of the process that owns the lab.
const OWNER: &str = "owner";

/// Unmounting uncovers what was below, at most this deep.
const UNMOUNT_ROUNDS: u32 = 16;

/// How long killed processes may take to vanish.
const VANISH: Duration = Duration::from_secs(10);

const CLAIM_TRIES: u32 = 64;

/// Takes a name that no other lab has and makes its directory, which has an owner from the first
/// moment on.
pub(super) fn claim(labs: &Path) -> Result<String> {
    let unnamed = labs.join(format!(".{}", hex::encode(random_bytes::<8>()?)));
    fs::create_dir(&unnamed).with_context(|| format!("cannot make {}", unnamed.display()))?;
    fs::write(unnamed.join(OWNER), owner(std::process::id()).context("this process has no start time")?)?;
    for _ in 0..CLAIM_TRIES {
        let id = format!("{PREFIX}{}", hex::encode(random_bytes::<2>()?));
        // A directory takes the place of no other that has files.
        if fs::rename(&unnamed, labs.join(&id)).is_ok() {
            return Ok(id);
        }
    }
    bail!("no free lab name below {}", labs.display())
}

/// Removes the labs whose owner is gone.
pub(super) fn sweep(labs: &Path) {
    for dir in children(labs) {
        let Some(id) = dir.file_name().and_then(|name| name.to_str()).filter(|id| id.starts_with(PREFIX))
        else {
            continue;
        };
        // None when the end of that lab was itself cut short: the owner's file goes last.
        let recorded = fs::read_to_string(dir.join(OWNER)).unwrap_or_default();
        let pid = recorded.split(' ').next().and_then(|pid| pid.parse().ok());
        if pid.and_then(owner).is_some_and(|running| running == recorded) {
            continue;
        }
        eprintln!("removing what an earlier run left: {id}");
        end_containers(id, &dir);
        remove(id, &dir);
    }
}

/// "PID START", which no later process repeats.
fn owner(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?;
    Some(format!("{pid} {start}"))
}

/// Kills the lab's containers, and removes the sockets of their shims.
pub(super) fn end_containers(id: &str, dir: &Path) {
    // The CRI plugin has a namespace of its own; in the lab's containerds there are pods of the lab alone.
    for bundle in [id, CRI_NAMESPACE].into_iter().flat_map(|namespace| bundles(namespace, dir)) {
        let pid = fs::read_to_string(bundle.join("init.pid")).unwrap_or_default();
        if let Ok(pid) = pid.trim().parse::<i32>() {
            // The pid could be stale after a crash: only a process of a container of ours counts.
            if cgroup_of(pid).contains(id) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        if let Some(socket) = shim_socket(&bundle) {
            let _ = fs::remove_file(socket);
        }
    }
}

/// Of the containers in a namespace of containerd's objects, on all of the lab's hosts.
fn bundles(namespace: &str, dir: &Path) -> Vec<PathBuf> {
    let tasks = |host: &PathBuf| host.join("containerd/state/io.containerd.runtime.v2.task").join(namespace);
    children(dir).iter().flat_map(|host| children(&tasks(host))).collect()
}

/// containerd 1.x notes it by itself, 2.x with more in JSON.
fn shim_socket(bundle: &Path) -> Option<PathBuf> {
    let address = fs::read_to_string(bundle.join("address")).or_else(|_| {
        let text = fs::read(bundle.join("bootstrap.json"))?;
        let bootstrap: serde_json::Value = serde_json::from_slice(&text)?;
        Ok::<_, std::io::Error>(bootstrap["address"].as_str().unwrap_or_default().to_owned())
    });
    Some(PathBuf::from(address.ok()?.trim().strip_prefix("unix://")?))
}

fn cgroup_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

/// Ends the lab's processes, mounts, namespaces, bridge, cgroups and directory. Says what stays.
pub(super) fn remove(id: &str, dir: &Path) {
    let namespaces = namespaces(id);
    end_processes(&namespaces, dir);
    unmount_below(dir);
    for namespace in &namespaces {
        warn(run(&mut command("ip", ["netns", "del", namespace])));
    }
    if Path::new("/sys/class/net").join(id).exists() {
        warn(run(&mut command("ip", ["link", "del", id])));
    }
    remove_cgroups(Path::new("/sys/fs/cgroup"), id);
    remove_fifos(dir);
    let runc = Path::new("/run/containerd/runc");
    for bundle in bundles(CRI_NAMESPACE, dir) {
        let _ = fs::remove_dir_all(runc.join(CRI_NAMESPACE).join(bundle.file_name().unwrap_or_default()));
    }
    let _ = fs::remove_dir_all(runc.join(id));
    for path in children(dir).iter().filter(|path| !path.ends_with(OWNER)) {
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        warn(removed.with_context(|| format!("cannot remove {}", path.display())));
    }
    warn(fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display())));
}

/// Ends every mount at or below a directory, the latest first.
pub fn unmount_below(dir: &Path) {
    for _ in 0..UNMOUNT_ROUNDS {
        let points = mounts_below(dir);
        if points.is_empty() {
            return;
        }
        for point in points.iter().rev() {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
    eprintln!("warning: mounts remain below {}", dir.display());
}

/// Mount points at or below a directory, in the order of mounting.
pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(|point| PathBuf::from(unescaped(point))).filter(|point| point.starts_with(dir)).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (from, to)| path.replace(from, to))
}

fn namespaces(id: &str) -> Vec<String> {
    let prefix = format!("{id}-");
    let names = children(Path::new("/run/netns")).into_iter();
    names
        .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

/// Whoever runs in the lab's namespaces or names its directory on the command line.
fn end_processes(namespaces: &[String], dir: &Path) {
    let deadline = Instant::now() + VANISH;
    loop {
        let mut pids = processes_naming(dir);
        for namespace in namespaces {
            let listed = output(&mut command("ip", ["netns", "pids", namespace])).unwrap_or_default();
            pids.extend(listed.lines().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        pids.retain(|pid| u32::try_from(*pid) != Ok(std::process::id()));
        if pids.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            eprintln!("warning: these processes do not end: {pids:?}");
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn processes_naming(dir: &Path) -> Vec<i32> {
    let needle = format!("{}/", dir.display());
    let processes = children(Path::new("/proc")).into_iter();
    processes
        .filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok())
        .filter(|pid| is_ours(*pid, &needle))
        .collect()
}

/// Zombies are gone already.
fn is_ours(pid: i32, needle: &str) -> bool {
    let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let (state, group) = (fields.next().unwrap_or("Z"), fields.nth(1).unwrap_or_default());
    state != "Z" && String::from_utf8_lossy(&cmdline).contains(needle) && !shares_our_group(group)
}

/// What the user started together with us (a shell, `tee`) has our process group.
fn shares_our_group(group: &str) -> bool {
    group.parse() == Ok(nix::unistd::getpgrp().as_raw())
}

/// Control groups named after the lab, emptied by now, in every hierarchy.
fn remove_cgroups(root: &Path, id: &str) {
    for hierarchy in children(root) {
        remove_cgroup(&hierarchy.join(id));
        remove_cgroup(&root.join(id));
    }
}

/// With those below it.
fn remove_cgroup(group: &Path) {
    children(group).iter().filter(|child| child.is_dir()).for_each(|child| remove_cgroup(child));
    let _ = fs::remove_dir(group);
}

/// nerdctl makes a directory of fifos per container outside of its data root, and leaves it there.
fn remove_fifos(lab: &Path) {
    let files = children(lab).into_iter().flat_map(|host| children(&host));
    let cids: Vec<String> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == CONTAINER_ID))
        .filter_map(|path| Some(fs::read_to_string(path).ok()?.trim().to_owned()))
        .filter(|cid| !cid.is_empty())
        .collect();
    for dir in children(Path::new("/run/containerd/fifo")) {
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            cids.iter().any(|cid| name.starts_with(cid))
        };
        if children(&dir).iter().any(ours) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect()
}

fn warn(result: Result<()>) {
    if let Err(error) = result {
        eprintln!("warning: {error:#}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        for (escaped, plain) in [("/a", "/a"), ("/a\\040b", "/a b"), ("/a\\134040", "/a\\040")] {
            assert_eq!(unescaped(escaped), plain);
        }
    }

    #[test]
    fn an_owner_is_a_pid_and_its_start() {
        let own = owner(std::process::id()).expect("this test runs");
        assert_eq!(owner(std::process::id()).as_deref(), Some(own.as_str()));
        assert_eq!(owner(u32::MAX), None);
    }
}
