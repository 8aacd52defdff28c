//! Plans in the simulator, shown.

use maud::{Markup, html};

use super::grid::{Cell, Grid, number_cell, words};
use crate::page::axis::Axis;
use crate::page::chart::{Chart, Dot, Labels, Series};
use crate::page::scene::{Ink, Scene};
use crate::page::view::width;
use crate::planning::check::Checked;
use crate::planning::page::figure;
use crate::planning::studies::checked::{AtDemand, Check};

/// By which part of what happens a prediction may be off.
const GOOD: f64 = 0.05;

/// How prices are made.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    of: fn(&AtDemand) -> &Checked,
}

const KINDS: [Kind; 2] =
    [Kind { name: "static", of: |at| &at.static_prices }, Kind { name: "online", of: |at| &at.online_prices }];

pub(super) fn sentences(checks: &[Check]) -> String {
    let within = |offs: &[f64]| {
        let good = offs.iter().filter(|off| off.abs() <= GOOD).count();
        let worst = offs.iter().copied().map(f64::abs).fold(0.0, f64::max);
        format!("{good} of {} plans, and off by {:.1} % at most", offs.len(), 100.0 * worst)
    };
    let offs: Vec<f64> = checks.iter().filter_map(Check::off).collect();
    let online_offs: Vec<f64> = checks.iter().filter_map(Check::online_off).collect();
    let possible = || checks.iter().flat_map(|c| c.demands.iter().filter(|at| at.can_keep).map(move |at| (c, at)));
    let kept = |kind: &Kind| possible().filter(|(c, at)| c.keeps((kind.of)(at))).count();
    let beyond = || checks.iter().flat_map(|c| c.demands.iter().filter(|at| !at.can_keep).map(move |at| (c, at)));
    let [fixed, online] = &KINDS;
    let mut text = format!(
        "Plans run with other prompts and seeds than they were made of, and with interference. At the forecast the predicted mean time \
         to the first token is within {:.0} % of the simulated one with static prices, which never change, for {}; with online prices, \
         which follow demand and load and hold the plan's shares, for {}, of those that are predicted to be at what they aim at or below. \
         Of the {} cases at .5 to 1.2 of the forecast in which the planner knows a routing of the setup that keeps the limit, it is kept \
         in {} with static prices, and in {} with online prices.",
        100.0 * GOOD,
        within(&offs),
        within(&online_offs),
        possible().count(),
        kept(fixed),
        kept(online)
    );
    let score = |kind: &Kind| {
        let scores: Vec<f64> = possible().map(|(_, at)| (kind.of)(at).score).collect();
        scores.iter().sum::<f64>() / scores.len().max(1) as f64
    };
    text.push_str(&format!(
        " There the answers have a mean score of {:.4} with static prices and of {:.4} with online prices.",
        score(fixed),
        score(online)
    ));
    let n = beyond().count();
    if n > 0 {
        let nearer = beyond().filter(|(_, at)| at.online_prices.ttft_mean_ms < at.static_prices.ttft_mean_ms).count();
        text.push_str(&format!(
            " In the {n} others, where no routing of the setup is known to keep it, the mean is lower with online prices in {nearer}."
        ));
    }
    text
}

