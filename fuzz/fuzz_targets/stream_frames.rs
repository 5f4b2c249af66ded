//! Fuzzes `docker::fuzzing::stream_frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| docker::fuzzing::stream_frames(data));
