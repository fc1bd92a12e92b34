//! Processor time: of the three nodes of a system, of this process, and of the rest of the machine.
//!
//! Read by `closed_loop` at both ends of a window, and by `main` between cells. From `/proc`, in ticks of 1/100 s:
//! over a window of seconds the error is under a hundredth for whoever is busy, more for an idle follower.

use std::fs;
use std::time::{Duration, Instant};

/// `USER_HZ`, which Linux has kept at 100 on every machine that this runs on.
const TICKS_A_SECOND: f64 = 100.0;

/// In place of a process id: there is none, and it uses no processor.
pub const NOBODY: u32 = 0;

/// The process ids of a system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processes {
    /// Who leads.
    pub leader: u32,
    /// Who follow; the first is the one that follower operations ask.
    pub followers: [u32; 2],
}

impl Processes {
    /// The leader first.
    pub fn all(&self) -> [u32; 3] {
        [self.leader, self.followers[0], self.followers[1]]
    }
}

/// Seconds of processor time, of all threads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Of the leader.
    pub leader: f64,
    /// Of the followers.
    pub followers: [f64; 2],
    /// Of this process, which is all clients.
    pub client: f64,
    /// Of everything else on the machine, the kernel's own work included.
    pub others: f64,
}

impl Usage {
    /// Since the processes began.
    pub fn now(processes: &Processes) -> Result<Usage, String> {
        let [leader, first, second] = processes.all();
        let mut usage = Usage {
            leader: process(&leader.to_string())?,
            followers: [process(&first.to_string())?, process(&second.to_string())?],
            client: process("self")?,
            others: 0.0,
        };
        usage.others = machine()? - usage.leader - usage.followers[0] - usage.followers[1] - usage.client;
        Ok(usage)
    }

    /// Between two moments.
    pub fn since(&self, before: &Usage) -> Usage {
        Usage {
            leader: self.leader - before.leader,
            followers: [
                self.followers[0] - before.followers[0],
                self.followers[1] - before.followers[1],
            ],
            client: self.client - before.client,
            others: (self.others - before.others).max(0.0),
        }
    }
}

/// Waits until these processes do next to nothing, `bound` at most; whether they came to rest.
pub async fn quiet(processes: &[u32], bound: Duration) -> Result<bool, String> {
    const LOOK: Duration = Duration::from_millis(100);
    // Nine idle processes beat at each other, which is a few hundredths of a processor in all.
    const QUIET: f64 = 0.02;
    let used = || {
        processes
            .iter()
            .map(|pid| process(&pid.to_string()))
            .sum::<Result<f64, String>>()
    };
    let begun = Instant::now();
    let mut before = used()?;
    while begun.elapsed() < bound {
        tokio::time::sleep(LOOK).await;
        let now = used()?;
        if now - before <= QUIET + f64::EPSILON {
            return Ok(true);
        }
        before = now;
    }
    Ok(false)
}

fn process(pid: &str) -> Result<f64, String> {
    if pid == NOBODY.to_string() {
        return Ok(0.0);
    }
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // After the name, which is in parentheses and may hold anything: user and system time.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after.split_whitespace().skip(11).take(2);
    Ok(sum(ticks) / TICKS_A_SECOND)
}

/// All processors, without idling, waiting for disks, and what another virtual machine took.
fn machine() -> Result<f64, String> {
    let stat = fs::read_to_string("/proc/stat").map_err(|error| format!("/proc/stat: {error}"))?;
    let all = stat.lines().next().unwrap_or_default();
    let fields: Vec<&str> = all.split_whitespace().skip(1).take(7).collect();
    let busy = fields.iter().enumerate().filter(|(n, _)| ![3, 4].contains(n));
    Ok(sum(busy.map(|(_, field)| *field)) / TICKS_A_SECOND)
}

fn sum<'a>(ticks: impl Iterator<Item = &'a str>) -> f64 {
    ticks.filter_map(|field| field.parse::<f64>().ok()).sum()
}
