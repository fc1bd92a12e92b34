//! The `minfs` command: what is typed, what is printed, and the exit code.
//!
//! Everything that talks to servers is in [`crate::client`]; this room turns its answers into text or
//! JSON. One file a family of commands: `nodes` (mkdir, touch, ls, stat, rm), `mirror`, `diff`,
//! `transfer` (put, get, cat), `copy` (cp), `replicas`, `fsck`, `cluster` (cluster, leader), and `shell`, which
//! runs the others. A new command gets a variant in `arguments`, an arm in `Session::perform` and a file here.
//!
//! The invariant: a command prints its result through [`Output`] and returns its [`Exit`]; whatever
//! stops it is a [`Failure`], which is printed in one place.

mod arguments;
mod cluster;
mod copy;
mod diff;
mod fsck;
mod local;
mod mirror;
mod nodes;
mod output;
mod progress;
mod replicas;
mod shell;
#[cfg(test)]
mod tests;
mod transfer;
mod verify;
mod walk;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

pub use self::arguments::{Arguments, Environment};
use self::arguments::{Command, Connection};
pub use self::output::Output;
use self::output::complain;
use crate::client::files::TransferError;
use crate::client::{self, Client, Options, Source};

/// How a command ended, for scripts. The numbers are documented in `--help` and stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// `diff` or `cluster --verify` found differences, or `fsck` something that is not as it should be.
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
    /// What was read is not what was stored: of a file, or with `cluster --verify` of a node's state.
    Damaged = 10,
    /// SIGINT; as shells say it.
    Interrupted = 130,
    /// SIGTERM; as shells say it.
    Terminated = 143,
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
    /// Blocks could not be moved, or what was read was changed meanwhile. Nothing happened; try again.
    #[error("{0}")]
    NotMoved(String),
    /// What was read is not what was stored: of a file, or with `cluster --verify` of a node's state.
    #[error("{0}")]
    Damaged(String),
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Meta(error) => Failure::Client(error),
            TransferError::Local { path, source } => Failure::Local { path, source },
            TransferError::DataServers(message) | TransferError::Changed(message) => {
                Failure::NotMoved(message)
            }
            TransferError::Damaged(message) => Failure::Damaged(message),
        }
    }
}

impl Failure {
    /// A word for scripts.
    pub fn kind(&self) -> &'static str {
        match self {
            Failure::Client(error) => error.kind(),
            Failure::Local { .. } => "local_io",
            Failure::Usage(_) => "usage",
            Failure::NotMoved(_) => "unavailable",
            Failure::Damaged(_) => "damaged",
        }
    }

    /// The exit code that tells this failure from the others.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Client(error) => exit_of(error),
            Failure::Local { .. } => Exit::LocalIo,
            Failure::Usage(_) => Exit::Usage,
            Failure::NotMoved(_) => Exit::Unavailable,
            Failure::Damaged(_) => Exit::Damaged,
        }
    }

    /// Whether the MetaServers are not there, so that the next request would fail like this one.
    fn is_of_the_cluster(&self) -> bool {
        matches!(
            self,
            Failure::Client(client::Error::Unavailable(_) | client::Error::OutcomeUnknown(_))
        )
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
    // One thread: the work is to wait for servers, and connections need not be shared across cores. Files are
    // read, written and digested on threads of their own.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the runtime cannot be started: {error}"));
            return Exit::LocalIo;
        }
    };
    // A command that is broken off cleans up behind itself: no temporary file stays. Who types into a shell
    // interrupts the command and not the shell.
    let typed = matches!(arguments.command, Command::Shell) && shell::is_interactive();
    let environment = Environment::read();
    let exit = runtime.block_on(async {
        tokio::select! {
            exit = run(arguments, &environment, out) => exit,
            exit = broken_off(typed) => exit,
        }
    });
    // A thread may wait for a pipe that nobody reads.
    runtime.shutdown_background();
    exit
}

