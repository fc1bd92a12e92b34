//! `put`, `get`, `cat`: where files go, what is said of it, and what is left when it fails.

use super::*;
use crate::client::testing::{DataFault, DataServer};

/// Servers, and a local directory.
pub(super) struct Scene {
    pub(super) cluster: Cluster,
    pub(super) server: Server,
    pub(super) data: Vec<DataServer>,
    pub(super) root: TempDir,
}

impl Scene {
    pub(super) fn new() -> Self {
        let cluster = Cluster::default();
        cluster.state().block_size = 1024;
        Scene {
            server: cluster.serve(),
            data: DataServer::start_for(&cluster, 3),
            cluster,
            root: TempDir::new().unwrap(),
        }
    }

    pub(super) fn local(&self, name: &str) -> String {
        format!("{}/{name}", local(&self.root))
    }

    /// Makes a local file.
    pub(super) fn write(&self, name: &str, content: &str) -> String {
        let path = self.root.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.local(name)
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root.path().join(name)).unwrap()
    }

    /// The names below the local directory, hidden ones too.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    pub(super) async fn minfs(&self, arguments: &[&str]) -> (Exit, String) {
        minfs(&self.server, arguments).await
    }

    pub(super) async fn json(&self, arguments: &[&str]) -> (Exit, Value) {
        json(&self.server, arguments).await
    }

    /// The content of a remote file.
    pub(super) async fn cat(&self, path: &str) -> String {
        let (exit, printed) = self.minfs(&["cat", path]).await;
        assert_eq!(exit, Exit::Ok, "{path}");
        printed
    }
}

#[tokio::test]
async fn a_file_goes_and_comes_back() {
    let scene = Scene::new();
    let content = "0123456789abcdef".repeat(200);
    let local = scene.write("f", &content);
    let (exit, printed) = scene.minfs(&["put", &local, "/g"]).await;
    assert_eq!(exit, Exit::Ok);
    assert!(printed.starts_with("/g: 3200 bytes in "), "{printed}");
    assert!(printed.trim_end().ends_with(" MiB/s"), "{printed}");
    assert_eq!(scene.cat("/g").await, content);
    let (exit, printed) = scene.minfs(&["get", "/g", &scene.local("h")]).await;
    assert_eq!(exit, Exit::Ok);
    assert!(printed.contains("/h: 3200 bytes in "), "{printed}");
    assert_eq!(scene.read("h"), content);
    assert_eq!(scene.names(), ["f", "h"]);

    let (_, put) = scene.json(&["put", &local, "/g"]).await;
    let md5 = "4e376e25f9a0bb59ca7d3abef10b1cb1";
    assert_eq!(
        (&put["path"], &put["size"], &put["under_replicated_blocks"]),
        (&"/g".into(), &3200.into(), &0.into())
    );
    assert_eq!(put["md5"].as_str().map(str::len), Some(md5.len()));
    let (_, get) = scene.json(&["get", "/g", &scene.local("h")]).await;
    assert_eq!((&get["md5"], &get["verified"]), (&put["md5"], &true.into()));
    for document in [&put, &get] {
        assert!(
            document["seconds"].as_f64().unwrap() > 0.0
                && document["bytes_per_second"].as_f64().unwrap() > 0.0
        );
    }
    assert_eq!(scene.json(&["stat", "/g"]).await.1["md5"], put["md5"]);
    assert_eq!(scene.minfs(&["cat", "/g", "/g"]).await.1, content.repeat(2));
    assert_eq!(scene.json(&["cat", "/g"]).await.0, Exit::Usage);
}

#[tokio::test]
async fn a_file_goes_into_a_directory_under_its_name() {
    let scene = Scene::new();
    let local = scene.write("f", "x");
    scene.minfs(&["mkdir", "/d"]).await;
    for remote in ["/d", "/d/"] {
        assert_eq!(scene.minfs(&["put", &local, remote]).await.0, Exit::Ok);
        assert_eq!(scene.cat("/d/f").await, "x");
        scene.minfs(&["rm", "/d/f"]).await;
    }
    assert_eq!(scene.minfs(&["put", &local, "/e/"]).await.0, Exit::NotFound);
    assert_eq!(scene.minfs(&["put", &local, "/e/g"]).await.0, Exit::NotFound);
    assert_eq!(scene.cluster.paths(), ["/d"]);
    assert_eq!(scene.minfs(&["put", "-p", &local, "/e/"]).await.0, Exit::Ok);
    assert_eq!(scene.minfs(&["put", "-p", &local, "/i/j/k"]).await.0, Exit::Ok);
    assert_eq!(
        scene.cluster.paths(),
        ["/d", "/e", "/e/f", "/i", "/i/j", "/i/j/k"]
    );
    assert_eq!(scene.minfs(&["put", &local, "/i/j/k/"]).await.0, Exit::Mistake);
    scene.minfs(&["mkdir", "/d/f"]).await;
    assert_eq!(scene.minfs(&["put", &local, "/d"]).await.0, Exit::Mistake);

    fs::create_dir(scene.root.path().join("out")).unwrap();
    assert_eq!(
        scene.minfs(&["get", "/e/f", &scene.local("out")]).await.0,
        Exit::Ok
    );
    assert_eq!(scene.read("out/f"), "x");
}

