//! Takes the tree that the `config` crate read from YAML apart, key by key.
//!
//! By hand and not with a derived `Deserialize`, for two reasons: the crate converts on its own (`"9"`, `true`
//! and `8.6` all become a whole number), and an operator wants to see every mistake at once, each with its
//! full dotted name and, for a key that does not exist, the one that was meant. Every key is *taken* from its
//! table, so what is left over at the end is unknown.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use config::{File, FileFormat, Value, ValueKind};

use super::{
    Cluster, Config, Database, Etcd, GIB, KIB, Loaded, Logging, MIB, Peer, Problem, Raft, ReadMode,
    Scheduler, Server, TIB,
};

/// Every key there is; unknown ones are compared with these.
pub(super) const KEYS: &[&str] = &[
    "server.grpc_port",
    "server.request_timeout",
    "server.max_in_flight",
    "server.max_connections",
    "server.grpc_threads",
    "database.dir",
    "database.badger_dir",
    "database.map_size",
    "database.min_free_space",
    "database.verify_at_start",
    "database.verify_first_up_to",
    "database.compare_interval",
    "cluster.default_replication",
    "cluster.heartbeat_timeout",
    "cluster.permanent_down_threshold",
    "cluster.max_file_size",
    "etcd.endpoints",
    "etcd.timeout",
    "etcd.dataServer_key_prefix",
    "raft.peers",
    "raft.heartbeat_timeout",
    "raft.election_timeout",
    "raft.snapshot_interval",
    "raft.snapshot_threshold",
    "scheduler.fsck_interval",
    "scheduler.gc_interval",
    "scheduler.block_size",
    "scheduler.max_concurrent_repairs",
    "scheduler.write_lease",
    "scheduler.orphan_grace",
    "scheduler.mass_delete_share",
    "logging.level",
    "logging.file",
    "reads",
];

/// Keys of the first server that mean nothing here.
const OBSOLETE: &[&str] = &[
    "server.port",
    "scheduler.fsck_workers",
    "scheduler.repair_workers",
    "scheduler.repair_queue_size",
];

/// What an entry of `raft.peers` holds.
const PEER_KEYS: &[&str] = &["id", "raft_addr", "grpc_addr"];

/// Longer than anyone means, and short enough that adding it to a clock never overflows.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// The map of LMDB must be a multiple of the page size; this is the largest page of the machines we know.
const MAP_GRANULE: u64 = 64 * KIB;

type Table = HashMap<String, Value>;

/// Why a text is no configuration.
pub(super) enum Refusal {
    /// Not YAML at all.
    Yaml(String),
    /// YAML with mistakes, in the order of their keys.
    Problems(Vec<Problem>),
}

/// Reads a whole configuration, or says everything that is wrong with it.
pub(super) fn config(text: &str) -> Result<Loaded, Refusal> {
    let table: Table = config::Config::builder()
        .add_source(File::from_str(text, FileFormat::Yaml))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|error| Refusal::Yaml(error.to_string()))?;
    let mut report = Report::default();
    let config = top(table, &mut report);
    let Report {
        mut problems,
        mut obsolete,
    } = report;
    if !problems.is_empty() {
        problems.sort_by(|a, b| a.key.cmp(&b.key));
        return Err(Refusal::Problems(problems));
    }
    obsolete.sort();
    let warnings = match obsolete.as_slice() {
        [] => vec![],
        keys => vec![format!(
            "keys of the first server that mean nothing any more: {}",
            keys.join(", ")
        )],
    };
    Ok(Loaded { config, warnings })
}

fn top(table: Table, report: &mut Report) -> Config {
    let mut top = Section {
        name: String::new(),
        table,
    };
    let mut part = |name| top.section(name, report);
    let (server_part, database_part, cluster_part) = (part("server"), part("database"), part("cluster"));
    let (etcd_part, raft_part, scheduler_part) = (part("etcd"), part("raft"), part("scheduler"));
    let logging_part = part("logging");
    let config = Config {
        server: server(server_part, report),
        database: database(database_part, report),
        cluster: cluster(cluster_part, report),
        etcd: etcd(etcd_part, report),
        raft: raft(raft_part, report),
        scheduler: scheduler(scheduler_part, report),
        logging: logging(logging_part, report),
        reads: top.value("reads", ReadMode::default(), report, read_mode),
    };
    top.finish(report);
    config
}

