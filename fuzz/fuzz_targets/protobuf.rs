//! Fuzzes `kubernetes::fuzzing::protobuf`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubernetes::fuzzing::protobuf(data));
