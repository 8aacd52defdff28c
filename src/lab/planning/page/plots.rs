//! The plots of a plan.

use std::collections::BTreeSet;

use crate::page::axis::{Axis, fixed, number};
use crate::page::chart::{Chart, Dot, Labels, Series};
use crate::page::scene::{Ink, Mark, Scene};
use crate::page::view::width;
use crate::planning::file::limit_name;
use crate::planning::planned::{Planned, setup_words, worst_ms};
use routebalance_plan::problem::{Metric, Statistic};
use routebalance_plan::solution::Plan;

/// A limit that is further from all setups than so many times the slowest is not drawn: nothing could be told apart.
const FAR: f64 = 1.5;
/// Marks that are nearer to each other than this part of the axes are one.
const GRAIN: f64 = 1.0 / 600.0;

/// The limit that plots show: that of the mean time to the first token, or else the first.
fn shown_limit(planned: &Planned) -> usize {
    let limits = &planned.problem.limits;
    limits.iter().position(|limit| (limit.metric, limit.statistic) == (Metric::Ttft, Statistic::Mean)).unwrap_or(0)
}

/// Score against time of all setups, with the frontier, the choice and what simple rules choose.
pub(super) fn setups(planned: &Planned) -> Scene {
    let scores = || planned.plans.iter().map(|plan| plan.score);
    let (low, high) = (scores().fold(f64::INFINITY, f64::min), scores().fold(f64::NEG_INFINITY, f64::max));
    let title =
        format!("The setup decides: scores from {} to {} within the same limits", fixed(low, 3), fixed(high, 3));
    let subtitle =
        "Each mark is a setup with its best routing; the line is the frontier, dashed is the limit, if it is near.";
    cloud(planned, title, subtitle.to_owned(), 6)
}

/// The same with a title of one's own, as wide as so many sixths of the page.
pub(crate) fn cloud(planned: &Planned, title: String, subtitle: String, sixths: usize) -> Scene {
    let limit = shown_limit(planned);
    let place_of = |plan: &Plan| (worst_ms(plan, limit), plan.score);
    let limit_ms = planned.problem.limits.get(limit).map_or(0.0, |limit| limit.milliseconds);
    let rules: Vec<(&str, &Plan)> =
        planned.by_rule.iter().filter_map(|by_rule| Some((by_rule.rule.name(), &by_rule.found.as_ref()?.0))).collect();
    let all = || planned.plans.iter().chain(rules.iter().map(|(_, plan)| *plan)).map(place_of);
    let furthest = all().map(|(x, _)| x).fold(0.0, f64::max);
    let is_near = limit_ms <= FAR * furthest;
    let x = Axis::showing(all().map(|(x, _)| x).chain(is_near.then_some(limit_ms)), 30.0, false);
    let y = Axis::showing(all().map(|(_, y)| y), f64::INFINITY, false);
    let dot = |plan: &Plan, size: f64, opacity: f64| Dot {
        at: place_of(plan),
        tip: format!(
            "{}\nscore {}, {} ms",
            setup_words(&planned.problem, &plan.setup),
            fixed(plan.score, 4),
            number(place_of(plan).0, 4)
        ),
        size,
        opacity,
    };
    let mut seen = BTreeSet::new();
    let mut is_new = |plan: &&Plan| {
        let (ms, score) = place_of(plan);
        seen.insert(((x.place(ms) / GRAIN) as i64, (y.place(score) / GRAIN) as i64))
    };
    let mut cloud = Series::line(Ink::Muted, Vec::new());
    cloud.mark = Mark::Square;
    cloud.dots = planned.plans.iter().filter(&mut is_new).map(|plan| dot(plan, 2.2, 0.35)).collect();
    let mut limit_line = Series::line(Ink::Muted, vec![(limit_ms, y.ends()[0]), (limit_ms, y.ends()[1])]);
    limit_line.dashed = true;
    let frontier = planned.frontier();
    let mut best = Series::line(Ink::Ours, frontier.iter().map(|plan| place_of(plan)).collect());
    best.opacity = 0.6;
    best.dots = frontier.iter().map(|plan| dot(plan, 3.0, 0.8)).collect();
    let mut series = vec![cloud, best];
    if is_near {
        series.push(limit_line);
    }
    for (i, (name, plan)) in rules.iter().enumerate() {
        let mut one = Series::line(if i == 0 { Ink::Paper } else { Ink::Tone(i) }, Vec::new());
        (one.label, one.label_at) = (Some((*name).to_owned()), Some(place_of(plan)));
        one.mark = [Mark::Diamond, Mark::Up, Mark::Down][i % 3];
        one.dots = vec![dot(plan, 6.0, 1.0)];
        series.push(one);
    }
    if let Some(plan) = planned.choice() {
        let mut one = Series::line(Ink::Ours, Vec::new());
        (one.label, one.label_at) = (Some("choice".to_owned()), Some(place_of(plan)));
        one.dots = vec![dot(plan, 6.0, 1.0)];
        series.push(one);
    }
    let name = planned.problem.limits.get(limit).map(limit_name).unwrap_or_default();
    let chart = Chart {
        title,
        subtitle,
        width: width(sixths),
        height: if sixths > 3 { 520.0 } else { 400.0 },
        x,
        y,
        x_title: format!("{name}, predicted; better to the left"),
        y_title: "predicted score".to_owned(),
        series,
        labels: Labels::Near,
    };
    chart.scene()
}