pub(super) fn grid(checks: &[Check]) -> Grid {
    let heads = vec![
        "setting",
        "GPUs",
        "forecast, per second",
        "limit, ms",
        "demand",
        "can be kept",
        "predicted, ms",
        "static, ms",
        "static: off by",
        "static / limit",
        "online, ms",
        "online: off by",
        "online / limit",
        "predicted score",
        "static: estimated",
        "static: true",
        "online: estimated",
        "online: true",
        "failed",
    ];
    let row = |check: &Check, at: &AtDemand| -> Vec<Cell> {
        let (fixed, online) = (&at.static_prices, &at.online_prices);
        let is_plan = (at.part - 1.0).abs() < 1e-9;
        let off = at.predicted_ms.map(|ms| fixed.off(ms)).filter(|_| is_plan);
        let percent =
            |off: Option<f64>| off.map_or_else(|| words(""), |off| Cell::Number(off, format!("{:+.1} %", 100.0 * off)));
        let known =
            |value: Option<f64>, decimals: usize| value.map_or_else(|| words("none"), |v| number_cell(v, decimals));
        let margin = |checked: &Checked| {
            let mark = if check.keeps(checked) { "" } else { " late" };
            Cell::Number(check.margin(checked), format!("{:.3}{mark}", check.margin(checked)))
        };
        vec![
            words(check.setting),
            number_cell(check.gpus as f64, 0),
            number_cell(check.requests_per_second, 0),
            number_cell(check.slo_ms, 0),
            number_cell(at.part, 2),
            words(if at.can_keep { "yes" } else { "no" }),
            known(at.predicted_ms, 1),
            number_cell(fixed.ttft_mean_ms, 1),
            percent(off),
            margin(fixed),
            number_cell(online.ttft_mean_ms, 1),
            percent(check.online_off().filter(|_| is_plan)),
            margin(online),
            known(at.predicted_score, 4),
            number_cell(fixed.score_expected, 4),
            number_cell(fixed.score, 4),
            number_cell(online.score_expected, 4),
            number_cell(online.score, 4),
            number_cell((fixed.failed + online.failed) as f64, 0),
        ]
    };
    let rows = checks.iter().flat_map(|check| check.demands.iter().map(move |at| row(check, at))).collect();
    Grid { heads, rows }
}

pub(super) fn shown(checks: &[Check]) -> Markup {
    let mut settings: Vec<&str> = checks.iter().map(|check| check.setting).collect();
    settings.dedup();
    let charts = settings.into_iter().flat_map(|setting| {
        let own: Vec<&Check> = checks.iter().filter(|check| check.setting == setting).collect();
        let margins =
            own.iter().flat_map(|c| c.demands.iter().flat_map(|at| KINDS.map(|kind| c.margin((kind.of)(at)))));
        let y = Axis::showing(margins.chain([1.0]), 30.0, true);
        KINDS.map(|kind| figure(&chart(setting, kind, &own, y), 3))
    });
    html! {
        p { (sentences(checks)) }
        div.plots {
            @for chart in charts {
                (chart)
            }
        }
        (grid(checks).html())
    }
}

/// The simulated mean over the limit as demand leaves the forecast, a line for each panel.
fn chart(setting: &str, kind: Kind, checks: &[&Check], y: Axis) -> Scene {
    let parts = checks.iter().flat_map(|check| check.demands.iter().map(|at| at.part));
    let x = Axis::showing(parts, f64::INFINITY, false);
    let line = |check: &&Check| {
        let name = format!("{} GPUs, {}/s", check.gpus, check.requests_per_second);
        let place_of = |at: &AtDemand| (at.part, check.margin((kind.of)(at)));
        let mut series = Series::line(Ink::Tone(check.gpus / 4), check.demands.iter().map(place_of).collect());
        let dot = |d: &AtDemand| Dot {
            at: place_of(d),
            tip: format!("{name}\n{} of the forecast: {:.3} of the limit", d.part, place_of(d).1),
            size: 3.5,
            opacity: 1.0,
        };
        series.dots = check.demands.iter().map(dot).collect();
        series.label = Some(name);
        series
    };
    let mut limit = Series::line(Ink::Muted, vec![(x.ends()[0], 1.0), (x.ends()[1], 1.0)]);
    limit.dashed = true;
    Chart {
        title: format!("{} prices, {setting} panels", if kind.name == "static" { "Static" } else { "Online" }),
        subtitle: "Simulated mean time to the first token over its limit.".to_owned(),
        width: width(3),
        height: 400.0,
        x,
        y,
        x_title: "demand over the forecast".to_owned(),
        y_title: "mean TTFT over the limit".to_owned(),
        series: std::iter::once(limit).chain(checks.iter().map(line)).collect(),
        labels: Labels::Ends,
    }
    .scene()
}
