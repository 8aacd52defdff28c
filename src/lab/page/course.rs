//! The course of time: which models answer, and how long it takes, while the load changes or is too high.

use super::axis::{Axis, number};
use super::chart::{Chart, Labels, Series};
use super::scene::{Ink, Point};
use super::view::{Plot, Section, View, capitalised, file_name, per_second, rivals, seconds, width};
use crate::cell::Slice;
use crate::summary::{ORACLE, OURS, PAPER, Summary};

/// Fewest slices of a course that is worth a picture.
const SLICES_MIN: usize = 4;
/// Contenders besides ours, the paper's and the oracle whose times are drawn.
const OTHERS_MAX: usize = 4;

/// The highest rate of the main comparison, and every workload whose rate changes.
pub(super) fn plots(view: &View) -> Vec<Plot> {
    let mut plots = Vec::new();
    let main = (view.experiment.clone(), view.highest(), view.main.clone());
    let changing = |workload: &str| ["square", "wave", "ramp", "trace"].iter().any(|word| workload.contains(word));
    let others = view.others().into_iter().filter(|(experiment, ..)| changing(&experiment.workload));
    for (experiment, rate, cells) in std::iter::once(main).chain(others) {
        let standing: Vec<&Summary> = view.standing(&cells, rate);
        let standing: Vec<&Summary> = standing.into_iter().filter(|s| course(s).len() >= SLICES_MIN).collect();
        if standing.is_empty() {
            continue;
        }
        let name = if experiment == view.experiment {
            format!("{} at {}", capitalised(&experiment.workload), per_second(rate))
        } else {
            format!("{} at {} on average", capitalised(&view.difference(&experiment)), per_second(rate))
        };
        let id = file_name(&name);
        let mut add = |kind: &str, sixths: usize, chart: Chart| {
            let id = format!("{kind}-{id}");
            plots.push(Plot { id, section: Section::Course, sixths, group: "", scene: chart.scene() });
        };
        add("e2e-over-time", 6, times(view, &standing, &name));
        if changing(&experiment.workload) {
            add("arrivals-over-time", 6, arrivals(&standing, &name));
        }
        for summary in standing.iter().filter(|s| [OURS, PAPER].contains(&s.policy())) {
            add(&format!("mix-{}", summary.policy()), 3, mix(view, summary, &name));
        }
    }
    plots
}

fn course<'a>(summary: &Summary<'a>) -> &'a [Slice] {
    summary.with_timeline().map_or(&[], |cell| &cell.timeline)
}

fn end_of(slices: &[Slice]) -> f64 {
    slices.last().map_or(1.0, |slice| slice.at_s + slice_s(slices))
}

/// How long a slice is: one without requests may be missing.
fn slice_s(slices: &[Slice]) -> f64 {
    slices.windows(2).map(|pair| pair[1].at_s - pair[0].at_s).reduce(f64::min).unwrap_or(1.0)
}

