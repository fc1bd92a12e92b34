//! Every key, every refusal, and the `config.yaml` that is shipped.

use super::*;

/// Any configuration must hold this.
const PEERS: &str = "raft:\n  peers:\n    - { id: a, raft_addr: \"h1:1\", grpc_addr: \"h1:2\" }\n";

fn parse(text: &str) -> Result<Loaded, ConfigError> {
    Config::parse(text, Path::new("c.yaml"))
}

fn peer(id: &str, raft_addr: &str, grpc_addr: &str) -> Peer {
    Peer {
        id: id.into(),
        raft_addr: raft_addr.into(),
        grpc_addr: grpc_addr.into(),
    }
}

fn defaults() -> Config {
    Config::with_peers(vec![peer("a", "h1:1", "h1:2")])
}

/// The text with one dotted key set, beside what has to be there.
fn with(key: &str, value: &str) -> String {
    match key.split_once('.') {
        Some(("raft", last)) if last != "peers" => format!("{PEERS}  {last}: {value}\n"),
        Some(("raft", _)) => format!("raft: {{ peers: {value} }}\n"),
        Some((section, last)) => format!("{PEERS}{section}: {{ {last}: {value} }}\n"),
        None => format!("{PEERS}{key}: {value}\n"),
    }
}

fn set(key: &str, value: &str) -> Config {
    let loaded = parse(&with(key, value)).unwrap_or_else(|error| panic!("{key}: {value}: {error}"));
    assert_eq!(loaded.warnings, Vec::<String>::new());
    loaded.config
}

/// What is said about a key with a bad value.
fn refusal(key: &str, value: &str) -> String {
    let problems = problems(&with(key, value));
    let [problem] = problems.as_slice() else {
        panic!("{key}: {value}: {problems:?}")
    };
    problem.to_string()
}

