//! A plan as one HTML page that needs nothing else.

mod placement;
pub(super) mod plots;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result};
use maud::{Markup, html};

use super::file::limit_name;
use super::planned::{ByRule, Planned, RUNNERS_UP, choice_words, score_per_usd, setup_words, worst_ms};
use super::table::gpus_words;
use crate::page::axis::{fixed, number};
use crate::page::scene::Scene;
use crate::page::svg;
use crate::page::tables::Table;
use crate::page::{document, header, section};
use routebalance_plan::problem::Problem;
use routebalance_plan::solution::{Plan, Routing};

/// A part of the page that others than the planner have made: how the plan fared in the simulator, say.
#[derive(Clone, Debug)]
pub struct Part {
    /// Unique on the page.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// What it shows.
    pub content: Markup,
}

/// Writes the page of a plan, with further parts after the planner's own.
///
/// # Errors
/// The file cannot be written.
pub fn write(file: &Path, planned: &Planned, parts: &[Part]) -> Result<()> {
    std::fs::write(file, plan_page(planned, parts)).with_context(|| format!("{} cannot be written", file.display()))
}

/// The page of a plan.
pub fn plan_page(planned: &Planned, parts: &[Part]) -> String {
    let body = html! {
        (head(planned))
        @if let Some(plan) = planned.choice() {
            (section("setups", "What setups can reach", &setups(planned)))
            (section("choice", "The choice", &choice(planned, plan)))
            @if !planned.at_demand.is_empty() {
                (section("demand", "If demand is not as planned", &demand(planned)))
            }
        }
        @for part in parts {
            (section(&part.id, &part.title, &part.content))
        }
        (section("basis", "What this rests on", &basis(planned)))
    };
    document("RouteBalance: a plan", &body)
}

/// A picture of the page: `sixths` of its width.
pub(crate) fn figure(scene: &Scene, sixths: usize) -> Markup {
    html! { figure class={ "w" (sixths) } { (svg::element(scene)) } }
}

fn head(planned: &Planned) -> Markup {
    let problem = &planned.problem;
    let gpus: Vec<String> = problem.kinds.iter().map(|kind| format!("{} {}", kind.count, kind.name)).collect();
    let rates: Vec<String> = problem.levels.iter().map(|level| number(level.rate, 4)).collect();
    let limits: Vec<String> =
        problem.limits.iter().map(|limit| format!("{} {}", limit_name(limit), number(limit.milliseconds, 4))).collect();
    let title = format!("{} models on {}", problem.models.len(), gpus.join(" and "));
    let lead = format!("{} requests per second, {}.", rates.join(" or "), limits.join(", "));
    header(&title, &lead, &tiles(planned))
}

/// What the page shows first: a number, what it is, and a class.
fn tiles(planned: &Planned) -> Vec<(String, String, &'static str)> {
    let Some(plan) = planned.choice() else {
        return vec![("none".to_owned(), "no setup keeps the limits".to_owned(), "bad")];
    };
    let bound = format!("predicted score of the choice; {}", planned.bound_words());
    let mut tiles = vec![(fixed(plan.score, 4), bound, "good")];
    for (index, limit) in planned.problem.limits.iter().enumerate() {
        let ms = worst_ms(plan, index);
        let text = format!(
            "{}, of {}: a margin of {}",
            limit_name(limit),
            number(limit.milliseconds, 4),
            fixed(ms / limit.milliseconds, 3)
        );
        tiles.push((format!("{} ms", number(ms, 3)), text, ""));
    }
    let ratio = score_per_usd(plan).map(|ratio| format!("; {} score per USD", fixed(ratio, 3)));
    let text = format!("per hour for the GPUs in use{}", ratio.unwrap_or_default());
    tiles.push((format!("USD {}", number(plan.usd_per_hour, 4)), text, ""));
    let worst = planned.plans.iter().map(|plan| plan.score).fold(f64::INFINITY, f64::min);
    let text = format!(
        "setups keep the limits, of {} that fit and {} in all; the worst of them has a score of {}",
        number(planned.placed as f64, 9),
        number(planned.enumerated as f64, 9),
        fixed(worst, 3)
    );
    tiles.push((number(planned.plans.len() as f64, 9), text, ""));
    tiles
}

fn setups(planned: &Planned) -> Markup {
    html! {
        p { "Every mark is a setup that keeps the limits, with its best routing." }
        div.plots { (figure(&plots::setups(planned), 6)) }
        (others(planned))
    }
}

fn others(planned: &Planned) -> Markup {
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
    html! {
        (table.done())
        @if !none.is_empty() {
            p { "No setup of " (none.join(" and of ")) " keeps the limits." }
        }
    }
}

fn choice(planned: &Planned, plan: &Plan) -> Markup {
    let problem = &planned.problem;
    let mut table = Table::new(&["model", "deployed as", "on GPUs"]);
    for (m, choice) in plan.setup.0.iter().enumerate() {
        table.row(None);
        table.words(&problem.models[m].name);
        table.words(&choice_words(problem, choice));
        table.words(&gpus_words(&plan.placement.gpus[m]));
    }
    html! {
        div.plots { (figure(&placement::scene(problem, plan), 6)) }
        (table.done())
        @for routing in &plan.routings {
            h3 { "At " (number(routing.rate, 4)) " requests per second" }
            (shares(problem, routing))
        }
    }
}

fn shares(problem: &Problem, routing: &Routing) -> Markup {
    let mut table = Table::new(&["model", "share of the requests", "price", "mean TTFT, ms", "slowed by neighbours"]);
    for (m, model) in problem.models.iter().enumerate() {
        table.row(None);
        table.words(&model.name);
        table.value(routing.fractions[m], &format!("{:.1} %", 100.0 * routing.fractions[m]), false);
        table.value(routing.prices[m], &format!("{:.4}", routing.prices[m]), false);
        table.value(routing.ttft_ms[m], &number(routing.ttft_ms[m], 3), false);
        table.value(routing.slow_down[m], &fixed(routing.slow_down[m], 4), false);
    }
    table.done()
}

fn demand(planned: &Planned) -> Markup {
    html! {
        p { "The chosen setup with the best routing at each demand. A gateway that follows the demand moves along these lines." }
        div.plots {
            @for scene in plots::demand(planned) {
                (figure(&scene, 3))
            }
        }
        @if let Some(at) = planned.at_demand.iter().find(|at| !at.keeps) {
            p.warn {
                "At " (number(at.routing.rate, 4))
                " requests per second no routing of this setup keeps the limits: they are exceeded as little as it can."
            }
        }
    }
}

fn basis(planned: &Planned) -> Markup {
    let problem = &planned.problem;
    html! {
        ul {
            li {
                (number(problem.scores.prompts() as f64, 9)) " prompts with predicted scores; "
                (number(problem.profiles.len() as f64, 9)) " latency profiles of single copies."
            }
            li {
                @if let Some(strength) = problem.space.interference {
                    "Copies that share a GPU slow each other by " (number(strength, 3))
                    " times the others' caps while these are at work: an assumption."
                } @else {
                    "Copies that share a GPU are taken not to slow each other."
                }
            }
            li {
                "Every setup is solved with a bound that no routing exceeds; the choice is certified to within "
                (number(planned.gap(), 2)) " of the best score."
            }
            @for note in &planned.notes {
                li { (note) }
            }
        }
    }
}
