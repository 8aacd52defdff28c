//! The page: a result as one HTML file that needs nothing else, and its plots as files.
//!
//! Everything on it is computed from the cells: titles state what the data show, and what no cell measures is left out. It can be
//! read without scripts; the script sorts tables, switches between light and dark, and lets one contender stand out.

pub(crate) mod axis;
mod bars;
pub(crate) mod chart;
mod course;
pub(crate) mod curves;
mod frontiers;
mod labels;
mod load;
mod looks;
mod panels;
mod png;
pub(crate) mod scene;
pub(crate) mod svg;
pub(crate) mod tables;
#[cfg(test)]
mod tests;
pub(crate) mod view;

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::axis::number;
use self::view::{Plot, Section, View, per_second, seconds};
use super::cell::Cells;
use super::frontier::{Outcome, against};
use super::summary::{ORACLE, OURS, PAPER, Summary, summaries};

/// The result as one HTML file.
pub fn result_page(cells: &Cells) -> String {
    let all = summaries(cells);
    let body = match View::new(&all) {
        Some(view) => content(cells, &view),
        None => html! { p { "The result has no cells." } },
    };
    document(&format!("RouteBalance: {}", cells.preset), &body)
}

/// A page that needs nothing else, with our style and script.
pub(crate) fn document(title: &str, body: &Markup) -> String {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(include_str!("page/style.css"))) (PreEscaped(colours())) }
            }
            body {
                (body)
                script { (PreEscaped(include_str!("page/script.js"))) }
            }
        }
    };
    document.into_string()
}

/// Writes every plot of the page into a folder, as PNG and as SVG, and says how many there are.
///
/// # Errors
/// A file cannot be written.
pub fn write_plots(cells: &Cells, folder: &Path) -> Result<usize> {
    std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    let all = summaries(cells);
    let plots = View::new(&all).map(|view| plots(&view)).unwrap_or_default();
    for plot in &plots {
        let file = folder.join(format!("{}.svg", plot.id));
        std::fs::write(&file, svg::file(&plot.scene))
            .with_context(|| format!("{} cannot be written", file.display()))?;
        png::write(&plot.scene, &folder.join(format!("{}.png", plot.id)))?;
    }
    Ok(plots.len())
}

/// Reads a result and writes its page and its plots.
///
/// # Errors
/// The result cannot be read, is none of the lab's, or something cannot be written.
pub fn render(result: &Path, html_file: Option<&Path>, plots_folder: Option<&Path>) -> Result<()> {
    if html_file.is_none() && plots_folder.is_none() {
        bail!("nothing to write: give --html FILE or --plots FOLDER");
    }
    let text = std::fs::read(result).with_context(|| format!("{} cannot be read", result.display()))?;
    let cells: Cells =
        serde_json::from_slice(&text).with_context(|| format!("{} is not a result of the lab", result.display()))?;
    write(&cells, html_file, plots_folder)
}

/// Writes a result's page and its plots, whichever are asked for.
///
/// # Errors
/// Something cannot be written.
pub fn write(cells: &Cells, html_file: Option<&Path>, plots_folder: Option<&Path>) -> Result<()> {
    if let Some(file) = html_file {
        std::fs::write(file, result_page(cells)).with_context(|| format!("{} cannot be written", file.display()))?;
        println!("{}: the page", file.display());
    }
    if let Some(folder) = plots_folder {
        let count = write_plots(cells, folder)?;
        println!("{}: {count} plots as PNG and SVG", folder.display());
    }
    Ok(())
}

fn plots(view: &View) -> Vec<Plot> {
    let mut plots = frontiers::plots(view);
    plots.extend(load::plots(view));
    plots.extend(course::plots(view));
    plots.extend(panels::plots(view));
    plots
}