fn problems(text: &str) -> Vec<Problem> {
    match parse(text) {
        Err(ConfigError::Refused { problems, .. }) => problems,
        other => panic!("not refused: {other:?}\n{text}"),
    }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn everything_may_be_left_out_but_the_peers() {
    assert_eq!(
        parse(PEERS).unwrap(),
        Loaded {
            config: defaults(),
            warnings: vec![]
        }
    );
    assert_eq!(
        parse(&format!("{PEERS}etcd:\nserver: {{}}\n")).unwrap().config,
        defaults()
    );
    for text in ["", "server: { grpc_port: 1 }", "raft:", "raft: { peers: [] }"] {
        assert_eq!(problems(text)[0].key, "raft.peers", "{text}");
    }
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let c = defaults();
    assert_eq!(
        (
            c.server.grpc_port,
            c.server.request_timeout,
            c.server.max_in_flight,
            c.server.max_connections,
            c.server.grpc_threads
        ),
        (9090, seconds(5), 4096, 16_384, None)
    );
    assert_eq!(
        (
            c.database.dir.to_str(),
            c.database.map_size,
            c.database.min_free_space,
            c.database.verify_first_up_to
        ),
        (Some("./metadb"), 1 << 40, 512 << 20, 256 << 20)
    );
    assert_eq!(
        (c.cluster.default_replication, c.cluster.max_file_size),
        (3, 16 << 40)
    );
    assert_eq!(
        (c.cluster.heartbeat_timeout, c.cluster.permanent_down_threshold),
        (seconds(15), seconds(60))
    );
    assert_eq!(
        (c.etcd.endpoints, c.etcd.timeout),
        (vec!["localhost:2379".into()], seconds(5))
    );
    assert_eq!(c.etcd.data_server_key_prefix, "/dfs/dataServers/");
    assert_eq!(
        (c.raft.heartbeat_timeout, c.raft.election_timeout),
        (seconds(1), seconds(1))
    );
    assert_eq!(
        (c.raft.snapshot_interval, c.raft.snapshot_threshold),
        (seconds(120), 8192)
    );
    assert_eq!(
        (c.scheduler.fsck_interval, c.scheduler.gc_interval),
        (seconds(30), seconds(60))
    );
    assert_eq!(
        (c.scheduler.block_size, c.scheduler.max_concurrent_repairs),
        (4_194_304, 100)
    );
    assert_eq!(
        (c.scheduler.write_lease, c.scheduler.orphan_grace),
        (seconds(3600), seconds(7200))
    );
    assert_eq!(c.scheduler.mass_delete_share, 0.2);
    assert_eq!(
        c.logging,
        Logging {
            level: "info".into(),
            file: Some("./logs/metaServer.log".into())
        }
    );
    assert_eq!(c.reads, ReadMode::Linearizable);
}

#[test]
fn every_key_is_obeyed() {
    let mut seen = vec![];
    let mut check = |key: &'static str, value: &str, change: &dyn Fn(&mut Config)| {
        let mut expected = defaults();
        change(&mut expected);
        assert_ne!(expected, defaults(), "{key}: the test must change something");
        assert_eq!(set(key, value), expected, "{key}");
        seen.push(key);
    };
    check("server.grpc_port", "7000", &|c| c.server.grpc_port = 7000);
    check("server.request_timeout", "500ms", &|c| {
        c.server.request_timeout = Duration::from_millis(500)
    });
    check("server.max_in_flight", "7", &|c| c.server.max_in_flight = 7);
    check("server.max_connections", "7", &|c| c.server.max_connections = 7);
    check("server.grpc_threads", "3", &|c| c.server.grpc_threads = Some(3));
    check("database.dir", "/d", &|c| c.database.dir = "/d".into());
    check("database.badger_dir", "/d", &|c| c.database.dir = "/d".into());
    check("database.map_size", "1GiB", &|c| c.database.map_size = 1 << 30);
    check("database.min_free_space", "0", &|c| c.database.min_free_space = 0);
    check("database.verify_at_start", "false", &|c| {
        c.database.verify_at_start = false
    });
    check("database.verify_first_up_to", "0", &|c| {
        c.database.verify_first_up_to = 0
    });
    check("database.compare_interval", "3s", &|c| {
        c.database.compare_interval = seconds(3)
    });
    check("cluster.default_replication", "2", &|c| {
        c.cluster.default_replication = 2
    });
    check("cluster.heartbeat_timeout", "10s", &|c| {
        c.cluster.heartbeat_timeout = seconds(10)
    });
    check("cluster.permanent_down_threshold", "2m", &|c| {
        c.cluster.permanent_down_threshold = seconds(120)
    });
    check("cluster.max_file_size", "1TiB", &|c| {
        c.cluster.max_file_size = 1 << 40
    });
    check("etcd.endpoints", "[]", &|c| c.etcd.endpoints = vec![]);
    check("etcd.timeout", "2s", &|c| c.etcd.timeout = seconds(2));
    check("etcd.dataServer_key_prefix", "/x/", &|c| {
        c.etcd.data_server_key_prefix = "/x/".into()
    });
    let peers = "[{ id: b, raft_addr: \"[::1]:3\", grpc_addr: \"10.0.0.1:4\" }]";
    check("raft.peers", peers, &|c| {
        c.raft.peers = vec![peer("b", "[::1]:3", "10.0.0.1:4")]
    });
    check("raft.heartbeat_timeout", "2s", &|c| {
        c.raft.heartbeat_timeout = seconds(2)
    });
    check("raft.election_timeout", "2s", &|c| {
        c.raft.election_timeout = seconds(2)
    });
    check("raft.snapshot_interval", "1m30s", &|c| {
        c.raft.snapshot_interval = seconds(90)
    });
    check("raft.snapshot_threshold", "9", &|c| c.raft.snapshot_threshold = 9);
    check("scheduler.fsck_interval", "1h", &|c| {
        c.scheduler.fsck_interval = seconds(3600)
    });
    check("scheduler.gc_interval", "5s", &|c| {
        c.scheduler.gc_interval = seconds(5)
    });
    check("scheduler.block_size", "1024", &|c| c.scheduler.block_size = 1024);
    check("scheduler.max_concurrent_repairs", "1", &|c| {
        c.scheduler.max_concurrent_repairs = 1
    });
    check("scheduler.write_lease", "10m", &|c| {
        c.scheduler.write_lease = seconds(600)
    });
    check("scheduler.orphan_grace", "1d", &|c| {
        c.scheduler.orphan_grace = seconds(24 * 3600)
    });
    check("scheduler.mass_delete_share", "0.5", &|c| {
        c.scheduler.mass_delete_share = 0.5
    });
    check("logging.level", "\"warn,minfs=debug\"", &|c| {
        c.logging.level = "warn,minfs=debug".into()
    });
    check("logging.file", "\"\"", &|c| c.logging.file = None);
    check("reads", "lease", &|c| c.reads = ReadMode::Lease);
    assert_eq!(seen, read::KEYS);

    assert_eq!(
        set("scheduler.mass_delete_share", "1")
            .scheduler
            .mass_delete_share,
        1.0
    );
    assert_eq!(set("server.grpc_threads", "0").server.grpc_threads, Some(0));
    assert_eq!(set("server.grpc_threads", "auto"), defaults());
    assert_eq!(set("reads", "local").reads, ReadMode::Local);
    assert_eq!(set("reads", "linearizable").reads, ReadMode::Linearizable);
    assert_eq!(set("logging.file", "~").logging.file, None);
    assert_eq!(set("logging.file", "/l").logging.file, Some("/l".into()));
    let endpoints = vec!["h:1".to_owned(), "http://[::1]:2".to_owned()];
    assert_eq!(
        set("etcd.endpoints", "[\"h:1\", \"http://[::1]:2\"]")
            .etcd
            .endpoints,
        endpoints
    );
}

