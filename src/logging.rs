//! What the server says about itself: one line per event, to stderr and to `logging.file`.
//!
//! ```text
//! 2025-01-31T12:00:00.123Z INFO  minfs::actors::raft_node >>> This node became LEADER <<<
//! ```
//!
//! `RUST_LOG`, when set, wins over `logging.level`; both take env_logger's directives (`info`,
//! `info,minfs::actors=debug`, `info/regex`). Some libraries talk more than an operator wants, so
//! they are held at `warn` or `error` unless they are named: `debug,openraft=debug`. Called once, by
//! `metaserver`, as soon as the configuration is known.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{SecondsFormat, Utc};
use env_logger::{Builder, Target};
use log::{LevelFilter, Record};

use crate::config::Logging;

/// Held at this level or less unless `RUST_LOG` or `logging.level` names them.
const NOISY: &[(&str, LevelFilter)] = &[
    // It warns several times a second of every peer that is away; who leads and why the node stops is
    // said by the Raft node.
    ("openraft", LevelFilter::Error),
    // An error of every clean stop.
    ("openraft::raft::stream_append", LevelFilter::Off),
    ("h2", LevelFilter::Warn),
    ("hyper", LevelFilter::Warn),
    ("hyper_util", LevelFilter::Warn),
    ("tonic", LevelFilter::Warn),
    ("tower", LevelFilter::Warn),
    ("raft_log", LevelFilter::Warn),
    ("chunked_wal", LevelFilter::Warn),
];

/// The environment variable that wins over `logging.level`.
const VARIABLE: &str = "RUST_LOG";

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// Directives that make no sense.
    #[error("{key}: {what}")]
    Level {
        /// `logging.level` or `RUST_LOG`.
        key: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The log file, or its directory, cannot be made or opened.
    #[error("logging.file: cannot open {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A second call in one process.
    #[error("logging was set up before")]
    Twice,
}

/// Between two lines of one [`Seldom`].
const EVERY: Duration = Duration::from_secs(60);

/// Something that is worth a line once in a while.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether it is time for a line; it counts as written.
    pub fn may_speak(&self) -> bool {
        let now = Instant::now();
        // A moment is never half written.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| now.duration_since(last) >= EVERY);
        if may {
            *last = Some(now);
        }
        may
    }
}

/// Starts logging, for the whole process.
///
/// # Errors
/// The level is nonsense, the file cannot be opened, or logging was started before.
pub fn init(logging: &Logging) -> Result<(), LoggingError> {
    let variable = std::env::var(VARIABLE).ok();
    let sink: Box<dyn Write + Send> = match &logging.file {
        Some(path) => Box::new(Tee {
            stderr: io::stderr(),
            file: open(path)?,
        }),
        None => Box::new(io::stderr()),
    };
    builder(&logging.level, variable.as_deref(), sink)?
        .try_init()
        .map_err(|_| LoggingError::Twice)
}

/// Refuses directives that env_logger would, and a single word that is no level: env_logger takes
/// it for the name of a crate, so that `inof` would silence the server.
///
/// # Errors
/// What is wrong, without the key.
pub(crate) fn check(directives: &str) -> Result<(), String> {
    env_filter::Builder::new()
        .try_parse(directives)
        .map_err(|error| error.to_string())?;
    let names = directives
        .split('/')
        .next()
        .unwrap_or_default()
        .split(',')
        .map(str::trim);
    for name in names.filter(|name| !name.is_empty() && !name.contains(['=', ':'])) {
        if name.parse::<LevelFilter>().is_err()
            && name != env!("CARGO_PKG_NAME")
            && !NOISY.iter().any(|(noisy, _)| *noisy == name)
        {
            return Err(format!(
                "`{name}` is no level (off, error, warn, info, debug, trace)"
            ));
        }
    }
    Ok(())
}

/// A logger that is not installed yet. An empty `variable` counts as unset.
fn builder(
    level: &str,
    variable: Option<&str>,
    sink: Box<dyn Write + Send>,
) -> Result<Builder, LoggingError> {
    let (key, directives) = match variable {
        Some(directives) if !directives.trim().is_empty() => (VARIABLE, directives),
        _ => ("logging.level", level),
    };
    check(directives).map_err(|what| LoggingError::Level { key, what })?;
    let mut builder = Builder::new();
    let named = |name: &str| directives.contains(name.split("::").next().unwrap_or(name));
    for (name, level) in NOISY.iter().filter(|(name, _)| !named(name)) {
        builder.filter_module(name, general_level(directives).min(*level));
    }
    builder
        .parse_filters(directives)
        .format(line)
        .target(Target::Pipe(sink));
    Ok(builder)
}

/// The level of whatever is not named: the last bare level, as env_logger has it.
fn general_level(directives: &str) -> LevelFilter {
    let names = directives.split('/').next().unwrap_or_default();
    names
        .split(',')
        .rev()
        .find_map(|name| name.trim().parse().ok())
        .unwrap_or(LevelFilter::Off)
}

/// One line, whatever the message holds: an operator greps.
fn line(out: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> io::Result<()> {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let message = record
        .args()
        .to_string()
        .replace('\n', "\\n")
        .replace('\r', "\\r");
    writeln!(out, "{time} {:<5} {} {message}", record.level(), record.target())
}

fn open(path: &Path) -> Result<File, LoggingError> {
    let directory = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty());
    directory
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| OpenOptions::new().create(true).append(true).open(path))
        .map_err(|source| LoggingError::File {
            path: path.to_owned(),
            source,
        })
}

/// Writes each line to both. A stderr that has gone away (its terminal was closed) must not cost the file.
struct Tee<E, F> {
    stderr: E,
    file: F,
}

