//! Fuzzes `image::fuzzing::dockerfile`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::fuzzing::dockerfile(data));
