//! An open-loop client: requests arrive as a Poisson process whatever the answers take, and every answer is observed as it
//! streams in.
//!
//! Latency counts from the moment a request was due, not from the moment it was sent: a client that falls behind then shows up
//! as latency instead of hiding it (coordinated omission).

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::Exp;
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::answer::{AnswerStream, Usage};

/// One request of the traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When it is due, from the start.
    pub at: Duration,
    /// Index of its prompt.
    pub prompt: usize,
}

/// Poisson arrivals over `duration`; prompts are drawn without repetition until all were used, then again in a new order.
/// The same arguments give the same traffic.
pub fn poisson_arrivals(
    requests_per_second: f64,
    duration: Duration,
    prompts: usize,
    seed: u64,
) -> Result<Vec<Arrival>> {
    ensure!(
        requests_per_second.is_finite() && requests_per_second > 0.0,
        "the rate must be above 0 requests per second, not {requests_per_second}"
    );
    ensure!(prompts > 0, "there are no prompts to send");
    let gap_s = Exp::new(requests_per_second)?;
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut arrivals, mut deck, mut at_s) = (Vec::new(), Vec::new(), 0.0);
    loop {
        at_s += rng.sample(gap_s);
        if at_s >= duration.as_secs_f64() {
            return Ok(arrivals);
        }
        if deck.is_empty() {
            deck.extend(0..prompts);
            deck.shuffle(&mut rng);
        }
        let prompt = deck.pop().unwrap_or_default();
        arrivals.push(Arrival { at: Duration::from_secs_f64(at_s), prompt });
    }
}

/// Where and how requests are sent.
#[derive(Clone, Debug)]
pub struct Target {
    /// The chat completions URL.
    pub url: String,
    /// The `model` of the requests.
    pub model: String,
    /// The answer's limit in tokens.
    pub max_tokens: u32,
    /// After this a request has failed.
    pub timeout: Duration,
}

/// What became of one request.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// When it was due, from the start.
    pub at: Duration,
    /// Index of the prompt.
    pub prompt: usize,
    /// The model that answered, as the gateway says (`x-routebalance-model`).
    pub model: Option<String>,
    /// Microseconds of the decision, as the gateway says (`x-routebalance-decision-us`).
    pub decision_us: Option<u64>,
    /// From the moment the request was due to its first token.
    pub ttft: Option<Duration>,
    /// From the moment the request was due to its end.
    pub e2e: Duration,
    /// Tokens of the prompt and the answer, as the instance counts them.
    pub usage: Option<Usage>,
    /// Why there is no complete answer.
    pub failure: Option<String>,
}

/// Sends the traffic and returns when every request has ended; each outcome is also sent to `observer` at once. Dropping the
/// future drops all open requests.
pub async fn run(
    target: &Target,
    prompts: &[String],
    arrivals: &[Arrival],
    observer: UnboundedSender<Outcome>,
) -> Result<()> {
    // Idle connections end before Envoy or an instance closes them, so that no request meets a closing connection.
    let http = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(2)).no_proxy().build()?;
    let target = Arc::new(target.clone());
    let start = Instant::now();
    let mut open = JoinSet::new();
    for arrival in arrivals {
        let due = start + arrival.at;
        sleep_until(due).await;
        let body = chat_request(&target, prompts.get(arrival.prompt).map_or("", String::as_str));
        let (http, target, observer, arrival) = (http.clone(), target.clone(), observer.clone(), *arrival);
        open.spawn(async move {
            // Nobody listens when the command was interrupted.
            let _ = observer.send(send(&http, &target, body, &arrival, due).await);
        });
        while open.try_join_next().is_some() {}
    }
    while let Some(ended) = open.join_next().await {
        ended?;
    }
    Ok(())
}