#[test]
fn wrong_values_are_refused_with_the_keys_name() {
    let durations = read::KEYS.iter().filter(|key| {
        ["timeout", "interval", "threshold", "lease", "grace"]
            .iter()
            .any(|end| key.ends_with(end))
            && !key.ends_with("snapshot_threshold")
    });
    for key in durations.clone() {
        for bad in [
            "0s", "5", "1", "true", "soon", "\"\"", "-1s", "[1s]", "1000000h", "~", "999us",
        ] {
            let said = refusal(key, bad);
            assert!(said.starts_with(&format!("{key}: must ")), "{said}");
        }
    }
    assert_eq!(durations.count(), 12);
    let numbers = [
        "server.grpc_port",
        "server.max_in_flight",
        "server.max_connections",
        "database.map_size",
        "cluster.default_replication",
        "cluster.max_file_size",
        "raft.snapshot_threshold",
        "scheduler.block_size",
        "scheduler.max_concurrent_repairs",
    ];
    for key in numbers {
        for bad in [
            "0",
            "-1",
            "1.5",
            "many",
            "true",
            "[1]",
            "{ a: 1 }",
            "~",
            "99999999999999999999",
            "\"1XB\"",
        ] {
            let said = refusal(key, bad);
            assert!(said.starts_with(&format!("{key}: must ")), "{said}");
        }
    }
    for bad in ["-0.1", "many", "true", "[0.2]", "~", "1e999"] {
        let said = refusal("scheduler.mass_delete_share", bad);
        assert!(said.starts_with("scheduler.mass_delete_share: must "), "{said}");
    }
    for key in ["database.dir", "etcd.dataServer_key_prefix", "logging.level"] {
        for bad in ["\"\"", "\" \"", "5", "[a]", "~"] {
            let said = refusal(key, bad);
            assert!(said.starts_with(&format!("{key}: must ")), "{said}");
        }
    }
    for (key, bad, said) in [
        (
            "server.grpc_port",
            "65536",
            "server.grpc_port: must be between 1 and 65535, is 65536",
        ),
        (
            "server.grpc_port",
            "\"9090\"",
            "server.grpc_port: must be a whole number, is `9090`",
        ),
        (
            "cluster.default_replication",
            "33",
            "cluster.default_replication: must be between 1 and 32, is 33",
        ),
        (
            "scheduler.orphan_grace",
            "1h",
            "must be longer than scheduler.write_lease: 3600s <= 3600s",
        ),
        (
            "scheduler.mass_delete_share",
            "0",
            "scheduler.mass_delete_share: must be more than 0 and at most 1, is 0",
        ),
        (
            "scheduler.mass_delete_share",
            "1.01",
            "must be more than 0 and at most 1, is 1.01",
        ),
        (
            "scheduler.mass_delete_share",
            "\"0.2\"",
            "must be a number such as 0.2, is `0.2`",
        ),
        (
            "scheduler.block_size",
            "2GiB",
            "must be between 1 and 1073741824, is 2147483648",
        ),
        (
            "scheduler.block_size",
            "99999999TiB",
            "must be a number of bytes such as 4194304 or 4MiB",
        ),
        (
            "database.map_size",
            "1048577",
            "database.map_size: must be a multiple of 64 KiB",
        ),
        (
            "cluster.permanent_down_threshold",
            "14s",
            "must not be shorter than cluster.heartbeat_timeout: 14s < 15s",
        ),
        (
            "raft.election_timeout",
            "1",
            "must be a duration such as 500ms, 1s or 2m, is `1`",
        ),
        ("logging.level", "inof", "logging.level: `inof` is no level"),
        ("logging.level", "\"info,x=y\"", "logging.level: "),
        ("logging.file", "5", "logging.file: must be text, is `5`"),
        (
            "reads",
            "stale",
            "reads: must be linearizable, lease or local, is `stale`",
        ),
        ("reads", "~", "reads: must be text, is empty"),
        (
            "server.grpc_threads",
            "65",
            "server.grpc_threads: must be auto or a number from 0 to 64, is `65`",
        ),
        (
            "server.grpc_threads",
            "many",
            "server.grpc_threads: must be auto or a number from 0 to 64, is `many`",
        ),
        (
            "etcd.endpoints",
            "\"h:1\"",
            "etcd.endpoints: must be a list, is `h:1`",
        ),
        (
            "etcd.endpoints",
            "[h]",
            "etcd.endpoints[0]: must be host:port, is `h`",
        ),
        (
            "etcd.endpoints",
            "[\"https://h:1\"]",
            "etcd.endpoints[0]: `https://h:1`: TLS to etcd is not supported",
        ),
        ("etcd", "5", "etcd: must hold keys, is `5`"),
        ("etcd", "[5]", "etcd: must hold keys, is a list"),
        ("raft.peers", "5", "raft.peers: must be a list, is `5`"),
        (
            "raft.peers",
            "[5]",
            "raft.peers[0]: must be { id, raft_addr, grpc_addr }, is `5`",
        ),
    ] {
        let refusal = refusal(key, bad);
        assert!(refusal.contains(said), "{refusal}");
    }
}

