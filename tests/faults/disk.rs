//! What the disk of a node still has when its machine loses power.
//!
//! A [`Disk`] reads what `preload.c` wrote down of everything that happened to a data directory, and knows of
//! each file what was flushed and what was only written. What is in a file is durable once that file was
//! flushed; that it has its name, once its directory was flushed. [`Disk::lose_power`] makes the data
//! directory what such a disk might have: everything durable, and of the rest any part, whole or torn.
//! One thing is taken for granted, since all journaling file systems do so: the changes to the names in one
//! directory reach the disk in their order.
//!
//! The database's pages are never flushed, except when a node stops cleanly; so of a file that was not
//! flushed after the last write anything may be left, and what that is is not followed here.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::bytes::{Bytes, Change, Unflushed};

/// A file or directory; an inode number means another one when it is used again.
type Id = u64;

/// The disk under one data directory.
pub struct Disk {
    dir: PathBuf,
    journal: PathBuf,
    /// How much of the journal was read.
    read: u64,
    inodes: HashMap<u64, Id>,
    nodes: HashMap<Id, Node>,
    last: Id,
}

const ROOT: Id = 0;

enum Node {
    Directory(Directory),
    File(Bytes),
    Database { dirty: bool },
}

#[derive(Default)]
struct Directory {
    /// Whether its files are the database's.
    database: bool,
    durable: BTreeMap<PathBuf, Id>,
    pending: Vec<Names>,
}

/// One change of names, which happens at once: what each name leads to from then on.
type Names = Vec<(PathBuf, Option<Id>)>;

impl Disk {
    /// The disk with what is in `dir` now, all of it durable, and what happens to it from now on as it is
    /// written down in `journal`. Nothing may be running on it.
    pub fn new(dir: &Path, journal: &Path) -> Disk {
        let mut disk = Disk {
            dir: dir.to_owned(),
            journal: journal.to_owned(),
            read: 0,
            inodes: HashMap::new(),
            nodes: HashMap::new(),
            last: ROOT,
        };
        fs::create_dir_all(dir).unwrap();
        disk.reload();
        disk
    }

    /// Begins anew with what is in the directory now.
    pub fn reload(&mut self) {
        File::create(&self.journal).unwrap();
        self.read = 0;
        self.inodes.clear();
        self.nodes.clear();
        self.inodes.insert(fs::metadata(&self.dir).unwrap().ino(), ROOT);
        self.nodes.insert(ROOT, Node::Directory(Directory::default()));
        self.last = ROOT;
        self.find_unknown();
        let all: Vec<Id> = self.nodes.keys().copied().collect();
        for id in all {
            self.flush(id);
        }
    }

    // --- what happened ---

