#![no_main]

use d7y_fuzz::{seeds, targets};

libfuzzer_sys::fuzz_target!(init: seeds::write(seeds::image_name()), |data: &[u8]| targets::image_name(data));
