//! Fuzzes `apiserver::fuzzing::stored_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzzing::stored_text(data));
