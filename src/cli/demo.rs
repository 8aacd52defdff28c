//! `cargo demo`: real prompts through a real Envoy to the emulated reference fleet, under a policy and then under round robin.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::demo_view::{LiveView, comparison};
use super::envoy_binary::envoy_binary;
use super::gateway::{Gateway, GatewayOptions};
use super::load::{self, Arrival, Outcome, Target, poisson_arrivals};
use super::setup::{build_filter, package_root};
use super::stats::{Answered, PolicySummary, summarise};
use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, ModelKind, Pool};
use routebalance_instance::prompts::PromptSet;

/// The policy that the other one is compared with.
const BASELINE: &str = "round-robin";
/// With the defaults: 340 requests per policy.
const SEED: u64 = 2;
/// Bounds the last answer of a run: 768 tokens take the slowest model, busy, some 45 s.
const MAX_TOKENS: u32 = 768;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(150);
const REASONS_SHOWN: usize = 5;
/// The convention of shells: 128 + SIGINT.
pub(super) const INTERRUPTED: u8 = 130;

/// Arguments of `routebalance demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Seconds of traffic per policy
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Mean requests per second (Poisson)
    #[arg(long, default_value_t = 6.0)]
    rate: f64,
    /// The policy to show before round robin [default: the configuration's default policy]
    #[arg(long)]
    policy: Option<String>,
    /// Write the comparison to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Leave fleet and Envoy running until Ctrl-C and print a curl line
    #[arg(long)]
    keep: bool,
}

/// Sets the machine up, then shows both policies. Ctrl-C ends it at any time and leaves nothing behind.
pub fn run(args: &DemoArgs) -> Result<ExitCode> {
    let mut config = read_config()?;
    let policy = chosen_policy(&config, args.policy.as_deref())?;
    let mut phases = vec![(route_prefix(&mut config, &policy)?, policy)];
    if phases[0].1 != BASELINE {
        phases.push((route_prefix(&mut config, BASELINE)?, BASELINE.to_owned()));
    }
    let prompts = Arc::new(read_prompts()?);
    let seconds = Duration::from_secs(args.seconds);
    let arrivals = poisson_arrivals(args.rate, seconds, prompts.rows().len(), SEED)?;
    let json_file = args.json.as_deref().map(create).transpose()?;
    let options = GatewayOptions {
        config,
        module: build_filter()?,
        envoy: envoy_binary()?,
        workers: 2,
        discovered: Vec::new(),
        log_level: "warning".to_owned(),
        time_scale: 1.0,
        answers: Some(prompts.clone()),
        edit: None,
    };
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = runtime.block_on(async {
        let show = async {
            let gateway = start(options).await?;
            let summaries = compare(&gateway, &prompts, &arrivals, &phases).await?;
            anyhow::Ok((gateway, summaries))
        };
        let (gateway, summaries) = tokio::select! {
            shown = show => shown?,
            signal = interrupted() => {
                signal?;
                eprintln!("\nInterrupted: the fleet and Envoy are stopped.");
                return Ok(ExitCode::from(INTERRUPTED));
            }
        };
        println!("\n{}", comparison(&summaries, &generating_models(&gateway.config().fleet)));
        if let Some(mut file) = json_file {
            writeln!(file, "{}", serde_json::to_string_pretty(&json!({ "policies": summaries }))?)?;
        }
        if args.keep {
            println!("\nStill running; Ctrl-C ends it. Try:\n\n{}\n", curl_line(&gateway));
            interrupted().await?;
        }
        let failed: usize = summaries.iter().map(|s| s.failed).sum();
        ensure!(failed == 0, "{failed} requests failed");
        Ok(ExitCode::SUCCESS)
    });
    // Connections of dropped requests may still be open: nobody needs to wait for them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn start(options: GatewayOptions) -> Result<Gateway> {
    let module_bytes = std::fs::metadata(&options.module)?.len();
    let workers = options.workers;
    let gateway = Gateway::start(options).await?;
    let (fleet, envoy) = (&gateway.config().fleet, gateway.envoy());
    let generates = |pool: &&Pool| fleet.model_of(pool).is_some_and(|m| m.kind == ModelKind::Generate);
    let generating: usize = fleet.pools.iter().filter(generates).map(|pool| pool.instances.len()).sum();
    println!(
        "{generating} emulated instances of {} models and {} for embeddings; Envoy listens on {}, ready after {:.1} s{} ({workers} workers, module of {module_bytes} bytes).",
        generating_models(fleet).len(),
        fleet.instances.len() - generating,
        envoy.address(),
        envoy.ready_after().as_secs_f64(),
        envoy.resident_bytes().map_or_else(String::new, |bytes| format!(", {} MB resident", bytes / 1_000_000)),
    );
    Ok(gateway)
}

