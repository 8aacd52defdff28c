//! The tables of the page.

use std::fmt::Write;

use super::axis::{fixed, number, with_interval};
use super::svg::escaped;
use super::view::{View, per_second};
use crate::cell::{Cell, Reproduced, Target};
use crate::frontier::{Against, COST_SLACK, Outcome, QUALITY_SLACK, TIE, against, dominated};
use crate::statistics::{Estimate, paired};
use crate::summary::{ORACLE, OURS, PAPER, Summary};

/// A table that is written cell by cell.
pub(crate) struct Table {
    html: String,
}

impl Table {
    /// A table with these heads.
    pub(crate) fn new(heads: &[&str]) -> Table {
        let mut html = "<div class=\"scroll\"><table><thead><tr>".to_owned();
        for head in heads {
            let _ = write!(html, "<th>{}</th>", escaped(head));
        }
        html.push_str("</tr></thead><tbody>\n");
        Table { html }
    }

    /// Begins a row, of a contender or of none.
    pub(crate) fn row(&mut self, contender: Option<&str>) {
        let _ = match contender {
            Some(name) => write!(self.html, "<tr data-c=\"{0}\" class=\"{1}\">", escaped(name), row_class(name)),
            None => write!(self.html, "<tr>"),
        };
    }

    /// Adds a cell of words.
    pub(crate) fn words(&mut self, text: &str) {
        let _ = write!(self.html, "<td>{}</td>", escaped(text));
    }

    /// A number, sorted by `value` and shown as `text`; the best of its column stands out.
    pub(crate) fn value(&mut self, value: f64, text: &str, is_best: bool) {
        let class = if is_best { "n best" } else { "n" };
        let key = if value.is_finite() { format!("{value:.6e}") } else { String::new() };
        let _ = write!(self.html, "<td class=\"{class}\" data-v=\"{key}\">{}</td>", escaped(text));
    }

    /// Ends the row.
    pub(crate) fn end_row(&mut self) {
        self.html.push_str("</tr>\n");
    }

    /// The table as HTML.
    pub(crate) fn done(mut self) -> String {
        self.html.push_str("</tbody></table></div>\n");
        self.html
    }
}

fn row_class(contender: &str) -> &'static str {
    match contender {
        OURS => "ours",
        PAPER => "paper",
        ORACLE => "oracle",
        _ => "",
    }
}

fn estimated(estimate: Estimate) -> String {
    with_interval(estimate.mean, (estimate.high - estimate.low) / 2.0)
}

/// Per contender its best, its cheapest and its balanced cell at one rate.
pub(super) fn glance(view: &View, rate: f64) -> String {
    let standing = view.standing(&view.main, rate);
    let mut rows: Vec<(&str, String, &Summary)> = Vec::new();
    for name in &view.contenders {
        let cells = view.at(name, rate);
        let best = cells.iter().max_by(|a, b| a.quality.mean.total_cmp(&b.quality.mean));
        let cheapest = cells.iter().min_by(|a, b| a.cost_usd.mean.total_cmp(&b.cost_usd.mean));
        let balanced = standing.iter().find(|summary| summary.policy() == *name);
        for (kind, summary) in [("best quality", best), ("balanced", balanced), ("cheapest", cheapest)] {
            let Some(summary) = summary else { continue };
            match rows.iter_mut().find(|(.., known)| std::ptr::eq(*known, *summary)) {
                Some((_, kinds, _)) => *kinds = format!("{kinds}, {kind}"),
                None => rows.push((name, kind.to_owned(), summary)),
            }
        }
    }
    let heads = [
        "contender",
        "cell",
        "weights q / l / c, setting",
        "quality",
        "USD / 1,000",
        "E2E mean, s",
        "E2E p99, s",
        "TTFT p99, s",
        "answers / s",
        "answered",
    ];
    let mut table = Table::new(&heads);
    let rivals: Vec<&Summary> = rows.iter().filter(|(name, ..)| *name != ORACLE).map(|(.., s)| *s).collect();
    let least = |of: fn(&Summary) -> f64| rivals.iter().map(|s| of(s)).fold(f64::INFINITY, f64::min);
    let most = |of: fn(&Summary) -> f64| rivals.iter().map(|s| of(s)).fold(f64::NEG_INFINITY, f64::max);
    let (quality, cost) = (most(|s| s.quality.mean), least(|s| s.cost_usd.mean));
    let (mean, p99, ttft) = (least(|s| s.e2e_ms.mean), least(|s| s.e2e_p99_ms), least(|s| s.ttft_p99_ms));
    for (name, kinds, s) in rows {
        let rival = name != ORACLE;
        table.row(Some(name));
        table.words(name);
        table.words(&kinds);
        table.words(&s.knobs());
        table.value(s.quality.mean, &estimated(s.quality), rival && s.quality.mean >= quality);
        table.value(s.cost_usd.mean, &estimated(s.cost_usd.scaled(1e3)), rival && s.cost_usd.mean <= cost);
        table.value(s.e2e_ms.mean, &estimated(s.e2e_ms.scaled(1e-3)), rival && s.e2e_ms.mean <= mean);
        table.value(s.e2e_p99_ms, &fixed(s.e2e_p99_ms / 1e3, 3), rival && s.e2e_p99_ms <= p99);
        table.value(s.ttft_p99_ms, &fixed(s.ttft_p99_ms / 1e3, 3), rival && s.ttft_p99_ms <= ttft);
        table.value(s.throughput_rps, &fixed(s.throughput_rps, 3), false);
        table.value(s.answered, &format!("{} %", number(s.answered * 100.0, 3)), false);
        table.end_row();
    }
    table.done()
}