impl<E: Write, F: Write> Write for Tee<E, F> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _gone = self.stderr.write_all(line);
        self.file.write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _gone = self.stderr.flush();
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use chrono::DateTime;
    use log::{Level, Log};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    /// What gets through, for a level, a `RUST_LOG` and some events.
    fn logged(level: &str, variable: Option<&str>, events: &[(Level, &str, &str)]) -> String {
        let lines = Lines::default();
        let logger = builder(level, variable, Box::new(lines.clone())).unwrap().build();
        for (level, target, message) in events {
            let args = format_args!("{message}");
            logger.log(&Record::builder().level(*level).target(target).args(args).build());
        }
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const EVENTS: &[(Level, &str, &str)] = &[
        (Level::Info, "minfs::actors::raft_node", "ours at info"),
        (Level::Debug, "minfs::actors::raft_node", "ours at debug"),
        (Level::Info, "openraft::core", "theirs at info"),
        (Level::Debug, "openraft::core", "theirs at debug"),
        (Level::Warn, "h2::client", "theirs at warn"),
        (Level::Info, "etcd_client", "another's at info"),
    ];

    fn messages(level: &str, variable: Option<&str>) -> Vec<String> {
        let lines = logged(level, variable, EVENTS);
        lines
            .lines()
            .map(|line| line.splitn(4, ' ').last().unwrap().trim_start().to_owned())
            .collect()
    }

    #[test]
    fn one_line_per_event_with_time_level_and_target() {
        let event = (
            Level::Info,
            "minfs::node",
            ">>> This node became LEADER <<<\nand a second\r line",
        );
        let text = logged("info", None, &[event]);
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(
            rest,
            "INFO  minfs::node >>> This node became LEADER <<<\\nand a second\\r line\n"
        );
        assert_eq!(time.len(), "2025-01-31T12:00:00.123Z".len());
        assert!(time.ends_with('Z'));
        DateTime::parse_from_rfc3339(time).unwrap();
    }

    #[test]
    fn the_level_holds_and_noisy_libraries_are_quiet() {
        let ends = |text: &[String], with: &str| text.iter().any(|line| line.ends_with(with));
        let info = messages("info", None);
        assert!(
            ends(&info, "ours at info") && ends(&info, "theirs at warn") && ends(&info, "another's at info")
        );
        assert!(!ends(&info, "ours at debug") && !ends(&info, "theirs at info"));
        let debug = messages("debug", None);
        assert!(ends(&debug, "ours at debug") && !ends(&debug, "theirs at info"));
        assert!(ends(&messages("info,openraft=debug", None), "theirs at debug"));
        for quiet in ["off", "error", "nothing::here"] {
            assert_eq!(messages(quiet, None), Vec::<String>::new(), "{quiet}");
        }
        assert_eq!(messages("info/ours", None).len(), 1);
    }

    #[test]
    fn rust_log_wins_over_the_level_unless_it_is_empty() {
        assert!(
            messages("off", Some("debug"))
                .iter()
                .any(|line| line.ends_with("ours at debug"))
        );
        assert!(
            !messages("debug", Some("info"))
                .iter()
                .any(|line| line.ends_with("ours at debug"))
        );
        assert!(
            messages("debug", Some(" "))
                .iter()
                .any(|line| line.ends_with("ours at debug"))
        );
    }

    #[test]
    fn nonsense_is_refused_with_the_name_of_what_said_it() {
        for bad in [
            "inof",
            "info,minfs=loud",
            "info/a/b",
            "info/[",
            "minfs=info=debug",
        ] {
            let sink = || Box::new(Lines::default());
            let error = builder(bad, None, sink()).err().unwrap().to_string();
            assert!(error.starts_with("logging.level: "), "{error}");
            let error = builder("info", Some(bad), sink()).err().unwrap().to_string();
            assert!(error.starts_with("RUST_LOG: "), "{error}");
        }
        for good in [
            "info",
            "INFO",
            "off",
            "warn,minfs=debug",
            "minfs",
            "tokio=trace",
            "a::b",
            "info/leader",
        ] {
            check(good).unwrap();
        }
    }

    #[test]
    fn the_file_is_made_with_its_directory_and_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/meta.log");
        for line in ["one\n", "two\n"] {
            let mut tee = Tee {
                stderr: Lines::default(),
                file: open(&path).unwrap(),
            };
            tee.write_all(line.as_bytes()).unwrap();
            assert_eq!(tee.stderr.0.lock().unwrap().as_slice(), line.as_bytes());
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_lost_stderr_does_not_cost_the_file() {
        let mut tee = Tee {
            stderr: Broken,
            file: Lines::default(),
        };
        tee.write_all(b"one\n").unwrap();
        tee.flush().unwrap();
        assert_eq!(tee.file.0.lock().unwrap().as_slice(), b"one\n");
    }

    #[test]
    fn a_full_disk_costs_the_files_lines_alone() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let stderr = Lines::default();
        let sink = Tee {
            stderr: stderr.clone(),
            file: full,
        };
        let logger = builder("info", None, Box::new(sink)).unwrap().build();
        for message in ["one", "two"] {
            let args = format_args!("{message}");
            logger.log(&Record::builder().level(Level::Info).args(args).build());
        }
        let lines = stderr.0.lock().unwrap().clone();
        assert_eq!(String::from_utf8(lines).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let blocked = dir.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        let path = blocked.join("meta.log");
        let error = init(&Logging {
            level: "info".into(),
            file: Some(path.clone()),
        })
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("logging.file: cannot open {}", path.display())),
            "{error}"
        );
        let directory = init(&Logging {
            level: "info".into(),
            file: Some(dir.path().into()),
        })
        .unwrap_err();
        assert!(matches!(directory, LoggingError::File { .. }));
    }
}
