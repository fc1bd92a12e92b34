//! `cp`: trees in all directions.

use super::transfer::Scene;
use super::*;
use crate::client::testing::DataFault;

#[tokio::test]
async fn a_tree_goes_there_and_comes_back() {
    let scene = Scene::new();
    let odd = ["a b", "ü\n\"x\"", "-r", "minfs:", "#"];
    for name in odd {
        scene.write(&format!("tree/{name}/f {name}"), name);
    }
    scene.write("tree/empty", "");
    scene.write("tree/deep/er/still/big", &"0123456789".repeat(1000));
    fs::create_dir(scene.root.path().join("tree/nothing")).unwrap();
    std::os::unix::fs::symlink("empty", scene.root.path().join("tree/link")).unwrap();
    let tree = scene.local("tree");

    let (exit, report) = scene.json(&["cp", "-r", &tree, "minfs:/image"]).await;
    assert_eq!(exit, Exit::Ok, "{report}");
    assert_eq!(
        (&report["files"], &report["directories"]),
        (&7.into(), &10.into())
    );
    assert_eq!(
        report["bytes"],
        10_000 + odd.iter().map(|name| name.len()).sum::<usize>()
    );
    assert_eq!(
        (&report["skipped"]["symlinks"], &report["failed"]),
        (&1.into(), &serde_json::json!([]))
    );
    assert_eq!(scene.cat("/image/ü\n\"x\"/f ü\n\"x\"").await, odd[1]);
    // Into a directory that is there, and inside the cluster.
    scene.minfs(&["mkdir", "/d"]).await;
    assert_eq!(
        scene.minfs(&["cp", "-r", "minfs:/image", "minfs:/d/"]).await.0,
        Exit::Ok
    );
    assert_eq!(image(&scene.cluster, "/d/image"), image(&scene.cluster, "/image"));

    let (exit, printed) = scene
        .minfs(&["cp", "-r", "minfs:/d/image", &scene.local("back")])
        .await;
    assert_eq!(exit, Exit::Ok);
    assert!(printed.starts_with("7 files, 10 directories, 100"), "{printed}");
    fs::remove_file(scene.root.path().join("tree/link")).unwrap();
    let diff = std::process::Command::new("diff");
    let same = { diff }
        .args(["-r", &tree, &scene.local("back")])
        .status()
        .unwrap();
    assert!(same.success());
    // What the root holds, into what is there.
    scene.minfs(&["rm", "-r", "/image"]).await;
    fs::create_dir(scene.root.path().join("root")).unwrap();
    assert_eq!(
        scene
            .minfs(&["cp", "-r", "minfs:/", &scene.local("root")])
            .await
            .0,
        Exit::Ok
    );
    assert_eq!(scene.read("root/d/image/-r/f -r"), "-r");
}

#[tokio::test]
async fn single_files_go_where_cp_would_put_them() {
    let scene = Scene::new();
    let (a, b) = (scene.write("a", "A"), scene.write("b", "B"));
    scene.minfs(&["mkdir", "/d"]).await;
    assert_eq!(scene.minfs(&["cp", &a, "minfs:/x"]).await.0, Exit::Ok);
    assert_eq!(scene.minfs(&["cp", &a, &b, "minfs:/d"]).await.0, Exit::Ok);
    assert_eq!(scene.minfs(&["cp", &b, "minfs:/d/a"]).await.0, Exit::Ok);
    assert_eq!(
        scene.minfs(&["cp", "minfs:/d/b", "minfs:/x", "minfs:/d"]).await.0,
        Exit::Usage
    );
    assert_eq!(scene.minfs(&["cp", "minfs:/x", "minfs:/d"]).await.0, Exit::Ok);
    assert_eq!(scene.cluster.paths(), ["/d", "/d/a", "/d/b", "/d/x", "/x"]);
    assert_eq!(
        (scene.cat("/d/a").await, scene.cat("/d/x").await),
        ("B".into(), "A".into())
    );
    let (exit, report) = scene
        .json(&["cp", "-n", "minfs:/d/a", "minfs:/d/x", &scene.local("")])
        .await;
    assert_eq!((exit, &report["files"]), (Exit::AlreadyExists, &1.into()));
    assert_eq!(report["failed"][0]["path"], "minfs:/d/a");
    assert_eq!((scene.read("a"), scene.read("x")), ("A".into(), "A".into()));
}

