//! A plan as one HTML page that needs nothing else.

mod placement;
pub(super) mod plots;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::file::limit_name;
use super::planned::{ByRule, Planned, RUNNERS_UP, choice_words, score_per_usd, setup_words, worst_ms};
use super::table::gpus_words;
use crate::page::axis::{fixed, number};
use crate::page::scene::Scene;
use crate::page::svg::{self, escaped};
use crate::page::tables::Table;
use crate::page::{document, section};
use routebalance_plan::problem::Problem;
use routebalance_plan::solution::{Plan, Routing};

/// A part of the page that others than the planner have made: how the plan fared in the simulator, say.
#[derive(Clone, Debug)]
pub struct Part {
    /// Unique on the page.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// Its HTML.
    pub html: String,
}

/// Writes the page of a plan, with further parts after the planner's own.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, planned: &Planned, parts: &[Part]) -> Result<()> {
    std::fs::write(file, html(planned, parts)).with_context(|| format!("{} cannot be written", file.display()))
}

/// The page of a plan.
pub fn html(planned: &Planned, parts: &[Part]) -> String {
    let mut body = String::new();
    head(&mut body, planned);
    if let Some(plan) = planned.choice() {
        section(&mut body, "setups", "What setups can reach", &setups(planned));
        section(&mut body, "choice", "The choice", &choice(planned, plan));
        if !planned.at_demand.is_empty() {
            section(&mut body, "demand", "If demand is not as planned", &demand(planned));
        }
    }
    for part in parts {
        section(&mut body, &part.id, &part.title, &part.html);
    }
    section(&mut body, "basis", "What this rests on", &basis(planned));
    document("RouteBalance: a plan", &body)
}

/// A picture of the page: `sixths` of its width.
pub(crate) fn figure(scene: &Scene, sixths: usize) -> String {
    format!("<figure class=\"w{sixths}\">{}</figure>\n", svg::element(scene))
}

fn head(body: &mut String, planned: &Planned) {
    let problem = &planned.problem;
    let gpus: Vec<String> = problem.kinds.iter().map(|kind| format!("{} {}", kind.count, kind.name)).collect();
    let rates: Vec<String> = problem.levels.iter().map(|level| number(level.rate, 4)).collect();
    let limits: Vec<String> =
        problem.limits.iter().map(|limit| format!("{} {}", limit_name(limit), number(limit.milliseconds, 4))).collect();
    let _ = write!(
        body,
        "<header><button id=\"theme\" type=\"button\" hidden=\"hidden\">light / dark</button><h1>{} models on {}</h1>\n\
         <p class=\"lead\">{} requests per second, {}.</p>\n<div class=\"tiles\">",
        problem.models.len(),
        escaped(&gpus.join(" and ")),
        rates.join(" or "),
        escaped(&limits.join(", "))
    );
    let mut tile = |value: &str, text: &str, class: &str| {
        let _ =
            write!(body, "<div class=\"tile {class}\"><b>{}</b><span>{}</span></div>", escaped(value), escaped(text));
    };
    match planned.choice() {
        None => tile("none", "no setup keeps the limits", "bad"),
        Some(plan) => {
            let bound = format!("predicted score of the choice; {}", planned.bound_words());
            tile(&fixed(plan.score, 4), &bound, "good");
            for (index, limit) in problem.limits.iter().enumerate() {
                let ms = worst_ms(plan, index);
                let text = format!(
                    "{}, of {}: a margin of {}",
                    limit_name(limit),
                    number(limit.milliseconds, 4),
                    fixed(ms / limit.milliseconds, 3)
                );
                tile(&format!("{} ms", number(ms, 3)), &text, "");
            }
            let ratio = score_per_usd(plan).map(|ratio| format!("; {} score per USD", fixed(ratio, 3)));
            let text = format!("per hour for the GPUs in use{}", ratio.unwrap_or_default());
            tile(&format!("USD {}", number(plan.usd_per_hour, 4)), &text, "");
            let worst = planned.plans.iter().map(|plan| plan.score).fold(f64::INFINITY, f64::min);
            let text = format!(
                "setups keep the limits, of {} that fit and {} in all; the worst of them has a score of {}",
                number(planned.placed as f64, 9),
                number(planned.enumerated as f64, 9),
                fixed(worst, 3)
            );
            tile(&number(planned.plans.len() as f64, 9), &text, "");
        }
    }
    body.push_str("</div></header>\n");
}

fn setups(planned: &Planned) -> String {
    let mut html =
        "<p>Every mark is a setup that keeps the limits, with its best routing.</p>\n<div class=\"plots\">\n"
            .to_owned();
    html.push_str(&figure(&plots::setups(planned), 6));
    html.push_str("</div>\n");
    html.push_str(&others(planned));
    html
}

