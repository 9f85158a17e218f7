//! The rig itself: what it starts works, and nothing of it stays. These tests need root.

mod privileged {
    use std::collections::BTreeSet;
    use std::fs;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use anyhow::{Context, Result};
    use d7y_bench::rig::client::{Api, Client, Nerdctl, Wanted};
    use d7y_bench::rig::compare;
    use d7y_bench::rig::host::Link;
    use d7y_bench::rig::image::{Content, Image, assemble, busybox};
    use d7y_bench::rig::lab::Lab;
    use d7y_bench::rig::leftovers::mounts_below;
    use d7y_bench::rig::node::{Node, Snapshotter};
    use d7y_bench::rig::places::Places;
    use d7y_bench::rig::registry::Registry;

    const FIRST_OUTPUT: Duration = Duration::from_secs(60);

    fn names_with(dir: &str, id: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(id)).collect()
    }

    /// Whatever in the kernel or on disk carries the lab's name.
    fn traces(id: &str, dir: &Path) -> Vec<PathBuf> {
        let mut found = mounts_below(dir);
        found.extend(dir.exists().then(|| dir.to_path_buf()));
        for place in
            ["/run/netns", "/sys/class/net", "/run/containerd/runc", "/sys/fs/cgroup", "/sys/fs/cgroup/cpu"]
        {
            found.extend(names_with(place, id));
        }
        found
    }

    #[test]
    fn a_closed_lab_leaves_nothing() -> Result<()> {
        let lab = Lab::open(Places::find()?)?;
        let (id, dir) = (lab.id().to_owned(), lab.dir().to_path_buf());
        let host = lab.host("a", Link(None))?;
        let sleeper = lab.start("sleeper", host.command("sleep").arg("600"))?;
        assert_eq!(traces(&id, &dir).len(), 4, "directory, namespace, bridge, port: {:?}", traces(&id, &dir));
        drop(lab);
        assert!(sleeper.ended().is_some());
        assert!(traces(&id, &dir).is_empty(), "{:?}", traces(&id, &dir));
        Ok(())
    }

    #[test]
    fn the_next_lab_removes_what_a_killed_one_left() -> Result<()> {
        let lab = Lab::open(Places::find()?)?;
        let (id, dir) = (lab.id().to_owned(), lab.dir().to_path_buf());
        let sleeper = lab.start("sleeper", lab.host("a", Link(None))?.command("sleep").arg("600"))?;
        std::mem::forget(lab);
        let mut gone = Command::new("true").spawn()?;
        let pid = gone.id();
        gone.wait()?;
        fs::write(dir.join("owner"), format!("{pid} 1"))?;
        drop(Lab::open(Places::find()?)?);
        assert!(traces(&id, &dir).is_empty(), "{:?}", traces(&id, &dir));
        assert!(sleeper.ended().is_some());
        Ok(())
    }

    #[test]
    fn a_command_on_the_terminal_ends_with_its_lab() -> Result<()> {
        let lab = Lab::open(Places::find()?)?;
        lab.show("true", &mut Command::new("true"), FIRST_OUTPUT)?;
        assert!(lab.show("false", &mut Command::new("false"), FIRST_OUTPUT).is_err());
        let file = tempfile::NamedTempFile::new()?;
        let mut sleeper = Command::new("sh");
        sleeper.args(["-c", "echo $$ > $0; exec sleep 600"]).arg(file.path());
        let mut pid = String::new();
        // Given up, but not ended: how soon the shell has written its number is the machine's affair.
        while pid.trim().is_empty() {
            assert!(lab.show("sleeper", &mut sleeper, Duration::from_millis(100)).is_err());
            pid = fs::read_to_string(file.path())?;
        }
        let process = Path::new("/proc").join(pid.trim());
        assert!(process.exists(), "{} ended before its lab", process.display());
        drop(lab);
        assert!(!process.exists(), "{} is left", process.display());
        Ok(())
    }

    #[test]
    fn links_are_as_slow_as_they_should_be() -> Result<()> {
        const BYTES: usize = 8 << 20;
        let lab = Lab::open(Places::find()?)?;
        let host = lab.host("a", Link(Some(100)))?;
        let listener = TcpListener::bind((lab.address(), 0))?;
        let address = listener.local_addr()?;
        let sender = std::thread::spawn(move || listener.accept()?.0.write_all(&vec![0; BYTES]));
        let start = Instant::now();
        let received = host.inside(|| Ok(TcpStream::connect(address)?.read_to_end(&mut Vec::new())?))?;
        sender.join().expect("the sender does not panic")?;
        // 8 MiB less the burst of 512 kB take 0.63 s at 100 Mbit/s.
        assert_eq!(received, BYTES);
        assert!(start.elapsed() > Duration::from_millis(550), "{:?}", start.elapsed());
        Ok(())
    }

    fn small_image(lab: &Lab) -> Result<Image> {
        let base = busybox(lab, "base")?;
        fs::write(base.join("etc/motd"), "below\n")?;
        let upper = lab.dir().join("trees/upper");
        fs::create_dir_all(upper.join("etc"))?;
        fs::write(upper.join("etc/extra"), "above\n")?;
        let command = ["sh", "-c", "cat /etc/motd; exec sleep 600"];
        assemble(lab, "v1", &command, &[Content::Tree(&base), Content::Tree(&upper)])
    }

    fn clients(places: &Places) -> Vec<Box<dyn Client>> {
        let nerdctl = places.nerdctl().map(|program| Box::new(Nerdctl::new(program)) as Box<dyn Client>);
        if nerdctl.is_none() {
            d7y_skip::part("nerdctl, which needs Go");
        }
        nerdctl.into_iter().chain([Box::new(Api) as Box<dyn Client>]).collect()
    }

    #[test]
    fn clients_run_an_image_and_its_root_is_what_umoci_unpacks() -> Result<()> {
        let lab = Lab::open(Places::find()?)?;
        let image = small_image(&lab)?;
        let expected = compare::unpacked(&lab, &image)?;
        let registry = Registry::start(&lab)?;
        let reference = registry.push(&image.layout, &image.tag, "app")?.parse()?;
        let wanted = Wanted { reference, snapshotter: Snapshotter::Overlayfs };
        for (number, client) in clients(&lab.places).iter().enumerate() {
            let node = Node::start(&lab, lab.host(&format!("node{number}"), Link(None))?, None)?;
            let started = client.start(&node, &wanted, "app").with_context(|| client.name())?;
            assert_eq!(started.first_output(FIRST_OUTPUT)?.line, "below", "{}", client.name());
            let report = compare::container(&expected, &started.rootfs)?;
            assert!(report.is_equal(), "{}: {report}", client.name());
            let sent = registry.counter.of(node.host.address);
            for (digest, size) in &image.layers {
                assert_eq!(sent.blobs[digest].body_bytes, *size, "{}", client.name());
            }
            change_below(&node)?;
            let report = compare::container(&expected, &started.rootfs)?;
            let changed: BTreeSet<_> =
                report.differences.iter().filter_map(|line| line.split(':').next()).collect();
            assert_eq!(changed, BTreeSet::from(["etc/motd"]), "{}: {report}", client.name());
            started.end();
            let held = Api.hold(&node, &wanted, "held")?;
            assert!(compare::container(&expected, &held.rootfs)?.compared > 10, "{}", client.name());
            held.end();
        }
        Ok(())
    }

    /// Changes a byte of a lower layer behind everyone's back; size and time stay.
    fn change_below(node: &Node) -> Result<()> {
        let root = node.host.dir.join("containerd/root/io.containerd.snapshotter.v1.overlayfs/snapshots");
        for snapshot in fs::read_dir(root)? {
            let path = snapshot?.path().join("fs/etc/motd");
            if path.is_file() {
                let modified = fs::metadata(&path)?.modified()?;
                fs::write(&path, "BELOW\n")?;
                fs::File::options().write(true).open(&path)?.set_modified(modified)?;
            }
        }
        Ok(())
    }
}