/// Classes for the colours; their values are the style sheet's.
fn colours() -> String {
    let mut css = String::new();
    for ink in scene::Ink::all() {
        let class = ink.class();
        let _ = writeln!(css, ".f-{class}{{fill:var(--{class})}}.s-{class}{{stroke:var(--{class})}}");
    }
    let (mut light, mut named) = (String::new(), String::new());
    for ink in scene::Ink::all() {
        let (r, g, b) = ink.rgb();
        let target = if matches!(ink, scene::Ink::Model(_)) { &mut named } else { &mut light };
        let _ = write!(target, "--{}:#{r:02x}{g:02x}{b:02x};", ink.class());
    }
    // Models keep their colours on both grounds.
    format!(":root{{{named}}}\n:where(:root){{{light}}}\n{css}")
}

fn content(cells: &Cells, view: &View) -> Markup {
    let plots = plots(view);
    html! {
        (head(cells, view))
        @for (part, id, title, intro) in PARTS {
            @let own: Vec<&Plot> = plots.iter().filter(|plot| plot.section == part).collect();
            @if !own.is_empty() {
                (section(id, title, &pictures(view, part, intro, &own)))
                @if part == Section::Frontiers {
                    (section("glance", "At a glance", &glance(view)))
                    @if let Some(against) = tables::against_the_paper(view) {
                        (section("paper", "Against the paper, frontier against frontier", &against))
                    }
                    @if !cells.targets.is_empty() {
                        (section("targets", "Targets", &tables::targets(&cells.targets)))
                    }
                }
            }
        }
        @if !cells.reproduction.is_empty() {
            (section("reproduction", "The paper's numbers, reproduced", &tables::reproduction(&cells.reproduction)))
        }
        (section("reading", "How to read this", &reading(view)))
        (section("basis", "What this rests on", &basis(cells, view)))
    }
}

/// The plots of a part, those of a group below its heading.
fn pictures(view: &View, part: Section, intro: &str, plots: &[&Plot]) -> Markup {
    html! {
        @if part == Section::Rates {
            (legend(view))
        }
        p { (intro) }
        @for group in plots.chunk_by(|a, b| a.group == b.group) {
            @if let Some(name) = group.first().map(|plot| plot.group).filter(|name| !name.is_empty()) {
                h3 { (name) }
            }
            div.plots {
                @for plot in group {
                    figure class={ "w" (plot.sixths) } id=(plot.id) { (svg::element(&plot.scene)) }
                }
            }
        }
    }
}

const PARTS: [(Section, &str, &str, &str); 6] = [
    (
        Section::Frontiers,
        "frontiers",
        "What can be had for what",
        "A contender is better the higher it reaches and the less that takes.",
    ),
    (
        Section::Rates,
        "rates",
        "The same at every rate",
        "Panels of one kind have the same axes, except throughput. Point at a mark to see its numbers.",
    ),
    (
        Section::Load,
        "load",
        "As the load grows",
        "How long answers take, how times are distributed, and what can be sustained.",
    ),
    (Section::Course, "course", "Over time", "What each did moment by moment while the load changed or was highest."),
    (
        Section::Robustness,
        "robustness",
        "Other workloads, prices and fleets",
        "The same comparison where one thing is different. Sorted by time; compare the quality at the right, too.",
    ),
    (Section::Budgets, "budgets", "Time limits and budgets", "How often limits were kept."),
];

/// A part of the page under a heading of its own.
pub(crate) fn section(id: &str, title: &str, content: &Markup) -> Markup {
    html! {
        section id=(id) {
            h2 { (title) }
            (content)
        }
        "\n"
    }
}

