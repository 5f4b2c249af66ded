//! Fuzzes `hypervisor::fuzzing::guest_agent`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hypervisor::fuzzing::guest_agent(data));
