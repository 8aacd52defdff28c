//! Times as the load grows, their distribution, and what can be sustained.

use super::axis::{Axis, number};
use super::bars::{self, Bar};
use super::chart::{Chart, Dot, Labels, Series};
use super::scene::{Ink, Point};
use super::view::{Plot, Section, View, per_second, rivals, seconds, tip, width};
use crate::cell::Cell;
use crate::statistics::Estimate;
use crate::summary::{
    ORACLE, OURS, PAPER, SUSTAINED_SERVED_MIN, SUSTAINED_TTFT_P99_MAX_MS, Summary, balanced_quality, representatives,
    sustained_rates,
};

/// All plots about load.
pub(super) fn plots(view: &View) -> Vec<Plot> {
    let mut plots = Vec::new();
    let mut add = |id: &str, sixths: usize, scene| {
        plots.push(Plot { id: id.to_owned(), section: Section::Load, sixths, group: "", scene });
    };
    if view.rates.len() > 1 {
        add("e2e-mean-rate", 3, over_rates(view, "Mean", |s| s.e2e_ms.mean).scene());
        add("e2e-p99-rate", 3, over_rates(view, "p99", |s| s.e2e_p99_ms).scene());
    }
    if let Some(chart) = distribution(view, "first", |cell| &cell.ttft_percentiles_ms) {
        add("ttft-cdf", 3, chart.scene());
    }
    if let Some(chart) = distribution(view, "last", |cell| &cell.e2e_percentiles_ms) {
        add("e2e-cdf", 3, chart.scene());
    }
    if let Some(scene) = sustained(view) {
        add("sustained", 6, scene);
    }
    plots
}

fn line(view: &View, name: &str, points: Vec<Point>) -> Series {
    let leads = name == OURS || name == PAPER;
    let ink = view.looks.ink(name);
    Series {
        contender: Some(name.to_owned()),
        label: Some(name.to_owned()),
        mark: view.looks.mark(name),
        width: if leads { 3.0 } else { 1.3 },
        dashed: ink == Ink::Oracle,
        opacity: if leads || ink == Ink::Oracle { 1.0 } else { 0.75 },
        ..Series::line(ink, points)
    }
}

fn over_rates(view: &View, what: &str, of: fn(&Summary) -> f64) -> Chart {
    let quality = balanced_quality(&view.main);
    let mut series = Vec::new();
    let mut last = Vec::new();
    for name in view.contenders.iter().rev() {
        let cells = representatives(&view.main, name, quality);
        let point = |s: &&Summary| (s.rate, of(s) / 1000.0);
        let size = if [OURS, PAPER].contains(name) { 4.5 } else { 3.2 };
        let dots = cells.iter().map(|s| Dot { at: point(s), tip: tip(s), size, opacity: 1.0 });
        last.extend(cells.iter().filter(|s| s.is_at(view.highest())).map(|s| (*name, seconds(of(s)))));
        series.push(Series { dots: dots.collect(), ..line(view, name, cells.iter().map(point).collect()) });
    }
    let values: Vec<f64> = series.iter().flat_map(|s| s.line.iter().map(|(_, y)| *y)).collect();
    Chart {
        title: format!("{what} E2E at {}: {}", per_second(view.highest()), rivals(&last)),
        subtitle: "With uniform weights; contenders without weights at the setting whose quality is nearest to ours."
            .into(),
        width: width(3),
        height: 460.0,
        x: Axis::showing(view.rates.iter().copied(), f64::INFINITY, false),
        y: Axis::showing(values, 6.0, true),
        x_title: "offered requests per second".into(),
        y_title: format!("{what} time to the last token, seconds"),
        series,
        labels: Labels::Ends,
    }
}

/// Percentiles of a time, each the mean over seeds; `None` of a result without.
fn percentiles(summary: &Summary, of: fn(&Cell) -> &Vec<f64>) -> Option<Vec<f64>> {
    let all: Vec<&Vec<f64>> = summary.cells.iter().map(|cell| of(cell)).filter(|list| list.len() == 101).collect();
    let sum = |at: usize| all.iter().map(|list| list[at]).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| (0..101).map(sum).collect())
}

/// The distribution function turned on its side, so that lines end at the right and the tail is not squeezed.
fn distribution(view: &View, token: &str, of: fn(&Cell) -> &Vec<f64>) -> Option<Chart> {
    let standing = view.standing(&view.main, view.highest());
    let all: Vec<(&str, Vec<f64>)> = standing.iter().filter_map(|s| Some((s.policy(), percentiles(s, of)?))).collect();
    if all.is_empty() {
        return None;
    }
    let p = |list: &[f64], percent: usize| number(list[percent] / 1000.0, 2);
    let words: Vec<(&str, String)> =
        all.iter().map(|(name, list)| (*name, format!("{}\u{a0}/\u{a0}{}\u{a0}s", p(list, 50), p(list, 99)))).collect();
    let points = |list: &[f64]| list.iter().enumerate().map(|(i, ms)| (i as f64, ms / 1000.0)).collect::<Vec<_>>();
    let series: Vec<Series> = all.iter().rev().map(|(name, list)| line(view, name, points(list))).collect();
    // The fastest percent of a log axis would take most of its height.
    let seen = all.iter().flat_map(|(_, list)| list[2..].iter().map(|ms| ms / 1000.0));
    Some(Chart {
        title: format!("Time to the {token} token at {}, p50 / p99: {}", per_second(view.highest()), rivals(&words)),
        subtitle: "Read: this share of the requests was faster than the line's height.".into(),
        width: width(3),
        height: 460.0,
        x: Axis::between(0.0, 100.0),
        y: Axis::showing(seen, 6.0, true),
        x_title: "share of requests, %".into(),
        y_title: format!("time to the {token} token, seconds"),
        series,
        labels: Labels::Ends,
    })
}

fn sustained(view: &View) -> Option<super::scene::Scene> {
    let rates = sustained_rates(view.all, &view.main);
    let was_sought = rates.first()?.2;
    if !was_sought && view.rates.len() < 2 {
        return None;
    }
    let bar = |(contender, rate, _): &(&str, Estimate, bool)| Bar {
        contender: (*contender).to_owned(),
        label: (*contender).to_owned(),
        value: rate.mean,
        interval: (rate.high > rate.low).then_some([rate.low, rate.high]),
        note: if rate.mean > 0.0 { number(rate.mean, 3) } else { "none".to_owned() },
    };
    let mut bars: Vec<Bar> = rates.iter().map(bar).collect();
    let words: Vec<(&str, String)> =
        bars.iter().map(|bar| (bar.contender.as_str(), format!("{}/s", number(bar.value, 3)))).collect();
    let title = format!("Most requests per second without falling behind: {}", rivals(&words));
    let limits = format!(
        "at least {} % are answered while requests come and the p99 time to the first token is at most {} s",
        SUSTAINED_SERVED_MIN * 100.0,
        SUSTAINED_TTFT_P99_MAX_MS / 1000.0
    );
    let subtitle = if was_sought {
        format!("The highest rate at which {limits}; uniform weights.")
    } else {
        format!("The highest throughput among the rates at which {limits}; uniform weights.")
    };
    bars.sort_by(|a, b| (a.contender == ORACLE).cmp(&(b.contender == ORACLE)).then(b.value.total_cmp(&a.value)));
    Some(bars::scene(&title, &subtitle, width(6), &bars, &view.looks))
}
