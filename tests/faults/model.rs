//! The sequential specification of a small directory, written from the contract: what each operation
//! answers and changes when it is alone.
//!
//! The server draws inode and block numbers, and a client whose request got no answer does not learn
//! them. So the model's numbers may be open, and are settled by the first answer that names them: a
//! state with open numbers stands for all states that differ in nothing else.

use std::collections::{BTreeMap, BTreeSet};

use crate::history::{Answer, Attributes, Op, Outcome, Refused};

/// Bytes a block, unless configured otherwise.
pub const BLOCK: u64 = 4 << 20;

/// What a unit is like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    tree: Tree,
    /// The numbers of files that are gone: no other file ever gets them.
    dead: BTreeSet<u64>,
}

/// The entries of a directory by name.
pub type Tree = BTreeMap<String, Node>;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// A file.
    File(File),
    /// A directory and what is in it.
    Directory(Tree),
}

/// A file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct File {
    inode: Option<u64>,
    size: u64,
    md5: String,
    blocks: Blocks,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Blocks {
    These(Vec<u64>),
    Open { count: u64 },
}

impl Default for Blocks {
    fn default() -> Self {
        Blocks::These(Vec::new())
    }
}

/// Whether an operation with its outcome fits a state, and what it makes of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// It does not.
    Impossible,
    /// It does, and changes nothing.
    Same,
    /// It does, and leads to this state.
    To(State),
}

/// What is known of an outcome: nothing, or the answer or refusal that was told.
type Told<'a> = Option<Result<&'a Answer, Refused>>;

/// Takes an operation at `state`. An unknown outcome fits any state; `Same` then says that it would
/// change nothing.
pub fn step(state: &State, op: &Op, outcome: &Outcome) -> Step {
    let told: Told<'_> = match outcome {
        Outcome::Ok(answer) => Some(Ok(answer)),
        Outcome::Refused(refused) => Some(Err(*refused)),
        Outcome::Unknown => None,
        // It claims that nothing happened, so it never takes a place in the order.
        Outcome::NotDone => return Step::Impossible,
    };
    if let Some(fits) = looks(&state.tree, op, told) {
        return if fits { Step::Same } else { Step::Impossible };
    }
    let mut after = state.clone();
    match (perform(&mut after, op, told), told) {
        (Err(_), None) => Step::Same,
        (Err(refused), Some(Err(told))) if refused == told => Step::Same,
        (Ok(true), None | Some(Ok(_))) if after == *state => Step::Same,
        (Ok(true), None | Some(Ok(_))) => Step::To(after),
        (Ok(_) | Err(_), _) => Step::Impossible,
    }
}

/// Whether an operation that only reads, and settles nothing, fits; `None` for all others.
fn looks(tree: &Tree, op: &Op, told: Told<'_>) -> Option<bool> {
    let result: Result<Answer, Refused> = match op {
        Op::List { path } => match find(tree, path) {
            None => Err(Refused::NotFound),
            Some(Found::File) => Err(Refused::FailedPrecondition),
            Some(Found::Directory(tree)) => Ok(Answer::Entries(
                tree.iter()
                    .map(|(name, node)| (name.clone(), attributes(node)))
                    .collect(),
            )),
        },
        Op::Stat { path } => match find(tree, path) {
            None => Err(Refused::NotFound),
            Some(Found::Directory(tree)) => Ok(Answer::Found(Attributes {
                directory: true,
                size: size_of(tree),
                md5: String::new(),
                blocks: Some(Vec::new()),
            })),
            Some(Found::File) => return None,
        },
        Op::Create { .. }
        | Op::Delete { .. }
        | Op::Blocks { .. }
        | Op::Allocate { .. }
        | Op::Finalize { .. } => return None,
    };
    Some(match (result, told) {
        (_, None) => true,
        (Ok(answer), Some(Ok(told))) => answer == *told,
        (Err(refused), Some(Err(told))) => refused == told,
        (Ok(_), Some(Err(_))) | (Err(_), Some(Ok(_))) => false,
    })
}

