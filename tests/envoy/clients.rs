//! Real clients: the official SDKs of OpenAI and Anthropic, which must see through the gateway what they see at the instance; and
//! pydantic, which servers read bodies with, and which must read the limits that the gateway reads. Both come from PyPI, pinned by hash.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

use routebalance_cli::setup::package_root;
use routebalance_core::config::Config;
use routebalance_core::fleet::{Budget, Constraints, PolicyId};
use routebalance_core::learning::Learned;
use routebalance_core::openai::{Api, RequestScan, patched};
use routebalance_core::random::Random;
use routebalance_core::router::{Ask, Router, Verdict};
use routebalance_instance::Fault;
use serde_json::{Value, json};

use crate::harness::{Gateway, eventually};
use crate::python::{Python, run};

/// The pool of the model that the SDKs ask for, and the one that embeds: each is one instance.
const POOLS: [&str; 2] = ["qwen2.5-7b", "bge-small"];

/// Bodies whose numbers are spelt in all ways.
const SPELLINGS: usize = 100_000;

/// Python with what the suites need.
static PYTHON: LazyLock<Python> =
    LazyLock::new(|| Python::with("clients", &here()).unwrap_or_else(|problem| panic!("{problem}")));

fn here() -> PathBuf {
    package_root().join("tests/clients")
}

async fn python(arguments: Vec<String>) -> String {
    let run = move || run(PYTHON.command().args(arguments).current_dir(here()));
    let output = tokio::task::spawn_blocking(run).await.expect("it runs").unwrap_or_else(|problem| panic!("{problem}"));
    String::from_utf8(output.stdout).expect("text")
}

/// Recordings of a real vLLM at the addresses of two instances.
struct Replay(std::process::Child);

impl Drop for Replay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Replay {
    async fn start(gateway: &Gateway) -> Replay {
        let mut ports = Vec::new();
        let mut served = Vec::new();
        for pool in POOLS.map(|name| gateway.pool(name)) {
            gateway.fault(pool.instances[0], Fault::Refuse).await;
            ports.push(gateway.instance(pool.instances[0]).address().port().to_string());
            served.extend(["--served".to_owned(), pool.served_model.clone()]);
        }
        let recordings =
            ["plain", "tools", "pressure"].map(|name| package_root().join("tests/fixtures/vllm").join(name));
        let child = PYTHON
            .command()
            .arg(here().join("replay.py"))
            .arg(ports.join(","))
            .args(recordings)
            .args(served)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("the recordings are replayed");
        for port in ports {
            let listens = async || tokio::net::TcpStream::connect(format!("127.0.0.1:{port}")).await.is_ok();
            eventually("a replay that listens", listens, |listens| *listens).await;
        }
        gateway.scrapes("ok", 2 * gateway.config().fleet.instances.len() as u64).await;
        Replay(child)
    }
}

/// Whatever the official SDKs do, they see the same through the gateway as at the instance.
pub(crate) async fn sdks(gateway: &Gateway) {
    let replay = Replay::start(gateway).await;
    let [generating, embedding] = POOLS.map(|name| gateway.pool(name));
    let direct = gateway.instance(generating.instances[0]).address();
    let fleet = &gateway.config().fleet;
    let name = |pool: &routebalance_core::fleet::Pool| fleet.model_of(pool).expect("its model").name.clone();
    let said = python(vec![
        "suite.py".to_owned(),
        gateway.running().url("").trim_end_matches('/').to_owned(),
        format!("http://{direct}"),
        name(generating),
        generating.served_model.clone(),
        "--embedding".to_owned(),
        name(embedding),
        embedding.served_model.clone(),
    ])
    .await;
    assert!(said.lines().filter(|line| line.starts_with("ok ")).count() >= 100, "{said}");
    drop(replay);
}

/// However a client spells its limits, every server generates what the budget leaves at most.
pub(crate) async fn spellings() {
    let bodies = python(["spellings.py", "generate", &SPELLINGS.to_string(), "1"].map(str::to_owned).to_vec()).await;
    let mut random = Random::new(1);
    let router = Router::new(budgeted(), None);
    let mut lines = String::new();
    for body in bodies.lines() {
        let body: Value = serde_json::from_str(body).expect("a body");
        let (api, asked) = (body["api"].as_str().expect("an API"), body["asked"].as_str().expect("a text"));
        let left = [1, 2, 16, 100, 5_000][random.below(5)];
        let (status, sent) = sent(&router, api, asked, left);
        let line = json!({"api": api, "asked": asked, "sent": sent, "left": left, "status": status});
        writeln!(lines, "{line}").expect("memory");
    }
    assert!(bodies.lines().count() >= SPELLINGS);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines).expect("the file is written");
    python(vec!["spellings.py".to_owned(), "check".to_owned(), file.path().display().to_string()]).await;
}

/// The reference configuration; prompts of any length fit.
fn budgeted() -> Config {
    let mut json: Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).expect("a configuration");
    json["policies"][0]["weights"] = json!({"quality": 1, "latency": 0, "cost": 0});
    Config::parse(json.to_string().as_bytes()).expect("a configuration")
}

/// What the gateway forwards where so many tokens are left, or the status of its refusal.
fn sent(router: &Router, api: &str, asked: &str, left: u32) -> (u16, String) {
    let api = match api {
        "chat" => Api::ChatCompletions,
        "completions" => Api::Completions,
        "responses" => Api::Responses,
        "messages" => Api::Messages,
        other => panic!("{other}"),
    };
    let mut scan = RequestScan::new(api);
    scan.push(asked.as_bytes());
    let Ok(prompt) = scan.finish() else { return (400, String::new()) };
    let budget = Budget { usd: None, tokens: Some(left) };
    let constraints = Some(Constraints { budget, ..Constraints::default() });
    let ask = Ask { constraints, ..Ask::new(api, &prompt, PolicyId::new(0)) };
    match router.route(&ask, None, &Learned::default()) {
        Verdict::Refused(refusal) => (refusal.status, String::new()),
        Verdict::Decided(decision) => {
            let served = &router.config().fleet.pools[decision.to.pool.index()].served_model;
            let patches = prompt.patch_places().patches(api, served, decision.because.max_tokens);
            let sent = patched(&patches, asked.as_bytes()).expect("its own patches");
            (0, String::from_utf8(sent).expect("text"))
        }
        verdict => panic!("{verdict:?}: {asked}"),
    }
}
