//! `shell`: whole sessions from a pipe.

use super::transfer::Scene;
use super::*;
use crate::cli::shell::piped;

async fn session(scene: &Scene, lines: &'static str, json: bool) -> (Exit, String) {
    let sink = Sink::default();
    let mut out = Output::new(Box::new(sink.clone()));
    out.set_json(json);
    let connection = Arguments::try_parse_from(["minfs", "--server", &scene.server.addr, "shell"]);
    let connection = connection.unwrap().connection;
    let session = Session::open(&connection, &Environment::default()).await.unwrap();
    let exit = piped(&session, lines, &mut out).await;
    let exit = conclude(exit, &mut out);
    out.finish().unwrap();
    let printed = std::mem::take(&mut *sink.0.lock().unwrap());
    (exit, String::from_utf8(printed).unwrap())
}

#[tokio::test]
async fn a_session_goes_about_the_tree() {
    let scene = Scene::new();
    let lines = "\
# a comment, and an empty line

mkdir -p a/b 'with blank'
cd a/b
pwd
touch f ../g \"two words\"
ls
ls ..
minfs ls /
cd ../..
pwd
stat 'with blank'/.. --json
mkdir --timeout 5s x/ && nothing
";
    let (exit, printed) = session(&scene, lines, false).await;
    // `&&` is a name like any other: the shell has no operators.
    assert_eq!(exit, Exit::Ok);
    let printed: Vec<&str> = printed.lines().collect();
    let before = ["/a/b", "f", "two words", "b", "g", "a", "with blank", "/"];
    assert_eq!(printed[..before.len()], before);
    let stat: Value = serde_json::from_str(printed[before.len()]).unwrap();
    assert_eq!((&stat["path"], &stat["type"]), (&"/".into(), &"directory".into()));
    assert_eq!(printed.len(), before.len() + 1);
    assert!(scene.cluster.paths().contains(&"/&&".to_string()));
}

#[tokio::test]
async fn files_are_moved_from_where_the_shell_is() {
    let scene = Scene::new();
    // Paths of this machine are not the shell's: they stay as they were typed.
    let local = scene.write("f", "content");
    let text = format!(
        "mkdir d\ncd d\nput {local} .\nput {local} g\ncat g f\ncp minfs:g minfs:../h\ncp -r minfs: minfs:/e\n"
    );
    let (exit, printed) = session(&scene, text.leak(), false).await;
    assert_eq!(exit, Exit::Ok);
    assert!(printed.contains("contentcontent"), "{printed}");
    assert_eq!(
        scene.cluster.paths(),
        ["/d", "/d/f", "/d/g", "/e", "/e/f", "/e/g", "/h"]
    );
}

#[tokio::test]
async fn the_first_error_ends_a_session_from_a_pipe() {
    let scene = Scene::new();
    for (lines, exit) in [
        ("stat x\nmkdir never\n", Exit::NotFound),
        ("frobnicate\nmkdir never\n", Exit::Usage),
        ("ls 'open\nmkdir never\n", Exit::Usage),
        ("ls --server other:1\nmkdir never\n", Exit::Usage),
        ("shell\nmkdir never\n", Exit::Usage),
        ("cd x\nmkdir never\n", Exit::NotFound),
        ("touch f\ncd f\nmkdir never\n", Exit::Mistake),
        ("pwd x\nmkdir never\n", Exit::Usage),
        ("exit\nmkdir never\n", Exit::Ok),
        ("quit", Exit::Ok),
        ("", Exit::Ok),
    ] {
        assert_eq!(session(&scene, lines, false).await.0, exit, "{lines}");
    }
    assert_eq!(scene.cluster.paths(), ["/f"]);
}

#[tokio::test]
async fn help_and_documents() {
    let scene = Scene::new();
    let (exit, printed) = session(&scene, "help\nhelp put\nput --help\n", false).await;
    assert_eq!(exit, Exit::Ok);
    for words in ["cd [PATH]", "Exit codes:", "Store a local file"] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
    let (exit, printed) = session(&scene, "mkdir a\ncd a\npwd\nstat x\n", true).await;
    assert_eq!(exit, Exit::NotFound);
    let documents: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(documents[0], serde_json::json!({"created": ["/a"]}));
    assert_eq!(documents[1], serde_json::json!({"path": "/a"}));
    assert_eq!(documents[2]["error"]["kind"], "not_found");
}