/// Does it; false when that cannot have given what was told.
fn perform(state: &mut State, op: &Op, told: Told<'_>) -> Result<bool, Refused> {
    let State { tree, dead } = state;
    let done = matches!(told, None | Some(Ok(Answer::Done)));
    match op {
        Op::Create { path, directory } => {
            let (parent, name) = parent(tree, path)?;
            if parent.contains_key(name) {
                return Err(Refused::AlreadyExists);
            }
            let node = match directory {
                true => Node::Directory(Tree::new()),
                false => Node::File(File::default()),
            };
            parent.insert(name.to_owned(), node);
            Ok(done)
        }
        Op::Delete { path, recursive } => {
            let (parent, name) = parent(tree, path).map_err(|_| Refused::NotFound)?;
            match parent.get(name) {
                None => return Err(Refused::NotFound),
                Some(Node::Directory(below)) if !below.is_empty() && !recursive => {
                    return Err(Refused::FailedPrecondition);
                }
                Some(node @ (Node::Directory(_) | Node::File(_))) => bury(node, dead),
            }
            parent.remove(name);
            Ok(done)
        }
        Op::Allocate { path, size } => {
            let (parent, name) = parent(tree, path)?;
            let node = parent
                .entry(name.to_owned())
                .or_insert_with(|| Node::File(File::default()));
            let Node::File(file) = node else {
                return Err(Refused::FailedPrecondition);
            };
            let count = size.div_ceil(BLOCK);
            file.size = 0;
            file.md5.clear();
            file.blocks = Blocks::Open { count };
            Ok(match told {
                None => true,
                Some(Ok(Answer::Blocks { inode, blocks })) => file.has(*inode, dead) && file.holds(blocks),
                Some(_) => false,
            })
        }
        Op::Finalize {
            path,
            inode,
            size,
            md5,
        } => {
            let (parent, name) = parent(tree, path).map_err(|_| Refused::NotFound)?;
            let file = match parent.get_mut(name) {
                None => return Err(Refused::NotFound),
                Some(Node::Directory(_)) => return Err(Refused::FailedPrecondition),
                Some(Node::File(file)) => file,
            };
            // A file whose number is open may be another one: being told so settles nothing.
            let another = file.inode.is_none() && matches!(told, Some(Err(_)));
            if another || !file.has(*inode, dead) || *size > file.room() {
                return Err(Refused::FailedPrecondition);
            }
            file.size = *size;
            file.md5.clone_from(md5);
            file.keep(size.div_ceil(BLOCK));
            Ok(done)
        }
        Op::Stat { path } => {
            let (parent, name) = parent(tree, path).map_err(|_| Refused::NotFound)?;
            let Some(Node::File(file)) = parent.get_mut(name) else {
                return Err(Refused::NotFound);
            };
            Ok(match told {
                None => true,
                Some(Ok(Answer::Found(seen))) => {
                    let blocks = seen.blocks.as_deref().unwrap_or_default();
                    !seen.directory && seen.size == file.size && seen.md5 == file.md5 && file.holds(blocks)
                }
                Some(_) => false,
            })
        }
        Op::Blocks { path } => {
            let (parent, name) = parent(tree, path).map_err(|_| Refused::NotFound)?;
            let file = match parent.get_mut(name) {
                None => return Err(Refused::NotFound),
                Some(Node::Directory(_)) => return Err(Refused::FailedPrecondition),
                Some(Node::File(file)) => file,
            };
            Ok(match told {
                None => true,
                Some(Ok(Answer::Blocks { inode, blocks })) => file.has(*inode, dead) && file.holds(blocks),
                Some(_) => false,
            })
        }
        // Taken by `looks`.
        Op::List { .. } => Ok(true),
    }
}

impl File {
    /// Whether this may be its number; settles it.
    fn has(&mut self, inode: u64, dead: &BTreeSet<u64>) -> bool {
        !dead.contains(&inode) && *self.inode.get_or_insert(inode) == inode
    }

    /// Whether these may be its blocks; settles them.
    fn holds(&mut self, blocks: &[u64]) -> bool {
        match &self.blocks {
            Blocks::These(these) => these == blocks,
            Blocks::Open { count } if *count == blocks.len() as u64 => {
                self.blocks = Blocks::These(blocks.to_vec());
                true
            }
            Blocks::Open { .. } => false,
        }
    }

    fn room(&self) -> u64 {
        BLOCK
            * match &self.blocks {
                Blocks::These(these) => these.len() as u64,
                Blocks::Open { count } => *count,
            }
    }