fn times(view: &View, standing: &[&Summary], name: &str) -> Chart {
    let mut chosen: Vec<&Summary> =
        standing.iter().copied().filter(|s| [OURS, PAPER, ORACLE].contains(&s.policy())).collect();
    let mut others: Vec<&Summary> =
        standing.iter().copied().filter(|s| ![OURS, PAPER, ORACLE].contains(&s.policy())).collect();
    others.sort_by(|a, b| a.e2e_ms.mean.total_cmp(&b.e2e_ms.mean));
    chosen.extend(others.into_iter().take(OTHERS_MAX));
    let worst = |s: &Summary| course(s).iter().map(|slice| slice.e2e_ms).fold(0.0, f64::max);
    let words: Vec<(&str, String)> = chosen.iter().map(|s| (s.policy(), seconds(worst(s)))).collect();
    let points = |s: &Summary| -> Vec<Point> {
        let kept = course(s).iter().filter(|slice| slice.e2e_ms > 0.0);
        kept.map(|slice| (slice.at_s + slice_s(course(s)) / 2.0, slice.e2e_ms / 1000.0)).collect()
    };
    let series: Vec<Series> = chosen
        .iter()
        .rev()
        .map(|s| {
            let leads = [OURS, PAPER].contains(&s.policy());
            Series {
                contender: Some(s.policy().to_owned()),
                label: Some(s.policy().to_owned()),
                width: if leads { 3.0 } else { 1.4 },
                dashed: s.policy() == ORACLE,
                ..Series::line(view.looks.ink(s.policy()), points(s))
            }
        })
        .collect();
    let values: Vec<f64> = series.iter().flat_map(|s| s.line.iter().map(|(_, y)| *y)).collect();
    Chart {
        title: format!("{name}, the worst moment's mean E2E: {}", rivals(&words)),
        subtitle: "Uniform weights, one seed; ours, the paper's, the oracle and the fastest of the others.".into(),
        width: width(6),
        height: 330.0,
        x: Axis::between(0.0, chosen.iter().map(|s| end_of(course(s))).fold(0.0, f64::max)),
        y: Axis::showing(values, 12.0, true),
        x_title: "when the request came, seconds".into(),
        y_title: "mean time to the last token, seconds".into(),
        series,
        labels: Labels::Ends,
    }
}

/// Corners of steps, so that a slice's value holds for the whole slice.
fn steps(slices: &[Slice], value: impl Fn(&Slice) -> f64) -> Vec<Point> {
    let length = slice_s(slices);
    slices.iter().flat_map(|slice| [(slice.at_s, value(slice)), (slice.at_s + length, value(slice))]).collect()
}

fn arrivals(standing: &[&Summary], name: &str) -> Chart {
    let slices = course(standing[0]);
    let length = slice_s(slices);
    let line = steps(slices, |slice| slice.requests as f64 / length);
    let most = line.iter().map(|(_, y)| *y).fold(0.0, f64::max);
    Chart {
        title: String::new(),
        subtitle: format!("What came, {name}: at most {}", per_second(most)),
        width: width(6),
        height: 170.0,
        x: Axis::between(0.0, end_of(slices)),
        y: Axis::between(0.0, most * 1.1),
        x_title: "seconds".into(),
        y_title: "requests per second".into(),
        series: vec![Series { filled: true, opacity: 0.45, ..Series::line(Ink::Muted, line) }],
        labels: Labels::Ends,
    }
}

fn mix(view: &View, summary: &Summary, name: &str) -> Chart {
    let slices = course(summary);
    let models = view.looks.models();
    let share = |slice: &Slice, model: &str| slice.mix.get(model).copied().unwrap_or(0.0) * 100.0;
    // From the top down: each area reaches from the axis to the sum of the models up to its own.
    let up_to = |slice: &Slice, last: usize| models.iter().take(last + 1).map(|model| share(slice, model)).sum::<f64>();
    let series = models.iter().enumerate().rev().map(|(index, model)| {
        let line = steps(slices, |slice| up_to(slice, index));
        let top = line.last().map_or(0.0, |(_, y)| *y);
        let thickness = slices.last().map_or(0.0, |slice| share(slice, model));
        Series {
            label: Some(model.clone()),
            label_at: Some((end_of(slices), top - thickness / 2.0)),
            filled: true,
            ..Series::line(view.looks.model_ink(model), line)
        }
    });
    let mean = summary.first().mix.iter().max_by(|a, b| a.1.total_cmp(b.1));
    let most = mean.map_or(String::new(), |(model, share)| format!(": {} % to {model}", number(share * 100.0, 2)));
    Chart {
        title: format!("{}{most}", summary.policy()),
        subtitle: format!("Share of requests by model, {name}"),
        width: width(3),
        height: 300.0,
        x: Axis::between(0.0, end_of(slices)),
        y: Axis::between(0.0, 100.0),
        x_title: "seconds".into(),
        y_title: "share of requests, %".into(),
        series: series.collect(),
        labels: Labels::Ends,
    }
}
