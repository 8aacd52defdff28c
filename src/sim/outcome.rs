//! What became of requests.

use std::time::Duration;

use crate::statistics::{mean_or_zero, percentile};
use routebalance_core::fleet::{InstanceId, ModelId};
use routebalance_core::router::Decision;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Still on its way when the simulation ended.
    Open,
    /// With its whole answer.
    Answered,
    /// The router or the instance refused it.
    Refused,
    /// An instance's error, or the gateway's own, was the answer; 200 where there was nothing in it, or an error event.
    Failed {
        /// The status.
        status: u16,
    },
    /// Its client left.
    Left,
    /// Its gateway or its worker died with it.
    GatewayDied,
    /// Its instance died, or did nothing for too long, after the first byte.
    Cut,
    /// No instance that Envoy tried would serve it, and the answer had not begun.
    Unserved {
        /// Whether an instance of its pool had worked all the time since the request came.
        healthy_peer: bool,
    },
}

/// A whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The model.
    pub model: ModelId,
    /// Its output tokens.
    pub output_tokens: u32,
}

/// What became of one request.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Index of its template.
    pub template: usize,
    /// Its gateway.
    pub gateway: usize,
    /// When it came.
    pub at: Duration,
    /// From its arrival to its decision; `None` before.
    pub decided: Option<Duration>,
    /// The model that it was decided for; of a cascade, the one asked now or last.
    pub model: Option<ModelId>,
    /// What our router decided, with what was expected of it; `None` if nothing was, or if it is not kept.
    pub decision: Option<Box<Decision>>,
    /// The instance that it was sent to last.
    pub instance: Option<InstanceId>,
    /// How often Envoy sent it.
    pub attempts: usize,
    /// How often the gateway has asked another instance for it, because it was stuck.
    pub reruns: usize,
    /// Answers that a cascade's judge turned down, in their order; the client does not see them.
    pub turned_down: Vec<Answer>,
    /// From its arrival to the first token at the gateway of the answer that the client gets.
    pub ttft: Option<Duration>,
    /// From its arrival to its end at the gateway.
    pub e2e: Option<Duration>,
    /// Output tokens of the whole answer that the client gets.
    pub output_tokens: u32,
    /// How it ended.
    pub end: End,
}

impl Outcome {
    /// Time per output token after the first; `None` for an answer of fewer than two.
    pub fn tpot(&self) -> Option<Duration> {
        let tokens = self.output_tokens.checked_sub(1)?;
        self.e2e?.checked_sub(self.ttft?)?.checked_div(tokens)
    }

    /// All answers that were asked for: those turned down, and the client's.
    pub fn answers(&self) -> impl Iterator<Item = Answer> + '_ {
        let last = self.model.map(|model| Answer { model, output_tokens: self.output_tokens });
        self.turned_down.iter().copied().chain(last)
    }

    /// Whether it was answered.
    pub fn is_answered(&self) -> bool {
        self.end == End::Answered
    }
}

/// Times of many requests, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Times {
    /// Of these values; zeros if there are none. Percentiles are nearest-rank.
    pub fn from_durations(values: impl Iterator<Item = Duration>) -> Times {
        let mut seconds: Vec<f64> = values.map(|v| v.as_secs_f64()).collect();
        seconds.sort_by(f64::total_cmp);
        Times { mean: mean_or_zero(&seconds), p50: percentile(&seconds, 50), p99: percentile(&seconds, 99) }
    }
}

/// What became of all requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Requests.
    pub requests: usize,
    /// Those with their whole answer; the times are theirs.
    pub answered: usize,
    /// Time to the first token.
    pub ttft: Times,
    /// Time per output token after the first.
    pub tpot: Times,
    /// Time to the end.
    pub e2e: Times,
}

impl Summary {
    /// Of these outcomes.
    pub fn from_outcomes<'a>(outcomes: impl Iterator<Item = &'a Outcome> + Clone) -> Summary {
        let answered = outcomes.clone().filter(|o| o.is_answered());
        Summary {
            requests: outcomes.count(),
            answered: answered.clone().count(),
            ttft: Times::from_durations(answered.clone().filter_map(|o| o.ttft)),
            tpot: Times::from_durations(answered.clone().filter_map(Outcome::tpot)),
            e2e: Times::from_durations(answered.filter_map(|o| o.e2e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn times_are_summed_up() {
        let hundred = Times::from_durations((1..=100).map(Duration::from_secs));
        assert_eq!(hundred, Times { mean: 50.5, p50: 50.0, p99: 99.0 });
        assert_eq!(Times::from_durations(std::iter::empty()), Times::default());
    }
}