fn server(mut part: Section, report: &mut Report) -> Server {
    let Server {
        grpc_port,
        request_timeout,
        max_in_flight,
        max_connections,
        grpc_threads,
    } = Server::default();
    let server = Server {
        grpc_port: part.number("grpc_port", grpc_port, 1..=u16::MAX.into(), report),
        request_timeout: part.duration("request_timeout", request_timeout, report),
        max_in_flight: part.number("max_in_flight", max_in_flight, 1..=1 << 24, report),
        max_connections: part.number("max_connections", max_connections, 1..=1 << 24, report),
        grpc_threads: part.value("grpc_threads", grpc_threads, report, threads),
    };
    part.finish(report);
    server
}

fn database(mut part: Section, report: &mut Report) -> Database {
    let defaults = Database::default();
    let dir = part.value("dir", None, report, |value| text(value).map(Some));
    let old = part.value("badger_dir", None, report, |value| text(value).map(Some));
    if let (Some(dir), Some(old)) = (&dir, &old)
        && dir != old
    {
        let what = format!("is the old name of database.dir, and they differ: `{old}` and `{dir}`");
        report.refuse(part.full("badger_dir"), what);
    }
    let map_size = part.bytes("map_size", defaults.map_size, MIB..=1 << 47, report);
    if !map_size.is_multiple_of(MAP_GRANULE) {
        report.refuse(
            part.full("map_size"),
            format!("must be a multiple of 64 KiB, is {map_size} bytes"),
        );
    }
    let min_free_space = part.bytes("min_free_space", defaults.min_free_space, 0..=1 << 47, report);
    let verify_at_start = part.value("verify_at_start", defaults.verify_at_start, report, yes_or_no);
    let verify_first_up_to = part.bytes(
        "verify_first_up_to",
        defaults.verify_first_up_to,
        0..=1 << 47,
        report,
    );
    let compare_interval = part.duration("compare_interval", defaults.compare_interval, report);
    part.finish(report);
    Database {
        dir: dir.or(old).map_or(defaults.dir, PathBuf::from),
        map_size,
        min_free_space,
        verify_at_start,
        verify_first_up_to,
        compare_interval,
    }
}

fn cluster(mut part: Section, report: &mut Report) -> Cluster {
    let defaults = Cluster::default();
    let cluster = Cluster {
        default_replication: part.number(
            "default_replication",
            defaults.default_replication,
            1..=32,
            report,
        ),
        heartbeat_timeout: part.duration("heartbeat_timeout", defaults.heartbeat_timeout, report),
        permanent_down_threshold: part.duration(
            "permanent_down_threshold",
            defaults.permanent_down_threshold,
            report,
        ),
        max_file_size: part.bytes(
            "max_file_size",
            defaults.max_file_size,
            1..=i64::MAX as u64,
            report,
        ),
    };
    if cluster.permanent_down_threshold < cluster.heartbeat_timeout {
        let (down, beat) = (cluster.permanent_down_threshold, cluster.heartbeat_timeout);
        let what = format!("must not be shorter than cluster.heartbeat_timeout: {down:?} < {beat:?}");
        report.refuse(part.full("permanent_down_threshold"), what);
    }
    part.finish(report);
    cluster
}

fn etcd(mut part: Section, report: &mut Report) -> Etcd {
    let defaults = Etcd::default();
    let endpoints = match part.list("endpoints", report) {
        None => defaults.endpoints,
        Some(list) => {
            let named = list
                .into_iter()
                .enumerate()
                .map(|(i, value)| (format!("etcd.endpoints[{i}]"), value));
            named
                .filter_map(|(key, value)| report.ok(key, endpoint(&value)))
                .collect()
        }
    };
    let etcd = Etcd {
        endpoints,
        timeout: part.duration("timeout", defaults.timeout, report),
        data_server_key_prefix: part.value(
            "dataServer_key_prefix",
            defaults.data_server_key_prefix,
            report,
            text,
        ),
    };
    part.finish(report);
    etcd
}

fn raft(mut part: Section, report: &mut Report) -> Raft {
    let defaults = Raft::default();
    let list = part.list("peers", report);
    if list.as_ref().is_none_or(Vec::is_empty) && !report.has("raft.peers") {
        report.refuse(
            "raft.peers",
            "must name at least one peer: { id, raft_addr, grpc_addr }",
        );
    }
    let raft = Raft {
        peers: peers(list.unwrap_or_default(), report),
        heartbeat_timeout: part.duration("heartbeat_timeout", defaults.heartbeat_timeout, report),
        election_timeout: part.duration("election_timeout", defaults.election_timeout, report),
        snapshot_interval: part.duration("snapshot_interval", defaults.snapshot_interval, report),
        snapshot_threshold: part.number(
            "snapshot_threshold",
            defaults.snapshot_threshold,
            1..=i64::MAX as u64,
            report,
        ),
    };
    part.finish(report);
    raft
}

