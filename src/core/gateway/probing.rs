//! `POST /routebalance/debug/predict`: what the predictor makes of a text in here, and how long it takes. Off unless configured.

use std::hint::black_box;
use std::time::Duration;

use serde::Serialize;

use super::{Body, Host, PIECE};
use crate::features::extract;
use crate::openai::{Probe, ProbeScan};
use crate::predictor::Estimate;
use crate::router::Router;

/// A question that is being read.
#[derive(Default)]
pub(super) struct Probing {
    scan: ProbeScan,
    scanned: usize,
}

#[derive(Serialize)]
struct ProbeAnswer<'a> {
    chars: u64,
    estimated_tokens: u64,
    slots: Vec<u16>,
    weight_bits: Vec<u32>,
    surface_bits: Vec<u32>,
    familiarity: f64,
    prototype: usize,
    models: &'a [String],
    estimates: Vec<EstimateAnswer>,
    features_ns: Quantiles,
    predict_ns: Quantiles,
    total_ns: Quantiles,
}

#[derive(Serialize)]
struct EstimateAnswer {
    quality: f64,
    quality_sd: f64,
    output_tokens: f64,
    output_tokens_p80: f64,
    output_tokens_p90: f64,
}

/// Of the repetitions; each includes one look at the host's clock.
#[derive(Serialize)]
struct Quantiles {
    p50: u64,
    p99: u64,
}

impl Probing {
    /// Reads what has come of the body.
    pub(super) fn read(&mut self, host: &impl Host, size: usize) {
        while self.scanned < size {
            let piece = host.body(Body::Request, self.scanned, PIECE.min(size - self.scanned));
            if piece.is_empty() {
                break;
            }
            self.scanned = self.scanned.saturating_add(piece.len());
            self.scan.push(&piece);
        }
    }

    /// The answer to the whole body, or a status and a sentence.
    pub(super) fn answer(self, host: &impl Host, router: &Router) -> Result<String, (u16, String)> {
        let probe = self.scan.finish().map_err(|problem| (400, problem))?;
        answer(host, router, &probe).ok_or((503, "The predictor is off or gives no estimate.".to_owned()))
    }
}

fn answer(host: &impl Host, router: &Router, probe: &Probe) -> Option<String> {
    let predictor = router.predictor()?;
    let (mut features_ns, mut predict_ns, mut total_ns) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for _ in 0..probe.repeat {
        let began = host.clock();
        let features = extract(black_box(&probe.text));
        let extracted = host.clock();
        let prediction = predictor.predict(&features)?;
        let ended = host.clock();
        features_ns.push(extracted.saturating_sub(began));
        predict_ns.push(ended.saturating_sub(extracted));
        total_ns.push(ended.saturating_sub(began));
        last = Some((features, prediction));
    }
    let (features, prediction) = last?;
    let answer = ProbeAnswer {
        chars: probe.text.chars(),
        estimated_tokens: probe.text.estimated_tokens(),
        slots: features.slots.iter().map(|(slot, _)| *slot).collect(),
        weight_bits: features.slots.iter().map(|(_, weight)| weight.to_bits()).collect(),
        surface_bits: features.surface.iter().map(|value| value.to_bits()).collect(),
        familiarity: prediction.familiarity,
        prototype: prediction.prototype,
        models: predictor.models(),
        estimates: prediction.estimates.iter().map(EstimateAnswer::from_estimate).collect(),
        features_ns: Quantiles::from_times(features_ns)?,
        predict_ns: Quantiles::from_times(predict_ns)?,
        total_ns: Quantiles::from_times(total_ns)?,
    };
    serde_json::to_string(&answer).ok()
}

impl EstimateAnswer {
    fn from_estimate(estimate: &Estimate) -> EstimateAnswer {
        let Estimate { quality, quality_sd, output_tokens, output_tokens_p80, output_tokens_p90 } = *estimate;
        EstimateAnswer { quality, quality_sd, output_tokens, output_tokens_p80, output_tokens_p90 }
    }
}

impl Quantiles {
    fn from_times(mut times: Vec<Duration>) -> Option<Quantiles> {
        times.sort_unstable();
        let last = times.len().checked_sub(1)?;
        let at = |percent: usize| Some(u64::try_from(times.get(last * percent / 100)?.as_nanos()).unwrap_or(u64::MAX));
        Some(Quantiles { p50: at(50)?, p99: at(99)? })
    }
}
