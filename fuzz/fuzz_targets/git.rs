//! Fuzzes `image::fuzzing::git`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image::fuzzing::git(data));