/// Waits for SIGTERM or, unless somebody else does, for SIGINT.
async fn broken_off(typed: bool) -> Exit {
    let (interrupt, terminate) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = (interrupt, terminate) else {
        // Then they end the process, as they do without anybody listening.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv(), if !typed => Exit::Interrupted,
        _ = terminate.recv() => Exit::Terminated,
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
    let done = execute(arguments, environment, out).await;
    conclude(done, out)
}

/// Prints what stopped a command, if anything.
fn conclude(done: Result<Exit, Failure>, out: &mut Output) -> Exit {
    let failure = match done {
        Ok(exit) => return exit,
        Err(failure) => failure,
    };
    if out.json() {
        let (kind, message) = (failure.kind(), failure.to_string());
        out.document(&json!({"error": {"kind": kind, "message": message}}));
    } else if let Failure::Usage(message) = &failure {
        // What clap says of a line of the shell has several lines.
        let lines: Vec<String> = message.lines().map(output::printable).collect();
        complain(&lines.join("\n"));
    } else {
        complain(&output::printable(&failure.to_string()));
    }
    failure.exit()
}

async fn execute(arguments: Arguments, environment: &Environment, out: &mut Output) -> Result<Exit, Failure> {
    let session = Session::open(&arguments.connection, environment).await?;
    match arguments.command {
        Command::Shell => shell::run(&session, environment, out).await,
        command => session.perform(command, out).await,
    }
}

/// How long one operation is tried, unless the command line says something else.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The cluster that commands are for.
struct Session {
    source: Source,
    client: Client,
}

impl Session {
    async fn open(connection: &Connection, environment: &Environment) -> Result<Self, Failure> {
        let source = connection.source(environment)?;
        let options = Options {
            timeout: connection.timeout.unwrap_or(TIMEOUT),
            ..Options::default()
        };
        let client = Client::connect(source.clone(), options).await?;
        Ok(Self { source, client })
    }

    /// The same cluster with another time limit.
    fn with_timeout(&self, timeout: Duration) -> Self {
        Self {
            source: self.source.clone(),
            client: self.client.with_timeout(timeout),
        }
    }

    /// A client for comparing: through one node means that node, not whichever it would rather name.
    async fn pinned(&self) -> Result<Client, Failure> {
        let options = Options {
            timeout: self.client.timeout(),
            pinned: matches!(&self.source, Source::Servers(servers) if servers.len() == 1),
            ..Options::default()
        };
        Ok(Client::connect(self.source.clone(), options).await?)
    }

    async fn perform(&self, command: Command, out: &mut Output) -> Result<Exit, Failure> {
        let client = &self.client;
        match command {
            Command::Mkdir { parents, paths } => nodes::mkdir(client, out, &paths, parents).await,
            Command::Touch { paths } => nodes::touch(client, out, &paths).await,
            Command::Ls {
                path,
                recursive,
                long,
                jobs,
            } => {
                let path = path.unwrap_or_else(|| "/".to_string());
                match recursive {
                    false => nodes::list(client, out, &path, long).await,
                    true => nodes::list_tree(client, out, &path, long, jobs.get()).await,
                }
            }
            Command::Stat { path } => nodes::stat(client, out, &path).await,
            Command::Rm { recursive, paths } => nodes::remove(client, out, &paths, recursive).await,
            Command::Mirror { local, remote, jobs } => {
                mirror::mirror(client, out, &local, &remote, jobs.get()).await
            }
            Command::Diff { local, remote, jobs } => {
                let client = self.pinned().await?;
                diff::diff(&client, out, &local, &remote, jobs.get()).await
            }
            Command::Put {
                blocks,
                no_clobber,
                parents,
                local,
                remote,
            } => transfer::put(client, out, &local, &remote, (parents, no_clobber), blocks.get()).await,
            Command::Get {
                blocks,
                no_clobber,
                remote,
                local,
            } => transfer::get(client, out, &remote, &local, no_clobber, blocks.get()).await,
            Command::Cat { blocks, paths } => transfer::cat(client, out, &paths, blocks.get()).await,
            Command::Cp {
                recursive,
                no_clobber,
                jobs,
                places,
            } => copy::copy(client, out, &places, (recursive, no_clobber), jobs.into()).await,
            Command::Replicas { blocks, path } => {
                replicas::replicas(client, out, path.as_deref(), blocks).await
            }
            Command::Fsck {
                allow_mass_delete: true,
                ..
            } => fsck::allow_mass_delete(client, out).await,
            Command::Fsck {
                max_problems, path, ..
            } => fsck::fsck(client, out, path.as_deref(), max_problems).await,
            Command::Shell => Err(Failure::Usage("this is the shell".to_string())),
            Command::Cluster { verify: true } => verify::verify(client, out).await,
            Command::Cluster { verify: false } => cluster::cluster(client, out).await,
            Command::Leader => cluster::leader(client, out).await,
        }
    }
}
