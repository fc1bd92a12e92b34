//! What the tabulator offers: commands, options, and paths, of the cluster or of this machine.
//!
//! [`offers`] is pure but for the two listings that it is given. A listing that fails offers nothing: errors
//! are for commands.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::CommandFactory;
use rustyline::completion::{Completer, Pair};
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use tokio::runtime::Handle;

use super::paths::resolve;
use super::words::{quoted, split};
use super::{Arguments, BUILT_IN};
use crate::cli::arguments::REMOTE;
use crate::cli::output::name_of;
use crate::client::Client;
use crate::proto::dfs::FileType;

/// How long a listing is remembered, and how long it is waited for.
const REMEMBERED: Duration = Duration::from_secs(1);
const WAITED_FOR: Duration = Duration::from_millis(1500);

/// The name of an entry, and whether it is a directory.
pub(super) type Entry = (String, bool);

/// What a word of a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Local,
    Remote,
    /// Local, or in the cluster when it begins with [`REMOTE`].
    Either,
    Neither,
}

/// What the word with this number (options not counted, from 0) of a command is.
fn side(command: &str, number: usize) -> Side {
    match (command, number) {
        ("put" | "mirror" | "diff", 0) | ("get", 1) => Side::Local,
        ("put" | "mirror" | "diff", 1) | ("get", 0) => Side::Remote,
        ("stat" | "ls" | "replicas" | "fsck" | "cd", 0) => Side::Remote,
        ("mkdir" | "touch" | "rm" | "cat", _) => Side::Remote,
        ("cp", _) => Side::Either,
        _ => Side::Neither,
    }
}

/// What may stand in place of the end of `line`, and where that end begins.
pub(super) fn offers(
    line: &str,
    at: &str,
    remote: impl Fn(&str) -> Vec<Entry>,
    local: impl Fn(&str) -> Vec<Entry>,
) -> (usize, Vec<Pair>) {
    let split = split(line);
    let mut words = split.words;
    let (start, begun) = match words.pop_if(|_| split.last_is_open) {
        Some(word) => (word.start, word.text),
        None => (line.len(), String::new()),
    };
    let quote = line[start..].chars().next().filter(|c| "'\"".contains(*c));
    let commands = Arguments::command();
    let Some(command) = words.first() else {
        let known = commands.get_subcommands().map(|command| command.get_name());
        let names = known.chain(BUILT_IN).filter(|name| name.starts_with(&begun));
        let mut offers: Vec<Pair> = names.map(|name| pair(name, format!("{name} "))).collect();
        offers.sort_by(|a, b| a.display.cmp(&b.display));
        return (start, offers);
    };
    if begun.starts_with('-') {
        let known = commands.find_subcommand(&command.text);
        let options = known.into_iter().flat_map(|command| command.get_arguments());
        let names = options.filter_map(|option| Some(format!("--{}", option.get_long()?)));
        let names = names.filter(|name| name.starts_with(&begun));
        return (start, names.map(|name| pair(&name, format!("{name} "))).collect());
    }
    let number = words[1..]
        .iter()
        .filter(|word| !word.text.starts_with('-'))
        .count();
    let mut offers = Vec::new();
    let mut paths = |prefix: &str, begun: &str, listing: &dyn Fn(&str) -> Vec<Entry>| {
        let directory = begun.rfind('/').map_or("", |slash| &begun[..=slash]);
        let name_begun = &begun[directory.len()..];
        for (name, is_directory) in listing(directory) {
            if name.starts_with(name_begun) {
                let slash = if is_directory { "/" } else { "" };
                let text = format!("{prefix}{directory}{name}{slash}");
                offers.push(pair(&format!("{name}{slash}"), quoted(&text, quote)));
            }
        }
    };
    let remote = |directory: &str| remote(&resolve(at, directory));
    match side(&command.text, number) {
        Side::Local => paths("", &begun, &local),
        Side::Remote => paths("", &begun, &remote),
        Side::Either => match begun.strip_prefix(REMOTE) {
            Some(begun) => paths(REMOTE, begun, &remote),
            None => {
                paths("", &begun, &local);
                if REMOTE.starts_with(&begun) {
                    offers.push(pair(REMOTE, quoted(REMOTE, quote)));
                }
            }
        },
        Side::Neither => (),
    }
    (start, offers)
}

fn pair(display: &str, replacement: String) -> Pair {
    Pair {
        display: display.to_string(),
        replacement,
    }
}

/// What rustyline asks while a line is typed.
pub(super) struct Typist {
    client: Client,
    runtime: Handle,
    at: Arc<Mutex<String>>,
    /// The last directory that was listed, and when.
    listed: Mutex<Option<(Instant, String, Vec<Entry>)>>,
}

impl Typist {
    /// For a shell that is where `at` says.
    pub(super) fn new(client: Client, at: Arc<Mutex<String>>) -> Self {
        Self {
            client,
            runtime: Handle::current(),
            at,
            listed: Mutex::default(),
        }
    }

