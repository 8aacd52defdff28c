//! Contenders beside each other under other workloads and variations, and with time limits and budgets.

use super::axis::number;
use super::bars::{self, Bar};
use super::view::{Plot, Section, View, capitalised, file_name, per_second, rivals, seconds, width};
use crate::cell::Cell;
use crate::statistics::mean;
use crate::summary::{Experiment, ORACLE, OURS, Summary, contenders, rates};

/// All panels.
pub(super) fn plots(view: &View) -> Vec<Plot> {
    let mut plots = Vec::new();
    for (experiment, rate, cells) in view.others() {
        let name = format!("{}, {}", capitalised(&view.difference(&experiment)), per_second(rate));
        let standing = view.standing(&cells, rate);
        if standing.len() > 1 {
            plots.push(plot(Section::Robustness, &format!("mean-e2e {name}"), times(view, &standing, &name)));
        }
        if contenders(&cells).len() == 1 {
            plots.extend(settings(view, &experiment, &cells));
        }
        plots.extend(budgets(view, &cells.iter().copied().filter(|s| s.is_at(rate)).collect::<Vec<_>>(), &name));
    }
    let name = format!("{}, {}", view.experiment.workload, per_second(view.highest()));
    let highest: Vec<&Summary> = view.main.iter().copied().filter(|s| s.is_at(view.highest())).collect();
    plots.extend(budgets(view, &highest, &name));
    plots
}

fn plot(section: Section, name: &str, scene: super::scene::Scene) -> Plot {
    Plot { id: file_name(name), section, sixths: 3, group: "", scene }
}

/// Ours first among equals, the oracle last.
fn sorted(mut bars: Vec<Bar>, low_first: bool) -> Vec<Bar> {
    bars.sort_by(|a, b| {
        let values = if low_first { a.value.total_cmp(&b.value) } else { b.value.total_cmp(&a.value) };
        let is_contender = |bar: &Bar, name: &str| bar.contender == name;
        is_contender(a, ORACLE)
            .cmp(&is_contender(b, ORACLE))
            .then(values)
            .then(is_contender(b, OURS).cmp(&is_contender(a, OURS)))
    });
    bars
}

fn bar(s: &Summary) -> Bar {
    Bar {
        contender: s.policy().to_owned(),
        label: s.policy().to_owned(),
        value: s.e2e_ms.mean / 1000.0,
        interval: Some([s.e2e_ms.low / 1000.0, s.e2e_ms.high / 1000.0]),
        note: format!("quality {}", number(s.quality.mean, 3)),
    }
}

fn times(view: &View, standing: &[&Summary], name: &str) -> super::scene::Scene {
    let words: Vec<(&str, String)> = standing.iter().map(|s| (s.policy(), seconds(s.e2e_ms.mean))).collect();
    let bars = standing.iter().map(|s| bar(s));
    let title = format!("{name}: {}", rivals(&words));
    let subtitle = "Mean time to the last token, seconds, with 95 % intervals; uniform weights";
    bars::scene(&title, subtitle, width(3), &sorted(bars.collect(), true), &view.looks)
}

/// The settings of a comparison's only contender, at the rate with the most of them.
fn settings(view: &View, experiment: &Experiment, cells: &[&Summary]) -> Option<Plot> {
    let cells_at = |rate: f64| cells.iter().copied().filter(move |s| s.is_at(rate));
    let rate = rates(cells).into_iter().max_by_key(|rate| cells_at(*rate).count())?;
    let bars: Vec<Bar> = cells_at(rate).map(|s| Bar { label: labelled(s), ..bar(s) }).collect();
    if bars.len() < 2 {
        return None;
    }
    let name = format!("{}, {}", capitalised(&view.difference(experiment)), per_second(rate));
    let range =
        |of: fn(f64, f64) -> f64| bars.iter().map(|bar| bar.value * 1e3).reduce(of).map_or(String::new(), seconds);
    let title = format!("{name}: {} to {}", range(f64::min), range(f64::max));
    let subtitle = "Mean time to the last token, seconds, with 95 % intervals";
    let id = format!("settings {name}");
    let scene = bars::scene(&title, subtitle, width(3), &sorted(bars, true), &view.looks);
    Some(plot(Section::Robustness, &id, scene))
}

fn labelled(summary: &Summary) -> String {
    let setting = &summary.first().setting;
    if setting.is_empty() { summary.policy().to_owned() } else { format!("{}, {setting}", summary.policy()) }
}

/// Contenders with all their settings, since settings are what keeps limits; of weights the uniform ones.
fn budgets(view: &View, cells: &[&Summary], name: &str) -> Vec<Plot> {
    type Measure = (&'static str, &'static str, fn(&Cell) -> Option<f64>, bool);
    let measures: [Measure; 3] = [
        ("attainment", "Requests that kept both time limits", |cell| cell.slo_attainment, false),
        ("exhausted", "Requests that used up their budget", |cell| cell.budget_exhausted, true),
        ("shed", "Requests that were refused", |cell| cell.shed, true),
    ];
    let mut plots = Vec::new();
    for (id, what, of, low_first) in measures {
        let value = |s: &Summary| mean(s.cells.iter().filter_map(|cell| of(cell)).collect::<Vec<_>>());
        let balanced = cells.iter().filter(|s| s.weights().is_none() || s.is_uniform());
        let known: Vec<(&Summary, f64)> = balanced.filter_map(|s| Some((*s, value(s)? * 100.0))).collect();
        // Nobody is refused where refusing is not asked for.
        if known.is_empty() || (id == "shed" && known.iter().all(|(_, percent)| *percent == 0.0)) {
            continue;
        }
        let bars = known.iter().map(|(summary, percent)| Bar {
            contender: summary.policy().to_owned(),
            label: labelled(summary),
            value: *percent,
            interval: None,
            note: format!("{} %", number(*percent, 3)),
        });
        let words: Vec<(&str, String)> =
            known.iter().map(|(of, percent)| (of.policy(), format!("{} %", number(*percent, 2)))).collect();
        let title = format!("{what}: {}", rivals(&words));
        let subtitle = format!("Percent, {name}; better {}", if low_first { "low" } else { "high" });
        let scene = bars::scene(&title, &subtitle, width(3), &sorted(bars.collect(), low_first), &view.looks);
        plots.push(plot(Section::Budgets, &format!("{id} {name}"), scene));
    }
    plots
}
