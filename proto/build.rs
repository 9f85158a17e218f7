use std::error::Error;

const FILES: [&str; 4] = ["scheduler.proto", "local.proto", "manager.proto", "snapshots.proto"];

/// protox parses the contracts, so this crate needs no `protoc`.
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=protos");
    let descriptors = protox::compile(FILES, ["protos"])?;
    // Holds a token: `src/masked.rs` says what may be shown of it.
    let masked = [".d7y.scheduler.v1.PullGrant"];
    tonic_prost_build::configure().skip_debug(masked).compile_fds(descriptors)?;
    Ok(())
}
