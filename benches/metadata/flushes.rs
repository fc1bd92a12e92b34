//! Proof that both systems flush: strace counts the flushes of every node while creates are acknowledged.
//!
//! Called by `main` after the rounds, or alone with `--verify-flush`. One client is the sharp case, since nothing
//! can share its flush: a majority of the nodes must have flushed at least as often as creates were acknowledged.
//! With many clients one flush serves many creates, and every node must have flushed at all. Tracing makes the
//! servers slow, so nothing of this is a measurement.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::closed_loop::Load;
use crate::operation::{Operation, Role};
use crate::settings::Kind;
use crate::support::wait::until;
use crate::system::{Connection, System};
use crate::workload::Stock;

/// How many clients create how many files.
const CREATES: [(usize, usize); 2] = [(1, 200), (64, 2000)];

/// What was seen of one system.
pub struct Flushes {
    /// Of whom.
    pub kind: Kind,
    /// How many clients created files.
    pub clients: usize,
    /// How many creates were acknowledged.
    pub acknowledged: usize,
    /// Flushes that succeeded: of the leader, and of the followers.
    pub flushes: [usize; 3],
}

/// Whether strace is there.
pub fn possible() -> bool {
    let asked = Command::new("strace")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success())
}

/// Counts for one client and for 64. Fails when creates were acknowledged that were not flushed.
pub async fn count(kind: Kind, system: &dyn System) -> Result<Vec<Flushes>, String> {
    let mut counted = Vec::new();
    let connections: Vec<Connection> = (0..16).map(|_| system.connect(Role::Leader)).collect();
    let stock = Arc::new(Stock::prepare(&connections, 1).await?);
    for (clients, acknowledged) in CREATES {
        let processes = system.processes();
        let dir = TempDir::new().map_err(|error| format!("no directory for strace: {error}"))?;
        let mut traces = Vec::new();
        for pid in processes.all() {
            traces.push(Trace::attach(pid, &dir).await?);
        }
        let load = Load {
            operation: Operation::Create,
            clients,
            connections: &connections[..clients.min(connections.len())],
            stock: &stock,
        };
        load.repeat(acknowledged).await?;
        let mut flushes = [0; 3];
        for (count, trace) in flushes.iter_mut().zip(traces) {
            *count = trace.detach()?;
        }
        let seen = Flushes {
            kind,
            clients,
            acknowledged,
            flushes,
        };
        seen.judge()?;
        counted.push(seen);
    }
    Ok(counted)
}

impl Flushes {
    fn judge(&self) -> Result<(), String> {
        let Flushes {
            kind,
            clients,
            acknowledged,
            flushes,
        } = self;
        let mut sorted = *flushes;
        sorted.sort_unstable();
        let unflushed = *clients == 1 && sorted[1] < *acknowledged;
        if sorted[0] == 0 || unflushed {
            return Err(format!(
                "{}: {acknowledged} creates of {clients} clients were acknowledged with {flushes:?} flushes of its nodes",
                kind.label()
            ));
        }
        Ok(())
    }
}

/// A strace of one process; ended when this is dropped.
struct Trace {
    strace: Child,
    file: PathBuf,
}

impl Trace {
    async fn attach(pid: u32, dir: &TempDir) -> Result<Trace, String> {
        let (file, said) = (
            dir.path().join(format!("{pid}.trace")),
            dir.path().join(format!("{pid}.said")),
        );
        let output = File::create(&said).map_err(|error| format!("no file for strace: {error}"))?;
        let strace = Command::new("strace")
            .args(["-f", "-e", "trace=fsync,fdatasync", "-o"])
            .arg(&file)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(|error| format!("strace: {error}"))?;
        let mut trace = Trace { strace, file };
        let attached = until("strace is attached", Duration::from_secs(10), async || {
            let text = fs::read_to_string(&said).unwrap_or_default();
            if text.contains("attached") {
                return Some(Ok(()));
            }
            let ended = trace.strace.try_wait().ok()??;
            Some(Err(format!("strace of {pid} ended ({ended}): {text}")))
        });
        attached.await?;
        Ok(trace)
    }

    /// How many flushes it saw succeed.
    fn detach(mut self) -> Result<usize, String> {
        if let Some(pid) = Pid::from_raw(self.strace.id() as i32) {
            kill_process(pid, Signal::INT).map_err(|error| format!("strace: {error}"))?;
        }
        self.strace.wait().map_err(|error| format!("strace: {error}"))?;
        let text = fs::read_to_string(&self.file).map_err(|error| format!("strace's output: {error}"))?;
        let succeeded = |line: &&str| line.contains("sync") && line.trim_end().ends_with("= 0");
        Ok(text.lines().filter(succeeded).count())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}
