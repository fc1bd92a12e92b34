//! How much memory a process takes, as Linux says it.

use std::fs;

/// What of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Resident now.
    Now,
    /// Resident at its highest.
    Peak,
}

/// Resident memory of a process, bytes.
pub fn memory(process: u32, which: Memory) -> u64 {
    let name = match which {
        Memory::Now => "VmRSS:",
        Memory::Peak => "VmHWM:",
    };
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}
