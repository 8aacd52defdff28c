//! Prices that follow demand.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Gateway, Request, eventually, prompts};
use crate::setups::{PLANNED, PRICED_TTFT_MS, SCARCE};

/// Time between two requests: four times what the plan expects.
const GAP: Duration = Duration::from_millis(50);
const REQUESTS: usize = 240;

/// Half a minute of the model's own time, whatever it would say.
fn request(i: usize) -> Request {
    let rows = prompts(1.0);
    let row: Value = serde_json::from_str(&rows[i % rows.len()]).unwrap();
    let body = json!({
        "model": "auto", "messages": [{"role": "user", "content": row["prompt"]}],
        "max_tokens": 400, "ignore_eos": true, "stream": true,
    });
    Request::post("/quality/v1/chat/completions", body.to_string()).header("x-request-id", &format!("priced {i}"))
}

async fn price(gateway: &Gateway) -> u64 {
    gateway.stat(&format!("price_micro.quality.{SCARCE}")).await
}

/// The forecast is a quarter of what comes: at its price all requests would go to two instances that hold two each.
pub(crate) async fn forecast_too_low(gateway: &Gateway) {
    let planned = (PLANNED * 1e6) as u64;
    eventually("the plan's price", || price(gateway), |micro| *micro == planned).await;
    let requests: Vec<Request> = (0..REQUESTS).map(request).collect();
    let sent = requests.iter().enumerate().map(async |(i, request)| {
        tokio::time::sleep(GAP * u32::try_from(i).unwrap()).await;
        gateway.send(request).await.ok()
    });
    join_all(sent).await;
    let written = async || {
        let log = gateway.access_log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let number = |line: &Value| line["request_id"].as_str()?.strip_prefix("priced ")?.parse::<usize>().ok();
        lines.filter_map(|mut line| Some((number(&line)?, line["decision"].take()))).collect::<BTreeMap<_, _>>()
    };
    let decisions = eventually("the log", written, |lines| lines.len() == REQUESTS).await;
    let scarce = |i: &usize| decisions[i]["model"] == SCARCE;
    let ttft = |i: usize| decisions[&i]["response"]["ttft_ms"].as_f64().expect("a first token");
    let (early, late) = (0..20, REQUESTS - 80..REQUESTS);
    assert!(early.clone().filter(scarce).count() > 15, "the plan's price keeps nobody away");
    let paid = |i: usize| decisions[&i]["price"].as_f64().expect("a price");
    let dearest = late.clone().filter(scarce).map(paid).fold(0.0, f64::max);
    let served = late.clone().filter(scarce).count();
    assert!((1..40).contains(&served), "{served} of 80 late requests are for the scarce model");
    assert!(dearest > PLANNED, "{dearest}");
    let mean = late.map(ttft).sum::<f64>() / 80.0;
    assert!(mean < PRICED_TTFT_MS, "{mean} ms");
}
