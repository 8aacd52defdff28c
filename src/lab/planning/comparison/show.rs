//! The comparison for people: a table, a picture, a part of a page.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table};
use maud::html;

use super::{CASCADE, ISOLATED, PRICES, Row, THRESHOLD};
use crate::page::axis::{fixed, number};
use crate::page::curves::{Curve, Curves, Part};
use crate::page::tables::Table as HtmlTable;
use crate::planning::page;

/// For people. Models' names are in the order of the problem.
pub fn table(rows: &[Row], models: &[String]) -> Table {
    let mut table = Table::new();
    let shares = format!("answers of {}, %", models.join(" / "));
    table.set_header([
        "req/s",
        "SLO ms",
        "contender",
        "placement",
        "quality",
        "tuned",
        "target",
        "mean TTFT ms",
        "over SLO",
        "p95 ms",
        "late %",
        "calls",
        "tokens",
        &shares,
        "paper ms",
    ]);
    for row in rows {
        let percent = |share: &f64| format!("{:.0}", share * 100.0);
        let equal = if row.is_equal { "" } else { " (not equal)" };
        table.add_row([
            format!("{}", row.requests_per_second),
            format!("{}", row.slo_ms),
            row.policy.clone(),
            row.placement.clone(),
            format!("{:.3}", row.quality),
            format!("{:.3}{equal}", row.tuned_quality),
            format!("{:.3}", row.target_quality),
            format!("{:.0}", row.ttft_mean_ms),
            format!("{:.2}", row.margin),
            format!("{:.0}", row.ttft_p95_ms),
            format!("{:.1}", row.late * 100.0),
            format!("{:.2}", row.answers),
            format!("{:.0}", row.output_tokens),
            row.fractions.iter().map(percent).collect::<Vec<_>>().join(" / "),
            row.published_ttft_ms.map_or_else(String::new, |ms| format!("{ms}")),
        ]);
    }
    for column in table.column_iter_mut().enumerate().filter(|(i, _)| ![2, 3].contains(i)).map(|(_, column)| column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Rules and setups that occur, in the order of their first rows.
pub(super) fn contenders(rows: &[Row]) -> Vec<(&str, &str)> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let name = (row.policy.as_str(), row.placement.as_str());
        if !all.contains(&name) {
            all.push(name);
        }
    }
    all
}

/// Mean time to the first token over the rate, as an SVG file.
pub fn picture(rows: &[Row]) -> String {
    curves(rows).file()
}

/// What a page shows of it. Models' names are in the order of the problem.
pub fn part(rows: &[Row], models: &[String]) -> page::Part {
    let fractions = format!("answered by {}", models.join(" / "));
    let mut table = HtmlTable::new(&[
        "contender",
        "placement",
        "requests per second",
        "limit, ms",
        "quality",
        "mean TTFT, ms",
        "over the limit",
        "p95 TTFT, ms",
        "late",
        "answers per request",
        "output tokens per request",
        &fractions,
        "paper's mean TTFT, ms",
    ]);
    for row in rows {
        let best = |of: fn(&Row) -> f64| {
            let others = rows.iter().filter(|other| other.requests_per_second == row.requests_per_second);
            others.map(of).fold(f64::INFINITY, f64::min) >= of(row)
        };
        let value = |table: &mut HtmlTable, value: f64, digits: i32| table.value(value, &number(value, digits), false);
        table.row(Some(&row.policy));
        table.words(&row.policy);
        table.words(&row.placement);
        value(&mut table, row.requests_per_second, 4);
        value(&mut table, row.slo_ms, 4);
        let mark = if row.is_equal { "" } else { " (out of reach)" };
        table.value(row.quality, &format!("{}{mark}", fixed(row.quality, 3)), false);
        table.value(row.ttft_mean_ms, &number(row.ttft_mean_ms, 3), best(|row| row.ttft_mean_ms));
        value(&mut table, row.margin, 3);
        table.value(row.ttft_p95_ms, &number(row.ttft_p95_ms, 3), best(|row| row.ttft_p95_ms));
        table.value(row.late, &percent(row.late), best(|row| row.late));
        value(&mut table, row.answers, 3);
        value(&mut table, row.output_tokens, 3);
        table.words(&row.fractions.iter().map(|share| percent(*share)).collect::<Vec<_>>().join(" / "));
        value(&mut table, row.published_ttft_ms.unwrap_or(f64::NAN), 5);
    }
    let content = html! {
        p {
            "The plan's prices against a router by thresholds and a cascade, each tuned to the quality that the plan has on the planning \
             half of the prompts; measured in the simulator on the other half. Quality is that of the answers. Dashed: every model on \
             GPUs of its own."
        }
        figure.w6 { (curves(rows).element()) }
        (table.done())
    };
    page::Part { id: "comparison".to_owned(), title: "Against other routers of equal quality".to_owned(), content }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

fn curves(rows: &[Row]) -> Curves {
    let milliseconds = |ms: f64| if ms < 1e3 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1e3) };
    let rule = |policy: &str| [THRESHOLD, CASCADE].iter().position(|name| *name == policy);
    let curve = |(policy, placement): (&str, &str)| {
        let own = rows.iter().filter(|row| row.policy == policy && row.placement == placement);
        let tip = |row: &Row| {
            format!(
                "{policy}, {placement}, {} req/s\nmean TTFT {}, limit {}\nquality {:.3}",
                row.requests_per_second,
                milliseconds(row.ttft_mean_ms),
                milliseconds(row.slo_ms),
                row.quality
            )
        };
        Curve {
            name: format!("{policy}, {placement}"),
            part: rule(policy).map_or(Part::Ours, Part::Rival),
            dashed: placement == ISOLATED,
            points: own.map(|row| ((row.requests_per_second, row.ttft_mean_ms / 1e3), tip(row))).collect(),
        }
    };
    let limits = rows.iter().filter(|row| row.policy == PRICES);
    let limit = Curve {
        name: "limit".to_owned(),
        part: Part::Bound,
        dashed: true,
        points: limits.map(|row| ((row.requests_per_second, row.slo_ms / 1e3), String::new())).collect(),
    };
    // What is drawn last is above the others: ours.
    let mut curves: Vec<Curve> = contenders(rows).into_iter().map(curve).collect();
    curves.push(limit);
    curves.reverse();
    let highest = rows.iter().map(|row| row.requests_per_second).fold(0.0, f64::max);
    let mut title = format!("At equal quality and {highest} req/s:");
    let last = rows.iter().filter(|row| row.requests_per_second == highest);
    for (i, row) in last.enumerate() {
        let comma = if i == 0 { "" } else { "," };
        let _ = write!(title, "{comma} {} {} {}", row.policy, row.placement, milliseconds(row.ttft_mean_ms));
    }
    Curves {
        title,
        subtitle: "Mean time to the first token; rivals tuned to the quality of the plan".to_owned(),
        x_title: "offered requests per second".to_owned(),
        y_title: "mean TTFT, seconds".to_owned(),
        curves,
    }
}