fn others(planned: &Planned) -> String {
    let problem = &planned.problem;
    let mut heads = vec!["", "setup", "score"];
    let names: Vec<String> = problem.limits.iter().map(limit_name).collect();
    heads.extend(names.iter().map(String::as_str));
    heads.extend(["USD per hour", "score per USD"]);
    let mut table = Table::new(&heads);
    let best = planned.plans.iter().map(|plan| plan.score).fold(f64::NEG_INFINITY, f64::max);
    let mut row = |name: &str, plan: &Plan| {
        table.row(None);
        table.words(name);
        table.words(&setup_words(problem, &plan.setup));
        table.value(plan.score, &fixed(plan.score, 4), plan.score >= best);
        for limit in 0..problem.limits.len() {
            table.value(worst_ms(plan, limit), &number(worst_ms(plan, limit), 4), false);
        }
        table.value(plan.usd_per_hour, &number(plan.usd_per_hour, 4), false);
        let ratio = score_per_usd(plan).unwrap_or(f64::NAN);
        table.value(ratio, &fixed(ratio, 4), false);
        table.end_row();
    };
    for (i, plan) in planned.plans.iter().take(1 + RUNNERS_UP).enumerate() {
        row(&if i == 0 { "choice".to_owned() } else { format!("{}.", i + 1) }, plan);
    }
    for ByRule { rule, found } in &planned.by_rule {
        if let Some((plan, _)) = found {
            row(rule.name(), plan);
        }
    }
    let none: Vec<&str> =
        planned.by_rule.iter().filter(|by_rule| by_rule.found.is_none()).map(|b| b.rule.name()).collect();
    let mut html = table.done();
    if !none.is_empty() {
        let _ = write!(html, "<p>No setup of {} keeps the limits.</p>", escaped(&none.join(" and of ")));
    }
    html
}

fn choice(planned: &Planned, plan: &Plan) -> String {
    let problem = &planned.problem;
    let mut html = "<div class=\"plots\">\n".to_owned();
    html.push_str(&figure(&placement::scene(problem, plan), 6));
    html.push_str("</div>\n");
    let mut table = Table::new(&["model", "deployed as", "on GPUs"]);
    for (m, choice) in plan.setup.0.iter().enumerate() {
        table.row(None);
        table.words(&problem.models[m].name);
        table.words(&choice_words(problem, choice));
        table.words(&gpus_words(&plan.placement.gpus[m]));
        table.end_row();
    }
    html.push_str(&table.done());
    for routing in &plan.routings {
        let _ =
            write!(html, "<h3>At {} requests per second</h3>\n{}", number(routing.rate, 4), shares(problem, routing));
    }
    html
}

fn shares(problem: &Problem, routing: &Routing) -> String {
    let mut table = Table::new(&["model", "share of the requests", "price", "mean TTFT, ms", "slowed by neighbours"]);
    for (m, model) in problem.models.iter().enumerate() {
        table.row(None);
        table.words(&model.name);
        table.value(routing.fractions[m], &format!("{:.1} %", 100.0 * routing.fractions[m]), false);
        table.value(routing.prices[m], &format!("{:.4}", routing.prices[m]), false);
        table.value(routing.ttft_ms[m], &number(routing.ttft_ms[m], 3), false);
        table.value(routing.slow_down[m], &fixed(routing.slow_down[m], 4), false);
        table.end_row();
    }
    table.done()
}

fn demand(planned: &Planned) -> String {
    let mut html = "<p>The chosen setup with the best routing at each demand. A gateway that follows the demand moves along these lines.</p>\n\
                    <div class=\"plots\">\n"
        .to_owned();
    for scene in plots::demand(planned) {
        html.push_str(&figure(&scene, 3));
    }
    html.push_str("</div>\n");
    let lost = planned.at_demand.iter().find(|at| !at.keeps);
    if let Some(at) = lost {
        let _ = write!(
            html,
            "<p class=\"warn\">At {} requests per second no routing of this setup keeps the limits: they are exceeded as little as it can.</p>",
            number(at.routing.rate, 4)
        );
    }
    html
}

fn basis(planned: &Planned) -> String {
    let problem = &planned.problem;
    let mut html = format!(
        "<ul><li>{} prompts with predicted scores; {} latency profiles of single copies.</li>\
         <li>{}</li>\
         <li>Every setup is solved with a bound that no routing exceeds; the choice is certified to within {} of the best score.</li>",
        number(problem.scores.prompts() as f64, 9),
        number(problem.profiles.len() as f64, 9),
        problem.space.interference.map_or_else(
            || "Copies that share a GPU are taken not to slow each other.".to_owned(),
            |strength| format!("Copies that share a GPU slow each other by {} times the others' caps while these are at work: an assumption.", number(strength, 3)),
        ),
        number(planned.gap(), 2)
    );
    for note in &planned.notes {
        let _ = write!(html, "<li>{}</li>", escaped(note));
    }
    html + "</ul>"
}
