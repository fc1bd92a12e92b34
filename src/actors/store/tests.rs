//! The store keeps what Raft asks of a state machine: openraft's own suite runs on it, and its answers
//! are those of the commands.

use std::path::Path;

use actix::prelude::*;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use tempfile::TempDir;

use super::{AppliedIndex, CloseStore, StoreActor};
use crate::domain::command::{Command, Op, Outcome};
use crate::domain::namespace::find;
use crate::domain::path::CleanPath;
use crate::proto::convert::encode_batch;
use crate::raft::log_store::{LogLimits, LogStore};
use crate::raft::ports::{ApplyEntries, BuildSnapshot, GetAppliedState, GetCurrentSnapshot, InstallSnapshot};
use crate::raft::recovery::cover_what_the_log_lacks;
use crate::raft::state_machine::StateMachinePort;
use crate::raft::types::{Batch, Entry, EntryPayload, LeaderId, LogId};
use crate::storage::{StateReader, Storage, StorageOptions};

const MAP_SIZE: u64 = 1 << 30;

fn start(dir: &Path) -> (Addr<StoreActor>, AppliedIndex, StateReader) {
    let storage = Storage::open(&StorageOptions {
        dir: dir.to_owned(),
        map_size: MAP_SIZE,
        verify: true,
    })
    .unwrap();
    let reader = storage.reader();
    let (store, applied) = StoreActor::new(storage).unwrap();
    (store.start(), applied, reader)
}

fn entry(index: u64, paths: &[&str]) -> Entry {
    let commands: Vec<_> = paths
        .iter()
        .map(|path| Command {
            time_ms: 1,
            request_id: None,
            digest: 0,
            origin: None,
            op: Op::Create {
                path: CleanPath::parse(path).unwrap(),
                directory: false,
            },
        })
        .collect();
    let log_id = LogId {
        leader_id: LeaderId { term: 1, node_id: 1 },
        index,
    };
    Entry {
        log_id,
        payload: EntryPayload::Normal(Batch(encode_batch(&commands))),
    }
}

fn exists(reader: &StateReader, path: &str) -> bool {
    let path = CleanPath::parse(path).unwrap();
    reader.read(|view| find(view, &path)).unwrap().is_some()
}

fn port(store: &Addr<StoreActor>) -> StateMachinePort {
    StateMachinePort {
        applied: store.clone().recipient(),
        apply: store.clone().recipient(),
        build_snapshot: store.clone().recipient(),
        install_snapshot: store.clone().recipient(),
        current_snapshot: store.clone().recipient(),
    }
}

#[actix::test]
async fn openrafts_storage_suite_passes_on_the_store() {
    crate::raft::testing::storage_suite(|dir| port(&start(dir).0)).await;
}

#[actix::test]
async fn what_only_the_state_has_is_in_a_snapshot_before_the_log_is_purged_up_to_it() {
    let dir = TempDir::new().unwrap();
    let (store, ..) = start(dir.path());
    let mut log = LogStore::open(&crate::raft::log_dir(dir.path()), LogLimits::default()).unwrap();
    let covered = async || {
        let snapshot = store.send(GetCurrentSnapshot).await.unwrap().unwrap();
        snapshot
            .and_then(|snapshot| snapshot.meta.last_log_id)
            .map(|id| id.index)
    };
    let port = port(&store);
    assert!(
        !cover_what_the_log_lacks(&mut log, &port).await.unwrap(),
        "both are empty"
    );

    let entries = [entry(0, &["/a"]), entry(1, &["/b"]), entry(2, &["/c"])];
    log.blocking_append(entries.clone()).await.unwrap();
    store.send(ApplyEntries(entries.to_vec())).await.unwrap().unwrap();
    assert!(
        !cover_what_the_log_lacks(&mut log, &port).await.unwrap(),
        "the log has it all"
    );
    assert_eq!(covered().await, None);

    store
        .send(ApplyEntries(vec![entry(3, &["/d"])]))
        .await
        .unwrap()
        .unwrap();
    assert!(cover_what_the_log_lacks(&mut log, &port).await.unwrap());
    assert_eq!(covered().await, Some(3));
    assert!(
        !cover_what_the_log_lacks(&mut log, &port).await.unwrap(),
        "once is enough"
    );

    // An older server has purged without a snapshot.
    store
        .send(ApplyEntries(vec![entry(4, &["/e"])]))
        .await
        .unwrap()
        .unwrap();
    log.purge(entry(4, &[]).log_id).await.unwrap();
    assert!(cover_what_the_log_lacks(&mut log, &port).await.unwrap());
    assert_eq!(covered().await, Some(4));
}

#[actix::test]
async fn applying_answers_every_command_and_moves_the_applied_index() {
    let dir = TempDir::new().unwrap();
    let (store, applied, reader) = start(dir.path());
    assert_eq!(*applied.borrow(), None);
    let entries = vec![entry(0, &["/a", "/a"]), entry(1, &["/b"])];
    let outcomes = store.send(ApplyEntries(entries)).await.unwrap().unwrap();
    assert_eq!(outcomes.len(), 2, "one answer an entry");
    assert!(
        matches!(outcomes[0].0[..], [Ok(Outcome::Created { .. }), Err(_)]),
        "{outcomes:?}"
    );
    assert_eq!(*applied.borrow(), Some(1));
    assert!(exists(&reader, "/a") && exists(&reader, "/b"));
    let state = store.send(GetAppliedState).await.unwrap().unwrap();
    assert_eq!(state.last_applied.map(|id| id.index), Some(1));
}

#[actix::test]
async fn a_snapshot_of_one_store_replaces_the_state_of_another() {
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (source, ..) = start(one.path());
    source
        .send(ApplyEntries(vec![entry(0, &["/new"])]))
        .await
        .unwrap()
        .unwrap();
    let snapshot = source.send(BuildSnapshot).await.unwrap().unwrap();
    assert_eq!(snapshot.meta.last_log_id.map(|id| id.index), Some(0));

    let (target, applied, reader) = start(other.path());
    target
        .send(ApplyEntries(vec![entry(0, &["/old"])]))
        .await
        .unwrap()
        .unwrap();
    target
        .send(InstallSnapshot(snapshot.clone()))
        .await
        .unwrap()
        .unwrap();
    assert!(
        exists(&reader, "/new") && !exists(&reader, "/old"),
        "replaced, not merged"
    );
    assert_eq!(*applied.borrow(), Some(0));
    let current = target.send(GetCurrentSnapshot).await.unwrap().unwrap().unwrap();
    assert_eq!(
        (current.meta, current.data.checksum),
        (snapshot.meta, snapshot.data.checksum)
    );
}

#[actix::test]
async fn nothing_is_applied_once_the_store_is_closed_and_a_new_one_has_it_all() {
    let dir = TempDir::new().unwrap();
    let (store, _, reader) = start(dir.path());
    store
        .send(ApplyEntries(vec![entry(0, &["/a"])]))
        .await
        .unwrap()
        .unwrap();
    store.send(CloseStore).await.unwrap().unwrap();
    let error = store
        .send(ApplyEntries(vec![entry(1, &["/b"])]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
    drop(reader);
    let (_, applied, reader) = start(dir.path());
    assert_eq!(*applied.borrow(), Some(0));
    assert!(exists(&reader, "/a") && !exists(&reader, "/b"));
}
