#![no_main]

use d7y_fuzz::{seeds, targets};

libfuzzer_sys::fuzz_target!(init: seeds::write(seeds::bootstrap()), |data: &[u8]| targets::bootstrap(data));