    /// Frees the blocks beyond the first `most`.
    fn keep(&mut self, most: u64) {
        match &mut self.blocks {
            Blocks::These(these) => these.truncate(most as usize),
            Blocks::Open { .. } if most == 0 => self.blocks = Blocks::default(),
            Blocks::Open { count } => *count = most.min(*count),
        }
    }
}

enum Found<'t> {
    File,
    Directory(&'t Tree),
}

fn find<'t>(tree: &'t Tree, path: &str) -> Option<Found<'t>> {
    let mut at = tree;
    let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
    while let Some(name) = names.next() {
        match at.get(name)? {
            Node::Directory(below) => at = below,
            Node::File(_) if names.peek().is_none() => return Some(Found::File),
            Node::File(_) => return None,
        }
    }
    Some(Found::Directory(at))
}

/// The numbers of all files in `node` are gone.
fn bury(node: &Node, dead: &mut BTreeSet<u64>) {
    match node {
        Node::File(file) => dead.extend(file.inode),
        Node::Directory(below) => below.values().for_each(|node| bury(node, dead)),
    }
}

/// The directory that holds `path`, and the name in it; the refusal that creating it would get.
fn parent<'t, 'p>(tree: &'t mut Tree, path: &'p str) -> Result<(&'t mut Tree, &'p str), Refused> {
    let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut at = tree;
    for name in above.split('/').filter(|name| !name.is_empty()) {
        match at.get_mut(name) {
            None => return Err(Refused::NotFound),
            Some(Node::File(_)) => return Err(Refused::FailedPrecondition),
            Some(Node::Directory(below)) => at = below,
        }
    }
    Ok((at, name))
}

/// As a listing shows them.
fn attributes(node: &Node) -> Attributes {
    let (directory, size, md5) = match node {
        Node::File(file) => (false, file.size, file.md5.clone()),
        Node::Directory(tree) => (true, size_of(tree), String::new()),
    };
    Attributes {
        directory,
        size,
        md5,
        blocks: None,
    }
}

fn size_of(tree: &Tree) -> u64 {
    tree.values()
        .map(|node| match node {
            Node::File(file) => file.size,
            Node::Directory(below) => size_of(below),
        })
        .sum()
}

impl State {
    /// The answers with content that a server in this state may give, whose next free number is `next`.
    /// For making histories up.
    pub fn answers(&self, op: &Op, next: u64) -> Vec<Outcome> {
        let answer = match op {
            Op::Create { .. } | Op::Delete { .. } | Op::Finalize { .. } => return vec![],
            Op::List { path } => match find(&self.tree, path) {
                Some(Found::Directory(tree)) => Answer::Entries(
                    tree.iter()
                        .map(|(name, node)| (name.clone(), attributes(node)))
                        .collect(),
                ),
                Some(Found::File) | None => return vec![],
            },
            Op::Stat { path } | Op::Blocks { path } | Op::Allocate { path, .. } => {
                let mut tree = self.tree.clone();
                let found = parent(&mut tree, path)
                    .ok()
                    .and_then(|(parent, name)| parent.get(name));
                let file = match found {
                    Some(Node::File(file)) => file.clone(),
                    Some(Node::Directory(below)) => {
                        let size = size_of(below);
                        let blocks = Some(Vec::new());
                        let directory = Attributes {
                            directory: true,
                            size,
                            md5: String::new(),
                            blocks,
                        };
                        return vec![Outcome::Ok(Answer::Found(directory))];
                    }
                    None => File::default(),
                };
                let blocks = match (&op, &file.blocks) {
                    (Op::Allocate { size, .. }, _) => (next..next + size.div_ceil(BLOCK)).collect(),
                    (_, Blocks::These(these)) => these.clone(),
                    (_, Blocks::Open { count }) => (next..next + count).collect(),
                };
                match op {
                    Op::Stat { .. } => Answer::Found(Attributes {
                        directory: false,
                        size: file.size,
                        md5: file.md5,
                        blocks: Some(blocks),
                    }),
                    _ => Answer::Blocks {
                        inode: file.inode.unwrap_or(next),
                        blocks,
                    },
                }
            }
        };
        vec![Outcome::Ok(answer)]
    }
}
