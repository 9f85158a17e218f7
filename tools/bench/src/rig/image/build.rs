//! Builds a recipe's images: each layer is what installing it wrote into an overlay.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::layer::{EPOCH, LayerBlob, pack};
use super::recipe::{Packages, Recipe, Version};
use super::{Layout, app};
use crate::rig::command::{command, run};
use crate::rig::lab::Lab;
use crate::rig::places::make_dir;

/// Builds all versions into `layout`, which appears only when it is complete.
pub(super) fn build(lab: &Lab, recipe: &Recipe, layout: &Path) -> Result<()> {
    eprintln!("building the image {:?} from Debian packages (minutes, once)", recipe.name);
    let scratch = Scratch { dir: lab.dir().join("build") };
    let partial = lab.places.cache.join("images/partial");
    let _ = fs::remove_dir_all(&partial);
    let mut output = Layout::create(&partial)?;
    let mut trees = vec![timed("base system", || scratch.base(recipe.suite))?];
    for packages in recipe.packages {
        trees.push(scratch.packages(packages, &trees)?);
    }
    let versions: Vec<Vec<PathBuf>> = recipe
        .versions
        .iter()
        .map(|version| scratch.version(recipe, version, &trees))
        .collect::<Result<_>>()?;
    let pack_all =
        |trees: &[PathBuf]| trees.iter().map(|tree| pack(tree, &output)).collect::<Result<Vec<_>>>();
    let shared = timed("gzip", || pack_all(&trees))?;
    let own = versions.iter().map(|trees| pack_all(trees)).collect::<Result<Vec<_>>>()?;
    for (version, own) in recipe.versions.iter().zip(own) {
        let layers: Vec<LayerBlob> = shared.iter().cloned().chain(own).collect();
        output.image(version.tag, recipe.command, &layers)?;
    }
    output.finish()?;
    fs::rename(&partial, layout).with_context(|| format!("cannot keep {}", layout.display()))?;
    Ok(fs::remove_dir_all(&scratch.dir)?)
}

fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work().with_context(|| format!("cannot build the layer: {what}"))?;
    eprintln!("    {what}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(result)
}

/// Where layers take shape; below the lab's directory, so that an interrupted build's mounts end with it.
struct Scratch {
    dir: PathBuf,
}

impl Scratch {
    fn base(&self, suite: &str) -> Result<PathBuf> {
        make_dir(&self.dir)?;
        let tree = self.dir.join("base");
        let mut mmdebstrap =
            command("mmdebstrap", ["--variant=minbase", "--quiet", "--skip=cleanup/apt/lists"]);
        mmdebstrap.args(["--dpkgopt=force-unsafe-io", suite]).arg(&tree);
        run(mmdebstrap.env("SOURCE_DATE_EPOCH", EPOCH.to_string()))?;
        Ok(tree)
    }

    /// The layers of a version above those of all versions.
    fn version(&self, recipe: &Recipe, version: &Version, shared: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut trees = shared.to_vec();
        for packages in version.packages {
            trees.push(self.packages(packages, &trees)?);
        }
        trees.push(self.over(version.tag, &trees, |root| app::install(root, recipe, version))?);
        Ok(trees.split_off(shared.len()))
    }

    fn packages(&self, packages: &Packages, lowers: &[PathBuf]) -> Result<PathBuf> {
        let install = || self.over(packages.names[0], lowers, |root| self.install(packages, root));
        timed(&packages.names.join(" "), install)
    }

    fn install(&self, packages: &Packages, root: &Path) -> Result<()> {
        for file in ["etc/resolv.conf", "etc/hosts"] {
            fs::copy(Path::new("/").join(file), root.join(file))
                .with_context(|| format!("cannot copy /{file}"))?;
        }
        let mut names: Vec<String> = packages.names.iter().map(|&name| name.to_owned()).collect();
        for name in packages.stand_ins {
            names.push(self.stand_in(name, root)?);
        }
        mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), None::<&str>)?;
        let installed = install(root, &names);
        umount2(&root.join("proc"), MntFlags::MNT_DETACH)?;
        for name in packages.stand_ins {
            fs::remove_file(root.join(deb(name)))?;
        }
        installed
    }

    /// Does something to the root that these layers make, and returns what it wrote.
    fn over(
        &self,
        name: &str,
        lowers: &[PathBuf],
        work: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let (upper, workdir, root) = (self.dir.join(name), self.dir.join("work"), self.dir.join("root"));
        for dir in [&upper, &workdir, &root] {
            make_dir(dir)?;
        }
        let lowers: Vec<_> = lowers.iter().rev().map(|dir| dir.display().to_string()).collect();
        // Plain whiteouts and whole copies: what these features would write has no place in a tar.
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=off,metacopy=off,index=off",
            lowers.join(":"),
            upper.display(),
            workdir.display()
        );
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .context("cannot mount an overlay")?;
        let worked = work(&root);
        umount2(&root, MntFlags::empty()).context("cannot unmount the overlay")?;
        fs::remove_dir_all(&workdir)?;
        worked.map(|()| upper)
    }

    /// An empty package; returns the path by which apt-get finds it.
    fn stand_in(&self, name: &str, root: &Path) -> Result<String> {
        let control = self.dir.join("stand-in").join(name).join("DEBIAN");
        make_dir(&control)?;
        let text = format!(
            "Package: {name}\nVersion: 99\nArchitecture: all\nMaintainer: none <none@invalid>\nDescription: empty\n"
        );
        fs::write(control.join("control"), text)?;
        let source = control.parent().expect("joined above");
        run(command("dpkg-deb", ["--build", "--root-owner-group"]).arg(source).arg(root.join(deb(name))))?;
        Ok(format!("./{}", deb(name)))
    }
}

fn deb(name: &str) -> String {
    format!("{name}.deb")
}

fn install(root: &Path, names: &[String]) -> Result<()> {
    let mut apt = command("chroot", [root]);
    apt.args([
        "apt-get",
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
        "-o",
        "Dpkg::Options::=--force-unsafe-io",
    ]);
    run(quiet(apt.args(names), root))
}

fn quiet<'a>(command: &'a mut Command, root: &Path) -> &'a mut Command {
    command
        .current_dir(root)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
        .env("SOURCE_DATE_EPOCH", EPOCH.to_string())
}
