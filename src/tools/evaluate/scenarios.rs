//! A thousand small fleets with random faults: what happened, and what must not have.

use anyhow::Result;
use comfy_table::Table;
use serde_json::{Value, json};

use super::EvaluateArgs;
use super::cells::measured;
use crate::config::Config;
use crate::sim::scenarios;

const SEEDS: u64 = 1_000;
const QUICK_SEEDS: u64 = 100;

pub(super) fn run(config: &Config, args: &EvaluateArgs) -> Result<(Value, bool)> {
    let seeds: Vec<u64> = (0..args.seeds.unwrap_or(if args.quick { QUICK_SEEDS } else { SEEDS })).collect();
    let results = measured(&seeds, |seed| scenarios::run(config, *seed));
    let violations: Vec<Value> = seeds
        .iter()
        .zip(&results)
        .filter(|(_, r)| !r.violations.is_empty())
        .map(|(seed, r)| json!({ "seed": seed, "violations": r.violations }))
        .collect();
    let sum = |count: fn(&scenarios::Result) -> usize| results.iter().map(count).sum::<usize>();
    let rows = [
        ("scenarios", results.len()),
        ("faults", sum(|r| r.faults)),
        ("requests", sum(|r| r.requests)),
        ("answered", sum(|r| r.answered)),
        ("cut after the first byte", sum(|r| r.cut)),
        ("died with their gateway or worker", sum(|r| r.died)),
        ("client left", sum(|r| r.left)),
        ("unserved, no instance of the pool worked throughout", sum(|r| r.unserved)),
        ("scenarios with a violation", violations.len()),
    ];
    let mut table = Table::new();
    for (name, count) in rows {
        table.add_row([name.to_owned(), count.to_string()]);
    }
    println!("{table}");
    for violation in violations.iter().take(20) {
        println!("{violation}");
    }
    let counts: serde_json::Map<String, Value> =
        rows.iter().map(|(name, count)| (name.replace([',', ' '], "_").replace("__", "_"), json!(count))).collect();
    let passed = violations.is_empty();
    Ok((json!({ "preset": "scenarios", "counts": counts, "violations": violations }), passed))
}