    /// Reads on in the journal; what was read takes no room any more.
    pub fn follow(&mut self) {
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(&self.journal)
            .unwrap();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        let mut rest = text.as_slice();
        while let Some((record, after)) = Record::split(rest) {
            self.note(&record);
            rest = after;
        }
        let taken = text.len() - rest.len();
        self.read += taken as u64;
        if self.read > 0 {
            let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, hole, 0, self.read).unwrap();
        }
    }

    /// To be called when the process has ended, before another begins. What the journal does not tell, since
    /// the process was killed between doing it and writing it down, is found in the directory: it was not
    /// flushed. Gives what that was.
    pub fn process_ended(&mut self) -> Vec<String> {
        self.follow();
        // Half a record may be at the end.
        File::create(&self.journal).unwrap();
        self.read = 0;
        self.find_unknown()
    }

    fn note(&mut self, record: &Record<'_>) {
        let Record {
            kind,
            what,
            directory,
            file,
            at,
            name,
            data,
        } = *record;
        let name = path(name);
        match kind {
            NAMED => {
                let id = match what {
                    SAME_FILE => self.inodes[&file],
                    NEW_FILE => self.add(file, self.new_file(self.inodes[&directory])),
                    NEW_DIRECTORY => {
                        let node = new_directory(&name);
                        self.add(file, node)
                    }
                    other => panic!("the journal names a {other}"),
                };
                self.rename(directory, vec![(name, Some(id))]);
            }
            UNNAMED => self.rename(directory, vec![(name, None)]),
            RENAMED => {
                assert_eq!(directory, at, "a rename into another directory is not modelled");
                let id = self.names_now(self.inodes[&directory])[&name];
                self.rename(directory, vec![(name, None), (path(data), Some(id))]);
            }
            WRITTEN => self.change(
                file,
                Change::Write {
                    at: at as usize,
                    bytes: data.to_vec(),
                },
            ),
            RESIZED => self.change(file, Change::Resize { to: at as usize }),
            FLUSHED => self.flush(self.inodes[&file]),
            other => panic!("the journal has a record of kind {other}"),
        }
    }

    fn add(&mut self, inode: u64, node: Node) -> Id {
        self.last += 1;
        self.inodes.insert(inode, self.last);
        self.nodes.insert(self.last, node);
        self.last
    }

    fn new_file(&self, directory: Id) -> Node {
        match self.directory(directory).database {
            true => Node::Database { dirty: true },
            false => Node::File(Bytes::default()),
        }
    }

    fn directory(&self, id: Id) -> &Directory {
        match &self.nodes[&id] {
            Node::Directory(directory) => directory,
            Node::File(_) | Node::Database { .. } => panic!("{id} is not a directory"),
        }
    }

    fn rename(&mut self, directory: u64, names: Names) {
        match self.nodes.get_mut(&self.inodes[&directory]) {
            Some(Node::Directory(directory)) => directory.pending.push(names),
            _ => panic!("{directory} is not a directory"),
        }
    }

    fn change(&mut self, file: u64, change: Change) {
        match self.nodes.get_mut(&self.inodes[&file]) {
            Some(Node::File(bytes)) => bytes.change(change),
            Some(Node::Database { dirty }) => *dirty = true,
            _ => panic!("{file} is not a file"),
        }
    }

    fn flush(&mut self, id: Id) {
        match self.nodes.get_mut(&id) {
            Some(Node::Directory(directory)) => {
                for names in std::mem::take(&mut directory.pending) {
                    apply(&mut directory.durable, &names);
                }
            }
            Some(Node::File(bytes)) => bytes.flush(),
            Some(Node::Database { dirty }) => *dirty = false,
            None => panic!("{id} does not exist"),
        }
    }

    fn names_now(&self, id: Id) -> BTreeMap<PathBuf, Id> {
        let directory = self.directory(id);
        let mut names = directory.durable.clone();
        for change in &directory.pending {
            apply(&mut names, change);
        }
        names
    }

    /// Compares with the directory, and takes over what is different.
    fn find_unknown(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let mut left = vec![(ROOT, self.dir.clone())];
        while let Some((id, dir)) = left.pop() {
            let mut known = self.names_now(id);
            let mut unknown = Vec::new();
            for entry in fs::read_dir(&dir).unwrap().map(Result::unwrap) {
                let (name, here) = (PathBuf::from(entry.file_name()), entry.path());
                let meta = entry.metadata().unwrap();
                let it = self.inodes.get(&meta.ino()).copied();
                let expected = known.remove(&name);
                if expected.is_none() || expected != it {
                    found.push(format!("{}: made", here.display()));
                    // It may have been renamed; or the inode number is used again.
                    let is_same = |it: &Id| matches!(self.nodes[it], Node::Directory(_)) == meta.is_dir();
                    let it = it.filter(is_same).unwrap_or_else(|| {
                        let node = match meta.is_dir() {
                            true => new_directory(&name),
                            false => self.new_file(id),
                        };
                        self.add(meta.ino(), node)
                    });
                    unknown.push(vec![(name, Some(it))]);
                }
                let it = self.inodes[&meta.ino()];
                match self.nodes.get_mut(&it) {
                    Some(Node::Directory(_)) => left.push((it, here)),
                    Some(Node::File(bytes)) => {
                        let (is, was) = (fs::read(&here).unwrap(), bytes.now());
                        if is != was {
                            found.push(format!(
                                "{}: {} bytes, not {}",
                                here.display(),
                                is.len(),
                                was.len()
                            ));
                            let same = is.iter().zip(&was).take_while(|(is, was)| is == was).count();
                            bytes.change(Change::Resize { to: is.len() });
                            bytes.change(Change::Write {
                                at: same,
                                bytes: is[same..].to_vec(),
                            });
                        }
                    }
                    Some(Node::Database { .. }) => {}
                    None => panic!("{it} does not exist"),
                }
            }
            for (name, _) in known {
                found.push(format!("{}: removed", dir.join(&name).display()));
                unknown.push(vec![(name, None)]);
            }
            if let Some(Node::Directory(directory)) = self.nodes.get_mut(&id) {
                directory.pending.append(&mut unknown);
            }
        }
        found
    }

    // --- what is left of it ---

    /// Makes the directory what such a disk might have after a loss of power; to be called after
    /// [`Disk::process_ended`].
    pub fn lose_power(&mut self, unflushed: Unflushed, random: &mut StdRng) {
        let mut rest = BTreeMap::new();
        let mut left = vec![(ROOT, PathBuf::new())];
        while let Some((id, dir)) = left.pop() {
            let directory = self.directory(id);
            let mut names = directory.durable.clone();
            let reached = match unflushed {
                Unflushed::Lost => 0,
                Unflushed::Random => random.random_range(0..=directory.pending.len()),
            };
            for change in &directory.pending[..reached] {
                apply(&mut names, change);
            }
            for (name, id) in names {
                let path = dir.join(name);
                let left_of_it = match &self.nodes[&id] {
                    Node::Directory(_) => {
                        left.push((id, path.clone()));
                        Rest::Directory
                    }
                    Node::File(bytes) => Rest::File(bytes.left(unflushed, random)),
                    Node::Database { dirty } => Rest::Database {
                        torn: *dirty && (unflushed == Unflushed::Lost || random.random_bool(0.7)),
                    },
                };
                rest.insert(path, left_of_it);
            }
        }
        self.put(&rest, random);
        self.reload();
    }

    /// Makes the directory what `rest` says.
    fn put(&self, rest: &BTreeMap<PathBuf, Rest>, random: &mut StdRng) {
        let mut left = vec![PathBuf::new()];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(self.dir.join(&dir)).unwrap().map(Result::unwrap) {
                let path = dir.join(entry.file_name());
                let is_dir = entry.file_type().unwrap().is_dir();
                match (rest.get(&path), is_dir) {
                    (Some(Rest::Directory), true) => left.push(path),
                    (Some(Rest::Database { .. }), false) => {}
                    (_, true) => fs::remove_dir_all(entry.path()).unwrap(),
                    (_, false) => fs::remove_file(entry.path()).unwrap(),
                }
            }
        }
        // A directory comes before what is in it.
        for (path, rest) in rest {
            let path = self.dir.join(path);
            match rest {
                Rest::Directory if path.is_dir() => {}
                Rest::Directory => fs::create_dir(path).unwrap(),
                Rest::File(bytes) => fs::write(path, bytes).unwrap(),
                Rest::Database { torn: false } if path.is_file() => {}
                // Removed, though not for ever; nobody knows any more what was in it.
                Rest::Database { torn: false } => fs::write(path, []).unwrap(),
                Rest::Database { torn: true } => tear(&path, random),
            }
        }
    }
}

