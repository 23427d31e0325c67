//! What both tools promise before any process or build is involved: exit codes, one JSON object, help.

use serde_json::Value;
use std::process::{Command, Output};

fn run(tool: &str, args: &[&str]) -> (i32, Value, String) {
    let path = match tool {
        "livepatch" => env!("CARGO_BIN_EXE_livepatch"),
        _ => env!("CARGO_BIN_EXE_cargo-livepatch"),
    };
    let Output { status, stdout, stderr } = Command::new(path).args(args).output().expect("the tool starts");
    let text = String::from_utf8_lossy(&stderr).into_owned() + &String::from_utf8_lossy(&stdout);
    (status.code().expect("no signal"), serde_json::from_slice(&stdout).unwrap_or(Value::Null), text)
}

#[test]
fn wrong_usage_is_2_and_says_so_in_json() {
    let wrong: [&[&str]; 10] = [
        &[],
        &["nonsense"],
        &["apply"],
        &["apply", "1"],
        &["apply", "one", "file"],
        &["apply", "0", "file"],
        &["apply", "1", "file", "--policy", "hope"],
        &["apply", "1", "file", "--timeout", "-3"],
        &["rollback", "1", "abc", "--all"],
        &["explain", "LP9999"],
    ];
    for args in wrong {
        let (code, _, text) = run("livepatch", args);
        assert_eq!(code, 2, "{args:?}");
        assert!(!text.is_empty(), "{args:?}");
        let (code, json, _) = run("livepatch", &[args, &["--json"]].concat());
        assert_eq!((code, &json["exit_code"]), (2, &Value::from(2)), "{args:?}");
        assert!(json["error"].is_string() && json["findings"].is_array(), "{args:?}: {json}");
    }
    assert_eq!(run("cargo-livepatch", &["livepatch", "create", "--nonsense"]).0, 2);
}

#[test]
fn cargo_s_own_word_is_optional() {
    for args in [&["livepatch", "explain", "LP0001"][..], &["explain", "lp0001"]] {
        let (code, _, text) = run("cargo-livepatch", args);
        assert_eq!(code, 0);
        assert!(text.starts_with("LP0001\n"), "{text}");
    }
}

#[test]
fn both_tools_explain_alike() {
    let (code, json, _) = run("livepatch", &["explain", "LP0001", "--json"]);
    assert_eq!(code, 0);
    assert_eq!(json, run("cargo-livepatch", &["livepatch", "explain", "LP0001", "--json"]).1);
    assert_eq!(json["code"], "LP0001");
}

#[test]
fn files_that_are_no_patches() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("bad");
    std::fs::write(&file, "no patch").expect("a file");
    let path = file.to_str().expect("UTF-8");
    for args in [&["inspect", path][..], &["apply", "1", path], &["check", "1", path]] {
        let (code, json, _) = run("livepatch", &[args, &["--json"]].concat());
        assert_eq!((code, &json["exit_code"]), (6, &Value::from(6)), "{args:?}");
        assert!(json["error"].as_str().is_some_and(|error| error.contains(path)), "{json}");
    }
    assert_eq!(run("livepatch", &["inspect", "/does/not/exist"]).0, 1);
}

#[test]
fn a_folder_without_a_workspace_is_an_environment_error() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = Command::new(env!("CARGO_BIN_EXE_cargo-livepatch"))
        .args(["livepatch", "create", "--json"])
        .current_dir(dir.path())
        .env("LIVEPATCH_HOME", dir.path().join("store"))
        .output()
        .expect("the tool starts");
    let json: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!((output.status.code(), &json["exit_code"]), (Some(1), &Value::from(1)), "{json}");
}

#[test]
fn help_and_version_succeed() {
    for tool in ["livepatch", "cargo-livepatch"] {
        for arg in ["--help", "--version"] {
            let (code, _, text) = run(tool, &[arg]);
            assert_eq!(code, 0);
            assert!(text.contains("livepatch"), "{text}");
        }
    }
    assert!(run("livepatch", &["--help"]).2.contains("Exit codes"));
}
