use std::fs;
use std::path::Path;

use crate::program::d7y;

#[test]
fn the_configuration_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let (kept, made) = (fs::read_to_string(path).unwrap_or_default(), d7y(["config-reference"]).stdout);
    let differs = made.lines().zip(kept.lines()).find(|(made, kept)| made != kept);
    assert!(made == kept, "docs/configuration.md is out of date at {differs:?}: it says how it is made");
}

#[test]
fn every_key_says_what_it_is() {
    let reference = d7y(["config-reference"]).stdout;
    let silent: Vec<_> =
        reference.lines().filter(|line| line.starts_with("| `") && line.ends_with("|  |")).collect();
    assert!(silent.is_empty(), "keys without a doc comment:\n{}", silent.join("\n"));
}
