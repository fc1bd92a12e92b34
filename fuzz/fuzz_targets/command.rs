//! See `minfs::fuzzing::command`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minfs::fuzzing::command(data));
