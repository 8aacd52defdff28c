//! Quality against time, money and throughput: what each contender can reach.

use super::axis::{Axis, number};
use super::chart::{Chart, Dot, Labels, Series};
use super::scene::Ink;
use super::view::{Plot, Section, View, per_second, tip, width};
use crate::frontier::{QUALITY_SLACK, pareto};
use crate::summary::{ORACLE, OURS, PAPER, Summary};

/// What quality is drawn against.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Against {
    Time,
    Cost,
    Throughput,
}

impl Against {
    fn value(self, summary: &Summary) -> f64 {
        match self {
            Against::Time => summary.e2e_ms.mean / 1000.0,
            Against::Cost => summary.cost_usd.mean * 1000.0,
            Against::Throughput => summary.throughput_rps,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Against::Time => "latency",
            Against::Cost => "cost",
            Against::Throughput => "throughput",
        }
    }

    fn heading(self) -> &'static str {
        match self {
            Against::Time => "Quality against time",
            Against::Cost => "Quality against cost",
            Against::Throughput => "Quality against throughput, where contenders differ",
        }
    }

    fn axis_title(self) -> &'static str {
        match self {
            Against::Time => "mean time to the last token (E2E), seconds; better to the left",
            Against::Cost => "USD per 1,000 requests; better to the left",
            Against::Throughput => "answered requests per second; better to the right",
        }
    }

    fn short_title(self) -> &'static str {
        match self {
            Against::Time => "mean E2E, s",
            Against::Cost => "USD per 1,000 requests",
            Against::Throughput => "answered per second",
        }
    }

    fn words(self, value: f64) -> String {
        match self {
            Against::Time => format!("{}\u{a0}s", number(value, 2)),
            Against::Cost => format!("USD\u{a0}{}", number(value, 2)),
            Against::Throughput => format!("{} answers/s", number(value, 3)),
        }
    }

    fn is_better_low(self) -> bool {
        self != Against::Throughput
    }
}

/// The frontiers at the highest rate, and small ones at every rate if there are several.
pub(super) fn plots(view: &View) -> Vec<Plot> {
    let mut plots = Vec::new();
    for (which, sixths) in [(Against::Time, 6), (Against::Cost, 3), (Against::Throughput, 3)] {
        let id = format!("quality-{}", which.name());
        let scene = overview(view, which, view.highest(), width(sixths)).scene();
        plots.push(Plot { id, section: Section::Frontiers, sixths, group: "", scene });
    }
    if view.rates.len() > 1 {
        for which in [Against::Time, Against::Cost, Against::Throughput] {
            for rate in
                view.rates.iter().filter(|rate| which != Against::Throughput || throughput_differs(view, **rate))
            {
                let id = format!("quality-{}-{}", which.name(), number(*rate, 4));
                let scene = small(view, which, *rate).scene();
                plots.push(Plot { id, section: Section::Rates, sixths: 2, group: which.heading(), scene });
            }
        }
    }
    plots
}

/// Whether some contender answers less than another: below saturation all answer what comes.
fn throughput_differs(view: &View, rate: f64) -> bool {
    let values = || view.main.iter().filter(|s| s.is_at(rate)).map(|s| s.throughput_rps);
    values().fold(0.0, f64::max) > values().fold(f64::INFINITY, f64::min) * 1.03
}

fn overview(view: &View, which: Against, rate: f64, width: f64) -> Chart {
    let at = per_second(rate);
    let title = match at_common_quality(view, which, rate) {
        Some(Common { quality, ours, paper }) => format!(
            "Quality {} at {at}: {} with {OURS}, {} with {PAPER}{}",
            number(quality, 3),
            which.words(ours),
            which.words(paper),
            if which == Against::Cost { " (per 1,000 requests)" } else { "" }
        ),
        None => highest_quality(view, which, rate),
    };
    let subtitle = "Each mark is one setting of a contender; filled marks are its frontier, faint ones are beaten by another of its own.";
    let mut chart = chart(view, which, rate, true);
    chart.title = title;
    chart.subtitle = subtitle.to_owned();
    chart.width = width;
    chart.height = if width > 800.0 { 540.0 } else { 430.0 };
    chart
}