fn peers(list: Vec<Value>, report: &mut Report) -> Vec<Peer> {
    let (mut ids, mut addresses) = (HashSet::new(), HashSet::new());
    let mut peers = vec![];
    for (i, value) in list.into_iter().enumerate() {
        let name = format!("raft.peers[{i}]");
        let ValueKind::Table(table) = value.kind else {
            report.refuse(
                name,
                format!("must be {{ id, raft_addr, grpc_addr }}, is {}", shown(&value)),
            );
            continue;
        };
        let mut part = Section { name, table };
        let id = part.required("id", report, node_id);
        let raft_addr = part.required("raft_addr", report, peer_addr);
        let grpc_addr = part.required("grpc_addr", report, peer_addr);
        let taken = [("id", &id, &mut ids), ("raft_addr", &raft_addr, &mut addresses)];
        for (key, value, seen) in taken {
            part.unique(key, value.as_deref(), seen, report);
        }
        part.unique("grpc_addr", grpc_addr.as_deref(), &mut addresses, report);
        part.finish(report);
        if let (Some(id), Some(raft_addr), Some(grpc_addr)) = (id, raft_addr, grpc_addr) {
            peers.push(Peer {
                id,
                raft_addr,
                grpc_addr,
            });
        }
    }
    peers
}

fn scheduler(mut part: Section, report: &mut Report) -> Scheduler {
    let defaults = Scheduler::default();
    let scheduler = Scheduler {
        fsck_interval: part.duration("fsck_interval", defaults.fsck_interval, report),
        gc_interval: part.duration("gc_interval", defaults.gc_interval, report),
        block_size: part.bytes("block_size", defaults.block_size, 1..=GIB, report),
        max_concurrent_repairs: part.number(
            "max_concurrent_repairs",
            defaults.max_concurrent_repairs,
            1..=1 << 20,
            report,
        ),
        write_lease: part.duration("write_lease", defaults.write_lease, report),
        orphan_grace: part.duration("orphan_grace", defaults.orphan_grace, report),
        mass_delete_share: part.value("mass_delete_share", defaults.mass_delete_share, report, share),
    };
    if scheduler.orphan_grace <= scheduler.write_lease {
        let (grace, lease) = (scheduler.orphan_grace, scheduler.write_lease);
        let what = format!("must be longer than scheduler.write_lease: {grace:?} <= {lease:?}");
        report.refuse(part.full("orphan_grace"), what);
    }
    part.finish(report);
    scheduler
}

fn logging(mut part: Section, report: &mut Report) -> Logging {
    let defaults = Logging::default();
    let logging = Logging {
        level: part.value("level", defaults.level, report, |value| {
            let level = text(value)?;
            crate::logging::check(&level).map(|()| level)
        }),
        file: part.value("file", defaults.file, report, |value| match &value.kind {
            ValueKind::Nil => Ok(None),
            ValueKind::String(file) if file.is_empty() => Ok(None),
            _ => text(value).map(|file| Some(file.into())),
        }),
    };
    part.finish(report);
    logging
}

/// What is found wrong on the way.
#[derive(Default)]
struct Report {
    problems: Vec<Problem>,
    obsolete: Vec<String>,
}

impl Report {
    fn refuse(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem {
            key: key.into(),
            what: what.into(),
        });
    }

    fn ok<T>(&mut self, key: impl Into<String>, result: Result<T, String>) -> Option<T> {
        result.map_err(|what| self.refuse(key, what)).ok()
    }

    fn has(&self, key: &str) -> bool {
        self.problems.iter().any(|problem| problem.key == key)
    }
}

/// One table of the file, whose keys are taken out one by one.
struct Section {
    name: String,
    table: Table,
}