/// The body of a request for a streamed answer to this prompt.
pub fn chat_request(target: &Target, prompt: &str) -> String {
    json!({
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": target.max_tokens,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
    .to_string()
}

async fn send(http: &reqwest::Client, target: &Target, body: String, arrival: &Arrival, due: Instant) -> Outcome {
    let Arrival { at, prompt } = *arrival;
    let mut outcome = Outcome {
        at,
        prompt,
        model: None,
        decision_us: None,
        ttft: None,
        e2e: Duration::ZERO,
        usage: None,
        failure: None,
    };
    let deadline = due + target.timeout;
    let answered = timeout_at(deadline, receive(http, target, body, due, &mut outcome)).await;
    outcome.failure = match answered {
        Ok(Ok(())) => None,
        Ok(Err(reason)) => Some(reason),
        Err(_) => Some(format!("no complete answer within {:?}", target.timeout)),
    };
    outcome.e2e = due.elapsed();
    outcome
}

async fn receive(
    http: &reqwest::Client,
    target: &Target,
    body: String,
    due: Instant,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let request = http.post(&target.url).header("content-type", "application/json").body(body);
    let response = request.send().await.map_err(|e| format!("no response: {}", root_cause(&e)))?;
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    outcome.model = header("x-routebalance-model");
    outcome.decision_us = header("x-routebalance-decision-us").and_then(|us| us.parse().ok());
    let status = response.status();
    if status != reqwest::StatusCode::OK {
        let text = response.text().await.unwrap_or_default();
        return Err(format!("status {}: {}", status.as_u16(), text.chars().take(200).collect::<String>()));
    }
    let mut answer = AnswerStream::default();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        answer.push(&chunk.map_err(|e| format!("the stream broke: {}", root_cause(&e)))?);
        if answer.has_content() && outcome.ttft.is_none() {
            outcome.ttft = Some(due.elapsed());
        }
    }
    outcome.usage = answer.usage();
    answer.end()
}

/// reqwest's own sentence says only that sending failed; its innermost cause says why.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::Router;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse, Response};
    use axum::routing::post;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn arrivals_are_poisson_and_reproducible() {
        let traffic = |seed| poisson_arrivals(6.0, Duration::from_secs(600), 100, seed).unwrap();
        let arrivals = traffic(1);
        assert_eq!(arrivals, traffic(1));
        assert_ne!(arrivals, traffic(2));
        // 3600 expected; five standard deviations are 300.
        assert!(arrivals.len().abs_diff(3600) < 300, "{}", arrivals.len());
        assert!(arrivals.windows(2).all(|w| w[0].at <= w[1].at));
        // Exponential gaps: their standard deviation is their mean.
        let gaps: Vec<f64> = arrivals.windows(2).map(|w| (w[1].at - w[0].at).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.1, "{}", deviation / mean);
        let first: BTreeSet<usize> = arrivals[..100].iter().map(|a| a.prompt).collect();
        assert_eq!(first.len(), 100, "no prompt twice before all were used");
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        for (rate, prompts) in [(0.0, 1), (-1.0, 1), (f64::NAN, 1), (1.0, 0)] {
            assert!(poisson_arrivals(rate, Duration::from_secs(1), prompts, 0).is_err(), "{rate} {prompts}");
        }
    }

    /// Answers as the prompt says.
    async fn respond(body: String) -> Response {
        let request: serde_json::Value = serde_json::from_str(&body).unwrap();
        let event = |json: &str| format!("data: {json}\n\n");
        let token = event(r#"{"choices":[{"delta":{"content":"hi"}}]}"#);
        let usage = event(r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}"#);
        let text = match request["messages"][0]["content"].as_str().unwrap() {
            "good" => token + &usage + "data: [DONE]\n\n",
            "error inside" => token + &event(r#"{"error":{"message":"engine dead","code":500}}"#) + "data: [DONE]\n\n",
            "truncated" => token,
            _ => return (StatusCode::SERVICE_UNAVAILABLE, "no healthy upstream").into_response(),
        };
        ([("x-routebalance-model", "m"), ("x-routebalance-decision-us", "42")], text).into_response()
    }

    #[tokio::test]
    async fn every_kind_of_answer_is_told_apart() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/chat/completions", listener.local_addr().unwrap());
        let server = tokio::spawn(async {
            axum::serve(listener, Router::new().route("/v1/chat/completions", post(respond))).await
        });
        let rows = [
            ("good", None),
            ("error inside", Some("engine dead")),
            ("truncated", Some("ended early")),
            ("other", Some("status 503: no healthy upstream")),
        ];
        let prompts: Vec<String> = rows.iter().map(|(prompt, _)| (*prompt).to_owned()).collect();
        let arrivals: Vec<Arrival> =
            (0..rows.len()).map(|prompt| Arrival { at: Duration::from_millis(prompt as u64), prompt }).collect();
        let target = Target { url, model: "auto".to_owned(), max_tokens: 8, timeout: Duration::from_secs(5) };
        let (observer, mut outcomes) = unbounded_channel();
        run(&target, &prompts, &arrivals, observer).await.unwrap();
        server.abort();
        let mut seen = 0;
        while let Some(outcome) = outcomes.recv().await {
            let (prompt, failure) = rows[outcome.prompt];
            match (&outcome.failure, failure) {
                (None, None) => {
                    assert_eq!((outcome.model.as_deref(), outcome.decision_us), (Some("m"), Some(42)));
                    assert_eq!(outcome.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 1 }));
                    assert!(outcome.ttft.is_some_and(|ttft| ttft <= outcome.e2e));
                }
                (Some(reason), Some(part)) => assert!(reason.contains(part), "{prompt}: {reason}"),
                (got, expected) => panic!("{prompt}: {got:?}, expected {expected:?}"),
            }
            seen += 1;
        }
        assert_eq!(seen, rows.len());
    }
}
