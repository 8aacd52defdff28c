//! Contenders that choose the model first, by the prompt alone, and its instance afterwards, by load alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use super::{Knobs, LabInputs, OUR_DECISION};
use crate::entrant::Entrant;
use crate::opinions::Opinions;
use routebalance_core::fleet::ModelId;
use routebalance_sim::contender::{Contender, Deciding, Dispatcher};
use routebalance_sim::workload::Template;

/// One forward pass of BEST-Route's DeBERTa on a CPU. From published numbers: one after the other, 3,534 requests at 30 per second
/// had a mean E2E of 64.2 s, of which about 3.5 s are the answer; requests wait `(3,534 s - 117.8 s) / 2` on average for a pass of
/// `s` seconds, so it is 0.068 s. The semantic router's classifier is of the same size, and collapsed in the same range of rates.
const DEBERTA: Duration = Duration::from_millis(68);
/// One sentence vector of MiniLM on a CPU: the published decision's 30 ms less the 3 ms of its trees (PUBLISHED.md, section 13.2).
const MINILM: Duration = Duration::from_millis(27);

/// How a model's instance is chosen in the published pipelines (PUBLISHED.md, section 12), the better one first.
const DISPATCHERS: [(Dispatcher, &str); 2] =
    [(Dispatcher::ShortestQueue, "shortest queue"), (Dispatcher::RoundRobin, "round robin")];

fn dispatchers(knobs: Knobs) -> &'static [(Dispatcher, &'static str)] {
    match knobs {
        Knobs::All => &DISPATCHERS,
        Knobs::Headline => &DISPATCHERS[..1],
    }
}

/// A rule's choice for every template, with each of the dispatchers.
fn with_dispatchers(
    name: &'static str,
    knobs: Knobs,
    setting: &str,
    models: impl Iterator<Item = ModelId>,
    charged: Deciding,
) -> Vec<Entrant> {
    let models: Arc<[ModelId]> = models.collect();
    let entrant = |(dispatcher, dispatched): &(Dispatcher, &str)| {
        let setting = if setting.is_empty() { (*dispatched).to_owned() } else { format!("{setting}, {dispatched}") };
        let contender = Contender::Pipeline { models: Some(models.clone()), dispatcher: *dispatcher };
        Entrant { charged, ..Entrant::new(name, setting, contender) }
    };
    dispatchers(knobs).iter().map(entrant).collect()
}

/// BEST-Route with a class per model. Where no model is probably enough the best, a fall-back serves: as shipped the first of the
/// deployment's file, which is the second largest model, as documented the smallest. As published one pass after the other;
/// **concurrent** is the paper's enhanced variant.
pub(super) fn best_route(name: &'static str, knobs: Knobs, lab: &LabInputs<'_>) -> Result<Vec<Entrant>> {
    let opinions = lab.opinions(name)?;
    let thresholds: &[f64] = if knobs == Knobs::All { &[0.0, 0.3, 0.5, 0.7] } else { &[0.0, 0.3, 0.5] };
    let second_largest = |o: &Opinions| o.models[o.models.len().saturating_sub(2)];
    let smallest = |o: &Opinions| o.models[0];
    type Fallback<'a> = (&'a str, &'a dyn Fn(&Opinions) -> ModelId);
    let fallbacks: [Fallback<'_>; 2] = [("second largest", &second_largest), ("smallest", &smallest)];
    let mut entrants = Vec::new();
    for (kind, charged) in [("concurrent", Deciding::Concurrently(DEBERTA)), ("serial", Deciding::Serially(DEBERTA))] {
        for (i, (fallback, model)) in fallbacks.iter().enumerate() {
            // The other fall-back, and a pass after the other, are of interest where they make a difference.
            if i > 0 && (knobs == Knobs::Headline || kind == "serial") {
                continue;
            }
            for (at, threshold) in thresholds.iter().enumerate() {
                if (i > 0 && at == 0) || (knobs == Knobs::Headline && kind == "serial" && *threshold != 0.5) {
                    continue;
                }
                let setting = match (at, kind) {
                    (0, _) => format!("{kind}, threshold 0"),
                    _ => format!("{kind}, threshold {threshold}, else {fallback}"),
                };
                let models = opinions.iter().map(|o| o.best_route(*threshold, model(o)));
                entrants.extend(with_dispatchers(name, knobs, &setting, models, charged));
            }
        }
    }
    Ok(entrants)
}

/// Avengers-Pro over its published weights of performance; the headline is .8.
pub(super) fn avengers_pro(name: &'static str, knobs: Knobs, lab: &LabInputs<'_>) -> Result<Vec<Entrant>> {
    let opinions = lab.opinions(name)?;
    let weights: &[f64] = if knobs == Knobs::All { &[0.25, 0.39, 0.53, 0.7, 0.8] } else { &[0.8] };
    let entrants = |weight: &f64| {
        let models = opinions.iter().map(|o| o.avengers_pro(*weight));
        with_dispatchers(name, knobs, &format!("p_w {weight}"), models, Deciding::Concurrently(MINILM))
    };
    Ok(weights.iter().flat_map(entrants).collect())
}

/// RouteLLM over thresholds of the win rate. The published default, .11593, sends everything to the largest model here, where that
/// wins 40 % of the prompts: .4 is as much as half of them.
pub(super) fn routellm(name: &'static str, knobs: Knobs, lab: &LabInputs<'_>) -> Result<Vec<Entrant>> {
    let opinions = lab.opinions(name)?;
    let thresholds: &[f64] =
        if knobs == Knobs::All { &[0.11593, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5] } else { &[0.11593, 0.4] };
    let entrants = |threshold: &f64| {
        let models = opinions.iter().map(|o| o.routellm(*threshold));
        with_dispatchers(name, knobs, &format!("threshold {threshold}"), models, Deciding::Concurrently(MINILM))
    };
    Ok(thresholds.iter().flat_map(entrants).collect())
}

/// vLLM Semantic Router: one classification after the other.
pub(super) fn semantic_router(name: &'static str, knobs: Knobs, lab: &LabInputs<'_>) -> Result<Vec<Entrant>> {
    let models = lab.opinions(name)?.iter().map(|o| o.semantic_router());
    Ok(with_dispatchers(name, knobs, "", models, Deciding::Serially(DEBERTA)))
}

/// The models with the quality and the cost that we expect of their answers.
fn offers(lab: &LabInputs<'_>, template: &Template) -> Vec<(ModelId, f64, f64)> {
    let offer = |model: ModelId| {
        let (estimate, _) = *template.outlook.as_ref()?.estimates.get(model.index())?;
        let tokens = estimate.output_tokens.min(template.prompt.max_tokens.map_or(f64::INFINITY, f64::from));
        let tariff = &lab.config.fleet.model(model)?.tariff;
        let usd = f64::from(template.prompt_tokens) * tariff.usd_per_input_token + tokens * tariff.usd_per_output_token;
        Some((model, estimate.quality, usd))
    };
    lab.models().into_iter().filter_map(offer).collect()
}

fn best(offers: &[(ModelId, f64, f64)]) -> ModelId {
    // Of equals the cheaper one.
    let order = |a: &&(ModelId, f64, f64), b: &&(ModelId, f64, f64)| a.1.total_cmp(&b.1).then(b.2.total_cmp(&a.2));
    offers.iter().max_by(order).map_or(ModelId::new(0), |offer| offer.0)
}

fn cheapest<'a>(offers: impl Iterator<Item = &'a (ModelId, f64, f64)>) -> Option<ModelId> {
    offers.min_by(|a, b| a.2.total_cmp(&b.2)).map(|offer| offer.0)
}

