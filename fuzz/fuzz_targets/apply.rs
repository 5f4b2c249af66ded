//! Fuzzes `apiserver::fuzzing::apply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| apiserver::fuzzing::apply(data));
