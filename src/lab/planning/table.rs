//! A plan as tables in a terminal.

use std::fmt::Write;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::file::limit_name;
use super::planned::{ByRule, Planned, RUNNERS_UP, choice_words, score_per_usd, worst_ms};
use routebalance_plan::problem::Problem;
use routebalance_plan::solution::{Plan, Routing};

/// What a person should see of a plan.
pub fn text(planned: &Planned) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{} setups, {} of them fit on the GPUs, {}{} keep the limits; {:.1} s.",
        planned.enumerated,
        planned.placed,
        match planned.left_out {
            0 => String::new(),
            n => format!("{n} are certain not to be among the best, and of the others "),
        },
        planned.plans.len(),
        planned.seconds
    );
    let Some(plan) = planned.choice() else { return out };
    let problem = &planned.problem;
    let _ = writeln!(
        out,
        "The best: score {:.4} ({}), {:.2} USD per hour{}.\n{}",
        plan.score,
        planned.bound_words(),
        plan.usd_per_hour,
        score_per_usd(plan).map(|ratio| format!(", {ratio:.4} per USD")).unwrap_or_default(),
        deployment(problem, plan)
    );
    for (level, routing) in problem.levels.iter().zip(&plan.routings) {
        let often = if problem.levels.len() > 1 {
            format!(" ({:.0} % of the time)", 100.0 * level.weight)
        } else {
            String::new()
        };
        let _ = writeln!(
            out,
            "At {} requests per second{often}: {}\n{}",
            routing.rate,
            kept(problem, routing),
            shares(problem, routing)
        );
    }
    if !planned.at_demand.is_empty() {
        let _ = writeln!(out, "The same setup at other demand{}:\n{}", reach(planned), other_demand(planned));
    }
    let _ = writeln!(out, "Beside other setups:\n{}", others(planned));
    out
}

fn table(heads: &[&str], numbers_from: usize) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(heads);
    for column in numbers_from..heads.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn deployment(problem: &Problem, plan: &Plan) -> Table {
    let mut table = table(&["model", "GPU kind", "tensor parallel", "share", "copies", "on GPUs"], 2);
    for (m, choice) in plan.setup.0.iter().enumerate() {
        let name = problem.models[m].name.clone();
        if choice.replicas == 0 {
            table.add_row([name, "not deployed".to_owned()]);
            continue;
        }
        table.add_row([
            name,
            problem.kinds[choice.kind].name.clone(),
            choice.tensor_parallel.to_string(),
            format!("{} %", choice.share_percent),
            choice.replicas.to_string(),
            gpus_words(&plan.placement.gpus[m]),
        ]);
    }
    table
}

/// `0+1, 2+3` for two copies over two GPUs each.
pub fn gpus_words(copies: &[Vec<usize>]) -> String {
    let copy = |gpus: &Vec<usize>| gpus.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
    copies.iter().map(copy).collect::<Vec<_>>().join(", ")
}

/// What the limits hold, and by how much.
pub fn kept(problem: &Problem, routing: &Routing) -> String {
    let limits = problem.limits.iter().zip(&routing.limits_ms);
    let words = limits.map(|(limit, ms)| {
        format!("{} {ms:.0} of {} ({:.3})", limit_name(limit), limit.milliseconds, ms / limit.milliseconds)
    });
    format!("score {:.4}, {}", routing.score, words.collect::<Vec<_>>().join(", "))
}

fn shares(problem: &Problem, routing: &Routing) -> Table {
    let mut table = table(&["model", "requests", "price", "mean TTFT", "slowed by neighbours"], 1);
    for (m, model) in problem.models.iter().enumerate() {
        table.add_row([
            model.name.clone(),
            format!("{:.1} %", 100.0 * routing.fractions[m]),
            format!("{:.4}", routing.prices[m]),
            format!("{:.0} ms", routing.ttft_ms[m]),
            format!("{:.3}", routing.slow_down[m]),
        ]);
    }
    table
}

/// Up to which demand the limits are kept.
fn reach(planned: &Planned) -> String {
    let (kept, may_be_more) = planned.kept_up_to();
    let least = if may_be_more { "at least " } else { "" };
    format!(", which keeps the limits up to {least}{kept:.1} requests per second")
}

fn other_demand(planned: &Planned) -> Table {
    let problem = &planned.problem;
    let mut heads = vec!["requests per second", "limits kept", "score"];
    let names: Vec<String> = problem.limits.iter().map(limit_name).collect();
    heads.extend(names.iter().map(String::as_str));
    heads.extend(problem.models.iter().map(|model| model.name.as_str()));
    let mut table = table(&heads, 2);
    for at in &planned.at_demand {
        let routing = &at.routing;
        let mut row = vec![
            format!("{:.1}", routing.rate),
            if at.keeps { "yes" } else { "no" }.to_owned(),
            format!("{:.4}", routing.score),
        ];
        row.extend(routing.limits_ms.iter().map(|ms| format!("{ms:.0}")));
        row.extend(routing.fractions.iter().map(|fraction| format!("{:.1} %", 100.0 * fraction)));
        table.add_row(row);
    }
    table
}

fn others(planned: &Planned) -> Table {
    let problem = &planned.problem;
    let mut heads = vec![""];
    heads.extend(problem.models.iter().map(|model| model.name.as_str()));
    heads.push("score");
    let names: Vec<String> = problem.limits.iter().map(limit_name).collect();
    heads.extend(names.iter().map(String::as_str));
    heads.extend(["USD per hour", "score per USD"]);
    let mut table = table(&heads, 1 + problem.models.len());
    let row = |name: &str, plan: &Plan| {
        let mut row = vec![name.to_owned()];
        row.extend(plan.setup.0.iter().map(|choice| choice_words(problem, choice)));
        row.push(format!("{:.4}", plan.score));
        row.extend((0..problem.limits.len()).map(|limit| format!("{:.0}", worst_ms(plan, limit))));
        row.push(format!("{:.2}", plan.usd_per_hour));
        row.push(score_per_usd(plan).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.4}")));
        row
    };
    for (i, plan) in planned.plans.iter().take(1 + RUNNERS_UP).enumerate() {
        table.add_row(row(&if i == 0 { "choice".to_owned() } else { format!("{}.", i + 1) }, plan));
    }
    for ByRule { rule, found } in &planned.by_rule {
        match found {
            Some((plan, _)) => table.add_row(row(rule.name(), plan)),
            None => table.add_row([rule.name(), "keeps the limits with no setup"]),
        };
    }
    if let Some(last) = planned.plans.last().filter(|_| planned.left_out == 0 && planned.plans.len() > 1 + RUNNERS_UP) {
        table.add_row(row("the worst", last));
    }
    table
}
