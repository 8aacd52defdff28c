//! The planner on all cores: every setup, the best of them, and what would help where none keeps the limits.

#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::iter::{ParallelBridge, ParallelIterator};

use super::file::limit_name;
use super::planned::{AtDemand, ByRule, DEMANDS, Planned, RUNNERS_UP, setup_words, worst_ms};
use routebalance_plan::baselines::Baseline;
use routebalance_plan::placement::{isolated, place};
use routebalance_plan::problem::{Goal, GpuKind, Limit, Problem};
use routebalance_plan::search::{Planner, Worker};
use routebalance_plan::setup::{Choice, Placement, Setup, Setups};
use routebalance_plan::solution::{Plan, Routing};

/// Score by which every setup's bound may exceed its plan at first; those that could then be the best are solved again.
const COARSE_GAP: f64 = 5e-4;
/// Score by which the best plan may be off.
const FINE_GAP: f64 = 1e-5;
/// Scores that differ by no more are as good: those of 2,000 prompts scatter by a hundred times as much from sample to sample.
const TIE: f64 = 1e-4;
/// Part by which times that count as equal may differ.
const TIME_TIE: f64 = 1e-3;
/// Setups up to which every one is solved, for the page to show.
const ALL_MAX: usize = 30_000;
/// Setups that a thread takes at once: neighbours teach each other.
const CHUNK: usize = 64;

/// Choices of each model of which there is a profile, and that its shards' memory and the number of GPUs allow.
fn possible(problem: &Problem) -> Vec<Vec<Choice>> {
    let fits = |model: usize, choice: &Choice| {
        let kind = &problem.kinds[choice.kind];
        choice.replicas == 0
            || (choice.tensor_parallel as usize <= kind.count
                && problem.memory.shard_gb(&problem.models[model], choice.tensor_parallel) <= kind.memory_gb)
    };
    let mut choices = Planner::new(problem).choices();
    choices.iter_mut().enumerate().for_each(|(model, choices)| choices.retain(|choice| fits(model, choice)));
    choices
}