impl Section {
    /// The full dotted name of a key in this table.
    fn full(&self, key: &str) -> String {
        if self.name.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.name)
        }
    }

    /// A table inside this one; one that is missing, or has nothing under it, is empty.
    fn section(&mut self, key: &str, report: &mut Report) -> Section {
        let table = match self.table.remove(key).map(|value| value.kind) {
            None | Some(ValueKind::Nil) => Table::new(),
            Some(ValueKind::Table(table)) => table,
            Some(other) => {
                report.refuse(
                    self.full(key),
                    format!("must hold keys, is {}", shown(&Value::new(None, other))),
                );
                Table::new()
            }
        };
        Section {
            name: self.full(key),
            table,
        }
    }

    /// A value that `parse` understands, or the default when the key is left out or refused.
    fn value<T>(
        &mut self,
        key: &str,
        default: T,
        report: &mut Report,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> T {
        match self.table.remove(key) {
            None => default,
            Some(value) => report.ok(self.full(key), parse(&value)).unwrap_or(default),
        }
    }

    fn required<T>(
        &mut self,
        key: &str,
        report: &mut Report,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        match self.table.remove(key) {
            None => report.ok(self.full(key), Err("is missing".into())),
            Some(value) => report.ok(self.full(key), parse(&value)),
        }
    }

    fn duration(&mut self, key: &str, default: Duration, report: &mut Report) -> Duration {
        self.value(key, default, report, duration)
    }

    fn number<T: TryFrom<u64>>(
        &mut self,
        key: &str,
        default: T,
        range: RangeInclusive<u64>,
        report: &mut Report,
    ) -> T {
        self.value(key, default, report, |value| {
            let number = within(whole(value)?, range)?;
            T::try_from(number).map_err(|_| format!("{number} is too large"))
        })
    }

    fn bytes(&mut self, key: &str, default: u64, range: RangeInclusive<u64>, report: &mut Report) -> u64 {
        self.value(key, default, report, |value| within(bytes(value)?, range))
    }

    fn list(&mut self, key: &str, report: &mut Report) -> Option<Vec<Value>> {
        let value = self.table.remove(key)?;
        match value.kind {
            ValueKind::Array(list) => Some(list),
            _ => report.ok(
                self.full(key),
                Err(format!("must be a list, is {}", shown(&value))),
            ),
        }
    }

    fn unique(&self, key: &str, value: Option<&str>, seen: &mut HashSet<String>, report: &mut Report) {
        if let Some(value) = value
            && !seen.insert(value.to_lowercase())
        {
            report.refuse(self.full(key), format!("`{value}` is there twice"));
        }
    }

    /// Refuses what nobody took.
    fn finish(self, report: &mut Report) {
        let is_peer = self.name.ends_with(']');
        for key in self.table.keys() {
            let full = self.full(key);
            if OBSOLETE.contains(&full.as_str()) {
                report.obsolete.push(full);
                continue;
            }
            let meant = match is_peer {
                true => nearest(key, PEER_KEYS.iter().copied()),
                false => nearest(&full, KEYS.iter().copied()),
            };
            report.refuse(
                full,
                meant.map_or("unknown key".into(), |key| {
                    format!("unknown key; is `{key}` meant?")
                }),
            );
        }
    }
}

fn duration(value: &Value) -> Result<Duration, String> {
    let ValueKind::String(text) = &value.kind else {
        return Err(format!(
            "must be a duration such as 500ms, 1s or 2m, is {}",
            shown(value)
        ));
    };
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("must be a duration such as 500ms, 1s or 2m, is `{text}` ({error})"))?;
    match duration {
        _ if duration < Duration::from_millis(1) => Err(format!("must be at least 1ms, is `{text}`")),
        _ if duration > LONGEST => Err(format!("must be at most a year, is `{text}`")),
        _ => Ok(duration),
    }
}

fn yes_or_no(value: &Value) -> Result<bool, String> {
    match value.kind {
        ValueKind::Boolean(value) => Ok(value),
        _ => Err(format!("must be true or false, is {}", shown(value))),
    }
}

fn whole(value: &Value) -> Result<u64, String> {
    match value.kind {
        ValueKind::I64(number) => {
            u64::try_from(number).map_err(|_| format!("must not be negative, is {number}"))
        }
        _ => Err(format!("must be a whole number, is {}", shown(value))),
    }
}

fn bytes(value: &Value) -> Result<u64, String> {
    let ValueKind::String(text) = &value.kind else {
        return whole(value);
    };
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[split..].trim() {
        "" => Some(1),
        "KiB" => Some(KIB),
        "MiB" => Some(MIB),
        "GiB" => Some(GIB),
        "TiB" => Some(TIB),
        _ => None,
    };
    unit.zip(text[..split].parse::<u64>().ok())
        .and_then(|(unit, number)| number.checked_mul(unit))
        .ok_or_else(|| format!("must be a number of bytes such as 4194304 or 4MiB, is `{text}`"))
}

