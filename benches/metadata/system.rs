//! What the load generator knows of a system under test, whichever it is.
//!
//! [`System`] is a running cluster of three processes; `main` starts and asks it, `closed_loop` takes
//! [`Connection`]s from it. A connection is an enum and no trait object: its calls are on the hot path, and a
//! boxed future for each request would be charged to the system under test. Every answer is checked here or
//! below; a wrong one is an error with the path in it, and ends the run.

use futures::future::LocalBoxFuture;

use crate::cpu::Processes;
use crate::etcd_records::EtcdConnection;
use crate::minfs::MinfsConnection;
use crate::operation::Role;
use crate::workload::File;

/// A cluster of three processes, which end with this value.
pub trait System {
    /// A new TCP connection, opened when it is first used. To be called within a runtime.
    fn connect(&self, role: Role) -> Connection;

    /// Asks all nodes who leads, and asks that one from now on; gives its number.
    fn find_leader(&mut self) -> LocalBoxFuture<'_, Result<usize, String>>;

    /// The processes as they are now.
    fn processes(&self) -> Processes;
}

/// One TCP connection, which clients may share. A clone is a handle of the same connection.
#[derive(Clone)]
pub enum Connection {
    /// To a MetaServer.
    Minfs(MinfsConnection),
    /// To a member of etcd.
    Etcd(EtcdConnection),
}

impl Connection {
    /// Makes a directory in the root.
    pub async fn make_directory(&mut self, path: &str) -> Result<(), String> {
        match self {
            Connection::Minfs(connection) => connection.make_directory(path).await,
            Connection::Etcd(connection) => connection.make_directory(path).await,
        }
    }

    /// Creates an empty file, whose parent must exist and whose name must be free.
    pub async fn create(&mut self, file: &File) -> Result<(), String> {
        match self {
            Connection::Minfs(connection) => connection.create(file).await,
            Connection::Etcd(connection) => connection.create(file).await,
        }
    }

    /// What is known of a file.
    pub async fn stat(&mut self, file: &File) -> Result<(), String> {
        match self {
            Connection::Minfs(connection) => connection.stat(file).await,
            Connection::Etcd(connection) => connection.stat(file).await,
        }
    }

    /// How many files are in a directory; all of them are sent.
    pub async fn list(&mut self, directory: &str) -> Result<usize, String> {
        match self {
            Connection::Minfs(connection) => connection.list(directory).await,
            Connection::Etcd(connection) => connection.list(directory).await,
        }
    }

    /// Two blocks for an empty file.
    pub async fn allocate(&mut self, file: &mut File) -> Result<(), String> {
        match self {
            Connection::Minfs(connection) => connection.allocate(file).await,
            Connection::Etcd(connection) => connection.allocate(file).await,
        }
    }

    /// Size and MD5 of a file that has its blocks.
    pub async fn finalize(&mut self, file: &File) -> Result<(), String> {
        match self {
            Connection::Minfs(connection) => connection.finalize(file).await,
            Connection::Etcd(connection) => connection.finalize(file).await,
        }
    }

    /// Removes an empty file, which must exist.
    pub async fn delete(&mut self, file: &File) -> Result<(), String> {
        match self {
            Connection::Minfs(connection) => connection.delete(file).await,
            Connection::Etcd(connection) => connection.delete(file).await,
        }
    }
}
