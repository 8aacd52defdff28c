//! Objects against models that others have made of the same APIs: pydantic models of cloudcoil (Istio 1.24, Kubernetes 1.32), and
//! TypeScript models of @kubernetes-models (Istio, Gateway API, Envoy Gateway, Kubernetes). What neither knows has a type here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use routebalance_cli::packages::{Platform, package};
use routebalance_cli::setup::{package_root, target_dir};
use serde_json::Value;

use super::types::{InferencePool, TrafficExtension};
use super::{arguments, documents};
use crate::python::{Python, run};

/// What cloudcoil's models know of ours.
const KNOWN_TO_PYTHON: [&str; 7] =
    ["ConfigMap", "Deployment", "EnvoyFilter", "Gateway", "Service", "VirtualService", "WasmPlugin"];
/// Packages by platform and further arguments.
const PACKAGES: [(Platform, &[&str]); 6] = [
    (Platform::IstioGateway, &["--host", "llm.example.com", "--selector", "app=gateway"]),
    (Platform::IstioGateway, &["--istio-extension", "traffic-extension"]),
    (Platform::IstioSidecar, &["--selector", "app=client"]),
    (Platform::EnvoyGateway, &["--host", "llm.example.com", "--inference-pool", "qwen2.5-7b=8000,app=vllm-7b"]),
    (Platform::EnvoyGateway, &["--xds-names", "v2"]),
    (Platform::Kubernetes, &[]),
];

pub(crate) async fn objects_are_valid() {
    tokio::task::spawn_blocking(validate_all).await.expect("it ends");
}

fn validate_all() {
    let here = package_root().join("tests/objects");
    let python = Python::with("objects-python", &here).unwrap_or_else(|problem| panic!("{problem}"));
    let node = node(&here);
    let files = written();
    let mut to_node = Command::new("node");
    to_node.arg(node.join("validate.mjs")).args(&files);
    let known = valid_kinds(&mut to_node);
    let all: BTreeSet<String> = files.iter().flat_map(|file| kinds(file)).collect();
    let unknown: Vec<&String> = all.difference(&known).collect();
    assert_eq!(unknown, ["InferencePool", "TrafficExtension"], "of {all:?}");

    // Istio 1.24 does not know this strategy.
    let older: Vec<PathBuf> = files.iter().map(|file| copied(file, "FAIL_RELOAD", "FAIL_CLOSE")).collect();
    let known = valid_kinds(python.command().arg(here.join("validate.py")).args(&older));
    let missing: Vec<&&str> = KNOWN_TO_PYTHON.iter().filter(|kind| !known.contains(**kind)).collect();
    assert!(missing.is_empty(), "{missing:?} of {known:?}");

    let typed: Vec<InferencePool> = typed_as(&files, "InferencePool");
    assert_eq!(typed.len(), 2);
    let typed: Vec<TrafficExtension> = typed_as(&files, "TrafficExtension");
    assert_eq!(typed.len(), 2);

    // Models that refuse nothing would show nothing.
    for (from, to) in [("applyTo: CLUSTER", "applyTo: CLUSTERS"), ("workloadSelector:", "workloadSelectors:")] {
        let wrong = copied(&files[0], from, to);
        for command in
            [Command::new("node").arg(node.join("validate.mjs")), python.command().arg(here.join("validate.py"))]
        {
            let output = command.arg(&wrong).output().expect("it runs");
            assert!(!output.status.success(), "{to} passes: {command:?}");
        }
    }
}

/// The objects of a kind, as a type has them.
fn typed_as<T: serde::de::DeserializeOwned>(files: &[PathBuf], kind: &str) -> Vec<T> {
    let all = files.iter().flat_map(|file| documents(&fs::read_to_string(file).expect("a file")));
    let objects = all.filter(|object| object["kind"] == kind);
    objects.map(|object| serde_json::from_value(object).unwrap_or_else(|problem| panic!("{problem}"))).collect()
}

/// Every package with the flag and without it, in files.
fn written() -> Vec<PathBuf> {
    let directory = target_dir().join("objects");
    fs::create_dir_all(&directory).expect("a directory");
    let config: Value = serde_json::from_str(include_str!("../../../envoy/routebalance.json")).expect("JSON");
    let mut files = Vec::new();
    for has_flag in [true, false] {
        let mut config = config.clone();
        config["envoy"]["allow_on_headers_stop_iteration"] = has_flag.into();
        for (platform, more) in PACKAGES {
            let text = package(&config, platform, &arguments(more)).expect("a package");
            let file = directory.join(format!("{}.yaml", files.len()));
            fs::write(&file, text).expect("a file");
            files.push(file);
        }
    }
    files
}

/// A copy of a file with every `from` replaced; none need be there.
fn copied(file: &Path, from: &str, to: &str) -> PathBuf {
    let copy = file.with_extension("copy.yaml");
    fs::write(&copy, fs::read_to_string(file).expect("a file").replace(from, to)).expect("a file");
    copy
}

fn kinds(file: &Path) -> BTreeSet<String> {
    let objects = documents(&fs::read_to_string(file).expect("a file"));
    objects.iter().filter_map(|object| object["kind"].as_str().map(str::to_owned)).collect()
}

/// Kinds of the objects that a validator has found valid.
fn valid_kinds(command: &mut Command) -> BTreeSet<String> {
    let output = run(command).unwrap_or_else(|problem| panic!("{problem}"));
    let lines = String::from_utf8(output.stdout).expect("text");
    let said = lines.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    said.filter(|said| said["result"] == "valid").filter_map(|said| said["kind"].as_str().map(str::to_owned)).collect()
}

/// A directory with the validator for Node and exactly what its lock file names.
fn node(here: &Path) -> PathBuf {
    let directory = target_dir().join("objects-node");
    fs::create_dir_all(&directory).expect("a directory");
    let lock = fs::read_to_string(here.join("package-lock.json")).expect("a file");
    let stamp = directory.join("installed");
    for file in ["package.json", "package-lock.json", "validate.mjs"] {
        fs::copy(here.join(file), directory.join(file)).expect("a copy");
    }
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == lock) {
        return directory;
    }
    eprintln!("Installing models of Kubernetes' objects from npm below {} ...", directory.display());
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&directory);
    run(&mut npm)
        .unwrap_or_else(|problem| panic!("{problem}\nThis test needs Node 20 or later with npm, and npm's registry."));
    fs::write(stamp, lock).expect("a file");
    directory
}
