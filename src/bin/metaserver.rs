//! The MetaServer.

fn main() {}
