//! `routebalance bench predictor`: what features and inference cost natively and inside a real Envoy, by the prompt's size.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use comfy_table::Table;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::demo::read_prompts;
use super::super::gateway::{Gateway, GatewayOptions};
use routebalance_core::features::{TextWindow, extract};
use routebalance_core::names::DEBUG_PREDICT_PATH;
use routebalance_core::openai::REPEAT_MAX;
use routebalance_core::predictor::Predictor;
use routebalance_lab::statistics::{Quantiles, percentile};

const SIZES: [usize; 6] = [100, 300, 1_000, 3_000, 6_000, 100_000];
/// Texts per size: other words meet other branches.
const TEXTS: usize = 8;
/// Repetitions before anything counts: V8 compiles again what runs often.
const WARM_UP: u32 = 2_000;

/// What is written as JSON.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    chars: usize,
    #[serde(rename = "where")]
    place: &'static str,
    features_us: Quantiles<f64>,
    inference_us: Quantiles<f64>,
    total_us: Quantiles<f64>,
}

/// Features, inference and both of one text.
type Times = [Quantiles<f64>; 3];

/// Runs the benchmark.
pub(super) async fn run(mut options: GatewayOptions, repeat: u32) -> Result<Report> {
    options.config["debug"] = json!({"predict": true});
    let prompts = read_prompts()?;
    let prompts: Vec<&str> = prompts.rows().iter().map(|row| row.prompt.as_str()).collect();
    let predictor = Predictor::load().map_err(|problem| anyhow!(problem))?;
    // Sizes take turns, so that a busy moment of the machine does not fall on one of them.
    let turns =
        || (0..TEXTS).flat_map(|first| SIZES.into_iter().enumerate().map(move |(at, chars)| (first, at, chars)));
    let mut rows = Vec::new();
    native(&predictor, &text(&prompts, 0, 1_000), WARM_UP)?;
    let mut times = SIZES.map(|_| Vec::new());
    for (first, at, chars) in turns() {
        times[at].push(native(&predictor, &text(&prompts, first, chars), repeat)?);
    }
    rows.extend(SIZES.iter().zip(&times).map(|(chars, times)| row(*chars, "native", times)));
    let gateway = Gateway::start(options).await?;
    // One connection stays with one worker.
    let http = reqwest::Client::new();
    for _ in 0..3 {
        envoy(&gateway, &http, &text(&prompts, 0, 1_000), WARM_UP.min(REPEAT_MAX)).await?;
    }
    let mut times = SIZES.map(|_| Vec::new());
    for (first, at, chars) in turns() {
        times[at].push(envoy(&gateway, &http, &text(&prompts, first, chars), repeat).await?);
    }
    rows.extend(SIZES.iter().zip(&times).map(|(chars, times)| row(*chars, "envoy", times)));
    Ok(Report { rows })
}

/// Real prompts, joined and cut to so many characters.
fn text(prompts: &[&str], first: usize, chars: usize) -> String {
    prompts
        .iter()
        .cycle()
        .skip(first * prompts.len() / TEXTS)
        .flat_map(|p| p.chars().chain(['\n']))
        .take(chars)
        .collect()
}

fn native(predictor: &Predictor, text: &str, repeat: u32) -> Result<Times> {
    let mut window = TextWindow::default();
    window.push_str(text);
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..repeat {
        let began = Instant::now();
        let features = extract(black_box(&window));
        let extracted = Instant::now();
        black_box(predictor.predict(&features)).context("the predictor gives no estimate")?;
        let ended = Instant::now();
        for (times, time) in times.iter_mut().zip([extracted - began, ended - extracted, ended - began]) {
            times.push(time.as_nanos() as f64 / 1e3);
        }
    }
    Ok(times.map(|times| Quantiles::from_sorted(&sorted(times))))
}

async fn envoy(gateway: &Gateway, http: &reqwest::Client, text: &str, repeat: u32) -> Result<Times> {
    let question = json!({"text": text, "repeat": repeat}).to_string();
    let response = http.post(gateway.url(DEBUG_PREDICT_PATH)).body(question).send().await?;
    let (status, body) = (response.status(), response.text().await?);
    ensure!(status.is_success(), "{DEBUG_PREDICT_PATH} answers {status}: {body}");
    let answer: Value = serde_json::from_str(&body)?;
    let us = |field: &str, quantile: &str| {
        answer[field][quantile].as_f64().map(|ns| ns / 1e3).with_context(|| format!("no {field}.{quantile} in {body}"))
    };
    let quantiles =
        |field: &str| -> Result<Quantiles<f64>> { Ok(Quantiles { p50: us(field, "p50")?, p99: us(field, "p99")? }) };
    Ok([quantiles("features_ns")?, quantiles("predict_ns")?, quantiles("total_ns")?])
}

fn row(chars: usize, place: &'static str, times: &[Times]) -> Row {
    let median = |part: usize| {
        let over_texts = |value: fn(&Quantiles<f64>) -> f64| {
            percentile(&sorted(times.iter().map(|times| value(&times[part])).collect()), 50)
        };
        Quantiles { p50: over_texts(|q| q.p50), p99: over_texts(|q| q.p99) }
    };
    Row { chars, place, features_us: median(0), inference_us: median(1), total_us: median(2) }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

impl Report {
    /// The rows for people.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new();
        table.set_header(["prompt", "where", "features p50", "p99", "inference p50", "p99", "both p50", "p99"]);
        for row in &self.rows {
            let numbers = [row.features_us, row.inference_us, row.total_us].map(|q| [q.p50, q.p99]).concat();
            let cells = [format!("{} chars", row.chars), row.place.to_owned()];
            table.add_row(cells.into_iter().chain(numbers.into_iter().map(|us| format!("{us:.1} µs"))));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_size_and_differ() {
        let prompts = ["one ä", "two", "three", "four", "five", "six", "seven", "eight"];
        for chars in SIZES {
            let texts: std::collections::BTreeSet<String> = (0..TEXTS).map(|at| text(&prompts, at, chars)).collect();
            assert_eq!(texts.len(), TEXTS);
            assert!(texts.iter().all(|text| text.chars().count() == chars));
        }
    }

    #[test]
    fn a_row_holds_medians_over_texts() {
        let times = |us: f64| [1.0, 2.0, 3.0].map(|part| Quantiles { p50: us * part, p99: 10.0 * us * part });
        let row = row(300, "native", &[times(9.0), times(1.0), times(2.0)]);
        let json = serde_json::to_value(Report { rows: vec![row] }).unwrap();
        let q = |p50: f64| json!({"p50": p50, "p99": 10.0 * p50});
        let expected =
            json!({"chars": 300, "where": "native", "features_us": q(2.0), "inference_us": q(4.0), "total_us": q(6.0)});
        assert_eq!(json, json!({ "rows": [expected] }));
    }
}
