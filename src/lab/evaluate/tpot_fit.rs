//! How far the published predictor of times is off on this fleet: trained on the lab's sweep, tested on a fifth of it.

use std::sync::Arc;

use anyhow::Result;
use serde_json::{Value, json};

use super::EvaluateArgs;
use crate::builtin;
use crate::contenders::sweep::{self, Errors};
use routebalance_core::config::Config;
use routebalance_core::router::Router;
use routebalance_sim::workload::Template;

/// Requests of each rate with `--quick`.
const QUICK_REQUESTS: usize = 200;

pub(super) fn run(config: &Config, args: &EvaluateArgs) -> Result<(Value, bool)> {
    let prompts = builtin::prompts(&Router::new(config.clone(), None))?.prompts;
    let templates: Arc<[Template]> = prompts.into_iter().map(|p| p.template).collect();
    let requests = if args.quick { QUICK_REQUESTS } else { sweep::REQUESTS };
    let (_, accuracies) = sweep::fitted(config, &templates, requests);
    println!("{}", sweep::table(&accuracies));
    let errors = |e: &Errors| json!({ "trees": e.trees, "mae_ms": e.mae_ms, "mape": e.mape });
    let rows: Vec<Value> = accuracies
        .iter()
        .map(|a| json!({ "pool": a.pool, "rows": a.rows, "tpot": errors(&a.tpot), "ttft": errors(&a.ttft) }))
        .collect();
    Ok((json!({ "preset": "tpot-fit", "pools": rows }), true))
}
