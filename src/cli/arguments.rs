//! What can be typed: the commands, their options, and the exit codes, as `--help` shows them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::Failure;
use crate::client::Source;

/// Where a single server without any configuration listens.
const DEFAULT_SERVER: &str = "localhost:9090";

/// What a path of the cluster begins with where a local one could stand.
pub(super) const REMOTE: &str = "minfs:";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  diff or cluster --verify found differences, fsck something that is not as it should be
  2  the command line is wrong
  3  not found
  4  already exists (mirror: an entry exists as another kind)
  5  another mistake: invalid argument, directory not empty, not a directory, ...
  6  unavailable: the request that failed changed nothing, try again
  7  outcome unknown: the request that failed may have happened, look before trying again
  8  a local file or directory cannot be read or written, or the output cannot be written
  9  any other error of the server
  10 damaged: the bytes that were read do not match the file's MD5, or (cluster --verify) a
     MetaServer's records the hash of its state
  130, 143  interrupted, terminated; what was under way may have happened

With --json, every command prints one JSON document on stdout; an error is
{\"error\":{\"kind\":…,\"message\":…}} with the kinds not_found, already_exists, invalid_argument,
failed_precondition, unavailable, outcome_unknown, local_io, damaged, server, usage.

put and cp replace a file in one step: what is there can be read until the new content is complete,
and a transfer that fails leaves no half file on either side.";

/// Works with the tree and the servers of a MinFS cluster.
#[derive(Debug, Parser)]
#[command(name = "minfs", version, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Print one JSON document instead of text.
    #[arg(long, global = true)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// How to reach the cluster.
#[derive(Debug, Args)]
pub(super) struct Connection {
    /// MetaServers, host:port[,host:port…]; any of them will do [env: MINFS_SERVER] [default:
    /// localhost:9090]
    #[arg(long, global = true, value_name = "ADDRESSES")]
    pub(super) server: Option<String>,
    /// Find the MetaServers in etcd at host:port[,host:port…] [env: MINFS_ETCD]
    #[arg(long, global = true, value_name = "ADDRESSES")]
    pub(super) etcd: Option<String>,
    /// How long one operation is tried before it is given up, such as 500ms, 30s or 2m [default: 30s]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
}

/// What the environment says, where the command line says nothing.
#[derive(Debug, Default)]
pub struct Environment {
    /// `MINFS_SERVER`.
    pub server: Option<String>,
    /// `MINFS_ETCD`.
    pub etcd: Option<String>,
    /// Where the shell keeps its history: `MINFS_HISTORY`, or `.minfs_history` in the home directory.
    pub history: Option<PathBuf>,
}

impl Environment {
    /// Reads the process's environment. An empty variable counts as unset.
    pub fn read() -> Self {
        let read = |name| {
            std::env::var(name)
                .ok()
                .filter(|value: &String| !value.is_empty())
        };
        Self {
            server: read("MINFS_SERVER"),
            etcd: read("MINFS_ETCD"),
            history: read("MINFS_HISTORY")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(read("HOME")?).join(".minfs_history"))),
        }
    }
}

