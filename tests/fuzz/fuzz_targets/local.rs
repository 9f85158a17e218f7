#![no_main]

use d7y_fuzz::{seeds, targets};

libfuzzer_sys::fuzz_target!(init: seeds::write(seeds::local()), |data: &[u8]| targets::local(data));
