use std::error::Error;

const FILES: [&str; 4] = ["scheduler.proto", "local.proto", "manager.proto", "snapshots.proto"];

/// protox parses the contracts, so this crate needs no `protoc`.
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=protos");
    let descriptors = protox::compile(FILES, ["protos"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
