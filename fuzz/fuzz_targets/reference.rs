//! Fuzzes `image::fuzzing::reference`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::fuzzing::reference(data));