#[tokio::test]
async fn what_is_there_is_replaced_unless_it_must_not_be() {
    let scene = Scene::new();
    let (old, new) = (scene.write("old", "old"), scene.write("new", ""));
    scene.minfs(&["put", &old, "/f"]).await;
    let (exit, document) = scene.json(&["put", "--no-clobber", &new, "/f"]).await;
    assert_eq!(
        (exit, &document["error"]["kind"]),
        (Exit::AlreadyExists, &"already_exists".into())
    );
    assert_eq!(scene.cat("/f").await, "old");
    assert_eq!(scene.minfs(&["put", &new, "/f"]).await.0, Exit::Ok);
    assert_eq!(scene.cat("/f").await, "");
    assert_eq!(
        scene.minfs(&["get", "-n", "/f", &old]).await.0,
        Exit::AlreadyExists
    );
    assert_eq!(scene.read("old"), "old");
    assert_eq!(scene.minfs(&["get", "/f", &old]).await.0, Exit::Ok);
    assert_eq!(scene.read("old"), "");
}

#[tokio::test]
async fn every_way_to_fail_has_its_exit_and_leaves_nothing() {
    let scene = Scene::new();
    let (local, big) = (scene.write("f", "x"), scene.write("big", &"y".repeat(5000)));
    scene.minfs(&["put", &local, "/f"]).await;
    scene.minfs(&["mkdir", "/d"]).await;
    let there = scene.names();
    for (arguments, exit, kind) in [
        (&["put", "/no/such/file", "/g"][..], Exit::LocalIo, "local_io"),
        (&["put", local_directory(&scene), "/g"], Exit::LocalIo, "local_io"),
        (&["put", "/dev/null", "/g"], Exit::LocalIo, "local_io"),
        (&["put", &local, "relative"], Exit::Mistake, "invalid_argument"),
        (&["get", "/x", &big], Exit::NotFound, "not_found"),
        (&["get", "/d", &big], Exit::Mistake, "failed_precondition"),
        (&["get", "/f", "/no/such/directory/f"], Exit::LocalIo, "local_io"),
        (&["get", "/f", "/dev/null"], Exit::LocalIo, "local_io"),
    ] {
        let (code, document) = scene.json(arguments).await;
        assert_eq!(
            (code, document["error"]["kind"].as_str()),
            (exit, Some(kind)),
            "{arguments:?}"
        );
    }
    assert_eq!(scene.minfs(&["cat", "/x"]).await, (Exit::NotFound, String::new()));
    // No DataServer takes or gives anything.
    for server in &scene.data {
        server.fail_always(DataFault::Refuse(tonic::Code::ResourceExhausted));
    }
    for arguments in [&["put", &big, "/g"], &["put", &big, "/f"], &["get", "/f", &big]] {
        let (code, document) = scene.json(arguments).await;
        assert_eq!(
            (code, &document["error"]["kind"]),
            (Exit::Unavailable, &"unavailable".into())
        );
    }
    // They give something else.
    for server in &scene.data {
        server.fail_always(DataFault::Altered);
    }
    let (code, document) = scene.json(&["get", "/f", &big]).await;
    assert_eq!(
        (code, &document["error"]["kind"]),
        (Exit::Damaged, &"damaged".into())
    );
    let (code, printed) = scene.minfs(&["cat", "/f"]).await;
    assert_eq!((code, printed.len()), (Exit::Damaged, 1), "the bytes are out");
    assert_eq!((scene.names(), scene.read("big").len()), (there, 5000));
    assert_eq!(scene.cluster.paths(), ["/d", "/f"]);
}

fn local_directory(scene: &Scene) -> &str {
    local(&scene.root)
}

#[tokio::test]
async fn an_unknown_end_of_a_put_is_told() {
    let scene = Scene::new();
    let local = scene.write("f", "x");
    scene.server.fail_rpc("FinalizeWrite", Fault::Lost);
    let (exit, document) = scene.json(&["--timeout", "2s", "put", &local, "/f"]).await;
    assert_eq!(
        (exit, &document["error"]["kind"]),
        (Exit::OutcomeUnknown, &"outcome_unknown".into())
    );
}

#[tokio::test]
async fn blocks_with_fewer_replicas_are_counted() {
    let scene = Scene::new();
    let dead = DeadAddress::new();
    scene.cluster.state().data_servers[1] = dead.addr.clone();
    let local = scene.write("f", &"x".repeat(3000));
    let (exit, document) = scene.json(&["put", &local, "/f"]).await;
    assert_eq!(
        (exit, &document["under_replicated_blocks"]),
        (Exit::Ok, &3.into())
    );
}

#[tokio::test]
async fn a_reader_of_cat_may_go_away() {
    let scene = Scene::new();
    let local = scene.write("f", &"x".repeat(300_000));
    scene.cluster.state().block_size = 64 << 10;
    scene.minfs(&["put", &local, "/f"]).await;
    let arguments = Arguments::try_parse_from(["minfs", "cat", "/f", "/f"]).unwrap();
    let mut out = Output::new(Box::new(Gone));
    let environment = Environment {
        server: Some(scene.server.addr.clone()),
        ..Environment::default()
    };
    assert_eq!(run(arguments, &environment, &mut out).await, Exit::Ok);
    out.finish().unwrap();
}