/// The names of the models that can answer the demo's prompts, in the order of the configuration.
fn generating_models(fleet: &Fleet) -> Vec<&str> {
    fleet.models.iter().filter(|m| m.kind == ModelKind::Generate).map(|m| m.name.as_str()).collect()
}

async fn compare(
    gateway: &Gateway,
    prompts: &PromptSet,
    arrivals: &[Arrival],
    phases: &[(String, String)],
) -> Result<Vec<PolicySummary>> {
    let texts: Vec<String> = prompts.rows().iter().map(|row| row.prompt.clone()).collect();
    let mut summaries = Vec::new();
    for (prefix, policy) in phases {
        let target = Target {
            url: gateway.url(&format!("{prefix}v1/chat/completions")),
            model: "auto".to_owned(),
            max_tokens: MAX_TOKENS,
            timeout: REQUEST_TIMEOUT,
        };
        let (observer, outcomes) = unbounded_channel();
        let sending = load::run(&target, &texts, arrivals, observer);
        let showing = watch(policy, &gateway.config().fleet, prompts, arrivals.len(), outcomes);
        let (sent, summary) = tokio::join!(sending, showing);
        sent?;
        summaries.push(summary);
    }
    Ok(summaries)
}

/// Shows progress until the last outcome has come.
async fn watch(
    policy: &str,
    fleet: &Fleet,
    prompts: &PromptSet,
    expected: usize,
    mut outcomes: UnboundedReceiver<Outcome>,
) -> PolicySummary {
    let view = LiveView::new(policy, expected, &generating_models(fleet));
    let (mut answered, mut failures) = (Vec::new(), Vec::<String>::new());
    let mut refresh = tokio::time::interval(view.period());
    let started = Instant::now();
    loop {
        tokio::select! {
            outcome = outcomes.recv() => match outcome.map(|o| judge(o, fleet, prompts)) {
                Some(Ok(answer)) => answered.push(answer),
                Some(Err(reason)) => failures.push(reason),
                None => break,
            },
            _ = refresh.tick() => view.show(&summarise(policy, &answered, failures.len()), started.elapsed()),
        }
    }
    let summary = summarise(policy, &answered, failures.len());
    view.finish(&summary, started.elapsed());
    let mut counts = BTreeMap::<&str, usize>::new();
    failures.iter().for_each(|reason| *counts.entry(reason).or_default() += 1);
    for (reason, count) in counts.iter().take(REASONS_SHOWN) {
        eprintln!("{count} failed: {reason}");
    }
    if counts.len() > REASONS_SHOWN {
        eprintln!("... for {} reasons in all", counts.len());
    }
    summary
}

/// What a request cost and was worth, or why it failed.
fn judge(outcome: Outcome, fleet: &Fleet, prompts: &PromptSet) -> Result<Answered, String> {
    if let Some(reason) = outcome.failure {
        return Err(reason);
    }
    let name = outcome.model.ok_or("the response does not name its model (x-routebalance-model)")?;
    let model = fleet.model_named(&name).and_then(|id| fleet.model(id));
    let tariff = model.ok_or_else(|| format!("the configuration has no model {name:?}"))?.tariff;
    let usage = outcome.usage.ok_or("the answer has no usage")?;
    let text = prompts.rows().get(outcome.prompt).map_or("", |row| row.prompt.as_str());
    Ok(Answered {
        quality: prompts.quality(text, &name),
        cost_usd: usage.prompt_tokens as f64 * tariff.usd_per_input_token
            + usage.completion_tokens as f64 * tariff.usd_per_output_token,
        ttft: outcome.ttft.ok_or("the answer has no first token")?,
        e2e: outcome.e2e,
        decision_us: outcome.decision_us,
        model: name,
    })
}

/// Opened before the traffic runs: a path that cannot be written is no surprise four minutes later.
fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("{} cannot be written", path.display()))
}

pub(super) fn read_config() -> Result<Value> {
    let path = package_root().join("envoy").join("routebalance.json");
    let bytes = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    Config::parse(&bytes).with_context(|| format!("{} is wrong", path.display()))?;
    Ok(serde_json::from_slice(&bytes)?)
}

pub(super) fn read_prompts() -> Result<PromptSet> {
    let path = package_root().join("models").join("data").join("demo_prompts.jsonl");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    PromptSet::from_jsonl(&text)
}

