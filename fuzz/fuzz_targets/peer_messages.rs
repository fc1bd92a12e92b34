//! See `minfs::fuzzing::peer_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| minfs::fuzzing::peer_messages(data));
