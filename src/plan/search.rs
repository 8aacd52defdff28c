//! From setups to plans: what each can do, and how little could still be worth a look.
//!
//! A [`Planner`] is what all workers share, a [`Worker`] belongs to one thread. The caller enumerates setups
//! ([`super::setup`]), places their shards ([`super::placement`]) and hands them over in any order; consecutive ones that are alike
//! are solved faster.
//!
//! Interference depends on how busy the copies are, hence on the routing: the routing is solved for slow-downs, these are computed
//! anew from it, and so on until they agree. The bound is for the slow-downs of the plan.

use std::collections::BTreeMap;

use super::curve::{Served, Term};
use super::interference::Interference;
use super::problem::{Goal, Limit, Metric, Problem, Statistic};
use super::profile::Profile;
use super::scores::Scores;
use super::setup::{Choice, Placement, Setup};
use super::solution::{Plan, Routing};
use super::solve::{Solved, Solver};

/// A problem, made ready.
#[derive(Clone, Debug)]
pub struct Planner<'a> {
    problem: &'a Problem,
    /// Index of the profile, by model, kind, shards and share.
    profiles: BTreeMap<(usize, usize, u32, u32), usize>,
}

/// Part by which slow-downs may still differ from those that the routing was solved for.
const SLOW_DOWN_TOLERANCE: f64 = 1e-3;
/// Routings for one setup until its slow-downs agree; a setup whose never do has no plan.
const SLOW_DOWN_ROUNDS: usize = 24;
/// Bounds that are kept to tell at once that a setup is not worth solving.
const CUTS_MAX: usize = 24;

impl<'a> Planner<'a> {
    /// A planner for a problem.
    pub fn new(problem: &'a Problem) -> Planner<'a> {
        let key = |p: &Profile| (p.model, p.kind, p.tensor_parallel, p.share_percent);
        Planner { problem, profiles: problem.profiles.iter().enumerate().map(|(i, p)| (key(p), i)).collect() }
    }

    /// The ways to deploy each model of which there is a profile: only setups of these have a plan.
    pub fn choices(&self) -> Vec<Vec<Choice>> {
        let all = super::setup::choices(self.problem);
        let known = |model: usize, choice: &Choice| choice.replicas == 0 || self.profile(model, choice).is_some();
        let choices_of = |model: usize| all.iter().filter(|c| known(model, c)).copied().collect();
        (0..self.problem.models.len()).map(choices_of).collect()
    }

    /// The problem.
    pub(super) fn problem(&self) -> &'a Problem {
        self.problem
    }

    fn profile(&self, model: usize, choice: &Choice) -> Option<&'a Profile> {
        let key = (model, choice.kind, choice.tensor_parallel, choice.share_percent);
        self.problem.profiles.get(*self.profiles.get(&key)?)
    }

    /// What a model's copies are and get; `None` for a model that is not deployed.
    fn served(&self, model: usize, choice: &Choice, slow_down: f64, rate: f64) -> Option<Served<'a>> {
        let deployed = choice.replicas > 0;
        let profile = deployed.then(|| self.profile(model, choice))??;
        Some(Served { profile, replicas: choice.replicas, slow_down, rate })
    }

    pub(super) fn all_served(&self, setup: &Setup, slow_down: &[f64], rate: f64) -> Vec<Option<Served<'a>>> {
        let served = |(model, (choice, f)): (usize, (&Choice, &f64))| self.served(model, choice, *f, rate);
        setup.0.iter().zip(slow_down).enumerate().map(served).collect()
    }

    fn terms(&self, served: &[Option<Served<'_>>], limits: &[Limit]) -> Vec<Term> {
        let term = |s: &Option<Served<'_>>| match s {
            Some(served) => Term::new(served, limits, self.problem.beyond),
            None => Term::none(limits.len()),
        };
        served.iter().map(term).collect()
    }

    /// What a plan is worth by the problem's goal, higher is better: it never falls with the score.
    pub fn worth(&self, score: f64, usd_per_hour: f64) -> f64 {
        match self.problem.goal {
            Goal::Score => score,
            Goal::ScorePerUsd => score / usd_per_hour.max(f64::MIN_POSITIVE),
            // Of two that cost the same, the better one; no score makes up for a cent.
            Goal::Usd if score >= self.problem.score_min => score * 1e-3 - usd_per_hour,
            Goal::Usd => f64::NEG_INFINITY,
        }
    }

    /// A worker for one thread.
    pub fn worker(&self) -> Worker<'_> {
        let levels =
            self.problem.levels.iter().map(|_| AtLevel { solver: Solver::new(&self.problem.scores), cuts: Vec::new() });
        Worker { planner: self, levels: levels.collect() }
    }
}

