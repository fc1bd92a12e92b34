//! How far a transfer is, on stderr while it runs, and how fast it was.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::Output;

/// A bar of bytes. Nothing is shown with `--json`, or when stderr is no terminal.
pub(super) struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    pub(super) fn new(out: &Output) -> Self {
        let bar = match out.json() {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(0),
        };
        let template = "{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left {msg}";
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        Self {
            bar,
            started: Instant::now(),
        }
    }

    /// So many bytes more are to be moved, for the thing that is named.
    pub(super) fn expect(&self, bytes: u64, name: &str) {
        self.bar.inc_length(bytes);
        self.bar.set_message(name.to_string());
    }

    /// So many bytes were moved; fewer than none when a file is begun again.
    pub(super) fn moved(&self, bytes: i64) {
        match u64::try_from(bytes) {
            Ok(bytes) => self.bar.inc(bytes),
            Err(_) => self.bar.dec(bytes.unsigned_abs()),
        }
    }

    /// Clears the bar. What moving `bytes` bytes took, until now.
    pub(super) fn finish(&self, bytes: u64) -> Rate {
        self.bar.finish_and_clear();
        let seconds = self.started.elapsed().as_secs_f64();
        Rate {
            seconds,
            bytes_per_second: bytes as f64 / seconds.max(1e-9),
        }
    }
}

/// How long something took, and how fast it was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rate {
    pub(super) seconds: f64,
    pub(super) bytes_per_second: f64,
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = self.bytes_per_second / f64::from(1 << 20);
        write!(f, "in {:.2} s, {mib:.1} MiB/s", self.seconds)
    }
}