/// Does something with every item on all cores, neighbours on the same one, each chunk with a state of its own; results in the order
/// of the items. `None` ends a chunk's work on an item and everything after it everywhere.
fn on_all_cores<I: Sync, S, R: Send>(
    items: &[I],
    state: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &I) -> Option<R> + Sync,
    progress: &ProgressBar,
) -> Vec<(usize, R)> {
    let ends = AtomicBool::new(false);
    let worked = |(n, chunk): (usize, &[I])| {
        let mut results = Vec::new();
        if ends.load(Ordering::Relaxed) {
            return results;
        }
        // One for each chunk, so that results do not depend on which thread takes which.
        let mut state = state();
        for (i, item) in chunk.iter().enumerate() {
            match work(&mut state, item) {
                Some(result) => results.push((n * CHUNK + i, result)),
                None => {
                    ends.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        progress.inc(chunk.len() as u64);
        results
    };
    // Chunks begin in their order: what ends the work ends what is after it.
    let mut results: Vec<(usize, R)> = items.chunks(CHUNK).enumerate().par_bridge().flat_map_iter(worked).collect();
    results.sort_by_key(|(i, _)| *i);
    results
}

fn bar(len: usize, message: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len}, {elapsed}, {eta} left");
    ProgressBar::new(len as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(message)
}

/// A setup with its shards on GPUs.
type Placed = (Setup, Placement);

/// How a setup's shards are put on GPUs, if they fit.
pub type Placer = fn(&Problem, &Setup) -> Option<Placement>;

/// The problem's setups that have a placement.
fn placed(problem: &Problem, possible: &[Vec<Choice>], placer: Placer) -> Vec<Placed> {
    let setups: Vec<Setup> = Setups::among(problem, possible.to_vec()).collect();
    let progress = bar(setups.len(), "placing");
    let placements = on_all_cores(&setups, || (), |(), setup| Some(placer(problem, setup)), &progress);
    progress.finish_and_clear();
    setups.into_iter().zip(placements).filter_map(|(setup, (_, placement))| Some((setup, placement?))).collect()
}

/// Solves a problem: all setups, the best, what simple rules choose, and the best at other demand.
///
/// # Errors
/// One sentence: no setup is possible, or a profile is missing. That no setup keeps the limits is no error: there is no choice then.
pub fn plan(problem: &Problem, notes: Vec<String>) -> Result<Planned> {
    plan_placed(problem, notes, place)
}

/// [`plan`] with another way to put shards on GPUs.
///
/// # Errors
/// As [`plan`].
pub fn plan_placed(problem: &Problem, notes: Vec<String>, placer: Placer) -> Result<Planned> {
    let start = Instant::now();
    let enumerated = enumerated(problem)?;
    let possible = possible(problem);
    let planner = Planner::new(problem);
    let placed = placed(problem, &possible, placer);
    ensure_any(problem, enumerated, placed.len())?;
    let solved = solve_all(&planner, problem, &placed, ALL_MAX);
    let mut worker = planner.worker();
    let keeps: Vec<bool> = solved.iter().map(|solved| !matches!(solved, Solved::Infeasible)).collect();
    let by_rule = Baseline::ALL.map(|rule| by_rule(rule, problem, &placed, &keeps, &mut worker)).into();
    let left_out = solved.iter().filter(|solved| matches!(solved, Solved::LeftOut)).count();
    let mut plans: Vec<Plan> = solved
        .into_iter()
        .filter_map(|solved| match solved {
            Solved::Plan(plan) => Some(*plan),
            Solved::LeftOut | Solved::Infeasible => None,
        })
        .collect();
    refine(&planner, &mut worker, &mut plans);
    if problem.goal == Goal::Usd && plans.first().is_some_and(|plan| plan.score < problem.score_min) {
        let most = plans.iter().map(|plan| plan.score).fold(0.0, f64::max);
        bail!("infeasible: score_min is {}, and the best score that keeps the limits is {most:.4}", problem.score_min);
    }
    let bound = plans.iter().map(|plan| preferred_bound(problem, plan, plans.first())).fold(0.0, f64::max);
    for routing in plans.iter_mut().take(1 + RUNNERS_UP).flat_map(|plan| &mut plan.routings) {
        routing.prices = worker.exact_prices(routing);
    }
    let at_demand = match plans.first() {
        Some(plan) => at_demand(problem, plan),
        None => Vec::new(),
    };
    let seconds = start.elapsed().as_secs_f64();
    Ok(Planned {
        problem: problem.clone(),
        enumerated,
        placed: placed.len(),
        left_out,
        plans,
        bound,
        by_rule,
        at_demand,
        notes,
        seconds,
    })
}

/// How many setups there are.
///
/// # Errors
/// They are more than can be looked at.
pub fn enumerated(problem: &Problem) -> Result<usize> {
    let count = Setups::new(problem).take(SETUPS_MAX + 1).count();
    ensure!(
        count <= SETUPS_MAX,
        "more than {SETUPS_MAX} setups: fewer shares_percent, replicas or tensor_parallel, or a higher compute_min, leave fewer"
    );
    Ok(count)
}

/// Setups that are looked at, most: with their placements they take a few GB.
const SETUPS_MAX: usize = 5_000_000;

/// What came of a setup.
enum Solved {
    Plan(Box<Plan>),
    /// Nobody keeps the limits with it.
    Infeasible,
    /// It is certain not to be among the best.
    LeftOut,
}

/// Solves all setups; where they are more than `all_max`, not those whose bound shows that they are not among the best.
fn solve_all(planner: &Planner<'_>, problem: &Problem, placed: &[Placed], all_max: usize) -> Vec<Solved> {
    let progress = bar(placed.len(), "planning");
    let choosy = placed.len() > all_max;
    // What the best so far are worth, the best first.
    let leaders = Mutex::new(vec![f64::NEG_INFINITY; 1 + RUNNERS_UP]);
    let lock = || leaders.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let solved = on_all_cores(
        placed,
        || planner.worker(),
        |worker, (setup, placement)| {
            let could_be = |score: f64| planner.worth(score, placement.usd_per_hour(problem));
            if choosy && could_be(worker.bound(setup) + TIE) < lock()[RUNNERS_UP] {
                return Some(Solved::LeftOut);
            }
            let Some(plan) = worker.solve(setup, placement, COARSE_GAP) else {
                return Some(Solved::Infeasible);
            };
            add_leader(&mut lock(), could_be(plan.score));
            Some(Solved::Plan(Box::new(plan)))
        },
        &progress,
    );
    progress.finish_and_clear();
    solved.into_iter().map(|(_, solved)| solved).collect()
}

/// Keeps the highest, as many as there are.
fn add_leader(leaders: &mut Vec<f64>, worth: f64) {
    let places = leaders.len();
    leaders.insert(leaders.partition_point(|other| *other >= worth), worth);
    leaders.truncate(places);
}

fn ensure_any(problem: &Problem, enumerated: usize, placed: usize) -> Result<()> {
    let gpus: usize = problem.kinds.iter().map(|kind| kind.count).sum();
    ensure!(
        enumerated > 0,
        "no setup uses between {} and {gpus} GPUs of compute: allow more shards (tensor_parallel), copies (replicas), or less use of \
         the GPUs (compute_min)",
        problem.space.compute_min * gpus as f64
    );
    if placed == 0 {
        let caps = if problem.space.oversubscribe { "" } else { ", and caps of at most 100 % on each" };
        let mut help = more_gpus(problem);
        help.push("smaller models or shares, or more shards (tensor_parallel) could help".to_owned());
        bail!(
            "none of the {enumerated} setups fits on the {gpus} GPUs: their shards need more memory than there is{caps}; {}",
            help.join("; ")
        );
    }
    Ok(())
}

/// Sorts plans, the best first. Those that could be among the first are solved again until it is certain which are.
fn refine(planner: &Planner<'_>, worker: &mut Worker<'_>, plans: &mut [Plan]) {
    let worth = |plan: &Plan| planner.worth(plan.score, plan.usd_per_hour);
    let could_be = |plan: &Plan| planner.worth(plan.score_bound, plan.usd_per_hour);
    let mut order: Vec<usize> = (0..plans.len()).collect();
    order.sort_by(|a, b| could_be(&plans[*b]).total_cmp(&could_be(&plans[*a])));
    // What the first ones are worth, the best first.
    let mut first = vec![f64::NEG_INFINITY; 1 + RUNNERS_UP];
    for i in order {
        let plan = &plans[i];
        // Plans that could tie with the best are solved as exactly as it is.
        let could_tie = planner.worth(plan.score_bound + TIE, plan.usd_per_hour) >= first[0];
        if could_be(plan) < first[RUNNERS_UP] && !could_tie {
            break;
        }
        if plan.score_bound - plan.score > FINE_GAP
            && let Some(finer) = worker.solve(&plan.setup, &plan.placement, FINE_GAP)
        {
            if finer.score >= plan.score {
                plans[i] = finer;
            } else {
                plans[i].score_bound = finer.score_bound.max(plan.score);
            }
        }
        add_leader(&mut first, worth(&plans[i]));
    }
    // Times as far as they differ by more than what solving leaves open, so that the order does not hang on it.
    let ms = |plan: &Plan| (worst_ms(plan, 0).ln() / TIME_TIE).round();
    let by_cost = |a: &Plan, b: &Plan| {
        let by_time = || ms(a).total_cmp(&ms(b)).then_with(|| a.setup.cmp(&b.setup));
        a.usd_per_hour.total_cmp(&b.usd_per_hour).then_with(by_time)
    };
    plans.sort_by(|a, b| worth(b).total_cmp(&worth(a)).then_with(|| by_cost(a, b)));
    // Of plans that are as good, the cheapest and then the fastest comes first.
    let Some(best) = plans.first() else { return };
    let (score, usd) = (best.score, best.usd_per_hour);
    let is_as_good = |plan: &Plan| {
        worth(plan) > f64::NEG_INFINITY
            && planner.worth(plan.score + TIE, plan.usd_per_hour) >= planner.worth(score, usd)
    };
    let choice = (0..plans.len()).filter(|i| is_as_good(&plans[*i])).min_by(|a, b| by_cost(&plans[*a], &plans[*b]));
    plans[..=choice.unwrap_or(0)].rotate_right(1);
}

/// The score that a plan could have at most, if it could be the best at all: by the goals that look at money, at the choice's cost.
fn preferred_bound(problem: &Problem, plan: &Plan, choice: Option<&Plan>) -> f64 {
    let Some(choice) = choice else { return 0.0 };
    match problem.goal {
        Goal::Score => plan.score_bound,
        Goal::ScorePerUsd => plan.score_bound * choice.usd_per_hour / plan.usd_per_hour.max(f64::MIN_POSITIVE),
        Goal::Usd if plan.usd_per_hour <= choice.usd_per_hour => plan.score_bound,
        Goal::Usd => 0.0,
    }
}

/// The setup closest to a rule's targets that keeps the limits; `keeps` says which of those placed do.
fn by_rule(rule: Baseline, problem: &Problem, placed: &[Placed], keeps: &[bool], worker: &mut Worker<'_>) -> ByRule {
    let setups: Vec<Setup> = placed.iter().map(|(setup, _)| setup.clone()).collect();
    let found = rule.ranked(problem, &setups).into_iter().find_map(|ranked| {
        let (setup, own) = &placed[ranked.index];
        let alone = if rule == Baseline::Isolated { isolated(problem, setup) } else { None };
        if alone.is_none() && !keeps[ranked.index] {
            return None;
        }
        let plan = worker.solve(setup, alone.as_ref().unwrap_or(own), FINE_GAP)?;
        Some((plan, ranked.distance))
    });
    ByRule { rule, found }
}

/// The best routing of a plan's setup at other demand; where it cannot keep the limits, they are raised as far as it takes, and the
/// highest demand at which it can is among them.
pub(super) fn at_demand(problem: &Problem, plan: &Plan) -> Vec<AtDemand> {
    let highest = problem.levels.iter().map(|level| level.rate).fold(0.0, f64::max);
    let routing = |rate: f64, raised: f64| {
        let eased = with_limits(problem, raised);
        let planner = Planner::new(&eased);
        let mut worker = planner.worker();
        let mut routing = worker.at_rate(rate, &plan.setup, &plan.placement, FINE_GAP)?;
        routing.prices = worker.exact_prices(&routing);
        Some(AtDemand { routing, keeps: raised == 1.0 })
    };
    let mut all = Vec::new();
    let (mut kept, mut lost) = (highest, None);
    for part in DEMANDS {
        let rate = part * highest;
        let raised = || least(&RAISED, |raised| routing(rate, raised)).map(|(_, at)| at);
        let at = routing(rate, 1.0).or_else(raised);
        match &at {
            Some(at) if at.keeps => kept = f64::max(kept, rate),
            _ => lost = lost.or(Some(rate)),
        }
        all.extend(at);
    }
    if let Some(mut lost) = lost.filter(|lost| *lost > kept) {
        let mut last = None;
        while lost / kept > 1.0 + ADVICE_GAP {
            let middle = 0.5 * (kept + lost);
            match routing(middle, 1.0) {
                Some(at) => (kept, last) = (middle, Some(at)),
                None => lost = middle,
            }
        }
        all.extend(last);
        all.sort_by(|a, b| a.routing.rate.total_cmp(&b.routing.rate));
    }
    all
}

/// What a gateway follows: the plan's routings and those at other demand, at growing rates, and what is best beyond the highest demand
/// that the profiles tell of. There every copy has all that it can serve, so waiting is least where all have as much too much.
pub(super) fn followed(problem: &Problem, plan: &Plan, at_demand: &[AtDemand]) -> Vec<Routing> {
    let mut all: Vec<Routing> = plan.routings.iter().chain(at_demand.iter().map(|at| &at.routing)).cloned().collect();
    all.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    all.dedup_by(|a, b| (a.rate - b.rate).abs() <= 1e-6 * b.rate);
    let Some(last) = all.last() else { return all };
    let eased = with_limits(problem, NO_LIMIT);
    let planner = Planner::new(&eased);
    let mut worker = planner.worker();
    let mut at = |rate: f64| worker.at_rate(rate, &plan.setup, &plan.placement, FINE_GAP);
    let (mut kept, mut lost) = (last.rate, FAR * last.rate);
    if at(lost).is_some() {
        return all;
    }
    let mut full = last.clone();
    while lost / kept > 1.0 + CAPACITY_GAP {
        let middle = 0.5 * (kept + lost);
        match at(middle) {
            Some(routing) => (kept, full) = (middle, routing),
            None => lost = middle,
        }
    }
    full.prices = worker.exact_prices(&full);
    if full.rate > last.rate {
        all.push(full.clone());
    }
    all.push(Routing { rate: FAR * full.rate, ..full });
    all
}

/// By which limits are raised so that only what copies can serve is one.
const NO_LIMIT: f64 = 1e6;
/// Demand that is far beyond what a plan is for, as a multiple.
const FAR: f64 = 3.0;
/// Part by which the highest demand that a setup can serve may be off.
const CAPACITY_GAP: f64 = 2e-3;

/// By which limits are raised to find the least that can be kept.
const RAISED: [f64; 22] = [
    1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.4, 1.5, 1.7, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0,
    100.0,
];

fn with_limits(problem: &Problem, raised: f64) -> Problem {
    let limits = problem.limits.iter().map(|limit| Limit { milliseconds: limit.milliseconds * raised, ..*limit });
    Problem { limits: limits.collect(), ..problem.clone() }
}

/// A setup that keeps the problem's limits, the first that is found.
fn any_setup(problem: &Problem) -> Option<Setup> {
    let possible = possible(problem);
    let planner = Planner::new(problem);
    let setups: Vec<Setup> = Setups::among(problem, possible).collect();
    let progress = bar(setups.len(), "looking for what would help");
    let found: Mutex<Option<Setup>> = Mutex::new(None);
    on_all_cores(
        &setups,
        || planner.worker(),
        |worker, setup| {
            let placement = place(problem, setup);
            let keeps = placement.is_some_and(|p| worker.solve(setup, &p, ANY_GAP).is_some());
            if keeps {
                found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert_with(|| setup.clone());
            }
            (!keeps).then_some(())
        },
        &progress,
    );
    progress.finish_and_clear();
    found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Any routing will do.
const ANY_GAP: f64 = 10.0;
/// Part by which the limits or the rate that can be kept may be off.
const ADVICE_GAP: f64 = 0.01;
/// GPUs of a kind that are tried in addition.
const MORE_GPUS: usize = 16;

/// What would help where no setup keeps the limits, a sentence each. Profiles are those of the problem: they do not depend on how many
/// GPUs there are.
pub fn advice(problem: &Problem) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some((raised, setup)) = least(&RAISED, |raised| any_setup(&with_limits(problem, raised))) {
        let limits: Vec<String> = problem
            .limits
            .iter()
            .map(|limit| {
                let ms = rounded(limit.milliseconds * raised, f64::ceil);
                format!("{} of {ms} instead of {}", limit_name(limit), limit.milliseconds)
            })
            .collect();
        lines.push(format!("the best that can be kept is {} ({})", limits.join(", "), setup_words(problem, &setup)));
    }
    let lower: Vec<f64> = RATES.to_vec();
    let slower = |part: f64| {
        let levels =
            problem.levels.iter().map(|level| routebalance_plan::problem::Level { rate: level.rate / part, ..*level });
        Problem { levels: levels.collect(), ..problem.clone() }
    };
    if let Some((part, setup)) = least(&lower, |part| any_setup(&slower(part))) {
        let rates = problem.levels.iter().map(|level| rounded(level.rate / part, f64::floor).to_string());
        let rates: Vec<String> = rates.collect();
        lines.push(format!(
            "the limits can be kept at {} requests per second ({})",
            rates.join(" and "),
            setup_words(problem, &setup)
        ));
    }
    lines.extend(more_gpus(problem));
    lines
}

/// The least number of GPUs of each kind with which some setup keeps the limits, a sentence each.
fn more_gpus(problem: &Problem) -> Vec<String> {
    let mut lines = Vec::new();
    for (k, kind) in problem.kinds.iter().enumerate() {
        for more in 1..=MORE_GPUS {
            let mut kinds: Vec<GpuKind> = problem.kinds.clone();
            kinds[k].count += more;
            let larger = Problem { kinds, ..problem.clone() };
            // With more GPUs than the setups may use together, there is nothing left to try.
            if Setups::new(&larger).next().is_none() {
                break;
            }
            if let Some(setup) = any_setup(&larger) {
                lines.push(format!(
                    "the least number of GPUs that would do is {} {} ({})",
                    kind.count + more,
                    kind.name,
                    setup_words(&larger, &setup)
                ));
                break;
            }
        }
    }
    lines
}

/// Three digits of a positive value, towards what is possible.
fn rounded(value: f64, towards: fn(f64) -> f64) -> f64 {
    let digits = 2 - value.log10().floor() as i32;
    let unit = 10_f64.powi(digits.abs());
    if digits > 0 { towards(value * unit) / unit } else { towards(value / unit) * unit }
}

/// By which demand is divided to find what can be served.
const RATES: [f64; 12] = [1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0, 5.0, 10.0, 20.0];

/// The least factor that helps, to within [`ADVICE_GAP`], with what it makes possible: first the least of those given, then between
/// it and the one before.
fn least<T>(factors: &[f64], mut helps: impl FnMut(f64) -> Option<T>) -> Option<(f64, T)> {
    let (mut low, mut found) = (1.0, None);
    for factor in factors {
        if let Some(setup) = helps(*factor) {
            found = Some((*factor, setup));
            break;
        }
        low = *factor;
    }
    let (mut high, mut best) = found?;
    while high / low > 1.0 + ADVICE_GAP {
        let middle = 0.5 * (low + high);
        match helps(middle) {
            Some(better) => (high, best) = (middle, better),
            None => low = middle,
        }
    }
    Some((high, best))
}

/// The sentence for a problem that has no plan, with what would help.
///
/// # Errors
/// That sentence, always.
pub fn infeasible(planned: &Planned) -> Result<()> {
    let problem = &planned.problem;
    let limits: Vec<String> =
        problem.limits.iter().map(|limit| format!("{} {}", limit_name(limit), limit.milliseconds)).collect();
    let rates: Vec<String> = problem.levels.iter().map(|level| level.rate.to_string()).collect();
    let advice = advice(problem);
    let helps = if advice.is_empty() { "nothing that was tried would help".to_owned() } else { advice.join("; ") };
    bail!(
        "infeasible: none of the {} setups that fit keeps {} at {} requests per second: {helps}",
        planned.placed,
        limits.join(" and "),
        rates.join(" and ")
    )
}
