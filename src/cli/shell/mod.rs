//! `shell`: commands typed one after the other, over the same connections.
//!
//! Every line is read by the same definition as the command line ([`Arguments`]); only `cd`, `pwd`, `help`, `exit`
//! and `quit` are the shell's own. Paths of the cluster may be relative to where the shell is. On a terminal
//! lines are edited, remembered and completed, and an error ends nothing; from a pipe, the first command that does
//! not exit with 0 ends the shell with its exit code.
//!
//! - `words`: a line as words
//! - `paths`: relative paths
//! - `complete`: what the tabulator offers

mod complete;
mod paths;
mod words;

use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Config, Editor};
use serde_json::json;

use self::complete::Typist;
use self::paths::resolve;
use super::arguments::{Arguments, Environment};
use super::output::{Output, complain};
use super::transfer::local_failure;
use super::{Exit, Failure, Session, conclude};
use crate::client::Error;
use crate::proto::dfs::FileType;

/// The shell's own commands.
const BUILT_IN: [&str; 5] = ["cd", "pwd", "help", "exit", "quit"];

const OWN_HELP: &str = "\
The shell's own commands:
  cd [PATH]       Go to a directory of the cluster; without PATH, to its root
  pwd             Show where the shell is
  help [COMMAND]  Show this, or what a command does
  exit, quit      Leave (Ctrl-D, too)

Paths of the cluster may be relative, also after minfs: in cp.
";

/// Whether lines will come from a person who types them.
pub(super) fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

/// Reads lines from the process's input and runs them, to the end.
pub(super) async fn run(
    session: &Session,
    environment: &Environment,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let at = Arc::new(Mutex::new("/".to_string()));
    let input = match is_interactive() {
        true => Input::typed(session, &at, environment.history.clone())?,
        false => Input::Pipe(Box::new(io::BufReader::new(io::stdin()))),
    };
    converse(session, input, &at, out).await
}

/// Where lines come from.
enum Input {
    Typed {
        editor: Box<Editor<Typist, DefaultHistory>>,
        history: Option<PathBuf>,
    },
    Pipe(Box<dyn BufRead + Send>),
}

/// What was read.
enum Read {
    Line(String),
    /// The line was given up.
    Nothing,
    End,
}

impl Input {
    fn typed(session: &Session, at: &Arc<Mutex<String>>, history: Option<PathBuf>) -> Result<Self, Failure> {
        let failed = |error| local_failure(Path::new("the terminal"), io::Error::other(error));
        let config = Config::builder()
            .completion_type(rustyline::CompletionType::List)
            .history_ignore_space(true)
            .auto_add_history(true)
            .build();
        let mut editor: Editor<Typist, DefaultHistory> = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Typist::new(session.client.clone(), at.clone())));
        if let Some(history) = &history
            && let Err(error) = editor.load_history(history)
        {
            log::info!("{} was not read: {error}", history.display());
        }
        let editor = Box::new(editor);
        Ok(Input::Typed { editor, history })
    }

    fn is_typed(&self) -> bool {
        match self {
            Input::Typed { .. } => true,
            Input::Pipe(_) => false,
        }
    }

    /// Reads one line on a thread that may wait for it.
    async fn next(mut self, prompt: String) -> (Self, io::Result<Read>) {
        let reading = tokio::task::spawn_blocking(move || {
            let read = self.read(&prompt);
            (self, read)
        });
        match reading.await {
            Ok(read) => read,
            Err(died) => (Input::Pipe(Box::new(io::empty())), Err(io::Error::other(died))),
        }
    }

    fn read(&mut self, prompt: &str) -> io::Result<Read> {
        match self {
            Input::Pipe(pipe) => {
                let mut line = String::new();
                Ok(match pipe.read_line(&mut line)? {
                    0 => Read::End,
                    _ => Read::Line(line),
                })
            }
            Input::Typed { editor, history } => match editor.readline(prompt) {
                Ok(line) => {
                    // Line by line: several shells may share a history, and one may be killed.
                    if let Some(history) = history
                        && let Err(error) = editor.append_history(history)
                    {
                        log::info!("{} was not written: {error}", history.display());
                    }
                    Ok(Read::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Read::Nothing),
                Err(ReadlineError::Eof) => Ok(Read::End),
                Err(ReadlineError::Io(error)) => Err(error),
                Err(other) => Err(io::Error::other(other)),
            },
        }
    }
}

