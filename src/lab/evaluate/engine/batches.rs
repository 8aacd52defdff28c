//! Servers that were measured with batches of equal requests only.

use std::time::Duration;

use anyhow::Result;
use comfy_table::Table;
use serde_json::{Value, json};

use super::{AMPLE_KV_TOKENS, PROFILE_HEADERS, limits, profile_columns, profile_json, summary};
use crate::evaluate::cells::measured;
use crate::fit::{Server, first_guess, fit, simulate};
use crate::recordings::{Batch, Logged, batches};

/// Part of a lone request's time that the search takes its prefill for at first.
const PREFILL_GUESS: f64 = 0.02;
/// vLLM's default `--max-num-seqs` at the time; no batch is larger.
const MAX_RUNNING: u32 = 256;

fn request(batch: &Batch) -> Logged {
    let tokens = batch.tokens;
    Logged {
        at: Duration::ZERO,
        prompt_tokens: tokens,
        output_tokens: tokens,
        ttft_seconds: PREFILL_GUESS * batch.latency_s,
        e2e_seconds: batch.latency_s,
    }
}

/// Simulated over measured seconds until the last one of a batch has ended.
fn ratio(server: &Server, batch: &Batch) -> f64 {
    let times = simulate(server, &vec![request(batch); batch.batch as usize]);
    times.iter().map(|times| times.e2e_seconds).fold(0.0, f64::max) / batch.latency_s
}

/// Half of the batch sizes.
fn is_fitted_to(batch: &Batch) -> bool {
    matches!(batch.batch, 1 | 32)
}

fn fit_server(rows: &[Batch]) -> Option<Server> {
    let alone = rows.iter().filter(|row| row.batch == 1).max_by_key(|row| row.tokens)?;
    let start = first_guess(&request(alone), limits(MAX_RUNNING, AMPLE_KV_TOKENS), 1);
    Some(fit(&start, false, |server| {
        rows.iter().filter(|row| is_fitted_to(row)).map(|row| ratio(server, row).ln().powi(2)).sum()
    }))
}

/// Prints the table.
pub(super) fn compare() -> Result<Vec<Value>> {
    let batches = batches()?;
    let servers: Vec<&[Batch]> = batches.chunk_by(Batch::is_of_same_server).collect();
    let fitted = measured(&servers, |rows| fit_server(rows));
    let mut table = Table::new();
    let errors = ["mean error at 16", "at 64", "worst"];
    table.set_header(["server"].into_iter().chain(PROFILE_HEADERS).chain(errors));
    let mut cells = Vec::new();
    for (rows, server) in servers.iter().zip(fitted) {
        let (Some(server), Some(first)) = (server, rows.first()) else { continue };
        let errors = |size: Option<u32>| -> Vec<f64> {
            let unseen = rows.iter().filter(|row| !is_fitted_to(row) && size.is_none_or(|size| row.batch == size));
            unseen.map(|row| (ratio(&server, row) - 1.0).abs()).collect()
        };
        let [at_16, at_64] = [16, 64].map(|size| summary(errors(Some(size)))[0]);
        let worst = errors(None).into_iter().fold(0.0, f64::max);
        let name = format!("{} {}, {}", first.gpus, first.gpu, first.model);
        let percent = [at_16, at_64, worst].map(|error| format!("{:.1} %", error * 100.0));
        table.add_row([name.clone()].into_iter().chain(profile_columns(&server.profile)).chain(percent));
        cells.push(json!({ "server": name, "profile": profile_json(&server.profile),
            "mean_error_at_16": at_16, "mean_error_at_64": at_64, "worst_error": worst }));
    }
    println!("\nTime until a batch of equal requests has ended, fitted to batches of 1 and 32:\n{table}");
    Ok(cells)
}
