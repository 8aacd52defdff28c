//! The first study, shown.

use std::fmt::Write;

use maud::{Markup, html};

use super::grid::{Cell, Grid, number_cell, words};
use crate::planning::page::{figure, plots};
use crate::planning::studies::panels::{Reading, SETTINGS, Setting, Solved};
use routebalance_plan::baselines::Baseline;

/// Of each setting what it says, and its table.
pub(super) fn tables(solved: &[Solved]) -> Vec<(String, Grid)> {
    let shown = |setting: &Setting| {
        let own: Vec<&Solved> = solved.iter().filter(|s| s.setting == *setting).collect();
        (sentences(setting, &own), grid(&own))
    };
    SETTINGS.iter().map(shown).collect()
}

/// What routing alone can make of the prompts.
fn range(solved: &[Solved]) -> String {
    let Some(problem) = solved.first().map(|s| &s.planned.problem) else { return String::new() };
    let alone = |m: usize| {
        let prices: Vec<f64> = (0..problem.models.len()).map(|o| if o == m { 0.0 } else { f64::INFINITY }).collect();
        format!("{} {:.4}", problem.models[m].name, problem.scores.assign(&prices).score)
    };
    let all: Vec<String> = (0..problem.models.len()).map(alone).collect();
    format!(
        "Alone the models have mean predicted scores of {}; if every prompt goes to the one with the highest, {:.4}: no setup can have more.",
        all.join(", "),
        problem.scores.gain(&vec![0.0; problem.models.len()])
    )
}

/// What all panels have in common, in a line.
pub(super) fn preamble(solved: &[Solved]) -> String {
    format!("RouterWise's eight panels. {}", range(solved))
}

pub(super) fn shown(solved: &[Solved]) -> Markup {
    html! {
        p {
            "RouterWise's eight panels (GPUs, demand, limit of the mean time to the first token), with other models, prompts and answers \
             than the paper's. The paper finds scores from .30 to .56 over all its setups, \"up to 87 %\" from worst to best. Every setup \
             has its best routing. The reading "
            i { "paper" }
            " places shards by first-fit decreasing on memory alone, lets caps oversubscribe GPUs, and knows no interference; "
            i { "ours" }
            " checks caps on every GPU and counts interference. A simple rule is missing where it has no setup that keeps the limit."
        }
        p { (range(solved)) }
        @for (setting, (sentences, grid)) in SETTINGS.iter().zip(tables(solved)) {
            h3 { (heading(setting)) }
            p { (sentences) }
            @if setting.is_drawn {
                div.plots {
                    @for s in solved.iter().filter(|s| s.setting == *setting && !s.planned.plans.is_empty()) {
                        (figure(&plots::cloud(&s.planned, title(s), subtitle(s), 3), 3))
                    }
                }
            }
            (grid.html())
        }
    }
}

fn heading(setting: &Setting) -> String {
    match (setting.rate_factor, setting.limit_factor) {
        (1.0, 1.0) => "The paper's demand and limits".to_owned(),
        (1.0, factor) => format!("The paper's demand, its limits times {factor}"),
        (factor, 1.0) => format!("The paper's limits, its demand times {factor}"),
        (demand, limits) => format!("The paper's demand times {demand}, its limits times {limits}"),
    }
}

fn title(solved: &Solved) -> String {
    let panel = &solved.panel;
    format!(
        "{} GPUs, {} requests per second, {} ms, reading {}",
        panel.gpus,
        panel.rate,
        panel.slo_ms,
        solved.reading.name()
    )
}

fn subtitle(solved: &Solved) -> String {
    let spread = solved
        .spread()
        .map(|s| format!(", scores from {:.4} to {:.4}, {:.1} %", s.worst, s.best, 100.0 * s.relative()));
    format!(
        "{} of {} setups keep the limit{}",
        solved.planned.plans.len(),
        solved.planned.placed,
        spread.unwrap_or_default()
    )
}

fn sentences(setting: &Setting, solved: &[&Solved]) -> String {
    let mut text = format!("{}.", heading(setting));
    for reading in Reading::ALL {
        let own: Vec<&&Solved> = solved.iter().filter(|s| s.reading == reading).collect();
        let widest =
            own.iter().filter_map(|s| Some((s, s.spread()?))).max_by(|a, b| a.1.relative().total_cmp(&b.1.relative()));
        let Some((panel, spread)) = widest else {
            let _ = write!(text, " Reading {}: no setup keeps a limit.", reading.name());
            continue;
        };
        let gain = |rule: Baseline| own.iter().filter_map(|s| s.rule(rule)).map(|(_, gain)| gain).fold(0.0, f64::max);
        let missing = |rule: Baseline| own.iter().filter(|s| s.rule(rule).is_none()).count();
        let rules = Baseline::ALL.map(|rule| match missing(rule) {
            0 => format!("{:.4} over {}", gain(rule), rule.name()),
            n => format!("{:.4} over {} (without a setup at {n} of {})", gain(rule), rule.name(), own.len()),
        });
        let none = own.iter().filter(|s| s.planned.plans.is_empty()).count();
        let idle = own.iter().filter(|s| s.remark().is_some()).count() - none;
        let _ = write!(
            text,
            " Reading {}: setups differ by up to {:.1} % ({:.4} to {:.4}, {} GPUs at {} per second); the best gains up to {}. Of {} \
             panels, no setup keeps the limit at {none}; at {idle} all setups do, or the best loses nothing by it.",
            reading.name(),
            100.0 * spread.relative(),
            spread.worst,
            spread.best,
            panel.panel.gpus,
            panel.panel.rate,
            rules.join(", "),
            own.len()
        );
    }
    text
}

fn grid(solved: &[&Solved]) -> Grid {
    let heads = vec![
        "GPUs",
        "requests per second",
        "limit, ms",
        "reading",
        "setups",
        "placed",
        "keep the limit",
        "worst",
        "best",
        "spread",
        "equal-split",
        "size-proportional",
        "isolated",
        "seconds",
        "remark",
    ];
    let row = |s: &&Solved| -> Vec<Cell> {
        let count = |n: usize| number_cell(n as f64, 0);
        let mut row = vec![
            count(s.panel.gpus),
            Cell::Number(s.panel.rate, s.panel.rate.to_string()),
            number_cell(s.panel.slo_ms, 0),
            words(s.reading.name()),
            count(s.planned.enumerated),
            count(s.planned.placed),
            count(s.planned.plans.len()),
        ];
        match s.spread() {
            Some(spread) => row.extend([
                number_cell(spread.worst, 4),
                number_cell(spread.best, 4),
                Cell::Number(spread.relative(), format!("{:.1} %", 100.0 * spread.relative())),
            ]),
            None => row.extend([words(""), words(""), words("")]),
        }
        row.extend(Baseline::ALL.map(|rule| match s.rule(rule) {
            Some((score, gain)) => Cell::Number(score, format!("{score:.4} (-{gain:.4})")),
            None => words("none"),
        }));
        row.push(number_cell(s.planned.seconds, 2));
        row.push(words(s.remark().unwrap_or_default()));
        row
    };
    Grid { heads, rows: solved.iter().map(row).collect() }
}