/// Without ours or the paper's: what the highest quality of all but the oracle takes.
fn highest_quality(view: &View, which: Against, rate: f64) -> String {
    let rivals = view.main.iter().filter(|s| s.is_at(rate) && s.policy() != ORACLE);
    let best = rivals.filter(|s| s.quality.mean.is_finite()).max_by(|a, b| a.quality.mean.total_cmp(&b.quality.mean));
    match best {
        Some(best) => format!(
            "Highest quality at {}: {}, {} at {}",
            per_second(rate),
            best.policy(),
            number(best.quality.mean, 3),
            which.words(which.value(best))
        ),
        None => format!("Quality against {} at {}", which.name(), per_second(rate)),
    }
}

fn small(view: &View, which: Against, rate: f64) -> Chart {
    let subtitle = match at_common_quality(view, which, rate) {
        Some(Common { quality, ours, paper }) if paper > 0.0 => {
            format!("at quality {}: {} x the paper's {}", number(quality, 3), number(ours / paper, 2), which.name())
        }
        _ => String::new(),
    };
    let mut chart = chart(view, which, rate, false);
    chart.title = per_second(rate);
    chart.subtitle = subtitle;
    chart.width = width(2);
    chart.height = 270.0;
    chart
}

struct Common {
    quality: f64,
    ours: f64,
    paper: f64,
}

/// The highest quality that ours and the paper's both reach, and the best of what it takes either.
fn at_common_quality(view: &View, which: Against, rate: f64) -> Option<Common> {
    let (own, theirs) = (view.cells_at(OURS, rate), view.cells_at(PAPER, rate));
    let best = |cells: &[&Summary]| cells.iter().map(|s| s.quality.mean).reduce(f64::max);
    let quality = best(&own)?.min(best(&theirs)?);
    let takes = |cells: &[&Summary]| {
        let good = cells.iter().filter(|s| s.quality.mean >= quality - QUALITY_SLACK).map(|s| which.value(s));
        if which.is_better_low() { good.reduce(f64::min) } else { good.reduce(f64::max) }
    };
    Some(Common { quality, ours: takes(&own)?, paper: takes(&theirs)? })
}

fn chart(view: &View, which: Against, rate: f64, large: bool) -> Chart {
    // Small panels are compared with each other, so they share their axes; throughput is bounded by each panel's own rate.
    let shared = |own: bool| view.main.iter().filter(move |summary| !own || summary.is_at(rate));
    let own_x = large || which == Against::Throughput;
    // Ours is drawn last, above the others.
    let mut series: Vec<Series> =
        view.contenders.iter().filter_map(|name| one(view, which, name, rate, large)).collect();
    series.reverse();
    Chart {
        title: String::new(),
        subtitle: String::new(),
        width: 0.0,
        height: 0.0,
        x: Axis::showing(shared(own_x).map(|summary| which.value(summary)), 3.5, false),
        y: Axis::showing(shared(large).map(|summary| summary.quality.mean), f64::INFINITY, false),
        x_title: if large { which.axis_title() } else { which.short_title() }.to_owned(),
        y_title: if large { "mean quality of the answers (0 to 1)" } else { "quality" }.to_owned(),
        series,
        labels: Labels::Near,
    }
}

fn one(view: &View, which: Against, name: &str, rate: f64, large: bool) -> Option<Series> {
    let cells = view.cells_at(name, rate);
    let point = |summary: &Summary| (which.value(summary), summary.quality.mean);
    let frontier = pareto(&cells.iter().map(|summary| point(summary)).collect::<Vec<_>>(), which.is_better_low());
    let first = *cells.first()?;
    let leads = name == OURS || name == PAPER;
    let ink = view.looks.ink(name);
    let size = if leads { 5.0 } else { 4.0 } * if large { 1.0 } else { 0.75 };
    let dots = cells.iter().map(|summary| {
        let at = point(summary);
        let is_on_frontier = frontier.contains(&at);
        Dot {
            at,
            tip: tip(summary),
            size: if is_on_frontier { size } else { size * 0.75 },
            opacity: if is_on_frontier { 1.0 } else { 0.35 },
        }
    });
    let label_at = frontier.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(point(first));
    let is_named = large || leads || name == ORACLE;
    Some(Series {
        contender: Some(name.to_owned()),
        label: is_named.then(|| name.to_owned()),
        label_at: Some(label_at),
        mark: view.looks.mark(name),
        width: if leads { 2.6 } else { 1.2 },
        dashed: ink == Ink::Oracle,
        opacity: if leads { 0.9 } else { 0.55 },
        dots: dots.collect(),
        ..Series::line(ink, frontier)
    })
}