/// Every contender minus ours with balanced weights, on the same seeds; empty if fewer than two seeds are shared.
pub(super) fn head_to_head(view: &View, rate: f64) -> String {
    let standing = view.standing(&view.main, rate);
    let Some(ours) = standing.iter().find(|summary| summary.policy() == OURS) else { return String::new() };
    let by_seed = |summary: &Summary, of: fn(&Cell) -> f64| -> Vec<(u64, f64)> {
        summary.cells.iter().map(|cell| (cell.seed, of(cell))).collect()
    };
    let mut table = Table::new(&["contender", "quality", "USD / 1,000", "E2E mean, s", "E2E p99, s"]);
    let mut rows = 0;
    for summary in standing.iter().filter(|summary| summary.policy() != OURS) {
        let difference = |of: fn(&Cell) -> f64| paired(&by_seed(summary, of), &by_seed(ours, of));
        let columns = [
            difference(|cell| cell.quality),
            difference(|cell| cell.cost_usd * 1e3),
            difference(|cell| cell.e2e_ms.mean / 1e3),
            difference(|cell| cell.e2e_ms.p99 / 1e3),
        ];
        if columns.iter().any(Option::is_none) {
            continue;
        }
        rows += 1;
        table.row(Some(summary.policy()));
        table.words(summary.policy());
        for estimate in columns.into_iter().flatten() {
            let sign = if estimate.mean > 0.0 { "+" } else { "" };
            table.value(estimate.mean, &format!("{sign}{}", estimated(estimate)), !estimate.holds(0.0));
        }
        table.end_row();
    }
    if rows == 0 {
        return String::new();
    }
    format!(
        "<p>Each contender minus {OURS} at {}, balanced cells, seed by seed with 95 % intervals; what is surely not zero is bold.</p>{}",
        per_second(rate),
        table.done()
    )
}

/// The duels of every rate; empty without ours or the paper's.
pub(super) fn against_the_paper(view: &View) -> String {
    let all: Vec<Against> = view.rates.iter().map(|rate| against(&view.main, OURS, PAPER, *rate)).collect();
    let all: Vec<Against> = all.into_iter().filter(|a| !a.duels.is_empty()).collect();
    if all.is_empty() || !view.contenders.contains(&OURS) {
        return String::new();
    }
    let mut table = Table::new(&[
        "rate",
        "its cells",
        "faster",
        "tied",
        "slower or out of reach",
        "E2E mean, ratio",
        "the same, its w_q ≥ 0.5",
        "E2E p99, ratio",
        "the same, its w_q ≥ 0.5",
    ]);
    for one in &all {
        table.row(None);
        table.value(one.rate, &per_second(one.rate), false);
        table.value(one.duels.len() as f64, &one.duels.len().to_string(), false);
        for outcome in [Outcome::Win, Outcome::Tie, Outcome::Loss] {
            table.value(one.count(outcome) as f64, &one.count(outcome).to_string(), false);
        }
        for value in [one.mean_ratio(0.0), one.mean_ratio(0.5), one.p99_ratio(0.0), one.p99_ratio(0.5)] {
            let value = value.unwrap_or(f64::NAN);
            table.value(value, &fixed(value, 3), value < 1.0 - TIE);
        }
        table.end_row();
    }
    let mut html = format!(
        "<p>For every cell of {PAPER}, the fastest of {OURS} with quality no lower (within {QUALITY_SLACK}) and cost no higher (within {} %). \
         Ratios are ours over its: below 1 is faster. A tie is within {} %.</p>{}",
        COST_SLACK * 100.0,
        TIE * 100.0,
        table.done()
    );
    for one in &all {
        let _ = writeln!(
            html,
            "<details><summary>Every cell at {}</summary>{}</details>",
            per_second(one.rate),
            duels(one)
        );
    }
    html + &rivals_that_lead(view)
}

