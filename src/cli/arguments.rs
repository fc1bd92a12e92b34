//! What can be typed: the commands, their options, and the exit codes, as `--help` shows them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::Failure;
use crate::client::Source;

/// Where a single server without any configuration listens.
const DEFAULT_SERVER: &str = "localhost:9090";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  diff found differences
  2  the command line is wrong
  3  not found
  4  already exists (mirror: an entry exists as another kind)
  5  another mistake: invalid argument, directory not empty, not a directory, ...
  6  unavailable: the request that failed changed nothing, try again
  7  outcome unknown: the request that failed may have happened, look before trying again
  8  a local file or directory cannot be read, or the output cannot be written
  9  any other error of the server

With --json, every command prints one JSON document on stdout; an error is
{\"error\":{\"kind\":…,\"message\":…}} with the kinds not_found, already_exists, invalid_argument,
failed_precondition, unavailable, outcome_unknown, local_io, server, usage.";

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
    server: Option<String>,
    /// Find the MetaServers in etcd at host:port[,host:port…] [env: MINFS_ETCD]
    #[arg(long, global = true, value_name = "ADDRESSES")]
    etcd: Option<String>,
    /// How long one operation is tried before it is given up, such as 500ms, 30s or 2m
    #[arg(long, global = true, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(super) timeout: Duration,
}

/// What the environment says, where the command line says nothing.
#[derive(Debug, Default)]
pub struct Environment {
    /// `MINFS_SERVER`.
    pub server: Option<String>,
    /// `MINFS_ETCD`.
    pub etcd: Option<String>,
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
        /// Absolute path
        #[arg(default_value = "/")]
        path: String,
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
    /// Show every MetaServer and DataServer
    Cluster,
    /// Show which MetaServer leads
    Leader,
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
