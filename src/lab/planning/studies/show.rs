//! Studies for people: tables in a terminal, and parts of a page with the same tables and pictures.

mod checks;
mod grid;
mod panels;

use std::fmt::Write;

use maud::{Markup, html};

use self::grid::{Cell, Grid, number_cell, words};
use super::Studies;
use super::published::Published;
use crate::planning::comparison;
use crate::planning::page::Part;

pub(super) fn text(studies: &Studies) -> String {
    let mut out = format!("{}\n", panels::preamble(&studies.solved));
    for (sentences, grid) in panels::tables(&studies.solved) {
        let _ = writeln!(out, "{sentences}\n{}", grid.text());
    }
    let published = &studies.published;
    let _ = writeln!(out, "{}\n{}", of_published(published), published_grid(published).text());
    let _ = writeln!(out, "{}\n{}", checks::sentences(&studies.checks), checks::grid(&studies.checks).text());
    let _ = writeln!(
        out,
        "At equal quality, in the simulator:\n{}",
        comparison::table(&studies.comparison, &studies.models)
    );
    let _ = writeln!(out, "The studies took {:.0} s.", studies.seconds);
    out
}

pub(super) fn parts(studies: &Studies) -> Vec<Part> {
    let part = |id: &str, title: &str, content: Markup| Part { id: id.to_owned(), title: title.to_owned(), content };
    let published = &studies.published;
    let of_published = html! {
        p { (of_published(published)) }
        (published_grid(published).html())
    };
    vec![
        part("panels", "What setups differ by", panels::shown(&studies.solved)),
        part("published", "The paper's own algorithm", of_published),
        part("checks", "Plans in the simulator", checks::shown(&studies.checks)),
        comparison::part(&studies.comparison, &studies.models),
    ]
}

fn of_published(published: &Published) -> String {
    let found = published.setups.len() - published.missed();
    format!(
        "RouterWise's algorithm (subgradients, projection, bisection) on {} setups that keep {} ms at {} requests per second on {} \
         GPUs, with profiles that go on beyond their last points: it finds a routing for {found}, at most {:.4} of score below the bound, in {:.3} s per setup; ours is at most {:.0e} below \
         it, in {:.4} s.",
        published.setups.len(),
        published.slo_ms,
        published.requests_per_second,
        published.gpus,
        published.most_short(),
        published.mean(|c| c.published_seconds),
        published.setups.iter().map(|c| c.score_bound - c.score).fold(0.0, f64::max),
        published.mean(|c| c.seconds)
    )
}

fn published_grid(published: &Published) -> Grid {
    let heads = ["setup", "score", "bound", "published score", "short of the bound", "seconds", "published seconds"];
    let row = |c: &super::published::Compared| -> Vec<Cell> {
        let theirs = c.published_score;
        vec![
            words(&c.setup),
            number_cell(c.score, 5),
            number_cell(c.score_bound, 5),
            theirs.map_or_else(|| words("none found"), |score| number_cell(score, 5)),
            theirs.map_or_else(|| words(""), |score| number_cell(c.score_bound - score, 5)),
            number_cell(c.seconds, 4),
            number_cell(c.published_seconds, 3),
        ]
    };
    Grid { heads: heads.to_vec(), rows: published.setups.iter().map(row).collect() }
}
