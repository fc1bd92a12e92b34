//! Who a data directory belongs to.

use std::fs;
use std::io;
use std::path::Path;

use tempfile::TempDir;

use crate::raft::identity::{ClaimOutcome, ClusterId, Identity};
use crate::raft::log_dir;
use crate::raft::log_store::{LogLimits, LogStore};

#[test]
fn an_incarnation_is_drawn_once_per_directory() {
    let (one, two) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let first = Identity::open(one.path(), "meta-1").unwrap();
    let incarnation = first.incarnation();
    assert!((1..1 << 63).contains(&incarnation));
    assert_eq!(first.cluster(), None);
    drop(first);
    assert_eq!(
        Identity::open(one.path(), "meta-1").unwrap().incarnation(),
        incarnation
    );
    assert_ne!(
        Identity::open(two.path(), "meta-1").unwrap().incarnation(),
        incarnation
    );
}

#[test]
fn a_claim_is_kept_and_only_for_one_cluster() {
    let dir = TempDir::new().unwrap();
    let (ours, theirs) = (ClusterId::random(), ClusterId::random());
    {
        let identity = Identity::open(dir.path(), "meta-1").unwrap();
        assert_eq!(identity.claim(ours).unwrap(), ClaimOutcome::Claimed);
        assert_eq!(identity.claim(ours).unwrap(), ClaimOutcome::AlreadyOurs);
        assert_eq!(identity.clone().cluster(), Some(ours));
        drop(LogStore::open(&log_dir(dir.path()), LogLimits::default()).unwrap());
    }
    let identity = Identity::open(dir.path(), "meta-1").unwrap();
    assert_eq!(identity.claim(theirs).unwrap(), ClaimOutcome::Refused(ours));
    assert_eq!(identity.cluster(), Some(ours));
}

#[test]
fn a_directory_of_another_node_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(Identity::open(dir.path(), "meta-1").unwrap());
    let error = Identity::open(dir.path(), "meta-2").unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("belongs to node meta-1, this is node meta-2"),
        "{message}"
    );
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
}

#[test]
fn a_directory_is_used_by_one_process() {
    let dir = TempDir::new().unwrap();
    let first = Identity::open(dir.path(), "meta-1").unwrap();
    let error = Identity::open(dir.path(), "meta-1").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    let message = error.to_string();
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
    assert!(message.contains(&std::process::id().to_string()), "{message}");
    drop(first);
    Identity::open(dir.path(), "meta-1").unwrap();
}

#[test]
fn files_that_make_no_sense_are_refused() {
    let dir = TempDir::new().unwrap();
    drop(Identity::open(dir.path(), "meta-1").unwrap());
    let path = dir.path().join("raft/identity");
    let good = fs::read_to_string(&path).unwrap();
    assert!(good.starts_with("version=2\nname=meta-1\nincarnation="), "{good}");
    for bad in [
        String::new(),
        good.replace("version=2", "version=3"),
        good.replace("incarnation=", "incarnation=-"),
        good.replace("cluster=", "cluster=xyz"),
        good.replace("\nchecksum", "\nCHECKSUM"),
        good.trim_end().to_owned(),
    ] {
        fs::write(&path, &bad).unwrap();
        is_refused(dir.path(), &bad);
    }
    for at in 0..good.len() {
        let mut bad = good.clone().into_bytes();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        is_refused(dir.path(), &String::from_utf8_lossy(&bad));
    }
}

fn is_refused(dir: &Path, bad: &str) {
    let error = Identity::open(dir, "meta-1").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad:?}");
    let message = error.to_string();
    assert!(message.contains("raft/identity"), "{message}");
    assert!(message.contains("move its data directory away"), "{message}");
}

#[test]
fn a_file_of_the_version_before_checksums_is_read_and_replaced() {
    let dir = TempDir::new().unwrap();
    drop(Identity::open(dir.path(), "meta-1").unwrap());
    let path = dir.path().join("raft/identity");
    fs::write(&path, "version=1\nname=meta-1\nincarnation=7\ncluster=\n").unwrap();
    let identity = Identity::open(dir.path(), "meta-1").unwrap();
    assert_eq!(identity.incarnation(), 7);
    identity.claim(ClusterId::random()).unwrap();
    assert!(fs::read_to_string(&path).unwrap().starts_with("version=2\n"));
}

#[test]
fn a_node_of_a_cluster_without_its_log_is_refused() {
    let dir = TempDir::new().unwrap();
    let identity = Identity::open(dir.path(), "meta-1").unwrap();
    identity.claim(ClusterId::random()).unwrap();
    drop(identity);
    let message = Identity::open(dir.path(), "meta-1").unwrap_err().to_string();
    assert!(message.contains("raft/log: the log is missing"), "{message}");
}

#[test]
fn a_log_without_an_identity_is_refused() {
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("raft/log")).unwrap();
    let error = Identity::open(dir.path(), "meta-1").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn cluster_ids_are_32_hex_digits() {
    let id = ClusterId::random();
    assert_eq!(id.to_string().len(), 32);
    assert_eq!(id.to_string().parse(), Ok(id));
    for bad in ["", "0", &"g".repeat(32), &"0".repeat(33), &"A".repeat(32)] {
        assert!(bad.parse::<ClusterId>().is_err(), "{bad}");
    }
}