/// The head of a page: its title, a sentence, and tiles: a number, what it is, and a class.
pub(crate) fn header(title: &str, lead: &str, tiles: &[(String, String, &'static str)]) -> Markup {
    html! {
        header {
            button #theme type="button" hidden="hidden" { "light / dark" }
            h1 { (title) }
            p.lead { (lead) }
            div.tiles {
                @for (value, text, class) in tiles {
                    div class={ "tile " (class) } {
                        b { (value) }
                        span { (text) }
                    }
                }
            }
        }
    }
}

fn head(cells: &Cells, view: &View) -> Markup {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let lead = format!(
        "{} on the same requests, {}, {}.",
        count(view.contenders.len(), "contender"),
        count(cells.cells.len(), "cell"),
        count(view.rates.len(), "rate"),
    );
    header(&format!("RouteBalance: {}", cells.preset), &lead, &findings(view))
}

/// What the page shows first: a number, what it is, and whether it is for us (`good`), against us (`bad`) or neither.
fn findings(view: &View) -> Vec<(String, String, &'static str)> {
    let mut tiles = Vec::new();
    let rate = view.highest();
    let at = per_second(rate);
    let duels: Vec<_> = view.rates.iter().map(|rate| against(&view.main, OURS, PAPER, *rate)).collect();
    let count = |outcome| duels.iter().map(|one| one.count(outcome)).sum::<usize>();
    let (wins, ties, losses) = (count(Outcome::Win), count(Outcome::Tie), count(Outcome::Loss));
    let has_ours = view.contenders.contains(&OURS);
    if has_ours && wins + ties + losses > 0 {
        let class = if wins > losses { "good" } else { "bad" };
        let text = format!(
            "cells of {PAPER} for which {OURS} is faster, as good and as cheap; {ties} tied, {losses} slower or out of reach"
        );
        tiles.push((format!("{wins} of {}", wins + ties + losses), text, class));
    }
    if let Some((last, ratio)) = duels.last().filter(|_| has_ours).and_then(|one| Some((one, one.mean_ratio(0.0)?))) {
        let class = if ratio < 1.0 { "good" } else { "bad" };
        let answered = last.duels.iter().filter(|duel| duel.ours.is_some()).count();
        let text = format!(
            "{OURS}'s mean E2E over {PAPER}'s at {at}, mean over the {answered} of its {} cells for which {OURS} has one as good and as cheap",
            last.duels.len()
        );
        tiles.push((format!("{} x", number(ratio, 2)), text, class));
    }
    let rivals = || view.main.iter().filter(|s| s.policy() != ORACLE);
    let words = |s: &Summary| {
        let knobs = Some(s.knobs()).filter(|knobs| !knobs.is_empty()).map(|knobs| format!(" ({knobs})"));
        format!("{}{} at {}", s.policy(), knobs.unwrap_or_default(), per_second(s.rate))
    };
    let class = |s: &Summary| if s.policy() == OURS { "good" } else { "" };
    if let Some(best) = rivals().max_by(|a, b| a.quality.mean.total_cmp(&b.quality.mean)) {
        let own = rivals().filter(|s| s.policy() == OURS).map(|s| s.quality.mean).fold(f64::NAN, f64::max);
        let ours = if best.policy() != OURS && own.is_finite() {
            format!("; {OURS}: {}", number(own, 3))
        } else {
            String::new()
        };
        tiles.push((number(best.quality.mean, 3), format!("highest quality: {}{ours}", words(best)), class(best)));
    }
    let balanced = view.standing(&view.main, rate);
    if let Some(own) = balanced.iter().find(|s| s.policy() == OURS) {
        let paper = balanced.iter().find(|s| s.policy() == PAPER);
        let beside =
            paper.map(|s| format!("; {PAPER}: {} at quality {}", seconds(s.e2e_ms.mean), number(s.quality.mean, 3)));
        let text = format!(
            "{OURS}'s mean E2E with uniform weights at {at}, quality {}{}",
            number(own.quality.mean, 3),
            beside.unwrap_or_default()
        );
        tiles.push((seconds(own.e2e_ms.mean), text, ""));
    }
    tiles
}

fn glance(view: &View) -> Markup {
    html! {
        p {
            "Per contender the cell of best quality, the balanced cell and the cheapest cell, at " (per_second(view.highest()))
            ". Click a head to sort; the best of a column, the oracle aside, is bold."
        }
        (tables::glance(view, view.highest()))
        @for rate in view.rates.iter().rev().skip(1) {
            details {
                summary { "At " (per_second(*rate)) }
                (tables::glance(view, *rate))
            }
        }
        @if let Some(table) = tables::head_to_head(view, view.highest()) {
            (table)
        }
    }
}

/// The marks of the contenders: small panels have no room for names.
fn legend(view: &View) -> Markup {
    let corners = |name: &str| {
        let outline = view.looks.mark(name).outline((7.0, 7.0), 4.5);
        outline.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect::<Vec<String>>().join(" ")
    };
    html! {
        div.legend {
            @for name in &view.contenders {
                span data-c=(name) {
                    svg viewBox="0 0 14 14" aria-hidden="true" {
                        polygon class={ "f-" (view.looks.ink(name).class()) } points=(corners(name)) {}
                    }
                    (name)
                }
            }
        }
    }
}

fn reading(view: &View) -> Markup {
    let rows = [
        ("cell", "one contender with one setting on one workload at one rate, over its seeds"),
        ("quality", "mean score, 0 to 1, of the answers that the chosen models gave; of answered requests"),
        ("E2E, TTFT", "time from a request's arrival at the gateway to the last and to the first token"),
        ("weights q / l / c", "what quality, latency and cost weigh; uniform is a third each"),
        ("frontier", "a contender's cells that no other of its own beats on both axes"),
        ("balanced", "uniform weights; of a contender without weights, the setting whose quality is nearest to ours"),
        ("oracle", "knows every answer's quality and length before it is given: a bound, not a rival"),
    ];
    html! {
        dl {
            @for (word, meaning) in rows {
                @if word != "oracle" || view.contenders.contains(&ORACLE) {
                    dt { (word) }
                    dd { (meaning) }
                }
            }
        }
    }
}

fn basis(cells: &Cells, view: &View) -> Markup {
    let range = |values: Vec<usize>| {
        let (low, high) = (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
        if low == high {
            number(low as f64, 9)
        } else {
            format!("{} to {}", number(low as f64, 9), number(high as f64, 9))
        }
    };
    let seeds = view.main.iter().map(|summary| summary.cells.len()).collect::<Vec<_>>();
    let one_seed = seeds.iter().any(|seeds| *seeds < 2);
    let requests: usize = cells.cells.iter().map(|cell| cell.requests).sum();
    let intervals = if one_seed {
        "Intervals of cells with one seed are the bootstrap over its requests: they do not show how seeds differ. Others are Student's t over seeds."
    } else {
        "Intervals are Student's t over seeds."
    };
    let e = &view.experiment;
    let requests_each =
        range(view.main.iter().flat_map(|summary| summary.cells.iter().map(|cell| cell.requests)).collect());
    html! {
        ul {
            li {
                "Main comparison: " (e.workload) " arrivals" @if !e.variant.is_empty() { ", " (e.variant) } ", deciding "
                @if e.overhead == "zero" { "takes no time" } @else { "takes the time it was measured or published to take" }
                ", " (e.gateways) " gateway" @if e.gateways != 1 { "s" } "; " (range(seeds)) " seeds per cell, "
                (requests_each) " requests per seed. In all, " (number(requests as f64, 12)) " requests."
            }
            li {
                "Times come from a simulation in virtual time: engines with continuous batching, fitted to measured latencies. It knows \
                 no network loss, no GPU that slows down, and no engine but the ones it was fitted to. Real fleets differ."
            }
            li {
                "Quality is the recorded score of the chosen model's recorded answer to the same prompt; nothing is generated anew, and a \
                 score is only as good as its judge."
            }
            li { (intervals) " Quality, cost and mean times have intervals; percentiles have none." }
            li { "Failed requests are outside quality, cost and times: compare the share that was answered." }
        }
    }
}