/// OmniRouter as the paper has it: the cheapest model of at least this quality, .5, else the best; by our estimates.
pub(super) fn omnirouter(name: &'static str, knobs: Knobs, lab: &LabInputs<'_>) -> Vec<Entrant> {
    let thresholds: &[f64] = if knobs == Knobs::All { &[0.4, 0.5, 0.6, 0.7] } else { &[0.5] };
    let charged = Deciding::Concurrently(OUR_DECISION);
    let entrants = |threshold: &f64| {
        let model = |template: &Template| {
            let offers = offers(lab, template);
            let good = offers.iter().filter(|offer| offer.1 >= *threshold);
            cheapest(good).unwrap_or_else(|| best(&offers))
        };
        with_dispatchers(name, knobs, &format!("quality {threshold}"), lab.templates.iter().map(model), charged)
    };
    thresholds.iter().flat_map(entrants).collect()
}

/// The model that our estimates expect the best answer of.
pub(super) fn quality_only(name: &'static str, lab: &LabInputs<'_>) -> Vec<Entrant> {
    let models = lab.templates.iter().map(|template| best(&offers(lab, template)));
    with_dispatchers(name, Knobs::Headline, "", models, Deciding::Concurrently(OUR_DECISION))
}

/// The model that our estimates expect the cheapest answer of.
pub(super) fn cost_only(name: &'static str, lab: &LabInputs<'_>) -> Vec<Entrant> {
    let models = lab.templates.iter().map(|template| cheapest(offers(lab, template).iter()).unwrap_or(ModelId::new(0)));
    with_dispatchers(name, Knobs::Headline, "", models, Deciding::Concurrently(OUR_DECISION))
}

/// One model for all requests: the cheapest whose mean quality over the prompts reaches a threshold, else the best. Nothing is
/// predicted.
pub(super) fn cheapest_adequate(name: &'static str, knobs: Knobs, lab: &LabInputs<'_>) -> Vec<Entrant> {
    let n = lab.templates.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Template) -> f64| lab.templates.iter().map(of).sum::<f64>() / n;
    let offer = |model: ModelId| {
        let tariff = lab.config.fleet.models[model.index()].tariff;
        let usd = |t: &Template| {
            f64::from(t.prompt_tokens) * tariff.usd_per_input_token
                + f64::from(t.output_tokens[model.index()]) * tariff.usd_per_output_token
        };
        (model, mean(&|t| t.quality[model.index()]), mean(&usd))
    };
    let offers: Vec<(ModelId, f64, f64)> = lab.models().into_iter().map(offer).collect();
    let thresholds: &[f64] = if knobs == Knobs::All { &[0.4, 0.5, 0.6, 0.65] } else { &[0.5, 0.6] };
    let entrant = |threshold: &f64| {
        let good = offers.iter().filter(|offer| offer.1 >= *threshold);
        let model = cheapest(good).unwrap_or_else(|| best(&offers));
        let models = vec![model; lab.templates.len()].into();
        let contender = Contender::Pipeline { models: Some(models), dispatcher: Dispatcher::LeastLoad };
        Entrant::new(name, format!("quality {threshold}"), contender)
    };
    thresholds.iter().map(entrant).collect()
}
