//! Fuzzes `hypervisor::fuzzing::file_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypervisor::fuzzing::file_header(data));