/// What is left of a file or directory.
enum Rest {
    Directory,
    File(Vec<u8>),
    Database { torn: bool },
}

fn new_directory(name: &Path) -> Node {
    let database = name.to_string_lossy().starts_with("generation-");
    Node::Directory(Directory {
        database,
        ..Directory::default()
    })
}

fn apply(names: &mut BTreeMap<PathBuf, Id>, change: &Names) {
    for (name, id) in change {
        match id {
            Some(id) => names.insert(name.clone(), *id),
            None => names.remove(name),
        };
    }
}

/// Pages of the database are missing.
fn tear(path: &Path, random: &mut StdRng) {
    let mut bytes = fs::read(path).unwrap_or_default();
    match random.random_range(0..3) {
        0 => bytes.clear(),
        1 => bytes.truncate(bytes.len() / 2),
        _ => {}
    }
    for page in bytes.chunks_mut(4096) {
        if random.random_bool(0.3) {
            page.fill(0);
        }
    }
    fs::write(path, bytes).unwrap();
}

// --- the journal, as preload.c writes it ---

const NAMED: u8 = 1;
const UNNAMED: u8 = 2;
const RENAMED: u8 = 3;
const WRITTEN: u8 = 4;
const RESIZED: u8 = 5;
const FLUSHED: u8 = 6;

const NEW_FILE: u8 = 1;
const NEW_DIRECTORY: u8 = 2;
const SAME_FILE: u8 = 3;

#[derive(Clone, Copy)]
struct Record<'j> {
    kind: u8,
    what: u8,
    directory: u64,
    file: u64,
    at: u64,
    name: &'j [u8],
    data: &'j [u8],
}

impl<'j> Record<'j> {
    const HEAD: usize = 32;

    /// The first record, if it is there as a whole, and what follows it.
    fn split(text: &'j [u8]) -> Option<(Record<'j>, &'j [u8])> {
        let head = text.get(..Self::HEAD)?;
        let number = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap());
        let length = u32::from_ne_bytes(head[..4].try_into().unwrap()) as usize;
        let name = usize::from(u16::from_ne_bytes(head[6..8].try_into().unwrap()));
        let (name, data) = text.get(Self::HEAD..length)?.split_at(name);
        let record = Record {
            kind: head[4],
            what: head[5],
            directory: number(8),
            file: number(16),
            at: number(24),
            name,
            data,
        };
        Some((record, &text[length..]))
    }
}

fn path(name: &[u8]) -> PathBuf {
    std::ffi::OsString::from_vec(name.to_vec()).into()
}
