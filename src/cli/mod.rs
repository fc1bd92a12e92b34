//! The `minfs` command: what is typed, what is printed, and the exit code.
//!
//! Everything that talks to servers is in [`crate::client`]; this room turns its answers into text or
//! JSON. One file a family of commands: `nodes` (mkdir, touch, ls, stat, rm), `mirror`, `diff`,
//! `cluster` (cluster, leader). A new command gets a variant in `arguments`, an arm in [`run`] and a
//! file here.
//!
//! The invariant: a command prints its result through [`Output`] and returns its [`Exit`]; whatever
//! stops it is a [`Failure`], which is printed in one place.

mod arguments;
mod cluster;
mod diff;
mod local;
mod mirror;
mod nodes;
mod output;
#[cfg(test)]
mod tests;
mod walk;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;

use self::arguments::Command;
pub use self::arguments::{Arguments, Environment};
pub use self::output::Output;
use self::output::complain;
use crate::client::{self, Client, Options, Source};

/// How a command ended, for scripts. The numbers are documented in `--help` and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// `diff` found differences.
    Differences = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The path, or its parent, does not exist.
    NotFound = 3,
    /// The name is taken.
    AlreadyExists = 4,
    /// An invalid argument or a failed precondition.
    Mistake = 5,
    /// Nothing happened; try again.
    Unavailable = 6,
    /// It may have happened.
    OutcomeUnknown = 7,
    /// Something local cannot be read or written.
    LocalIo = 8,
    /// The server failed in another way.
    Server = 9,
}

/// What stops a command.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The cluster's answer, or that there was none.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A local file or directory.
    #[error("{}: {source}", path.display())]
    Local {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What was typed makes no sense.
    #[error("{0}")]
    Usage(String),
}

impl Failure {
    /// A word for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Client(error) => error.kind(),
            Failure::Local { .. } => "local_io",
            Failure::Usage(_) => "usage",
        }
    }

    /// The exit code that tells this failure from the others.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Client(error) => exit_of(error),
            Failure::Local { .. } => Exit::LocalIo,
            Failure::Usage(_) => Exit::Usage,
        }
    }
}

fn exit_of(error: &client::Error) -> Exit {
    match error {
        client::Error::NotFound(_) => Exit::NotFound,
        client::Error::AlreadyExists(_) => Exit::AlreadyExists,
        client::Error::InvalidArgument(_) | client::Error::FailedPrecondition(_) => Exit::Mistake,
        client::Error::Unavailable(_) => Exit::Unavailable,
        client::Error::OutcomeUnknown(_) => Exit::OutcomeUnknown,
        client::Error::Server { .. } => Exit::Server,
        client::Error::Address(_) => Exit::Usage,
    }
}

/// The whole process: reads the command line and the environment, runs the command, prints.
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("off")).init();
    let mut out = Output::new(Box::new(io::stdout()));
    let exit = match Arguments::try_parse() {
        Ok(arguments) => in_runtime(arguments, &mut out),
        Err(error) => misread(&error, &mut out),
    };
    let exit = match out.finish() {
        Ok(()) => exit,
        Err(error) => {
            complain(&format!("the output cannot be written: {error}"));
            Exit::LocalIo
        }
    };
    ExitCode::from(exit as u8)
}

fn in_runtime(arguments: Arguments, out: &mut Output) -> Exit {
    // One thread: the work is to wait for servers, and connections need not be shared across cores.
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(arguments, &Environment::read(), out)),
        Err(error) => {
            complain(&format!("the runtime cannot be started: {error}"));
            Exit::LocalIo
        }
    }
}

/// The command line could not be read, or asks for help or the version.
fn misread(error: &clap::Error, out: &mut Output) -> Exit {
    let asked_for = !error.use_stderr();
    let json = std::env::args_os().any(|argument| argument == "--json");
    if json && !asked_for {
        let text = error.render().to_string();
        let message = text.trim().trim_start_matches("error: ");
        out.document(&json!({"error": {"kind": "usage", "message": message}}));
    } else {
        // Help into a closed pipe is no error either.
        let _ = error.print();
    }
    if asked_for { Exit::Ok } else { Exit::Usage }
}

/// Runs one command. Its result goes to `out`, remarks and (without `--json`) errors to stderr.
pub async fn run(arguments: Arguments, environment: &Environment, out: &mut Output) -> Exit {
    out.set_json(arguments.json);
    match execute(arguments, environment, out).await {
        Ok(exit) => exit,
        Err(failure) => {
            if out.json() {
                let (kind, message) = (failure.kind(), failure.to_string());
                out.document(&json!({"error": {"kind": kind, "message": message}}));
            } else {
                complain(&output::printable(&failure.to_string()));
            }
            failure.exit()
        }
    }
}

async fn execute(arguments: Arguments, environment: &Environment, out: &mut Output) -> Result<Exit, Failure> {
    let Arguments {
        connection, command, ..
    } = arguments;
    let source = connection.source(environment)?;
    // Comparing through one node means that node, not whichever it would rather name.
    let one_node = matches!(&source, Source::Servers(servers) if servers.len() == 1);
    let pinned = one_node && matches!(command, Command::Diff { .. });
    let options = Options {
        timeout: connection.timeout,
        pinned,
        ..Options::default()
    };
    let client = Client::connect(source, options).await?;

    match command {
        Command::Mkdir { parents, paths } => nodes::mkdir(&client, out, &paths, parents).await,
        Command::Touch { paths } => nodes::touch(&client, out, &paths).await,
        Command::Ls {
            path,
            recursive: false,
            long,
            ..
        } => nodes::list(&client, out, &path, long).await,
        Command::Ls {
            path,
            recursive: true,
            long,
            jobs,
        } => nodes::list_tree(&client, out, &path, long, jobs.get()).await,
        Command::Stat { path } => nodes::stat(&client, out, &path).await,
        Command::Rm { recursive, paths } => nodes::remove(&client, out, &paths, recursive).await,
        Command::Mirror { local, remote, jobs } => {
            mirror::mirror(&client, out, &local, &remote, jobs.get()).await
        }
        Command::Diff { local, remote, jobs } => diff::diff(&client, out, &local, &remote, jobs.get()).await,
        Command::Cluster => cluster::cluster(&client, out).await,
        Command::Leader => cluster::leader(&client, out).await,
    }
}
