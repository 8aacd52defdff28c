//! Contenders that choose model and instance in one decision: ours, and RouteBalance as published.

use std::time::Duration;

use anyhow::Result;

use super::{Knobs, LabInputs, OUR_DECISION};
use crate::entrant::{Entrant, Estimates};
use routebalance_core::fleet::{
    BatchSizing, Batching, Constraints, Mode, ModelId, Objective, Overload, Policy, QualityNormalisation, Weights,
};
use routebalance_plan::prices::prices as solved;
use routebalance_plan::scores::Scores;
use routebalance_sim::contender::{Contender, Deciding, Published, Tie, Tpot};
use routebalance_sim::filters::Filter;
use routebalance_sim::workload::sustainable_rates;

/// What the published RouteBalance takes to decide a batch (28 to 32 ms; PUBLISHED.md, section 13.2).
const PUBLISHED_DECISION: Duration = Duration::from_millis(30);

/// Our policy for these weights, as a configuration that says nothing else has it.
pub fn ours(weights: Weights) -> Policy {
    Policy {
        name: "lab".to_owned(),
        weights,
        objective: Objective::Absolute,
        quality_normalisation: QualityNormalisation::Raw,
        prices: Vec::new(),
        demand_levels: Vec::new(),
        online_prices: None,
        constraints: Constraints::default(),
        trust_request_headers: false,
        overload: Overload::default(),
        exploration: 0.0,
        batching: None,
        other_paths: None,
    }
}

fn entrant_of_ours(name: &'static str, setting: String, policy: Policy, estimates: Estimates) -> Entrant {
    Entrant {
        estimates,
        route_policy: Some(policy),
        charged: Deciding::Concurrently(OUR_DECISION),
        ..Entrant::new(name, setting, Contender::Ours)
    }
}

/// Contenders with weights.
pub(super) fn weighted(
    name: &'static str,
    knobs: Knobs,
    weights: &[Weights],
    lab: &LabInputs<'_>,
) -> Result<Vec<Entrant>> {
    let mine = |estimates| -> Result<Vec<Entrant>> {
        let of =
            |w: &Weights| Entrant { weights: Some(*w), ..entrant_of_ours(name, String::new(), ours(*w), estimates) };
        Ok(weights.iter().map(of).collect())
    };
    match name {
        "routebalance" => mine(Estimates::Ours),
        "routebalance-constant" => mine(Estimates::Constant),
        "oracle" => mine(Estimates::Truth),
        "routebalance-paper-arm2" => Ok(vec![arm(name, Tie::Queue, lab)]),
        "routebalance-paper-arm3" => Ok(vec![arm(name, Tie::Time, lab)]),
        "routebalance-paper-arm4" => {
            let arm = |w: &Weights| published(name, "", Published { tpot: Tpot::Static, ..Published::new(*w) });
            Ok(weights.iter().map(arm).collect())
        }
        _ => {
            let estimates = if name == "routebalance-paper-knn" { Estimates::Knn } else { Estimates::Ours };
            let entrants = |w: &Weights| {
                let mut settings = vec![published(name, "", paper(*w, lab))];
                if knobs == Knobs::All {
                    let raw = Published { quality: QualityNormalisation::Raw, ..paper(*w, lab) };
                    settings.push(published(name, "true TPOT", Published::new(*w)));
                    settings.push(published(name, "raw quality", raw));
                }
                settings
            };
            Ok(weights.iter().flat_map(entrants).map(|entrant| Entrant { estimates, ..entrant }).collect())
        }
    }
}

/// As in the published runs.
fn paper(weights: Weights, lab: &LabInputs<'_>) -> Published {
    let (fitted, _) = lab.fits.times(lab.config, lab.templates);
    Published { tpot: Tpot::Fitted(fitted), ..Published::new(weights) }
}

/// Without time there is nothing to wait for: each request is decided as it comes, and a batch of one is in order whatever its order.
fn published(name: &'static str, setting: &str, published: Published) -> Entrant {
    Entrant {
        weights: Some(published.weights),
        charged: Deciding::published(PUBLISHED_DECISION),
        ..Entrant::new(name, setting.to_owned(), Contender::Published(published))
    }
}

/// Arms 2 and 3: quality and cost alike, and no time.
fn arm(name: &'static str, tie: Tie, lab: &LabInputs<'_>) -> Entrant {
    let weights = Weights { quality: 0.5, latency: 0.0, cost: 0.5 };
    published(name, "", Published { tie, ..paper(weights, lab) })
}