#[tokio::test]
async fn what_makes_no_sense_is_said_before_anything_is_done() {
    let scene = Scene::new();
    let (a, b) = (scene.write("a", "A"), scene.write("b", "B"));
    scene.minfs(&["mkdir", "-p", "/d/e"]).await;
    for (arguments, exit) in [
        (&["cp", &a, &b][..], Exit::Usage),
        (&["cp", &a, &b, "minfs:/x"], Exit::Usage),
        (&["cp", &a, "minfs:x"], Exit::Mistake),
        (&["cp", local(&scene.root), "minfs:/x"], Exit::Mistake),
        (&["cp", "minfs:/d", &scene.local("x")], Exit::Mistake),
        (&["cp", "-r", "minfs:/d", "minfs:/d/e"], Exit::Usage),
        (&["cp", "-r", "minfs:/d", "minfs:/d/f"], Exit::Usage),
        (&["cp", "-r", "minfs:/d", &a], Exit::Mistake),
        (&["cp", "minfs:/x", &a], Exit::NotFound),
        (&["cp", &scene.local("x"), "minfs:/"], Exit::LocalIo),
        (&["cp", &a, "minfs:/x/y"], Exit::NotFound),
    ] {
        assert_eq!(scene.minfs(arguments).await.0, exit, "{arguments:?}");
    }
    assert_eq!(scene.cluster.paths(), ["/d", "/d/e"]);
    assert_eq!(scene.names(), ["a", "b"]);
    assert_eq!(scene.read("a"), "A");
}

#[tokio::test]
async fn one_bad_file_does_not_keep_the_others() {
    let scene = Scene::new();
    for name in ["t/a", "t/b", "t/c/d"] {
        scene.write(name, name);
    }
    // A directory is where a file goes, and a file where a directory goes.
    scene.minfs(&["mkdir", "-p", "/t/a"]).await;
    scene.minfs(&["touch", "/t/c"]).await;
    let (exit, report) = scene
        .json(&["cp", "-r", "--jobs", "1", &scene.local("t"), "minfs:/"])
        .await;
    assert_eq!(exit, Exit::Mistake, "that of the first: {report}");
    let failed = report["failed"].as_array().unwrap();
    let failed: Vec<_> = failed
        .iter()
        .map(|problem| {
            (
                problem["path"].as_str().unwrap(),
                problem["kind"].as_str().unwrap(),
            )
        })
        .collect();
    let paths = [scene.local("t/a"), scene.local("t/c")];
    assert_eq!(
        failed,
        [
            (paths[0].as_str(), "failed_precondition"),
            (&paths[1], "already_exists")
        ]
    );
    assert_eq!((&report["files"], &report["stopped"]), (&1.into(), &false.into()));
    assert_eq!(scene.cat("/t/b").await, "t/b");
    let (_, printed) = scene.minfs(&["cp", "-r", &scene.local("t"), "minfs:/"]).await;
    assert!(lines(&printed).contains(&"2 not copied"), "{printed}");
}

#[tokio::test]
async fn a_cluster_that_is_gone_is_not_asked_for_every_file() {
    let scene = Scene::new();
    for i in 0..50 {
        scene.write(&format!("t/{i}"), "x");
    }
    scene
        .server
        .fail_rpc("GetBlockLocations", Fault::Unavailable { leader: None });
    let tree = scene.local("t");
    let arguments = ["--timeout", "1s", "cp", "-r", "--jobs", "2", &tree, "minfs:/t"];
    let (exit, report) = scene.json(&arguments).await;
    assert_eq!((exit, &report["stopped"]), (Exit::Unavailable, &true.into()));
    assert!(report["failed"].as_array().unwrap().len() <= 2, "{report}");
    // DataServers that fail are another matter.
    scene.server.fail_rpc("", Fault::Hang);
    for server in &scene.data {
        server.fail_writes(vec![DataFault::Refuse(tonic::Code::Internal); 3]);
    }
    let (exit, report) = scene.json(&["cp", "-r", "--jobs", "1", &tree, "minfs:/t"]).await;
    assert_eq!(
        (exit, &report["stopped"]),
        (Exit::Unavailable, &false.into()),
        "{report}"
    );
    assert_eq!(
        (&report["files"], report["failed"].as_array().unwrap().len()),
        (&49.into(), 1)
    );
}