fn policy_names(config: &Value) -> Vec<&str> {
    let policies = config.get("policies").and_then(Value::as_array).into_iter().flatten();
    policies.filter_map(|p| p.get("name")?.as_str()).collect()
}

fn chosen_policy(config: &Value, asked: Option<&str>) -> Result<String> {
    let default = config.get("default_policy").and_then(Value::as_str);
    let policy = asked.or(default).context("the configuration names no default_policy: name one with --policy")?;
    let known = policy_names(config);
    ensure!(known.contains(&policy), "there is no policy {policy:?}: the configuration has {}", known.join(", "));
    Ok(policy.to_owned())
}

/// The path prefix under which a policy serves. A policy without a route gets one, before those that could hide it.
fn route_prefix(config: &mut Value, policy: &str) -> Result<String> {
    let Some(routes) = config.get_mut("routes").and_then(Value::as_array_mut) else {
        bail!("the configuration has no routes");
    };
    let serving = routes.iter().find(|r| r.get("policy").and_then(Value::as_str) == Some(policy));
    if let Some(prefix) = serving.and_then(|r| r.get("prefix")?.as_str()) {
        return Ok(prefix.to_owned());
    }
    let prefix = format!("/demo/{policy}/");
    let route = json!({ "name": format!("demo-{policy}"), "prefix": prefix, "prefix_rewrite": "/", "policy": policy });
    routes.insert(0, route);
    Ok(prefix)
}

fn curl_line(gateway: &Gateway) -> String {
    format!(
        "curl -sN -D - {} -H 'content-type: application/json' \\\n  -d '{}'",
        gateway.url("/v1/chat/completions"),
        json!({
            "model": "auto",
            "messages": [{ "role": "user", "content": "Which number comes next: 2, 3, 5, 7, 11?" }],
            "max_tokens": 64,
            "stream": true,
        }),
    )
}

/// Ends when the user or the system asks the demo to end.
pub(super) async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut hang_up) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        ended = tokio::signal::ctrl_c() => ended?,
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Usage;

    #[test]
    fn the_defaults_send_at_least_300_requests_per_policy() {
        let arrivals = poisson_arrivals(6.0, Duration::from_secs(60), 150, SEED).unwrap();
        assert!(arrivals.len() >= 300, "{}", arrivals.len());
    }

    #[test]
    fn a_policy_is_reached_by_its_route_or_gets_one() {
        let mut config = json!({
            "default_policy": "balanced",
            "policies": [{ "name": "balanced" }, { "name": "cost" }],
            "routes": [{ "name": "default", "prefix": "/", "policy": "balanced" }],
        });
        assert_eq!(chosen_policy(&config, None).unwrap(), "balanced");
        assert_eq!(chosen_policy(&config, Some("cost")).unwrap(), "cost");
        let problem = chosen_policy(&config, Some("speed")).unwrap_err().to_string();
        assert_eq!(problem, "there is no policy \"speed\": the configuration has balanced, cost");

        assert_eq!(route_prefix(&mut config, "balanced").unwrap(), "/");
        assert_eq!(route_prefix(&mut config, "cost").unwrap(), "/demo/cost/");
        assert_eq!(config["routes"][0]["policy"], "cost", "before the route that would hide it");
        assert_eq!(route_prefix(&mut config, "cost").unwrap(), "/demo/cost/");
        assert_eq!(config["routes"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn an_answer_is_priced_by_tariff_and_usage() {
        let fleet = Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap().fleet;
        let row = r#"{"id":"a","dataset":"d","prompt":"Why?","q":{"Qwen2.5-72B-Instruct":0.5},"len":{}}"#;
        let prompts = PromptSet::from_jsonl(row).unwrap();
        let outcome = |model: &str, failure: Option<&str>| Outcome {
            at: Duration::ZERO,
            prompt: 0,
            model: Some(model.to_owned()),
            decision_us: None,
            ttft: Some(Duration::from_millis(1)),
            e2e: Duration::from_millis(2),
            usage: Some(Usage { prompt_tokens: 1_000_000, completion_tokens: 500_000 }),
            failure: failure.map(str::to_owned),
        };
        let answer = judge(outcome("Qwen2.5-72B-Instruct", None), &fleet, &prompts).unwrap();
        assert!((answer.cost_usd - (0.38 + 0.20)).abs() < 1e-9, "{}", answer.cost_usd);
        assert_eq!(answer.quality, Some(0.5));
        for (model, failure, expected) in
            [("Qwen2.5-72B-Instruct", Some("status 503"), "status 503"), ("GPT-1", None, "has no model \"GPT-1\"")]
        {
            let reason = judge(outcome(model, failure), &fleet, &prompts).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