fn within(number: u64, range: RangeInclusive<u64>) -> Result<u64, String> {
    match range.contains(&number) {
        true => Ok(number),
        false => Err(format!(
            "must be between {} and {}, is {number}",
            range.start(),
            range.end()
        )),
    }
}

/// Some part of a whole.
fn share(value: &Value) -> Result<f64, String> {
    let share = match value.kind {
        ValueKind::Float(share) => share,
        ValueKind::I64(share) => share as f64,
        _ => return Err(format!("must be a number such as 0.2, is {}", shown(value))),
    };
    match share > 0.0 && share <= 1.0 {
        true => Ok(share),
        false => Err(format!("must be more than 0 and at most 1, is {share}")),
    }
}

fn text(value: &Value) -> Result<String, String> {
    match &value.kind {
        ValueKind::String(text) if text.trim().is_empty() => Err("must not be empty".into()),
        ValueKind::String(text) => Ok(text.clone()),
        _ => Err(format!("must be text, is {}", shown(value))),
    }
}

fn read_mode(value: &Value) -> Result<ReadMode, String> {
    match text(value)?.as_str() {
        "linearizable" => Ok(ReadMode::Linearizable),
        "lease" => Ok(ReadMode::Lease),
        "local" => Ok(ReadMode::Local),
        other => Err(format!("must be linearizable, lease or local, is `{other}`")),
    }
}

/// `auto`, or how many.
fn threads(value: &Value) -> Result<Option<usize>, String> {
    match &value.kind {
        ValueKind::String(text) if text == "auto" => Ok(None),
        ValueKind::I64(count @ 0..=64) => Ok(Some(*count as usize)),
        _ => Err(format!(
            "must be auto or a number from 0 to 64, is {}",
            shown(value)
        )),
    }
}

/// A node's name ends up in etcd's keys and in file names.
fn node_id(value: &Value) -> Result<String, String> {
    let id = text(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match id.len() <= 64 && id.chars().all(plain) && !id.starts_with('.') {
        true => Ok(id),
        false => Err(format!(
            "must be at most 64 letters, digits, `-`, `_` and `.`, is `{id}`"
        )),
    }
}

/// An address that others dial.
fn peer_addr(value: &Value) -> Result<String, String> {
    let addr = text(value)?;
    host_and_port(&addr)?;
    let host = super::host_of(&addr);
    match host.parse::<std::net::IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err(format!(
            "`{addr}`: others reach this node here, so name a host and not {host}"
        )),
        _ => Ok(addr),
    }
}

fn endpoint(value: &Value) -> Result<String, String> {
    let endpoint = text(value)?;
    if endpoint.starts_with("https://") {
        return Err(format!(
            "`{endpoint}`: TLS to etcd is not supported, give host:port"
        ));
    }
    host_and_port(endpoint.strip_prefix("http://").unwrap_or(&endpoint))?;
    Ok(endpoint)
}

fn host_and_port(addr: &str) -> Result<(), String> {
    let malformed = || format!("must be host:port, is `{addr}`");
    let (host, port) = addr.rsplit_once(':').ok_or_else(malformed)?;
    let valid_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
        }
    };
    let digits = !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
    match valid_host && digits && port.parse::<u16>().is_ok_and(|port| port > 0) {
        true => Ok(()),
        false => Err(malformed()),
    }
}

/// A value as an operator wrote it, or nearly.
fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "empty".into(),
        ValueKind::Table(_) => "a table".into(),
        ValueKind::Array(_) => "a list".into(),
        other => format!("`{other}`"),
    }
}

/// The key that was probably meant: the same last part in another section, or nearly the same letters.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let last = |key: &'a str| key.rsplit('.').next();
    let own_last = key.rsplit('.').next();
    let distance = |other: &str| edits(&key.to_lowercase(), &other.to_lowercase());
    let close = known
        .clone()
        .min_by_key(|other| distance(other))
        .filter(|other| distance(other) <= 2.max(key.len() / 4));
    close.or_else(|| known.clone().find(|other| last(other) == own_last))
}

/// Edit distance (Wagner and Fischer, "The String-to-String Correction Problem", 1974), one row at a time.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
