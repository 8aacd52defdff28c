//! `routebalance bench body`: what the parts of a decision cost inside a real Envoy, by the size of the request's body.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::Table;
use serde::Serialize;
use serde_json::Value;

use super::super::gateway::{Gateway, GatewayOptions};
use routebalance_lab::statistics::Quantiles;

const BODY_BYTES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const WORDS: &str = "count the 12 apples that quick brown foxes (and lazy dogs) bring, then explain why it works. ";
/// Envoy writes its access log in blocks, at the latest after ten seconds.
const LOG_WITHIN: Duration = Duration::from_secs(30);

/// One line of the table: medians and 99th percentiles.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    body_bytes: usize,
    model_first: bool,
    scan_us: Quantiles<u64>,
    decision_us: Quantiles<u64>,
    patch_us: Quantiles<u64>,
}

/// Of a field of the decisions in the access log, microseconds.
pub(super) fn logged_us(lines: &[Value], field: &str) -> Result<Quantiles<u64>> {
    let value = |line: &Value| line["decision"][field].as_u64().with_context(|| format!("no {field} in {line}"));
    let mut values = lines.iter().map(value).collect::<Result<Vec<u64>>>()?;
    values.sort_unstable();
    Ok(Quantiles::from_sorted(&values))
}

/// Runs the benchmark.
pub(super) async fn run(options: GatewayOptions, requests: u32) -> Result<Vec<Row>> {
    let gateway = Gateway::start(options).await?;
    let http = reqwest::Client::new();
    let mut rows = Vec::new();
    for model_first in [true, false] {
        for body_bytes in BODY_BYTES {
            let body = request_body(body_bytes, model_first);
            let name = format!("bench-{model_first}-{body_bytes}");
            let lines = decisions(&gateway, &http, &body, requests, &name).await?;
            rows.push(Row {
                body_bytes: body.len(),
                model_first,
                scan_us: logged_us(&lines, "scan_us")?,
                decision_us: logged_us(&lines, "decision_us")?,
                patch_us: logged_us(&lines, "patch_us")?,
            });
        }
    }
    Ok(rows)
}

/// What the access log says of so many requests, one after the other; as many as a quarter of them come first, which warms caches and
/// compilers up. Nothing is generated: the filter's work is what is measured.
pub(super) async fn decisions(
    gateway: &Gateway,
    http: &reqwest::Client,
    body: &str,
    requests: u32,
    name: &str,
) -> Result<Vec<Value>> {
    let id = |number: u32| format!("{name}-{number}");
    let first_counted = requests / 4;
    for number in 0..first_counted + requests {
        let request = http
            .post(gateway.url("/v1/messages/count_tokens"))
            .header("content-type", "application/json")
            .header("x-request-id", id(number))
            .body(body.to_owned());
        let response = request.send().await?;
        ensure!(response.status().is_success(), "{} for {} bytes", response.status(), body.len());
        response.bytes().await?;
    }
    let lines = logged(gateway, &id(first_counted + requests - 1)).await?;
    let counted: Vec<String> = (first_counted..first_counted + requests).map(id).collect();
    let lines: Vec<Value> =
        lines.into_iter().filter(|l| counted.iter().any(|id| l["request_id"] == id.as_str())).collect();
    ensure!(lines.len() == counted.len(), "{} of {} requests are logged", lines.len(), counted.len());
    Ok(lines)
}

/// A request of about so many bytes, with `model` before or behind the messages.
pub(super) fn request_body(bytes: usize, model_first: bool) -> String {
    let text: String = WORDS.chars().cycle().take(bytes).collect();
    let (model, messages) = (r#""model":"auto""#, format!(r#""messages":[{{"role":"user","content":"{text}"}}]"#));
    if model_first { format!("{{{model},{messages}}}") } else { format!("{{{messages},{model}}}") }
}

/// The access log's lines once the one of this request is among them.
async fn logged(gateway: &Gateway, request_id: &str) -> Result<Vec<Value>> {
    let started = Instant::now();
    let mark = format!("\"{request_id}\"");
    loop {
        let log = gateway.access_log();
        if log.contains(&mark) {
            return Ok(log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect());
        }
        ensure!(started.elapsed() < LOG_WITHIN, "the access log has no line of {request_id}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The rows for people.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.set_header(["body", "`model`", "scan p50", "p99", "decision p50", "p99", "patch p50", "p99"]);
    for row in rows {
        let place = if row.model_first { "first" } else { "last" };
        let numbers = [&row.scan_us, &row.decision_us, &row.patch_us].map(|q| [q.p50, q.p99]).concat();
        let cells = [format!("{} B", row.body_bytes), place.to_owned()];
        table.add_row(cells.into_iter().chain(numbers.into_iter().map(|us| format!("{us} µs"))));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_size_and_are_valid() {
        for bytes in BODY_BYTES {
            for model_first in [true, false] {
                let body = request_body(bytes, model_first);
                let json: Value = serde_json::from_str(&body).unwrap();
                assert_eq!(json["model"], "auto");
                assert!((bytes..bytes + 100).contains(&body.len()));
            }
        }
    }

    #[test]
    fn quantiles_are_those_of_the_field() {
        let lines: Vec<Value> = (1..=100).rev().map(|us| serde_json::json!({"decision": {"scan_us": us}})).collect();
        let quantiles = logged_us(&lines, "scan_us").unwrap();
        assert_eq!((quantiles.p50, quantiles.p99), (50, 99));
        assert!(logged_us(&lines, "patch_us").is_err());
    }
}
