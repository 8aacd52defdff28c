//! `routebalance.json`: it is taken, or one sentence says what is wrong and where.

use routebalance_core::config::Config;
use routebalance_core::gateway::Gateway;
use routebalance_core::gateway::memory::{MemoryHost, ROOT};
use routebalance_core::router::Router;
use serde_json::{Value, json};

use crate::choices::Choices;
use crate::material::CONFIGURATIONS;
use crate::novelty::{magnitude, see};

/// Longest sentence: fields and what was found there may be cited.
const SENTENCE_BYTES_MAX: usize = 2_000;

/// A changed configuration.
pub fn configuration(data: &[u8]) {
    let mut choices = Choices::new(data);
    let json = if choices.in_256(200) {
        let mut value: Value = serde_json::from_slice(choices.pick::<&[u8]>(CONFIGURATIONS)).expect("a configuration");
        for _ in 0..=choices.below(4) {
            change(&mut value, &mut choices);
        }
        value.to_string().into_bytes()
    } else {
        choices.bytes_like(CONFIGURATIONS)
    };
    match Config::parse(&json) {
        Err(error) => {
            let sentence = error.to_string();
            // A field may have no name: then that is what is wrong with it.
            assert!(!error.field.is_empty() || error.problem.starts_with("unknown field ``"), "{error:?}");
            assert!(!sentence.contains(['\n', '\r']), "{sentence:?}");
            assert!(sentence.len() <= SENTENCE_BYTES_MAX, "{} bytes: {sentence}", sentence.len());
            // Names of the file are in the path; the section is not one of them.
            let section = error.field.split(['[', '.']).next().filter(|section| section.len() < 20);
            see(("refused", section.map(str::to_owned), magnitude(error.problem.len() as u64)));
        }
        Ok(config) => {
            let names = config.models();
            assert!(!names.is_empty(), "nothing may be asked for");
            see((
                "taken",
                config.fleet.pools.len().min(9),
                config.policies.len().min(9),
                magnitude(names.len() as u64),
            ));
            if choices.in_256(40) {
                serve(config);
            }
        }
    }
}

/// What is taken can begin.
fn serve(config: Config) {
    let mut host: MemoryHost =
        MemoryHost { current: ROOT, time: std::time::Duration::from_secs(1_000), ..MemoryHost::default() };
    let mut gateway = Gateway::new(Router::new(config, None), 1, &mut host);
    for _ in 0..3 {
        host.time += gateway.tick_period();
        gateway.on_tick(&mut host, ROOT);
    }
}

/// Changes a value somewhere.
fn change(value: &mut Value, choices: &mut Choices<'_>) {
    if choices.in_256(30) {
        return replace(value, choices);
    }
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let at = choices.below(fields.len());
            fields.values_mut().skip(at).take(1).for_each(|inner| change(inner, choices));
        }
        Value::Array(items) if !items.is_empty() => {
            let at = choices.below(items.len());
            change(&mut items[at], choices);
        }
        here => replace(here, choices),
    }
}

fn replace(place: &mut Value, choices: &mut Choices<'_>) {
    match (choices.byte() % 8, &mut *place) {
        (0, Value::Object(fields)) => {
            let name = fields.keys().nth(choices.below(fields.len())).cloned();
            name.map(|name| fields.remove(&name));
        }
        (1, Value::Object(fields)) => {
            let name = choices.pick(&["name", "slo", "budget", "batching", "discovery", "drill", "unknown", "prices"]);
            fields.insert(name.to_owned(), any(choices));
        }
        (2, Value::Array(items)) => {
            let again = items.first().cloned();
            items.extend(again);
        }
        (3, Value::Array(items)) => drop(items.pop()),
        _ => *place = any(choices),
    }
}

fn any(choices: &mut Choices<'_>) -> Value {
    let text = "x".repeat(choices.below(300));
    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-1),
        json!(1e308),
        json!(1e-308),
        json!(u64::MAX),
        json!(4_294_967_296_u64),
        json!(""),
        json!("small"),
        json!("discover"),
        json!("10.0.0.1:1"),
        json!("[::1]:80"),
        json!("\n\u{0}\u{1f600}\""),
        json!(text),
        json!([]),
        json!({}),
        json!(["shared_data", "reports", "router", "vm", "predictor"]),
        json!({"ttft_ms": 0.001, "tpot_ms": 1e9, "confidence": 0.99}),
        json!({"mode": "fixed", "size": 1_024, "window_ms": 10_000}),
        json!({"usd": 0, "tokens": 1}),
        json!({"small": 1.0}),
        json!({"period_ms": 50}),
    ];
    values[choices.below(values.len())].clone()
}
