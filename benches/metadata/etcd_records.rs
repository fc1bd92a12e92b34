//! The namespace as etcd's records, and the requests that read and change it.
//!
//! Called through `system` by the clients. A file is two records: `e<path>`, whose value is the answer that MinFS
//! gives to a stat, and `i<inode>`, whose value is the contract's `NodeInfo`; the blocks of a file are a third,
//! `b<inode>`, whose value is the answer that MinFS gives to an allocation. So the values have the same sizes. Every
//! change is one transaction that checks what MinFS checks of existence. What MinFS does beside that (sums of
//! directories, a choice of DataServers, numbers of inodes and blocks) etcd is spared: the numbers are the client's.

use minfs::proto::dfs::{BlockLocations, FileType, GetBlockLocationsResponse, NodeInfo, StatInfo};
use prost::Message;

use crate::etcd_wire::{Compare, Kv, RangeRequest, RequestOp, TxnRequest};
use crate::support::data_servers::addresses;
use crate::workload::{File, MD5, SIZE};

/// Milliseconds, as long as those of today.
const MTIME: i64 = 1_764_000_000_000;

/// A connection to one member.
#[derive(Clone)]
pub struct EtcdConnection {
    kv: Kv,
}

impl EtcdConnection {
    pub fn new(kv: Kv) -> EtcdConnection {
        EtcdConnection { kv }
    }

    pub async fn make_directory(&mut self, path: &str) -> Result<(), String> {
        let request = TxnRequest {
            compare: vec![Compare::is_free(entry(path))],
            success: vec![RequestOp::put(entry(path), stat(path, FileType::Directory))],
        };
        self.changed(request, "directory", path).await
    }

    pub async fn create(&mut self, file: &File) -> Result<(), String> {
        let request = TxnRequest {
            compare: vec![
                Compare::exists(entry(file.parent)),
                Compare::is_free(entry(&file.path)),
            ],
            success: vec![
                RequestOp::put(entry(&file.path), stat(&file.path, FileType::File)),
                RequestOp::put(inode(file), node(file)),
            ],
        };
        self.changed(request, "create", &file.path).await
    }

    pub async fn stat(&mut self, file: &File) -> Result<(), String> {
        let request = RangeRequest {
            key: entry(&file.path),
            range_end: Vec::new(),
        };
        match self.kv.range(request).await {
            Ok(answer) => match answer.kvs.as_slice() {
                [found] if found.key[1..] == *file.path.as_bytes() && !found.value.is_empty() => Ok(()),
                _ => Err(format!("etcd: get of {}: a wrong answer", file.path)),
            },
            Err(status) => Err(format!("etcd: get of {}: {status}", file.path)),
        }
    }

    pub async fn list(&mut self, directory: &str) -> Result<usize, String> {
        // The byte after the slash ends the range.
        let request = RangeRequest {
            key: entry(&format!("{directory}/")),
            range_end: entry(&format!("{directory}0")),
        };
        match self.kv.range(request).await {
            Ok(answer) => Ok(answer.kvs.iter().filter(|found| !found.value.is_empty()).count()),
            Err(status) => Err(format!("etcd: range of {directory}: {status}")),
        }
    }

    pub async fn allocate(&mut self, file: &mut File) -> Result<(), String> {
        let request = TxnRequest {
            compare: vec![Compare::exists(entry(&file.path))],
            success: vec![RequestOp::put(blocks(file), two_blocks(file))],
        };
        self.changed(request, "allocate", &file.path).await
    }

    pub async fn finalize(&mut self, file: &File) -> Result<(), String> {
        let finalized = StatInfo {
            size: SIZE,
            md5: MD5.to_owned(),
            ..stat_info(&file.path, FileType::File)
        };
        let request = TxnRequest {
            compare: vec![Compare::exists(entry(&file.path)), Compare::exists(blocks(file))],
            success: vec![RequestOp::put(entry(&file.path), finalized.encode_to_vec())],
        };
        self.changed(request, "finalize", &file.path).await
    }

    pub async fn delete(&mut self, file: &File) -> Result<(), String> {
        let request = TxnRequest {
            compare: vec![Compare::exists(entry(&file.path))],
            success: vec![
                RequestOp::delete(entry(&file.path)),
                RequestOp::delete(inode(file)),
            ],
        };
        self.changed(request, "delete", &file.path).await
    }

    async fn changed(&mut self, request: TxnRequest, what: &str, path: &str) -> Result<(), String> {
        match self.kv.txn(request).await {
            Ok(answer) if answer.succeeded => Ok(()),
            Ok(_) => Err(format!("etcd: {what} of {path}: a comparison failed")),
            Err(status) => Err(format!("etcd: {what} of {path}: {status}")),
        }
    }
}

fn entry(path: &str) -> Vec<u8> {
    [b"e", path.as_bytes()].concat()
}

fn inode(file: &File) -> Vec<u8> {
    [b"i".as_slice(), &file.inode.to_be_bytes()].concat()
}

fn blocks(file: &File) -> Vec<u8> {
    [b"b".as_slice(), &file.inode.to_be_bytes()].concat()
}

fn stat_info(path: &str, r#type: FileType) -> StatInfo {
    StatInfo {
        path: path.to_owned(),
        mtime: MTIME,
        r#type: r#type as i32,
        ..StatInfo::default()
    }
}

fn stat(path: &str, r#type: FileType) -> Vec<u8> {
    stat_info(path, r#type).encode_to_vec()
}

fn node(file: &File) -> Vec<u8> {
    let node = NodeInfo {
        inode: file.inode,
        path: file.path.clone(),
        r#type: FileType::File as i32,
        mtime: MTIME,
        replication: 3,
        ..NodeInfo::default()
    };
    node.encode_to_vec()
}

fn two_blocks(file: &File) -> Vec<u8> {
    let block = |block_id| BlockLocations {
        block_id,
        locations: addresses(3),
    };
    let answer = GetBlockLocationsResponse {
        inode: file.inode,
        block_locations: vec![block(2 * file.inode), block(2 * file.inode + 1)],
    };
    answer.encode_to_vec()
}
