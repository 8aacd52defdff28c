//! Contenders beside each other under other workloads and variations, and with time limits and budgets.

use super::axis::number;
use super::bars::{self, Bar};
use super::view::{Plot, Section, View, capitalised, file_name, per_second, rivals, seconds, width};
use crate::tools::lab::cell::Cell;
use crate::tools::lab::statistics::mean;
use crate::tools::lab::summary::{ORACLE, OURS, Summary};

/// All panels.
pub(super) fn plots(view: &View) -> Vec<Plot> {
    let mut plots = Vec::new();
    for (experiment, rate, cells) in view.others() {
        let name = format!("{}, {}", capitalised(&view.difference(&experiment)), per_second(rate));
        let standing = view.standing(&cells, rate);
        if standing.len() > 1 {
            plots.push(plot(Section::Robustness, &format!("mean-e2e {name}"), times(view, &standing, &name)));
        }
        plots.extend(budgets(view, &standing, &name));
    }
    let name = format!("{}, {}", view.experiment.workload, per_second(view.highest()));
    plots.extend(budgets(view, &view.standing(&view.main, view.highest()), &name));
    plots
}

fn plot(section: Section, name: &str, scene: super::scene::Scene) -> Plot {
    Plot { id: file_name(name), section, sixths: 3, group: "", scene }
}

/// Ours first among equals, the oracle last.
fn sorted(mut bars: Vec<Bar>, low_first: bool) -> Vec<Bar> {
    bars.sort_by(|a, b| {
        let values = if low_first { a.value.total_cmp(&b.value) } else { b.value.total_cmp(&a.value) };
        let is = |bar: &Bar, name: &str| bar.contender == name;
        is(a, ORACLE).cmp(&is(b, ORACLE)).then(values).then(is(b, OURS).cmp(&is(a, OURS)))
    });
    bars
}

fn times(view: &View, standing: &[&Summary], name: &str) -> super::scene::Scene {
    let words: Vec<(&str, String)> = standing.iter().map(|s| (s.policy(), seconds(s.e2e_ms.mean))).collect();
    let bars = standing.iter().map(|s| Bar {
        contender: s.policy().to_owned(),
        value: s.e2e_ms.mean / 1000.0,
        interval: Some([s.e2e_ms.low / 1000.0, s.e2e_ms.high / 1000.0]),
        note: format!("quality {}", number(s.quality.mean, 3)),
    });
    let title = format!("{name}: {}", rivals(&words));
    let subtitle = "Mean time to the last token, seconds, with 95 % intervals; uniform weights";
    bars::scene(&title, subtitle, width(3), &sorted(bars.collect(), true), &view.looks)
}

fn budgets(view: &View, standing: &[&Summary], name: &str) -> Vec<Plot> {
    type Measure = (&'static str, &'static str, fn(&Cell) -> Option<f64>, bool);
    let measures: [Measure; 3] = [
        ("attainment", "Requests that kept both time limits", |cell| cell.slo_attainment, false),
        ("exhausted", "Requests that used up their budget", |cell| cell.budget_exhausted, true),
        ("shed", "Requests that were refused", |cell| cell.shed, true),
    ];
    let mut plots = Vec::new();
    for (id, what, of, low_first) in measures {
        let value = |s: &Summary| mean(&s.cells.iter().filter_map(|cell| of(cell)).collect::<Vec<_>>());
        let known: Vec<(&str, f64)> = standing.iter().filter_map(|s| Some((s.policy(), value(s)? * 100.0))).collect();
        if known.is_empty() {
            continue;
        }
        let bars = known.iter().map(|(contender, percent)| Bar {
            contender: (*contender).to_owned(),
            value: *percent,
            interval: None,
            note: format!("{} %", number(*percent, 3)),
        });
        let words: Vec<(&str, String)> =
            known.iter().map(|(of, percent)| (*of, format!("{} %", number(*percent, 2)))).collect();
        let title = format!("{what}: {}", rivals(&words));
        let subtitle = format!("Percent, {name}; better {}", if low_first { "low" } else { "high" });
        let scene = bars::scene(&title, &subtitle, width(3), &sorted(bars.collect(), low_first), &view.looks);
        plots.push(plot(Section::Budgets, &format!("{id} {name}"), scene));
    }
    plots
}