/// Solves setups, one after the other.
#[derive(Clone, Debug)]
pub struct Worker<'a> {
    planner: &'a Planner<'a>,
    levels: Vec<AtLevel<'a>>,
}

#[derive(Clone, Debug)]
struct AtLevel<'a> {
    solver: Solver<'a>,
    cuts: Vec<Cut>,
}

/// A bound for all setups: prices and multipliers, and what the prompts make of them.
#[derive(Clone, Debug)]
struct Cut {
    prices: Vec<f64>,
    multipliers: Vec<f64>,
    /// What does not depend on the setup.
    fixed: f64,
    /// What each choice of each model adds, as far as it was asked for.
    worth: BTreeMap<(usize, Choice), f64>,
}

impl<'a> Worker<'a> {
    fn problem(&self) -> &'a Problem {
        self.planner.problem
    }

    /// A score that no plan of a setup exceeds, from the prices of setups that were solved before: quick, and not tight.
    pub fn bound(&mut self, setup: &Setup) -> f64 {
        let Worker { planner, levels } = self;
        let problem = planner.problem;
        let mut sum = 0.0;
        for (at, level) in levels.iter_mut().zip(&problem.levels) {
            let mut least = problem.scores.range().1;
            for cut in &mut at.cuts {
                let mut bound = cut.fixed;
                for (model, choice) in setup.0.iter().enumerate() {
                    let worth = cut.worth.entry((model, *choice)).or_insert_with(|| {
                        let served = planner.served(model, choice, 1.0, level.rate);
                        let Some(served) = served else { return 0.0 };
                        let term = Term::new(&served, &problem.limits, problem.beyond);
                        let price = cut.prices.get(model).copied().unwrap_or(0.0);
                        term.best_share(price, &cut.multipliers, (0.0, term.share_max())).1
                    });
                    bound += *worth;
                }
                least = least.min(bound);
            }
            sum += level.weight * least;
        }
        sum
    }

    /// The best plan of a setup, its score to within a gap; `None` if no routing keeps the limits at every level.
    pub fn solve(&mut self, setup: &Setup, placement: &Placement, gap: f64) -> Option<Plan> {
        let problem = self.problem();
        let mut routings = Vec::with_capacity(problem.levels.len());
        for (index, level) in problem.levels.iter().enumerate() {
            routings.push(self.routing(index, level.rate, setup, placement, gap)?);
        }
        let mean = |of: fn(&Routing) -> f64| problem.levels.iter().zip(&routings).map(|(l, r)| l.weight * of(r)).sum();
        Some(Plan {
            setup: setup.clone(),
            placement: placement.clone(),
            score: mean(|r| r.score),
            score_bound: mean(|r| r.score_bound),
            usd_per_hour: placement.usd_per_hour(problem),
            routings,
        })
    }

    /// The best routing of a setup at any rate, as [`Worker::solve`] finds it for the problem's levels; `None` if there is none.
    pub fn at_rate(&mut self, rate: f64, setup: &Setup, placement: &Placement, gap: f64) -> Option<Routing> {
        self.routing(0, rate, setup, placement, gap)
    }

    fn routing(&mut self, level: usize, rate: f64, setup: &Setup, placement: &Placement, gap: f64) -> Option<Routing> {
        let (planner, problem) = (self.planner, self.problem());
        let limits = problem.limits.len();
        let at = self.levels.get_mut(level)?;
        let interference = Interference::new(problem, setup, placement);
        let mut slow_down = vec![1.0; setup.0.len()];
        // The slow-downs of the last routing, and what they came to.
        let mut last: Option<Vec<f64>> = None;
        let mut agreed = None;
        for round in 0..SLOW_DOWN_ROUNDS {
            let served = planner.all_served(setup, &slow_down, rate);
            let terms = planner.terms(&served, &problem.limits);
            let Some(solved) = at.solver.solve(&terms, limits, gap) else {
                // A routing that loads the neighbours less than the last one may still keep the limits.
                let last = last.as_ref()?;
                slow_down = last.iter().zip(&slow_down).map(|(last, f)| 0.5 * (last + f)).collect();
                continue;
            };
            let busy = |(s, share): (&Option<Served<'_>>, &f64)| s.as_ref().map_or(0.0, |s| s.busy(*share));
            let busy: Vec<f64> = served.iter().zip(&solved.fractions).map(busy).collect();
            let now = interference.slow_downs(&busy);
            let off = || slow_down.iter().zip(&now).map(|(f, now)| now / f - 1.0);
            let rises = off().any(|off| off > SLOW_DOWN_TOLERANCE);
            let falls = off().any(|off| off < -SLOW_DOWN_TOLERANCE);
            // Routings that swing between two are held at the slower one.
            let slower = round > SLOW_DOWN_ROUNDS / 4;
            if !rises && (slower || !falls) {
                agreed = Some((solved, slow_down));
                break;
            }
            let next = slow_down.iter().zip(&now).map(|(f, now)| if slower { f.max(*now) } else { *now }).collect();
            last = Some(std::mem::replace(&mut slow_down, next));
        }
        let (solved, slow_down) = agreed?;
        at.remember(&problem.scores, &solved);
        let served = planner.all_served(setup, &slow_down, rate);
        let least = solved.prices.iter().copied().fold(f64::INFINITY, f64::min);
        let ttft = |(s, share): (&Option<Served<'_>>, &f64)| match s {
            Some(served) if *share > 0.0 => served.mean_ms(*share, Metric::Ttft),
            _ => 0.0,
        };
        let ttft_ms = served.iter().zip(&solved.fractions).map(ttft).collect();
        let limits_ms = problem.limits.iter().map(|l| statistic_ms(l, &served, &solved.fractions)).collect();
        Some(Routing {
            rate,
            prices: solved.prices.iter().map(|p| p - least).collect(),
            score: solved.score,
            score_bound: solved.bound,
            limits_ms,
            ttft_ms,
            slow_down,
            fractions: solved.fractions,
        })
    }

    /// Prices of a routing, exact where those of [`Worker::solve`] are only near: what makes `argmax (score - price)` send its
    /// shares.
    pub fn exact_prices(&self, routing: &Routing) -> Vec<f64> {
        super::prices::prices(&self.problem().scores, &routing.fractions)
    }
}

