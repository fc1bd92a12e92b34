//! The machine and the programs of a run, in a few lines for the report.
//!
//! Asked once by `main`. Nothing in it names a host, a user or a path.

use std::fs;
use std::process::Command;

/// Label and value.
pub type Facts = Vec<(&'static str, String)>;

/// What a reader has to know to compare results.
pub fn facts() -> Facts {
    let (kind, options) = file_system();
    vec![
        ("processor", first_field("/proc/cpuinfo", "model name")),
        (
            "processors seen",
            std::thread::available_parallelism().map_or_else(|_| "?".to_owned(), |n| n.to_string()),
        ),
        ("memory", memory()),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("file system of all data", format!("{kind} ({options})")),
        (
            "etcd",
            said("etcd", &["--version"])
                .replace("etcd Version:", "")
                .trim()
                .to_owned(),
        ),
        ("MinFS", revision()),
        ("Rust", said("rustc", &["--version"])),
        (
            "date",
            chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string(),
        ),
    ]
}

/// Data on a file system that has no disk would make flushing free.
pub fn check_disk() -> Result<(), String> {
    let (kind, _) = file_system();
    if ["tmpfs", "ramfs"].contains(&kind.as_str()) {
        return Err(format!(
            "temporary files are on {kind}: set TMPDIR to a directory on a disk"
        ));
    }
    Ok(())
}

/// Type and options of what temporary files are on, where all servers have their data.
fn file_system() -> (String, String) {
    let dir = std::env::temp_dir();
    let dir = dir.canonicalize().unwrap_or(dir);
    let mounts = read("/proc/mounts");
    let on = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .filter(|(at, ..)| dir.starts_with(at))
        // Of two at one place, the later one is seen.
        .max_by_key(|(at, ..)| at.len());
    on.map_or_else(
        || ("?".to_owned(), "?".to_owned()),
        |(_, kind, options)| (kind.to_owned(), options.to_owned()),
    )
}

fn revision() -> String {
    let commit = said("git", &["rev-parse", "--short=12", "HEAD"]);
    let changes = said("git", &["status", "--porcelain", "--", "src", "Cargo.lock"]);
    match changes.as_str() {
        "" => format!("commit {commit}"),
        _ => format!("commit {commit} with changes to its sources"),
    }
}

fn memory() -> String {
    let total = first_field("/proc/meminfo", "MemTotal");
    let kib: Option<f64> = total.split(' ').next().and_then(|number| number.parse().ok());
    kib.map_or(total, |kib| format!("{:.1} GiB", kib / f64::from(1 << 20)))
}

fn first_field(file: &str, name: &str) -> String {
    let text = read(file);
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or_else(|| "?".to_owned(), |(_, value)| value.trim().to_owned())
}

fn read(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

/// The first line of what a program says.
fn said(program: &str, arguments: &[&str]) -> String {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        return "?".to_owned();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_default().trim().to_owned()
}