#[test]
fn peers_are_checked_one_by_one() {
    let said = |peers: &str| -> Vec<String> {
        problems(&format!("raft: {{ peers: [{peers}] }}"))
            .iter()
            .map(Problem::to_string)
            .collect()
    };
    assert_eq!(
        said("{ id: a }"),
        [
            "raft.peers[0].grpc_addr: is missing",
            "raft.peers[0].raft_addr: is missing"
        ]
    );
    assert_eq!(
        said("{ id: a, raft_addr: \"h:1\", grpc_adr: \"h:2\", grpc_addr: \"h:3\" }"),
        ["raft.peers[0].grpc_adr: unknown key; is `grpc_addr` meant?"]
    );
    for bad in [
        "h",
        "h:",
        ":1",
        "h:0",
        "h:65536",
        "h:+1",
        "::1:5",
        "[::1:5",
        "http://h:1",
        "a b:1",
        "h:1:2",
    ] {
        let said = said(&format!("{{ id: a, raft_addr: \"h:1\", grpc_addr: \"{bad}\" }}"));
        assert_eq!(
            said,
            [format!("raft.peers[0].grpc_addr: must be host:port, is `{bad}`")]
        );
    }
    for nowhere in ["0.0.0.0:1", "[::]:1"] {
        let said = said(&format!(
            "{{ id: a, raft_addr: \"{nowhere}\", grpc_addr: \"h:1\" }}"
        ));
        assert!(
            said[0].starts_with("raft.peers[0].raft_addr: ") && said[0].contains("name a host"),
            "{said:?}"
        );
    }
    for bad in ["a/b", "a b", ".a", "é"] {
        let said = said(&format!(
            "{{ id: \"{bad}\", raft_addr: \"h:1\", grpc_addr: \"h:2\" }}"
        ));
        assert!(said[0].starts_with("raft.peers[0].id: must be"), "{said:?}");
    }
    let first = "{ id: a, raft_addr: \"h:1\", grpc_addr: \"h:2\" }";
    for (second, twice) in [
        (
            "{ id: a, raft_addr: \"h:3\", grpc_addr: \"h:4\" }",
            "raft.peers[1].id: `a` is there twice",
        ),
        (
            "{ id: b, raft_addr: \"h:2\", grpc_addr: \"h:4\" }",
            "raft.peers[1].raft_addr: `h:2` is there twice",
        ),
        (
            "{ id: b, raft_addr: \"h:3\", grpc_addr: \"H:1\" }",
            "raft.peers[1].grpc_addr: `H:1` is there twice",
        ),
        (
            "{ id: b, raft_addr: \"h:3\", grpc_addr: \"h:3\" }",
            "raft.peers[1].grpc_addr: `h:3` is there twice",
        ),
    ] {
        assert_eq!(said(&format!("{first}, {second}")), [twice]);
    }
}