/// The highest value between two that is possible, if all below it are.
fn between(low: f64, high: f64, mut possible: impl FnMut(f64) -> bool) -> f64 {
    let (mut low, mut high) = (low, high);
    for _ in 0..20 {
        let middle = 0.5 * (low + high);
        if possible(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

impl AtLevel<'_> {
    /// Keeps the bound of a setup for others.
    fn remember(&mut self, scores: &Scores, solved: &Solved) {
        if self.cuts.len() >= CUTS_MAX {
            self.cuts.remove(0);
        }
        let fixed = scores.gain(&solved.prices) + solved.multipliers.iter().sum::<f64>();
        self.cuts.push(Cut {
            prices: solved.prices.clone(),
            multipliers: solved.multipliers.clone(),
            fixed,
            worth: BTreeMap::new(),
        });
    }
}

/// A statistic over the requests of all models, milliseconds.
fn statistic_ms(limit: &Limit, served: &[Option<Served<'_>>], fractions: &[f64]) -> f64 {
    let each = || served.iter().zip(fractions).filter_map(|(served, share)| Some((served.as_ref()?, *share)));
    match limit.statistic {
        Statistic::Mean => each().map(|(s, share)| share * s.mean_ms(share, limit.metric)).sum(),
        Statistic::Quantile(q) => {
            let late = |ms: f64| each().map(|(s, share)| share * s.late(share, limit.metric, ms)).sum::<f64>();
            let mut high = limit.milliseconds;
            while high < 1e9 && late(high) > 1.0 - q {
                high *= 2.0;
            }
            // Fewer are late the later it is.
            high - between(0.0, high, |less| late(high - less) <= 1.0 - q)
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