/// Batch sizes that were run with adaptive sizing off (PUBLISHED.md, section 8).
const BATCH_SIZES: [usize; 5] = [1, 4, 8, 16, 32];
/// Their window: the one that batches begin with.
const BATCH_WINDOW: Duration = Duration::from_millis(100);

/// RouteBalance as published without its order of the longest first, and with batches of fixed sizes (PUBLISHED.md, section 13.3). Only
/// where deciding takes time.
pub fn ablations(weights: Weights, lab: &LabInputs<'_>) -> Vec<Entrant> {
    let name = "routebalance-paper";
    let in_order = published(name, "LPT off", Published { longest_first: false, ..paper(weights, lab) });
    let of_size = |size: &usize| {
        let sizing = BatchSizing::Fixed { size: *size, window: BATCH_WINDOW };
        let batching = Batching { sizing, max_wait: Duration::MAX };
        Entrant {
            charged: Deciding::InBatches { time: PUBLISHED_DECISION, batching },
            ..published(name, &format!("batch {size}"), paper(weights, lab))
        }
    };
    std::iter::once(in_order).chain(BATCH_SIZES.iter().map(of_size)).collect()
}

/// RouteBalance as published with each of its filters (PUBLISHED.md, section 10). What requests insist on is in their arrivals.
pub fn filtered(weights: Weights, lab: &LabInputs<'_>) -> Vec<Entrant> {
    let rows = [
        ("no filter", Filter::Off, false),
        ("filter inline tiered", Filter::Inline(Mode::Tiered), false),
        ("filter inline relaxed", Filter::Inline(Mode::Relaxed), false),
        ("filter inline strict", Filter::Inline(Mode::Strict), false),
        ("filter tiered", Filter::Tiered, false),
        ("filter tiered, calibrated", Filter::Tiered, true),
        ("filter slos_serve", Filter::SlosServe, true),
        ("filter polyserve", Filter::PolyServe, true),
        ("filter qlm", Filter::Qlm, true),
        ("filter timebill", Filter::TimeBill, true),
    ];
    let entrant = |(setting, filter, calibrated)| {
        published("routebalance-paper", setting, Published { filter, calibrated, ..paper(weights, lab) })
    };
    rows.into_iter().map(entrant).collect()
}

/// Shares of what the pools sustain that prices may fill.
const UTILISATIONS: [f64; 3] = [0.7, 0.8, 0.9];
/// The middle one.
const UTILISATION: f64 = 0.8;

/// RouterWise's rule in our router: the model by quality less price, its instance by time. Prices are such that, at this rate and by
/// our estimates, no model gets more requests than a share of what its pools sustain.
pub(super) fn prices(name: &'static str, knobs: Knobs, lab: &LabInputs<'_>) -> Vec<Entrant> {
    let fleet = &lab.config.fleet;
    let models = lab.models();
    let rates = sustainable_rates(fleet, lab.templates);
    let sustained = |model: ModelId| -> f64 {
        fleet.pools.iter().zip(&rates).filter(|(pool, _)| pool.model == model).map(|(_, rate)| rate).sum()
    };
    let quality = |t: &routebalance_sim::workload::Template| -> Option<Vec<f64>> {
        let estimates = &t.outlook.as_ref()?.estimates;
        models.iter().map(|m| Some(estimates.get(m.index())?.0.quality)).collect()
    };
    let qualities: Vec<Vec<f64>> = lab.templates.iter().filter_map(quality).collect();
    let scores = Scores::new(models.len(), qualities.concat());
    let entrant = |utilisation: &f64| {
        let shares: Vec<f64> = models.iter().map(|m| utilisation * sustained(*m) / lab.rate.max(1e-9)).collect();
        let mut prices = vec![0.0; fleet.models.len()];
        // Nothing is known of the prompts: everything is free.
        let solved = scores.as_ref().map_or_else(Vec::new, |scores| solved(scores, &shares));
        for (model, price) in models.iter().zip(solved) {
            prices[model.index()] = price;
        }
        let weights = Weights { quality: 1.0, latency: 0.0, cost: 0.0 };
        let policy = Policy { objective: Objective::Prices, prices, ..ours(weights) };
        entrant_of_ours(name, format!("utilisation {utilisation}"), policy, Estimates::Ours)
    };
    match knobs {
        Knobs::All => UTILISATIONS.iter().map(entrant).collect(),
        Knobs::Headline => vec![entrant(&UTILISATION)],
    }
}
