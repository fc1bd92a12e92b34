//! See `minfs::fuzzing::path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minfs::fuzzing::path(data));
