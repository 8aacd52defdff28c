//! `routebalance init --measure` before emulated instances: the profile that it writes is theirs.
#![cfg(not(target_family = "wasm"))]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use routebalance_cli::check::check;
use routebalance_cli::init::{InitArgs, run};
use routebalance_core::fleet::{LatencyProfile, Limits, ModelKind};
use routebalance_instance::{InstanceOptions, PoolProfile, RunningInstance, start};

/// How far a measured number may be off. Steps of tens of milliseconds are long beside what a busy machine delays.
const TOLERANCE: f64 = 0.1;

/// Of both models: the second one's may not have the same name.
const ADAPTER: &str = "sql";

/// A model, its limits and its speed. Steps grow fast, so that a batch of eight tells by how much.
fn pool(name: &str, tpot_ms: f64, growth: f64, prefill_tokens_per_second: f64) -> PoolProfile {
    PoolProfile {
        model_name: name.into(),
        served_model: format!("hub/{name}"),
        kind: ModelKind::Generate,
        profile: LatencyProfile {
            tpot_ms,
            tpot_growth_per_running: growth,
            tpot_growth_per_thousand_context_tokens: 0.0,
            prefill_tokens_per_second,
            overhead_ms: 40.0,
        },
        limits: Limits { max_running: 64, kv_tokens: 48_000, max_model_len: 6_000 },
    }
}

/// Servers that list an adapter beside their model.
async fn instances(pool: &PoolProfile, count: usize) -> Vec<RunningInstance> {
    let mut running = Vec::new();
    for _ in 0..count {
        let adapters = vec![ADAPTER.to_owned()];
        running.push(start(InstanceOptions { adapters, ..InstanceOptions::new(pool.clone()) }).await.unwrap());
    }
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measured_profiles_are_those_of_the_servers() {
    let pools = [pool("small-3b", 20.0, 0.1, 3_000.0), pool("large-30b", 32.0, 0.06, 2_000.0)];
    let fleets = [instances(&pools[0], 2).await, instances(&pools[1], 1).await];
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("routebalance.json");
    let addresses: Vec<String> = fleets.iter().flatten().map(|instance| instance.address().to_string()).collect();
    let args = InitArgs {
        urls: addresses.iter().map(|address| format!("http://{address}")).collect(),
        output: output.clone(),
        force: false,
        measure: true,
        api_key_file: None,
        timeout_ms: 20_000,
    };
    run(&args).await.unwrap();
    let config = check(&output).unwrap();
    let found: Vec<&str> = config.fleet.instances.iter().map(|instance| instance.address.as_str()).collect();
    assert_eq!(found, addresses);
    let adapters: Vec<usize> = config.fleet.models.iter().map(|model| model.adapters.len()).collect();
    assert_eq!(adapters, [1, 0]);
    for (pool, wanted) in config.fleet.pools.iter().zip(&pools) {
        assert_eq!(pool.served_model, wanted.served_model);
        assert_eq!((pool.limits.kv_tokens, pool.limits.max_model_len), (48_000, 6_000));
        let (found, wanted) = (&pool.profile, &wanted.profile);
        for (name, found, wanted) in [
            ("tpot_ms", found.tpot_ms, wanted.tpot_ms),
            ("tpot_growth_per_running", found.tpot_growth_per_running, wanted.tpot_growth_per_running),
            ("prefill_tokens_per_second", found.prefill_tokens_per_second, wanted.prefill_tokens_per_second),
        ] {
            let off = (found / wanted - 1.0).abs();
            assert!(off <= TOLERANCE, "{}: {name} is {found} and not {wanted}", pool.name);
        }
        // It is what is left of the first token's time, so it has the errors of all others.
        assert!((found.overhead_ms - wanted.overhead_ms).abs() < 20.0, "{}: {found:?}", pool.name);
    }
    // One server of each pool was asked.
    let chats =
        |instance: &RunningInstance| instance.requests_that(|request| request.path.ends_with("/completions")).len();
    let asked: Vec<bool> = fleets.iter().flatten().map(|instance| chats(instance) > 0).collect();
    assert_eq!(asked, [true, false, true]);
}
