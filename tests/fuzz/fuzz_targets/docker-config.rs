#![no_main]

use d7y_fuzz::{seeds, targets};

libfuzzer_sys::fuzz_target!(init: seeds::write(seeds::docker_config()), |data: &[u8]| targets::docker_config(data));