async fn converse(
    session: &Session,
    mut input: Input,
    at: &Mutex<String>,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let (json, typed) = (out.json(), input.is_typed());
    loop {
        let here = at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let read;
        (input, read) = input.next(format!("minfs:{here}> ")).await;
        let line = match read.map_err(|error| local_failure(Path::new("the input"), error))? {
            Read::Line(line) => line,
            Read::Nothing => continue,
            Read::End => return Ok(Exit::Ok),
        };
        let step = tokio::select! {
            step = perform(session, &line, at, out) => step,
            () = interrupted(), if typed => {
                complain("interrupted; what was under way may have happened");
                Ok(Step::Done(Exit::Interrupted))
            }
        };
        let exit = match step {
            Ok(Step::Leave) => return Ok(Exit::Ok),
            Ok(Step::Done(exit)) => exit,
            Err(failure) => conclude(Err(failure), out),
        };
        out.set_json(json);
        let finished = out.finish();
        finished.map_err(|error| local_failure(Path::new("the output"), error))?;
        if out.closed() || (exit != Exit::Ok && !typed) {
            return Ok(exit);
        }
    }
}

async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a line came to.
enum Step {
    Done(Exit),
    Leave,
}

async fn perform(
    session: &Session,
    line: &str,
    at: &Mutex<String>,
    out: &mut Output,
) -> Result<Step, Failure> {
    let split = words::split(line);
    if let Some(open) = split.unclosed {
        return Err(Failure::Usage(format!("the line ends after an open {open}")));
    }
    let mut words: Vec<String> = split.words.into_iter().map(|word| word.text).collect();
    if words.first().is_some_and(|word| word == "minfs") {
        words.remove(0);
    }
    let here = at.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => return Ok(Step::Done(Exit::Ok)),
        ["exit" | "quit"] => return Ok(Step::Leave),
        ["pwd"] => {
            match out.json() {
                true => out.document(&json!({"path": here})),
                false => out.line(super::output::printable(&here)),
            }
            return Ok(Step::Done(Exit::Ok));
        }
        ["cd"] => *at.lock().unwrap_or_else(PoisonError::into_inner) = "/".to_string(),
        ["cd", path] => {
            let path = resolve(&here, path);
            let path = match path.trim_end_matches('/') {
                "" => "/".to_string(),
                path => path.to_string(),
            };
            if session.client.stat(&path).await?.r#type() != FileType::Directory {
                return Err(Error::FailedPrecondition(format!("not a directory: {path}")).into());
            }
            *at.lock().unwrap_or_else(PoisonError::into_inner) = path;
        }
        ["exit" | "quit" | "pwd" | "cd", ..] => {
            return Err(Failure::Usage(format!("{}: too many words", words[0])));
        }
        ["help"] => {
            out.line(OWN_HELP);
            return parsed(session, &words, &here, out).await.map(Step::Done);
        }
        _ => return parsed(session, &words, &here, out).await.map(Step::Done),
    }
    Ok(Step::Done(Exit::Ok))
}

/// A command as it could stand on the command line.
async fn parsed(session: &Session, words: &[&str], here: &str, out: &mut Output) -> Result<Exit, Failure> {
    let arguments = match Arguments::try_parse_from([&["minfs"], words].concat()) {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            out.line(error.render().to_string());
            return Ok(Exit::Ok);
        }
        Err(error) => {
            let text = error.render().to_string();
            return Err(Failure::Usage(
                text.trim().trim_start_matches("error: ").to_string(),
            ));
        }
    };
    let Arguments {
        connection,
        json,
        mut command,
    } = arguments;
    if connection.server.is_some() || connection.etcd.is_some() {
        let message = "the shell stays with the servers that it was started with";
        return Err(Failure::Usage(message.to_string()));
    }
    out.set_json(json || out.json());
    command.resolve(|path| resolve(here, path));
    match connection.timeout {
        Some(timeout) => session.with_timeout(timeout).perform(command, out).await,
        None => session.perform(command, out).await,
    }
}

#[cfg(test)]
pub(super) async fn piped(session: &Session, lines: &'static str, out: &mut Output) -> Result<Exit, Failure> {
    let at = Mutex::new("/".to_string());
    converse(session, Input::Pipe(Box::new(lines.as_bytes())), &at, out).await
}