#[test]
fn unknown_keys_are_refused_and_the_nearest_is_named() {
    for (key, meant) in [
        ("server.grpc_prot", Some("server.grpc_port")),
        ("etcd.dataserver_key_prefix", Some("etcd.dataServer_key_prefix")),
        ("cluster.default_replicas", Some("cluster.default_replication")),
        ("cluster.block_size", Some("scheduler.block_size")),
        ("max_in_flight", Some("server.max_in_flight")),
        ("raft.snapshot_treshold", Some("raft.snapshot_threshold")),
        ("read", Some("reads")),
        ("scheduler.zzz", None),
        ("zzz", None),
    ] {
        let said = refusal(key, "1");
        match meant {
            Some(meant) => assert_eq!(said, format!("{key}: unknown key; is `{meant}` meant?")),
            None => assert_eq!(said, format!("{key}: unknown key")),
        }
    }
    assert_eq!(problems("a.b: 1\n")[0].key, "a");
}

#[test]
fn all_mistakes_come_at_once_in_order() {
    let text = "server: { grpc_port: 0, x: 1 }\nreads: no\n";
    let error = parse(text).unwrap_err().to_string();
    let lines: Vec<_> = error
        .lines()
        .map(|line| line.split(':').next().unwrap().trim())
        .collect();
    assert_eq!(
        lines,
        [
            "the configuration c.yaml is refused",
            "raft.peers",
            "reads",
            "server.grpc_port",
            "server.x"
        ]
    );
    let one = parse(&with("reads", "x")).unwrap_err().to_string();
    assert!(
        one.starts_with("the configuration c.yaml is refused: reads: must be"),
        "{one}"
    );
}

#[test]
fn what_is_no_yaml_is_refused_with_its_line() {
    for text in ["a: [", "a: 1\na: 2", "- a", "5", "a: b: c"] {
        let error = parse(text).unwrap_err();
        assert!(matches!(error, ConfigError::Yaml { .. }), "{text}: {error:?}");
        assert!(
            error.to_string().starts_with("c.yaml is not valid YAML: "),
            "{error}"
        );
    }
    assert!(parse("a: b: c").unwrap_err().to_string().contains("line 1"));
    let missing = Config::load(Path::new("/nonexistent/c.yaml")).unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("cannot read the configuration /nonexistent/c.yaml"),
        "{missing}"
    );
}

#[test]
fn a_file_of_the_first_server_is_accepted_with_one_warning() {
    let text = r#"
server: { port: 8080, grpc_port: 9090 }
database: { badger_dir: "./metadb" }
cluster: { default_replication: 3, heartbeat_timeout: 10s, permanent_down_threshold: 10s }
etcd: { endpoints: ["localhost:2379"], timeout: 5s, dataServer_key_prefix: "/dfs/dataServers/" }
raft:
  peers: [{ id: a, raft_addr: "h1:1", grpc_addr: "h1:2" }]
  heartbeat_timeout: 1s
  election_timeout: 1s
  snapshot_interval: 120s
  snapshot_threshold: 8192
scheduler:
  { fsck_interval: 30s, fsck_workers: 4, gc_interval: 1m, block_size: 4194304, max_concurrent_repairs: 100,
    repair_workers: 5, repair_queue_size: 100 }
logging: { level: "info", file: "./logs/metaServer.log" }
"#;
    let mut config = defaults();
    config.cluster.heartbeat_timeout = seconds(10);
    config.cluster.permanent_down_threshold = seconds(10);
    let warning = "keys of the first server that mean nothing any more: scheduler.fsck_workers, \
                   scheduler.repair_queue_size, scheduler.repair_workers, server.port";
    assert_eq!(
        parse(text).unwrap(),
        Loaded {
            config,
            warnings: vec![warning.into()]
        }
    );
}

