//! The core's unit tests again, in Node: the same code on a wasm target, where `usize` has 32 bits and a panic is a trap.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use routebalance::tools::setup::{NODE_TARGET, ensure_target, package_root, wasm_bindgen_runner};

/// Cargo tells the runner by this variable; it wins over `.cargo/config.toml`, whose runner must be on PATH.
const RUNNER_VARIABLE: &str = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUNNER";
/// The shells are not part of the core: their tests run natively only.
const SHELLS: [&str; 2] = ["tools", "filter"];
/// Compares with a tokenizer whose crate is not built for this target.
const NATIVE: &str = "openai::tokens::tests::estimates_are_near_the_truth_in_every_script";

#[test]
fn the_cores_tests_pass_in_node_and_none_is_missing() {
    ensure_target(NODE_TARGET).unwrap_or_else(|problem| panic!("{problem:#}"));
    let runner = wasm_bindgen_runner().unwrap_or_else(|problem| panic!("{problem:#}"));
    let native = names(&cargo(&["--", "--list"], None), |line| line.strip_suffix(": test"));
    let is_core = |name: &String| !SHELLS.contains(&module_of(name)) && name != NATIVE;
    let core: BTreeSet<String> = native.into_iter().filter(is_core).collect();
    assert!(!core.is_empty(), "no core test is listed");

    let output = cargo(&["--target", NODE_TARGET], Some(&runner));
    print!("{output}");
    let in_node = names(&output, |line| line.strip_prefix("test ")?.strip_suffix(" ... ok"));
    let missing: Vec<&String> = core.difference(&in_node).collect();
    let extra: Vec<&String> = in_node.difference(&core).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "run natively but not in Node: {missing:?} (does the module use wasm_bindgen_test?); in Node only: {extra:?}"
    );
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

fn names<'a>(output: &'a str, name: impl Fn(&'a str) -> Option<&'a str>) -> BTreeSet<String> {
    output.lines().filter_map(|line| name(line.trim())).map(str::to_owned).collect()
}

fn module_of(test: &str) -> &str {
    test.split_once("::").map_or(test, |(module, _)| module)
}
