//! See `minfs::fuzzing::client_requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minfs::fuzzing::client_requests(data));
