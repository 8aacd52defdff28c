//! What somebody would expect who knows everything, or nothing but the models.

use super::statistics::percentile;
use routebalance_core::predictor::Estimate;
use routebalance_core::router::Outlook;
use routebalance_sim::workload::{Template, Workload};

/// What really comes of a request.
pub(super) fn truth(template: &Template) -> Outlook {
    let values = template.quality.iter().zip(&template.output_tokens);
    let estimate = |(quality, tokens): (&f64, &u32)| {
        let tokens = f64::from(*tokens).max(1.0);
        (estimate(*quality, 0.0, [tokens; 3]), true)
    };
    Outlook { estimates: values.map(estimate).collect(), familiarity: Some(1.0), prototype: None }
}

/// The same for every request: each model's mean quality, and the median and the percentiles of its answers' lengths, over the
/// workload's kinds of requests.
pub(super) fn constant(workload: &Workload) -> Outlook {
    let models = workload.templates.first().map_or(0, |t| t.quality.len());
    let n = workload.templates.len().max(1) as f64;
    let of_model = |m: usize| {
        let quality = |t: &Template| t.quality.get(m).copied().unwrap_or_default();
        let mean = workload.templates.iter().map(quality).sum::<f64>() / n;
        let squares = workload.templates.iter().map(|t| (quality(t) - mean).powi(2)).sum::<f64>() / n;
        let tokens = workload.templates.iter().filter_map(|t| t.output_tokens.get(m));
        let mut tokens: Vec<f64> = tokens.map(|tokens| f64::from(*tokens)).collect();
        tokens.sort_by(f64::total_cmp);
        (estimate(mean, squares.sqrt(), [50, 80, 90].map(|p| percentile(&tokens, p).max(1.0))), true)
    };
    Outlook { estimates: (0..models).map(of_model).collect(), familiarity: Some(1.0), prototype: None }
}

fn estimate(quality: f64, quality_sd: f64, tokens: [f64; 3]) -> Estimate {
    let [output_tokens, output_tokens_p80, output_tokens_p90] = tokens;
    Estimate { quality, quality_sd, output_tokens, output_tokens_p80, output_tokens_p90 }
}
