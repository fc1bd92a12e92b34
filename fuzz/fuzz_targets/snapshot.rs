//! See `minfs::fuzzing::snapshot`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minfs::fuzzing::snapshot(data));