#[test]
fn the_old_name_of_the_directory_may_not_contradict_the_new_one() {
    let both = |old: &str| parse(&format!("{PEERS}database: {{ dir: /d, badger_dir: {old} }}\n"));
    assert_eq!(both("/d").unwrap().config.database.dir, Path::new("/d"));
    let error = both("/e").unwrap_err().to_string();
    assert!(
        error.contains("database.badger_dir: is the old name of database.dir, and they differ"),
        "{error}"
    );
}

/// The shipped file spells out the defaults; three nodes start from it side by side.
#[test]
fn the_shipped_file_is_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.yaml");
    let loaded = Config::load(&path).unwrap();
    let node = |port| {
        let (raft, grpc) = (port + 1000, port);
        peer(
            &format!("meta-{port}"),
            &format!("localhost:{raft}"),
            &format!("localhost:{grpc}"),
        )
    };
    let config = Config::with_peers(vec![node(9090), node(9091), node(9092)]);
    assert_eq!(
        loaded,
        Loaded {
            config: config.clone(),
            warnings: vec![]
        }
    );
    let text = std::fs::read_to_string(&path).unwrap();
    for key in read::KEYS.iter().filter(|key| **key != "database.badger_dir") {
        let last = key.rsplit('.').next().unwrap();
        assert!(text.contains(&format!("{last}:")), "{key} is not in config.yaml");
    }
    for port in [9090, 9091, 9092] {
        let overrides = Overrides {
            port: Some(port),
            raft_port: Some(port + 1000),
            ..Overrides::default()
        };
        let node = config.clone().for_node(overrides).unwrap();
        assert_eq!(node.name, format!("meta-{port}"));
        assert_eq!(node.grpc_listen, format!("127.0.0.1:{port}"));
        assert_eq!(node.raft_listen, format!("127.0.0.1:{}", port + 1000));
        assert_eq!(node.data_dir, Path::new("./metadb").join(&node.name));
        let log = format!("./logs/metaServer-meta-{port}.log");
        assert_eq!(node.config.logging.file, Some(log.into()));
        assert_eq!(node.warnings(), Vec::<String>::new());
    }
}

fn node(peers: Vec<Peer>, overrides: Overrides) -> Result<NodeSettings, ConfigError> {
    Config::with_peers(peers).for_node(overrides)
}

fn named(id: &str) -> Overrides {
    Overrides {
        node_id: Some(id.into()),
        ..Overrides::default()
    }
}

#[test]
fn a_name_that_is_no_peer_is_refused_with_those_that_are() {
    let peers = vec![peer("a", "h1:1", "h1:2"), peer("b", "h2:1", "h2:2")];
    let error = node(
        peers.clone(),
        Overrides {
            port: Some(7),
            ..Overrides::default()
        },
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("`meta-7`") && error.contains("a, b"), "{error}");
    let error = node(peers.clone(), Overrides::default()).unwrap_err().to_string();
    assert!(error.contains("`meta-9090`"), "{error}");
    assert!(node(peers, named("c")).unwrap_err().to_string().contains("`c`"));
}

