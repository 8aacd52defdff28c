//! Servers whose requests were logged one by one.

use anyhow::Result;
use comfy_table::Table;
use serde_json::{Value, json};

use super::{AMPLE_KV_TOKENS, PROFILE_HEADERS, limits, profile_columns, profile_json, summary};
use crate::evaluate::cells::measured;
use crate::fit::{Server, Times, distance, first_guess, fit, simulate};
use crate::recordings::{Log, Logged, logs};

/// Mean times to the first and to the last token of the other half are to be off by at most this.
const AIM: f64 = 0.2;
/// Where the search for the size of a KV cache begins, tokens.
const KV_TOKENS_GUESS: u64 = 50_000;

/// Which half of a log's times is fitted to.
#[derive(Clone, Copy)]
enum Half {
    /// Those of the requests that came first: the rest is the future.
    Earlier,
    /// Those of every other request.
    Even,
}

impl Half {
    /// What it is called, and what the other one is called.
    fn names(self) -> [&'static str; 2] {
        match self {
            Half::Earlier => ["earlier half", "later half"],
            Half::Even => ["even requests", "odd requests"],
        }
    }

    fn has(self, index: usize, of: usize) -> bool {
        match self {
            Half::Earlier => index < of / 2,
            Half::Even => index.is_multiple_of(2),
        }
    }
}

struct Fitted {
    server: Server,
    /// Measured and simulated, of the half that was not fitted to.
    unseen: Vec<(Logged, Times)>,
}

/// Everybody's arrival and lengths are told, the times of one half only.
fn fit_log(log: &Log, half: Half) -> Option<Fitted> {
    let n = log.requests.len();
    let kv_tokens = if log.kv_bound { KV_TOKENS_GUESS } else { AMPLE_KV_TOKENS };
    let start = first_guess(log.requests.first()?, limits(log.max_running, kv_tokens), log.engines);
    let server = fit(&start, log.kv_bound, |server| {
        let times = simulate(server, &log.requests);
        let pairs = log.requests.iter().zip(&times).enumerate();
        distance(pairs.filter(|(i, _)| half.has(*i, n)).map(|(_, pair)| pair))
    });
    let times = simulate(&server, &log.requests);
    let pairs = log.requests.iter().copied().zip(times).enumerate();
    Some(Fitted { server, unseen: pairs.filter(|(i, _)| !half.has(*i, n)).map(|(_, pair)| pair).collect() })
}

/// One of a request's times, seconds.
struct Kind {
    name: &'static str,
    of: fn(&Times, u32) -> f64,
    /// Whether the aim is about it.
    aimed_at: bool,
}

const KINDS: [Kind; 3] = [
    Kind { name: "TTFT", of: |times, _| times.ttft_seconds, aimed_at: true },
    Kind { name: "TPOT", of: Times::tpot_seconds, aimed_at: false },
    Kind { name: "E2E", of: |times, _| times.e2e_seconds, aimed_at: true },
];

impl Kind {
    /// Measured and simulated.
    fn summaries(&self, unseen: &[(Logged, Times)]) -> [[f64; 3]; 2] {
        let with_tokens = || unseen.iter().filter(|(logged, _)| logged.output_tokens > 1);
        let measured = with_tokens().map(|(logged, _)| (self.of)(&logged.times(), logged.output_tokens));
        let simulated = with_tokens().map(|(logged, times)| (self.of)(times, logged.output_tokens));
        [summary(measured.collect()), summary(simulated.collect())]
    }
}

/// Prints the tables; whether the aim is met.
pub(super) fn compare() -> Result<(Vec<Value>, bool)> {
    let logs = logs()?;
    let jobs: Vec<(&Log, Half)> = logs.iter().flat_map(|log| [(log, Half::Earlier), (log, Half::Even)]).collect();
    let fitted = measured(&jobs, |(log, half)| fit_log(log, *half));

    let mut parameters = Table::new();
    parameters.set_header(["server", "fitted to its"].into_iter().chain(PROFILE_HEADERS).chain(["KV tokens"]));
    let mut table = Table::new();
    let means = ["measured: mean", "p50", "p99", "simulated: mean", "p50", "p99"];
    table.set_header(["server", "on its", "seconds"].into_iter().chain(means).chain(["error"]));
    let mut cells = Vec::new();
    let mut passed = true;
    for ((log, half), fitted) in jobs.iter().zip(fitted) {
        let Some(Fitted { server, unseen }) = fitted else { continue };
        let [fitted_to, compared_on] = half.names();
        let kv_tokens = log.kv_bound.then_some(server.limits.kv_tokens);
        let columns = [log.name.to_owned(), fitted_to.to_owned()].into_iter().chain(profile_columns(&server.profile));
        parameters.add_row(columns.chain([kv_tokens.map_or("not reached".to_owned(), |n| n.to_string())]));
        let mut cell = json!({ "server": log.name, "fitted_to": fitted_to, "compared_on": compared_on,
            "profile": profile_json(&server.profile), "kv_tokens": kv_tokens });
        for kind in &KINDS {
            let [measured, simulated] = kind.summaries(&unseen);
            let [error, ..] = std::array::from_fn::<f64, 3, _>(|i| simulated[i] / measured[i] - 1.0);
            passed &= !kind.aimed_at || error.abs() <= AIM;
            let decimals = if kind.aimed_at { 2 } else { 4 };
            let numbers = measured.into_iter().chain(simulated).map(|value| format!("{value:.decimals$}"));
            let names = [log.name, compared_on, kind.name].map(str::to_owned).into_iter();
            table.add_row(names.chain(numbers).chain([format!("{:+.1} %", error * 100.0)]));
            cell[kind.name.to_lowercase()] =
                json!({ "measured_s": measured, "simulated_s": simulated, "error_of_mean": error });
        }
        cells.push(cell);
    }
    println!("Fitted to one half of each log's times:\n{parameters}\n\nOn the other half:\n{table}");
    let met = if passed { "met" } else { "MISSED" };
    println!("The aim, mean TTFT and E2E within {:.0} % on the other half, is {met}.", AIM * 100.0);
    Ok((cells, passed))
}