impl Connection {
    /// The command line goes before the environment, and `--server` before `--etcd`.
    pub(super) fn source(&self, environment: &Environment) -> Result<Source, Failure> {
        let source = match (&self.server, &self.etcd, &environment.server, &environment.etcd) {
            (Some(_), Some(_), _, _) => {
                return Err(Failure::Usage(
                    "--server and --etcd exclude each other".to_string(),
                ));
            }
            (Some(servers), None, _, _) | (None, None, Some(servers), _) => Source::servers(servers),
            (None, Some(etcd), _, _) | (None, None, None, Some(etcd)) => Source::etcd(etcd),
            (None, None, None, None) => Source::servers(DEFAULT_SERVER),
        };
        Ok(source?)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time.is_zero() {
        return Err("must be more than nothing".to_string());
    }
    Ok(time)
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create directories
    Mkdir {
        /// Make missing parents too; a directory that exists is fine
        #[arg(short, long)]
        parents: bool,
        /// Absolute paths
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Create empty files; a name that is taken is an error
    Touch {
        /// Absolute paths
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// List a directory
    Ls {
        /// Kind, size in bytes and time of change (UTC) too
        #[arg(short, long)]
        long: bool,
        /// The whole tree, as full paths, parents first
        #[arg(short = 'R', long)]
        recursive: bool,
        #[command(flatten)]
        jobs: Jobs,
        /// Absolute path [default: /]
        path: Option<String>,
    },
    /// Show what is known about a path
    Stat {
        /// Absolute path
        path: String,
    },
    /// Delete files and empty directories
    Rm {
        /// Delete directories with everything below them
        #[arg(short, long)]
        recursive: bool,
        /// Absolute paths
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Make every directory, and an empty file for every file, of a local tree
    ///
    /// Entries that exist as the same kind are fine, so that a mirror can be repeated. Symbolic links,
    /// special files and names that are not UTF-8 are skipped and counted.
    Mirror {
        #[command(flatten)]
        jobs: Jobs,
        /// A local directory
        local: PathBuf,
        /// Absolute path of the directory that becomes its image; made with its parents if missing
        remote: String,
    },
    /// Compare names and kinds of a local and a remote tree
    ///
    /// Prints one line a difference: `< path` is only local, `> path` only remote, `! path` of different
    /// kinds. What mirror skips is not compared. With exactly one address in --server, only that node
    /// is asked.
    Diff {
        #[command(flatten)]
        jobs: Jobs,
        /// A local directory
        local: PathBuf,
        /// Absolute path of a directory
        remote: String,
    },
    /// Store a local file
    ///
    /// A file that is there is replaced, in one step, when everything is written. Every block is on two
    /// DataServers at least (on one, where only one is asked for) before put succeeds.
    Put {
        #[command(flatten)]
        blocks: Blocks,
        /// Refuse (exit code 4) when there is a file already
        #[arg(short, long)]
        no_clobber: bool,
        /// Make missing parents too
        #[arg(short, long)]
        parents: bool,
        /// A local file
        local: PathBuf,
        /// Absolute path of the file, or of a directory (also: with a slash at the end) that gets it
        remote: String,
    },
    /// Fetch a file
    ///
    /// The local file appears, or is replaced, when everything is there and its MD5 was verified.
    Get {
        #[command(flatten)]
        blocks: Blocks,
        /// Refuse (exit code 4) when there is a local file already
        #[arg(short, long)]
        no_clobber: bool,
        /// Absolute path
        remote: String,
        /// The local file, or a directory that gets it
        #[arg(default_value = ".")]
        local: PathBuf,
    },
    /// Print files
    ///
    /// The MD5 is verified at the end: when it does not match (exit code 10), the bytes are out already.
    Cat {
        #[command(flatten)]
        blocks: Blocks,
        /// Absolute paths
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Copy files and directories to, from and inside the cluster
    ///
    /// Paths of the cluster are written minfs:/path: `minfs cp -r docs minfs:/docs`,
    /// `minfs cp -r minfs:/docs out`. As with cp, what is copied goes into DESTINATION when that is a
    /// directory, and becomes DESTINATION when nothing is there. A file that cannot be copied does not keep the
    /// others; the exit code is that of the first one. Symbolic links, special files and names that are not
    /// UTF-8 are skipped and counted.
    Cp {
        /// Copy directories with everything below them
        #[arg(short, long)]
        recursive: bool,
        /// Leave files alone that are there already, and count them as errors (exit code 4)
        #[arg(short, long)]
        no_clobber: bool,
        /// How many files, and how many blocks, may be under way at once
        #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
        jobs: u16,
        /// What is copied, and, as the last one, where to
        #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DESTINATION"])]
        places: Vec<OsString>,
    },
    /// Show how well files are replicated
    Replicas {
        /// Every block, with the DataServers that report it and those that should; shown anyway for one file
        #[arg(short, long)]
        blocks: bool,
        /// Absolute path [default: every file]
        path: Option<String>,
    },
    /// Examine files, DataServers and garbage, and say what there is to do
    ///
    /// Exit code 1 when something is under-replicated, missing, corrupt or over-replicated.
    Fsck {
        /// How many files that are not healthy are described; all are counted
        #[arg(long, value_name = "N", default_value_t = 100)]
        max_problems: u32,
        /// Instead, give the word that the deletes which the cluster holds back now may go on
        #[arg(long, conflicts_with_all = ["path", "max_problems"])]
        allow_mass_delete: bool,
        /// Absolute path of a file or directory [default: everything]
        path: Option<String>,
    },
    /// Type commands, with history and completion
    ///
    /// All other commands as they are, and cd, pwd, help, exit. Paths of the cluster may be relative. Commands
    /// can also come from a pipe; the first one that does not exit with 0 ends the shell then, with its exit
    /// code. The history is in $MINFS_HISTORY, or ~/.minfs_history.
    Shell,
    /// Show every MetaServer and DataServer
    ///
    /// With --verify every MetaServer reads its whole state, compares it with its hash, and all of them are
    /// compared. Exits with 0 when all agree, 1 when some differ, 10 when one is damaged, 6 when one could not
    /// be asked.
    Cluster {
        /// Compare the states of all MetaServers, record by record
        #[arg(long)]
        verify: bool,
    },
    /// Show which MetaServer leads
    Leader,
}

impl Command {
    /// Turns every path of the cluster that was typed into what `resolve` makes of it.
    pub(super) fn resolve(&mut self, mut resolve: impl FnMut(&str) -> String) {
        let mut each = |path: &mut String| *path = resolve(path);
        match self {
            Command::Mkdir { paths, .. }
            | Command::Touch { paths }
            | Command::Rm { paths, .. }
            | Command::Cat { paths, .. } => paths.iter_mut().for_each(each),
            // Without a path: the directory where the shell is.
            Command::Ls { path, .. } => each(path.get_or_insert_default()),
            Command::Replicas { path, .. } | Command::Fsck { path, .. } => path.iter_mut().for_each(each),
            Command::Stat { path } => each(path),
            Command::Mirror { remote, .. }
            | Command::Diff { remote, .. }
            | Command::Put { remote, .. }
            | Command::Get { remote, .. } => each(remote),
            Command::Cp { places, .. } => {
                for place in places {
                    if let Some(remote) = place.to_str().and_then(|place| place.strip_prefix(REMOTE)) {
                        *place = format!("{REMOTE}{}", resolve(remote)).into();
                    }
                }
            }
            Command::Shell | Command::Cluster { .. } | Command::Leader => (),
        }
    }
}

/// How many blocks are moved at once.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Blocks {
    /// How many blocks may be under way at once (fewer when they are larger than 64 MiB)
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
}

impl Blocks {
    pub(super) fn get(self) -> usize {
        usize::from(self.jobs)
    }
}

#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Jobs {
    /// How many requests may be under way at once
    #[arg(short, long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    jobs: u16,
}

impl Jobs {
    pub(super) fn get(self) -> usize {
        usize::from(self.jobs)
    }
}