    /// Runs on the thread that reads the line, which may wait.
    fn remote(&self, directory: &str) -> Vec<Entry> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, what, entries)) = &*listed
            && what == directory
            && when.elapsed() < REMEMBERED
        {
            return entries.clone();
        }
        let client = self.client.with_timeout(WAITED_FOR);
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(WAITED_FOR, client.list(directory)).await });
        let nodes = answer.unwrap_or_else(|_| Ok(Vec::new())).unwrap_or_default();
        let entries: Vec<Entry> = nodes
            .iter()
            .map(|node| {
                (
                    name_of(&node.path).to_string(),
                    node.r#type() == FileType::Directory,
                )
            })
            .collect();
        *listed = Some((Instant::now(), directory.to_string(), entries.clone()));
        entries
    }
}

/// Names that are not UTF-8 cannot be typed.
fn local(directory: &str) -> Vec<Entry> {
    let place = if directory.is_empty() { "." } else { directory };
    let Ok(entries) = std::fs::read_dir(place) else {
        return Vec::new();
    };
    let mut entries: Vec<Entry> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name, entry.path().is_dir()))
        })
        .collect();
    entries.sort();
    entries
}

impl Completer for Typist {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let begun = &line[..pos];
        Ok(offers(begun, &at, |directory| self.remote(directory), local))
    }
}

impl Hinter for Typist {
    type Hint = String;
}

impl Highlighter for Typist {}

impl Validator for Typist {}

impl Helper for Typist {}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(directory: &str) -> Vec<Entry> {
        let entries: &[(&str, bool)] = match directory {
            "/" => &[("docs", true), ("dot file", false)],
            "/docs/" | "/docs" => &[("a", false), ("b", true)],
            _ => &[],
        };
        entries
            .iter()
            .map(|(name, is_directory)| (name.to_string(), *is_directory))
            .collect()
    }

    fn here(directory: &str) -> Vec<Entry> {
        match directory {
            "" => vec![("mine".to_string(), false), ("sub".to_string(), true)],
            "sub/" => vec![("x".to_string(), false)],
            _ => Vec::new(),
        }
    }

    fn complete(line: &str, at: &str) -> (usize, Vec<String>) {
        let (start, offers) = offers(line, at, remote, here);
        let texts = offers.into_iter().map(|offer| offer.replacement);
        (start, texts.collect())
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| text.to_string()).collect()
    }

    #[test]
    fn commands_and_options_are_completed() {
        assert_eq!(complete("re", "/"), (0, texts(&["replicas "])));
        assert_eq!(
            complete("  c", "/"),
            (2, texts(&["cat ", "cd ", "cluster ", "cp "]))
        );
        assert!(complete("", "/").1.contains(&"exit ".to_string()));
        assert_eq!(complete("put --no", "/"), (4, texts(&["--no-clobber "])));
        assert_eq!(complete("nonsense x", "/"), (9, texts(&[])));
    }

    #[test]
    fn paths_of_the_cluster_are_completed_from_where_the_shell_is() {
        assert_eq!(complete("ls ", "/"), (3, texts(&["docs/", r"dot\ file"])));
        assert_eq!(complete("ls do", "/"), (3, texts(&["docs/", r"dot\ file"])));
        assert_eq!(complete("ls doc", "/x"), (3, texts(&[])));
        assert_eq!(complete("ls /docs/", "/x"), (3, texts(&["/docs/a", "/docs/b/"])));
        assert_eq!(complete("cat -j 2 ../docs/a", "/x"), (9, texts(&["../docs/a"])));
        assert_eq!(complete("rm -r a", "/docs"), (6, texts(&["a"])));
        assert_eq!(complete("cat 'dot", "/"), (4, texts(&["'dot file"])));
        assert_eq!(complete(r"cat dot\ f", "/"), (4, texts(&[r"dot\ file"])));
    }

    #[test]
    fn each_word_has_its_side() {
        assert_eq!(complete("put ", "/"), (4, texts(&["mine", "sub/"])));
        assert_eq!(complete("put -n sub/", "/"), (7, texts(&["sub/x"])));
        assert_eq!(complete("put mine d", "/").1, texts(&["docs/", r"dot\ file"]));
        assert_eq!(complete("get /docs/a s", "/").1, texts(&["sub/"]));
        assert_eq!(complete("get d", "/").1, texts(&["docs/", r"dot\ file"]));
        assert_eq!(complete("cp mi", "/").1, texts(&["mine", "minfs:"]));
        assert_eq!(
            complete("cp mine minfs:docs/", "/"),
            (8, texts(&["minfs:docs/a", "minfs:docs/b/"]))
        );
        assert_eq!(complete("leader ", "/").1, texts(&[]));
        assert_eq!(complete("stat /docs/a ", "/").1, texts(&[]));
    }
}
