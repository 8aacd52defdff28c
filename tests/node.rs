//! The pure crates' unit tests again, in Node: the same code on a wasm target, where `usize` has 32 bits and a panic is a trap.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use routebalance_cli::setup::{NODE_TARGET, ensure_target, package_root, wasm_bindgen_runner};
use serde_json::Value;

/// Cargo tells the runner by this variable; it wins over `.cargo/config.toml`, whose runner must be on PATH.
const RUNNER_VARIABLE: &str = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER";
/// The crates without a host, a clock or a socket.
const PURE: [&str; 3] = ["routebalance-core", "routebalance-plan", "routebalance-sim"];
/// Compares with a tokenizer whose crate is not built for this target.
const NATIVE: &str = "openai::tokens::tests::estimates_are_near_the_truth_in_every_script";

#[test]
fn the_pure_crates_tests_pass_in_node_and_none_is_missing() {
    ensure_target(NODE_TARGET).unwrap_or_else(|problem| panic!("{problem:#}"));
    let runner = wasm_bindgen_runner().unwrap_or_else(|problem| panic!("{problem:#}"));
    let mut native: Vec<String> = native_tests().iter().flat_map(listed).collect();
    native.retain(|name| name != NATIVE);
    native.sort_unstable();
    assert!(native.len() > 400, "the pure crates' tests are not listed: {native:?}");

    let packages: Vec<&str> = PURE.iter().flat_map(|name| ["--package", name]).collect();
    let output = cargo(&[&["--target", NODE_TARGET], packages.as_slice()].concat(), Some(&runner));
    print!("{output}");
    let mut in_node = names(&output, |line| line.strip_prefix("test ")?.strip_suffix(" ... ok"));
    in_node.sort_unstable();
    let missing: Vec<&String> = native.iter().filter(|name| !in_node.contains(name)).collect();
    let extra: Vec<&String> = in_node.iter().filter(|name| !native.contains(name)).collect();
    assert_eq!(
        in_node, native,
        "run natively but not in Node: {missing:?} (does the module use wasm_bindgen_test?); in Node only: {extra:?}"
    );
}

/// The test executables of the pure crates, one each. Cargo is asked for those of all crates, as `cargo test` builds them: for some
/// crates alone it would choose other features of what they share, and build that again.
fn native_tests() -> Vec<PathBuf> {
    let output = cargo(&["--no-run", "--message-format=json"], None);
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let package = message.get("package_id")?.as_str()?.to_owned();
        let is_pure =
            PURE.iter().any(|name| package.contains(&format!("/{}#", name.trim_start_matches("routebalance-"))));
        Some(PathBuf::from(message.get("executable").filter(|_| is_pure)?.as_str()?))
    };
    let found: Vec<PathBuf> = output.lines().filter_map(executable).collect();
    assert_eq!(found.len(), PURE.len(), "one test executable for each of {PURE:?}: {found:?}");
    found
}

/// The names of an executable's tests.
fn listed(executable: &PathBuf) -> Vec<String> {
    let output = Command::new(executable).arg("--list").output().expect("a test executable starts");
    names(&String::from_utf8_lossy(&output.stdout), |line| line.strip_suffix(": test"))
}

/// The output of `cargo test --lib` with further arguments; its messages and the failures go to standard error.
fn cargo(arguments: &[&str], runner: Option<&Path>) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--locked", "--lib"]).args(arguments).current_dir(package_root());
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    if let Some(runner) = runner {
        command.env(RUNNER_VARIABLE, runner);
    }
    let output = command.output().expect("cargo starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "`cargo test --lib {}` failed:\n{text}", arguments.join(" "));
    text
}

fn names<'a>(output: &'a str, name: impl Fn(&'a str) -> Option<&'a str>) -> Vec<String> {
    output.lines().filter_map(|line| name(line.trim())).map(str::to_owned).collect()
}
