//! The tables of the page.

use maud::{Markup, html};

use super::axis::{fixed, number, with_interval};
use super::view::{View, per_second};
use crate::cell::{Cell, Reproduced, Target};
use crate::frontier::{Against, COST_SLACK, Outcome, QUALITY_SLACK, TIE, against, dominated};
use crate::statistics::{Estimate, paired};
use crate::summary::{ORACLE, OURS, PAPER, Summary};

/// A table that is written cell by cell.
pub(crate) struct Table {
    heads: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    contender: Option<String>,
    cells: Vec<Markup>,
}

impl Table {
    /// A table with these heads.
    pub(crate) fn new(heads: &[&str]) -> Table {
        Table { heads: heads.iter().map(|head| (*head).to_owned()).collect(), rows: Vec::new() }
    }

    /// Begins a row, of a contender or of none.
    pub(crate) fn row(&mut self, contender: Option<&str>) {
        self.rows.push(Row { contender: contender.map(str::to_owned), cells: Vec::new() });
    }

    fn cell(&mut self, cell: Markup) {
        if let Some(row) = self.rows.last_mut() {
            row.cells.push(cell);
        }
    }

    /// Adds a cell of words.
    pub(crate) fn words(&mut self, text: &str) {
        self.cell(html! { td { (text) } });
    }

    /// Adds a number, sorted by `value` and shown as `text`; the best of its column stands out.
    pub(crate) fn value(&mut self, value: f64, text: &str, is_best: bool) {
        let class = if is_best { "n best" } else { "n" };
        let key = if value.is_finite() { format!("{value:.6e}") } else { String::new() };
        self.cell(html! { td class=(class) data-v=(key) { (text) } });
    }

    /// The table as HTML.
    pub(crate) fn done(self) -> Markup {
        html! {
            div.scroll {
                table {
                    thead {
                        tr {
                            @for head in &self.heads {
                                th { (head) }
                            }
                        }
                    }
                    tbody {
                        @for row in &self.rows {
                            tr data-c=[row.contender.as_deref()] class=[row.contender.as_deref().map(row_class)] {
                                @for cell in &row.cells {
                                    (cell)
                                }
                            }
                            "\n"
                        }
                    }
                }
            }
            "\n"
        }
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
pub(super) fn glance(view: &View, rate: f64) -> Markup {
    let standing = view.standing(&view.main, rate);
    let mut rows: Vec<(&str, String, &Summary)> = Vec::new();
    for name in &view.contenders {
        let cells = view.cells_at(name, rate);
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
    }
    table.done()
}

/// Every contender minus ours with balanced weights, on the same seeds; `None` if fewer than two seeds are shared.
pub(super) fn head_to_head(view: &View, rate: f64) -> Option<Markup> {
    let standing = view.standing(&view.main, rate);
    let ours = standing.iter().find(|summary| summary.policy() == OURS)?;
    let by_seed = |summary: &Summary, of: fn(&Cell) -> f64| -> Vec<(u64, f64)> {
        summary.cells.iter().map(|cell| (cell.seed, of(cell))).collect()
    };
    let mut table = Table::new(&["contender", "quality", "USD / 1,000", "E2E mean, s", "E2E p99, s"]);
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
        table.row(Some(summary.policy()));
        table.words(summary.policy());
        for estimate in columns.into_iter().flatten() {
            let sign = if estimate.mean > 0.0 { "+" } else { "" };
            table.value(estimate.mean, &format!("{sign}{}", estimated(estimate)), !estimate.holds(0.0));
        }
    }
    let is_any = !table.rows.is_empty();
    is_any.then(|| {
        html! {
            p {
                "Each contender minus " (OURS) " at " (per_second(rate))
                ", balanced cells, seed by seed with 95 % intervals; what is surely not zero is bold."
            }
            (table.done())
        }
    })
}

/// The duels of every rate; `None` without ours or the paper's.
pub(super) fn against_the_paper(view: &View) -> Option<Markup> {
    let all: Vec<Against> = view.rates.iter().map(|rate| against(&view.main, OURS, PAPER, *rate)).collect();
    let all: Vec<Against> = all.into_iter().filter(|a| !a.duels.is_empty()).collect();
    if all.is_empty() || !view.contenders.contains(&OURS) {
        return None;
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
    }
    Some(html! {
        p {
            "For every cell of " (PAPER) ", the fastest of " (OURS) " with quality no lower (within " (QUALITY_SLACK)
            ") and cost no higher (within " (COST_SLACK * 100.0) " %). Ratios are ours over its: below 1 is faster. A tie is within "
            (TIE * 100.0) " %."
        }
        (table.done())
        @for one in &all {
            details {
                summary { "Every cell at " (per_second(one.rate)) }
                (duels(one))
            }
        }
        (rivals_that_lead(view))
    })
}

fn duels(one: &Against) -> Markup {
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
    }
    table.done()
}

/// Says plainly where another contender beats a cell of our frontier on all three axes.
fn rivals_that_lead(view: &View) -> Markup {
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
    for rate in &view.rates {
        for (own, rival) in dominated(&view.main, OURS, *rate) {
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
        }
    }
    match table.rows.len() {
        0 => html! {
            p {
                "No contender but the oracle beats a cell of " (OURS) "'s frontier in quality, cost and mean E2E together."
            }
        },
        count => html! {
            p.warn {
                (count) @if count == 1 { " cell" } @else { " cells" }
                " of " (OURS) "'s frontier " @if count == 1 { "is" } @else { "are" }
                " beaten by another contender: as good, as cheap, and faster."
            }
            details {
                summary { "Which" }
                (table.done())
            }
        },
    }
}

/// What was aimed at, and whether it was met.
pub(super) fn targets(rows: &[Target]) -> Markup {
    let mut table = Table::new(&["target", "measured", ""]);
    for target in rows {
        table.row(None);
        table.words(&target.what);
        table.words(&target.measured);
        let verdict = if target.met { "met" } else { "missed" };
        table.cell(html! { td class={ "n " (verdict) } { (verdict) } });
    }
    table.done()
}

/// Published numbers beside ours.
pub(super) fn reproduction(rows: &[Reproduced]) -> Markup {
    let mut table = Table::new(&["what", "published", "here", "why it differs"]);
    for row in rows {
        table.row(None);
        for text in [&row.what, &row.published, &row.ours, &row.why] {
            table.words(text);
        }
    }
    table.done()
}
