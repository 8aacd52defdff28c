//! Summaries of many requests: shares, means and percentiles.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use routebalance_lab::cell::TimesMs;
use routebalance_lab::statistics::{Quantiles, mean_or_zero};

/// What one policy did with the traffic. Means and percentiles are over the requests that succeeded.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PolicySummary {
    /// The policy's name in the configuration.
    pub policy: String,
    /// Requests that were sent.
    pub requests: usize,
    /// Requests without a complete answer.
    pub failed: usize,
    /// Share of the answers per model, in [0, 1].
    pub mix: BTreeMap<String, f64>,
    /// Mean recorded quality of (prompt, model that answered), in [0, 1].
    pub quality: f64,
    /// Mean USD per request: the model's tariff times the tokens of the answer's usage.
    pub cost_usd: f64,
    /// From the arrival of the request to the first token.
    pub ttft_ms: TimesMs,
    /// From the arrival of the request to the end of the answer.
    pub e2e_ms: TimesMs,
    /// What the filter took to decide, as it says itself.
    pub decision_us: Quantiles<f64>,
}

/// One request that succeeded, as far as a summary needs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The model that answered.
    pub model: String,
    /// Recorded quality, if this prompt has one for this model.
    pub quality: Option<f64>,
    /// USD.
    pub cost_usd: f64,
    /// From the arrival to the first token.
    pub ttft: Duration,
    /// From the arrival to the end.
    pub e2e: Duration,
    /// Microseconds of the decision.
    pub decision_us: Option<u64>,
}

/// Summarises the answers under a policy.
pub fn summarise(policy: &str, answered: &[Answered], failed: usize) -> PolicySummary {
    let mut counts = BTreeMap::<String, usize>::new();
    for answer in answered {
        *counts.entry(answer.model.clone()).or_default() += 1;
    }
    let mix = counts.into_iter().map(|(model, count)| (model, count as f64 / answered.len() as f64)).collect();
    let decisions = sorted(answered.iter().filter_map(|a| a.decision_us).map(|us| us as f64));
    PolicySummary {
        policy: policy.to_owned(),
        requests: answered.len() + failed,
        failed,
        mix,
        quality: mean_or_zero(answered.iter().filter_map(|a| a.quality)),
        cost_usd: mean_or_zero(answered.iter().map(|a| a.cost_usd)),
        ttft_ms: ms_summary(answered.iter().map(|a| a.ttft)),
        e2e_ms: ms_summary(answered.iter().map(|a| a.e2e)),
        decision_us: Quantiles::from_sorted(&decisions),
    }
}

fn ms_summary(durations: impl Iterator<Item = Duration>) -> TimesMs {
    TimesMs::from_sorted(&sorted(durations.map(|d| d.as_secs_f64() * 1e3)))
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_every_request_once() {
        let answer = |model: &str, quality, ms| Answered {
            model: model.to_owned(),
            quality,
            cost_usd: 0.002,
            ttft: Duration::from_millis(ms),
            e2e: Duration::from_millis(10 * ms),
            decision_us: Some(ms),
        };
        let answers =
            [answer("a", Some(1.0), 10), answer("a", None, 20), answer("b", Some(0.5), 30), answer("a", Some(0.0), 40)];
        let summary = summarise("p", &answers, 2);
        assert_eq!((summary.requests, summary.failed), (6, 2));
        assert_eq!(summary.mix, BTreeMap::from([("a".to_owned(), 0.75), ("b".to_owned(), 0.25)]));
        assert_eq!((summary.quality, summary.cost_usd), (0.5, 0.002));
        assert_eq!(summary.ttft_ms, TimesMs { mean: 25.0, p50: 20.0, p99: 40.0 });
        assert_eq!(summary.e2e_ms.p99, 400.0);
        assert_eq!(summary.decision_us, Quantiles { p50: 20.0, p99: 40.0 });
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let json = serde_json::to_value(summarise("p", &[], 0)).unwrap();
        let fields: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let expected =
            ["cost_usd", "decision_us", "e2e_ms", "failed", "mix", "policy", "quality", "requests", "ttft_ms"];
        assert_eq!(fields, expected);
    }
}