/// Score, time, shares and prices of the choice, as demand changes.
pub(super) fn demand(planned: &Planned) -> Vec<Scene> {
    let problem = &planned.problem;
    let limit = shown_limit(planned);
    let points = |of: &dyn Fn(&routebalance_plan::solution::Routing) -> f64| -> Vec<(f64, f64)> {
        planned.at_demand.iter().map(|at| (at.routing.rate, of(&at.routing))).collect()
    };
    let chart = |title: String, y_title: &str, series: Vec<Series>, from_zero: bool| {
        let ys = || series.iter().flat_map(|series| &series.line).map(|(_, y)| *y);
        Chart {
            title,
            subtitle: String::new(),
            width: width(3),
            height: 340.0,
            x: Axis::showing(planned.at_demand.iter().map(|at| at.routing.rate), f64::INFINITY, true),
            y: Axis::showing(ys(), f64::INFINITY, from_zero),
            x_title: "requests per second".to_owned(),
            y_title: y_title.to_owned(),
            series,
            labels: Labels::Ends,
        }
        .scene()
    };
    let marked = |mut series: Series| {
        series.dots = series
            .line
            .iter()
            .map(|at| Dot {
                at: *at,
                tip: format!("{} at {} requests per second", number(at.1, 4), number(at.0, 4)),
                size: 3.5,
                opacity: 1.0,
            })
            .collect();
        series
    };
    let by_model = |of: &dyn Fn(&routebalance_plan::solution::Routing, usize) -> f64| -> Vec<Series> {
        let one = |(m, model): (usize, &routebalance_plan::problem::PlannedModel)| {
            let mut series = Series::line(super::placement::ink(problem, m), points(&|routing| of(routing, m)));
            series.label = Some(model.name.clone());
            marked(series)
        };
        problem.models.iter().enumerate().map(one).collect()
    };
    let time = points(&|routing| routing.limits_ms.get(limit).copied().unwrap_or(f64::NAN));
    let mut times = vec![marked(Series::line(Ink::Ours, time))];
    let name = problem.limits.get(limit).map(limit_name).unwrap_or_default();
    if let Some(limit) = problem.limits.get(limit) {
        let mut line = Series::line(Ink::Muted, points(&|_| limit.milliseconds));
        line.dashed = true;
        line.label = Some("limit".to_owned());
        times.push(line);
    }
    vec![
        chart(
            "Score".to_owned(),
            "predicted",
            vec![marked(Series::line(Ink::Ours, points(&|routing| routing.score)))],
            false,
        ),
        chart(name, "predicted", times, true),
        chart("Share of the requests".to_owned(), "0 to 1", by_model(&|routing, m| routing.fractions[m]), true),
        chart("Prices".to_owned(), "units of score", by_model(&|routing, m| routing.prices[m]), true),
    ]
}
