//! End-to-end tests: see the test targets in Cargo.toml. What they share is the programs that they start.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use d7y_bench::rig::command::run;
use d7y_bench::rig::places::Places;

/// The packages that `cargo xtask test` builds beforehand: the same set has the same features, and nothing is
/// built twice.
const PACKAGES: [&str; 6] =
    ["d7y-manager", "d7y-peer", "d7y-scheduler", "d7y-snapshotter", "d7y-bench", "d7y-cli"];

/// What the tests start.
const PROGRAMS: [&str; 5] = ["d7y-manager", "d7y-peer", "d7y-scheduler", "d7y-snapshotter", "d7y"];

/// Where the programs are, as this tree has them: built now, unless they are.
///
/// # Panics
/// When they cannot be built.
pub fn built() -> &'static Places {
    static BUILT: OnceLock<Places> = OnceLock::new();
    BUILT.get_or_init(|| {
        let built = Places::find().and_then(|places| build(&places).map(|()| places));
        built.unwrap_or_else(|error| panic!("{error:#}"))
    })
}

/// cargo does not build other packages' programs for a test; an old one would be tested in their place.
fn build(places: &Places) -> Result<()> {
    if !places.binaries.ends_with("debug") {
        return PROGRAMS.iter().try_for_each(|name| places.daemon(name).map(drop));
    }
    let target = places.binaries.parent().context("a profile's directory has a parent")?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // cargo told this process of this package, and ring is built anew whenever that changes.
    let of_package =
        |name: &OsString| name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR";
    std::env::vars_os().map(|(name, _)| name).filter(of_package).for_each(|name| {
        cargo.env_remove(name);
    });
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?);
    cargo.args(["build", "--locked", "--quiet", "--bins", "--target-dir"]).arg(target);
    cargo.args(PACKAGES.iter().flat_map(|name| ["-p", name]));
    run(&mut cargo).context("cannot build the daemons that are to be tested")
}