#[test]
fn a_node_listens_where_its_own_address_can_be_reached() {
    for (host, on) in [
        ("localhost", "127.0.0.1"),
        ("LocalHost", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("[::1]", "[::1]"),
        ("meta1.example", "0.0.0.0"),
        ("10.0.0.1", "0.0.0.0"),
        ("[fd00::1]", "[::]"),
    ] {
        let peers = vec![peer("a", &format!("{host}:1"), &format!("{host}:2"))];
        let settings = node(peers, named("a")).unwrap();
        assert_eq!(settings.raft_listen, format!("{on}:1"), "{host}");
        assert_eq!(settings.grpc_listen, format!("{on}:2"), "{host}");
    }
}

#[test]
fn ports_come_from_the_command_line_then_from_the_peers_entry() {
    let peers = vec![peer("a", "h:10", "h:20"), peer("meta-9090", "g:30", "g:40")];
    let settings = node(peers.clone(), named("a")).unwrap();
    assert_eq!(
        (settings.grpc_listen.as_str(), settings.raft_listen.as_str()),
        ("0.0.0.0:20", "0.0.0.0:10")
    );
    assert_eq!(settings.warnings(), Vec::<String>::new());

    let moved = Overrides {
        port: Some(21),
        raft_port: Some(11),
        ..named("a")
    };
    let settings = node(peers.clone(), moved).unwrap();
    assert_eq!(
        (settings.grpc_listen.as_str(), settings.raft_listen.as_str()),
        ("0.0.0.0:21", "0.0.0.0:11")
    );
    let warnings = settings.warnings();
    assert_eq!(
        warnings[0],
        "a listens on 0.0.0.0:21, but raft.peers says grpc_addr h:20: check --port"
    );
    assert_eq!(
        warnings[1],
        "a listens on 0.0.0.0:11, but raft.peers says raft_addr h:10: check --raft-port"
    );

    let settings = node(peers, Overrides::default()).unwrap();
    assert_eq!(
        (settings.name.as_str(), settings.grpc_listen.as_str()),
        ("meta-9090", "0.0.0.0:9090")
    );
    assert_eq!(settings.raft_listen, "0.0.0.0:30");
}

#[test]
fn nodes_that_share_a_machine_share_neither_data_nor_log() {
    let own = |peers: Vec<Peer>, overrides: Overrides| {
        let settings = node(peers, overrides).unwrap();
        (settings.data_dir, settings.config.logging.file.unwrap())
    };
    let path = |text: &str| PathBuf::from(text);
    let alone = vec![peer("a", "localhost:1", "localhost:2")];
    assert_eq!(
        own(alone, named("a")),
        (path("./metadb"), path("./logs/metaServer.log"))
    );
    let apart = vec![
        peer("a", "h1:1", "h1:2"),
        peer("b", "h2:1", "h2:2"),
        peer("c", "h2:3", "h2:4"),
    ];
    assert_eq!(
        own(apart.clone(), named("a")),
        (path("./metadb"), path("./logs/metaServer.log"))
    );
    assert_eq!(
        own(apart, named("b")),
        (path("./metadb/b"), path("./logs/metaServer-b.log"))
    );
    let together = vec![
        peer("a", "localhost:1", "localhost:2"),
        peer("b", "127.0.0.1:3", "127.0.0.1:4"),
    ];
    let told = Overrides {
        data_dir: Some("/d".into()),
        ..named("a")
    };
    assert_eq!(
        own(together.clone(), told),
        (path("/d"), path("./logs/metaServer-a.log"))
    );

    let mut config = Config::with_peers(together);
    config.logging.file = Some("log".into());
    assert_eq!(
        config.clone().for_node(named("b")).unwrap().config.logging.file,
        Some("log-b".into())
    );
    config.logging.file = None;
    assert_eq!(config.for_node(named("b")).unwrap().config.logging.file, None);
}

#[test]
fn openrafts_timing_follows_the_owners_two_timeouts() {
    let timing = |heartbeat: u64, election: u64| {
        let raft = Raft {
            heartbeat_timeout: Duration::from_millis(heartbeat),
            election_timeout: Duration::from_millis(election),
            ..Raft::default()
        };
        let RaftTiming {
            heartbeat_interval,
            election_timeout_min,
            election_timeout_max,
        } = raft.timing();
        assert!(heartbeat_interval * 2 < election_timeout_min && election_timeout_min < election_timeout_max);
        [heartbeat_interval, election_timeout_min, election_timeout_max].map(|duration| duration.as_millis())
    };
    assert_eq!(timing(1000, 1000), [100, 250, 400]);
    assert_eq!(timing(2000, 2000), [200, 500, 800]);
    assert_eq!(
        timing(500, 1000),
        [50, 250, 400],
        "heartbeat_timeout may ask for more heartbeats"
    );
    assert_eq!(
        timing(5000, 1000),
        [100, 250, 400],
        "but never for fewer than elections need"
    );
    assert_eq!(timing(333, 333), [33, 83, 133]);
    assert_eq!(timing(1, 1), [20, 50, 80], "never below what a busy disk can do");
    assert_eq!(timing(86_400_000, 86_400_000)[2], 34_560_000);
}