fn duels(one: &Against) -> String {
    let heads = [
        "its weights q / l / c",
        "its quality",
        "its USD / 1,000",
        "its E2E, s",
        "our weights",
        "quality",
        "USD / 1,000",
        "E2E, s",
        "E2E ratio",
        "p99 ratio",
        "",
    ];
    let mut table = Table::new(&heads);
    for duel in &one.duels {
        table.row(None);
        let side = |table: &mut Table, summary: &Summary| {
            table.words(&summary.knobs());
            table.value(summary.quality.mean, &fixed(summary.quality.mean, 3), false);
            table.value(summary.cost_usd.mean, &fixed(summary.cost_usd.mean * 1e3, 3), false);
            table.value(summary.e2e_ms.mean, &fixed(summary.e2e_ms.mean / 1e3, 3), false);
        };
        side(&mut table, duel.theirs);
        match duel.ours {
            Some(ours) => side(&mut table, ours),
            None => ["none as good and as cheap", "–", "–", "–"].iter().for_each(|text| table.words(text)),
        }
        for ratio in [duel.mean_ratio(), duel.p99_ratio()] {
            let ratio = ratio.unwrap_or(f64::NAN);
            table.value(ratio, &fixed(ratio, 3), ratio < 1.0 - TIE);
        }
        table.words(match duel.outcome {
            Outcome::Win => "faster",
            Outcome::Tie => "tied",
            Outcome::Loss => "not faster",
        });
        table.end_row();
    }
    table.done()
}

/// Says plainly where another contender beats a cell of our frontier on all three axes.
fn rivals_that_lead(view: &View) -> String {
    let mut table = Table::new(&[
        "rate",
        "our cell",
        "quality",
        "USD / 1,000",
        "E2E, s",
        "beaten by",
        "its setting",
        "quality",
        "USD / 1,000",
        "E2E, s",
    ]);
    let mut count = 0;
    for rate in &view.rates {
        for (own, rival) in dominated(&view.main, OURS, *rate) {
            count += 1;
            table.row(Some(rival.policy()));
            table.value(*rate, &per_second(*rate), false);
            for (at, summary) in [own, rival].into_iter().enumerate() {
                if at == 1 {
                    table.words(rival.policy());
                }
                table.words(&summary.knobs());
                table.value(summary.quality.mean, &fixed(summary.quality.mean, 3), false);
                table.value(summary.cost_usd.mean, &fixed(summary.cost_usd.mean * 1e3, 3), false);
                table.value(summary.e2e_ms.mean, &fixed(summary.e2e_ms.mean / 1e3, 3), false);
            }
            table.end_row();
        }
    }
    if count == 0 {
        return format!(
            "<p>No contender but the oracle beats a cell of {OURS}'s frontier in quality, cost and mean E2E together.</p>"
        );
    }
    let cells = if count == 1 { "1 cell".to_owned() } else { format!("{count} cells") };
    format!(
        "<p class=\"warn\">{cells} of {OURS}'s frontier {} beaten by another contender: as good, as cheap, and faster.</p><details><summary>Which</summary>{}</details>",
        if count == 1 { "is" } else { "are" },
        table.done()
    )
}

/// What was aimed at, and whether it was met.
pub(super) fn targets(rows: &[Target]) -> String {
    let mut table = Table::new(&["target", "measured", ""]);
    for target in rows {
        table.row(None);
        table.words(&target.what);
        table.words(&target.measured);
        let _ = write!(table.html, "<td class=\"n {0}\">{0}</td>", if target.met { "met" } else { "missed" });
        table.end_row();
    }
    table.done()
}

/// Published numbers beside ours.
pub(super) fn reproduction(rows: &[Reproduced]) -> String {
    let mut table = Table::new(&["what", "published", "here", "why it differs"]);
    for row in rows {
        table.row(None);
        for text in [&row.what, &row.published, &row.ours, &row.why] {
            table.words(text);
        }
        table.end_row();
    }
    table.done()
}
