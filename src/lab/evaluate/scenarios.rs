//! A thousand small fleets with random faults, and a thousand with somebody who misbehaves: what happened, and what must not have.

use anyhow::Result;
use comfy_table::Table;
use serde_json::{Value, json};

use super::EvaluateArgs;
use super::cells::measured;
use routebalance_core::config::Config;
use routebalance_sim::scenarios::{self, misbehaviour};
use routebalance_sim::simulation::Options;

const SEEDS: u64 = 1_000;
const QUICK_SEEDS: u64 = 100;

pub(super) fn run(config: &Config, args: &EvaluateArgs) -> Result<(Value, bool)> {
    let seeds: Vec<u64> = (0..args.seeds.unwrap_or(if args.quick { QUICK_SEEDS } else { SEEDS })).collect();
    let results = measured(&seeds, |seed| scenarios::run(config, *seed, &Options::default()));
    let mut violations: Vec<Value> = seeds
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
    let (misbehaving, more_violations) = misbehaving(config, &seeds);
    violations.extend(more_violations);
    let passed = violations.is_empty();
    let result =
        json!({ "preset": "scenarios", "counts": counts, "misbehaviour": misbehaving, "violations": violations });
    Ok((result, passed))
}

/// The kinds of misbehaviour in turn, one for each seed: what happened by kind, and what must not have.
fn misbehaving(config: &Config, seeds: &[u64]) -> (Value, Vec<Value>) {
    let jobs: Vec<(misbehaviour::Kind, u64)> =
        misbehaviour::Kind::ALL.into_iter().cycle().zip(seeds.iter().copied()).collect();
    let envoy = misbehaviour::seeing();
    let results = measured(&jobs, |(kind, seed)| misbehaviour::run(config, *kind, *seed, &envoy));
    let mut table = Table::new();
    table.set_header([
        "somebody misbehaves",
        "scenarios",
        "other requests",
        "answered",
        "its requests",
        "tried again",
        "violations",
    ]);
    let mut by_kind = serde_json::Map::new();
    for kind in misbehaviour::Kind::ALL {
        let of_kind = || jobs.iter().zip(&results).filter(|((other, _), _)| *other == kind).map(|(_, result)| result);
        let sum = |count: fn(&misbehaviour::Result) -> usize| of_kind().map(count).sum::<usize>();
        let counts = [
            ("scenarios", of_kind().count()),
            ("other_requests", sum(|r| r.requests)),
            ("answered", sum(|r| r.answered)),
            ("its_requests", sum(|r| r.culprits)),
            ("tried_again", sum(|r| r.further)),
            ("scenarios_with_a_violation", of_kind().filter(|r| !r.violations.is_empty()).count()),
        ];
        table.add_row(std::iter::once(kind.name().to_owned()).chain(counts.iter().map(|(_, count)| count.to_string())));
        let counts = counts.into_iter().map(|(name, count)| (name.to_owned(), json!(count)));
        by_kind.insert(kind.name().to_owned(), Value::Object(counts.collect()));
    }
    println!("{table}");
    let bad = jobs.iter().zip(&results).filter(|(_, result)| !result.violations.is_empty());
    let violations: Vec<Value> = bad
        .map(|((kind, seed), result)| json!({ "misbehaves": kind.name(), "seed": seed, "violations": result.violations }))
        .collect();
    for violation in violations.iter().take(20) {
        println!("{violation}");
    }
    (Value::Object(by_kind), violations)
}
