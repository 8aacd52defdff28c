//! What the lab set out to show of our contender, and whether the cells show it.

use super::cell::{Cells, Target};
use super::frontier::{COST_SLACK, QUALITY_SLACK, TIE, against};
use super::statistics::{Estimate, mean};
use super::summary::{
    Experiment, ORACLE, OURS, PAPER, SWEPT, Summary, balanced_quality, main_experiment, rates, representatives,
    summaries, sustained_rates,
};

/// Contenders that choose an instance without looking at the prompt.
pub const DISPATCHERS: [&str; 6] =
    ["round-robin", "random", "shortest-queue", "power-of-two", "least-load", "weighted-scorers"];

/// Every target that the cells can tell something about.
pub fn judged(cells: &Cells) -> Vec<Target> {
    let all = summaries(cells);
    let Some(experiment) = main_experiment(&all) else { return Vec::new() };
    let main: Vec<&Summary> = all.iter().filter(|summary| summary.experiment == experiment).collect();
    if !main.iter().any(|summary| summary.policy() == OURS) {
        return Vec::new();
    }
    let mut targets: Vec<Target> = [peak(&main), cheapest(&main)].into_iter().flatten().collect();
    targets.extend(duels(&main));
    let is_swept = |s: &&Summary| s.experiment == Experiment { variant: SWEPT.to_owned(), ..experiment.clone() };
    let swept: Vec<&Summary> = all.iter().filter(is_swept).collect();
    if !swept.is_empty() {
        let both: Vec<&Summary> = main.iter().chain(&swept).copied().collect();
        let more = duels(&both).into_iter().chain(dispatchers(&both)).chain(uninformed(&both)).map(|target| Target {
            what: format!("{}; ours with a sweep of its weights beside the published ones", target.what),
            ..target
        });
        targets.extend(more);
    }
    targets.extend([throughput(&all, &main), wave(&all), dispatchers(&main), uninformed(&main)].into_iter().flatten());
    targets
}

fn target(what: impl Into<String>, measured: String, met: bool) -> Option<Target> {
    Some(Target { what: what.into(), measured, met })
}

fn is_rival(summary: &&&Summary) -> bool {
    ![OURS, ORACLE].contains(&summary.policy())
}

/// Seeds share their prompts, so that the spread between them says nothing about other prompts: the interval is the bootstrap's.
fn peak(main: &[&Summary]) -> Option<Target> {
    let best = |of: Vec<&&Summary>| -> Option<(String, Estimate)> {
        let best = of.into_iter().max_by(|a, b| a.quality.mean.total_cmp(&b.quality.mean))?;
        let bound = |i: usize| mean(best.cells.iter().map(|cell| cell.intervals.quality[i]).collect::<Vec<f64>>());
        let (low, high) = (bound(0)?, bound(1)?);
        Some((best.policy().to_owned(), Estimate { mean: best.quality.mean, low, high }))
    };
    let (_, ours) = best(main.iter().filter(|summary| summary.policy() == OURS).collect())?;
    let (name, theirs) = best(main.iter().filter(is_rival).collect())?;
    let shown = |e: &Estimate| format!("{:.4} ({:.4} to {:.4})", e.mean, e.low, e.high);
    target(
        "the highest quality of all but the oracle, or tied within the interval",
        format!("{}; {name} {}", shown(&ours), shown(&theirs)),
        ours.mean >= theirs.mean || ours.high >= theirs.low,
    )
}

fn cheapest(main: &[&Summary]) -> Option<Target> {
    let least = |of: Vec<&&Summary>| -> Option<(String, f64)> {
        let least = of.into_iter().min_by(|a, b| a.cost_usd.mean.total_cmp(&b.cost_usd.mean))?;
        Some((least.policy().to_owned(), least.cost_usd.mean))
    };
    let (_, ours) = least(main.iter().filter(|summary| summary.policy() == OURS).collect())?;
    let (name, theirs) = least(main.iter().filter(is_rival).collect())?;
    target(
        "the cheapest cell, tied with the cheapest",
        format!("{ours:.3e} USD; {name} {theirs:.3e} USD"),
        ours <= theirs * (1.0 + COST_SLACK),
    )
}

fn duels(all: &[&Summary]) -> Vec<Target> {
    // Its other settings are rivals of their own: 16 weights against 16.
    let is_published = |s: &&Summary| s.policy() != PAPER || s.first().setting.is_empty();
    let main: &[&Summary] = &all.iter().copied().filter(is_published).collect::<Vec<_>>();
    let rates = rates(main);
    let all: Vec<_> = rates.iter().map(|rate| against(main, OURS, PAPER, *rate)).collect();
    let every: Vec<Option<f64>> = all.iter().flat_map(|one| one.duels.iter().map(|duel| duel.mean_ratio())).collect();
    let Some(last) = all.last().filter(|_| !every.is_empty()) else { return Vec::new() };
    let kept = every.iter().flatten().filter(|ratio| **ratio <= 1.0 + TIE).count();
    let unmatched = every.iter().filter(|ratio| ratio.is_none()).count();
    let mut targets = Vec::new();
    targets.extend(target(
        format!("for every cell of {PAPER} one as good, as cheap, and mean E2E at most 1.02 of its"),
        format!("{kept} of {}; for {unmatched} there is none as good and as cheap", every.len()),
        kept == every.len(),
    ));
    if let Some(ratio) = last.mean_ratio(0.5) {
        let what =
            format!("over its cells with w_q of at least .5 at {} req/s, mean E2E at most .85 of its", last.rate);
        targets.extend(target(what, format!("{ratio:.3}"), ratio <= 0.85));
    }
    for (slack, limit) in [(QUALITY_SLACK, 0.65), (0.015, 0.25)] {
        let heavy = |s: &Summary| s.weights().is_some_and(|w| (0.8..0.905).contains(&(w.quality + 1e-9)));
        let theirs = last.duels.iter().map(|duel| duel.theirs).filter(|summary| heavy(summary));
        let tails: Vec<Option<f64>> = theirs.map(|theirs| tail_ratio(main, theirs, slack)).collect();
        if tails.is_empty() {
            continue;
        }
        let known: Vec<f64> = tails.iter().copied().flatten().collect();
        let worst = known.iter().copied().fold(0.0, f64::max);
        let what = format!(
            "p99 E2E of its cells with w_q of .8 to .9 at {} req/s at most {limit} of its, at quality within {slack}",
            last.rate
        );
        let missing = tails.len() - known.len();
        let mut measured = Vec::new();
        if !known.is_empty() {
            measured.push(format!("at worst {worst:.3}"));
        }
        if missing > 0 {
            measured.push(format!("for {missing} there is none as good and as cheap"));
        }
        targets.extend(target(what, measured.join("; "), missing == 0 && worst <= limit));
    }
    targets
}

/// The least p99 E2E of ours with a quality within `slack` of a cell of theirs and a cost no higher, over its.
fn tail_ratio(main: &[&Summary], theirs: &Summary, slack: f64) -> Option<f64> {
    let own = main.iter().filter(|s| s.policy() == OURS && s.is_at(theirs.rate));
    let good = own.filter(|s| {
        s.quality.mean >= theirs.quality.mean - slack && s.cost_usd.mean <= theirs.cost_usd.mean * (1.0 + COST_SLACK)
    });
    good.map(|s| s.e2e_p99_ms / theirs.e2e_p99_ms).filter(|ratio| ratio.is_finite()).min_by(f64::total_cmp)
}

fn throughput(all: &[Summary], main: &[&Summary]) -> Option<Target> {
    let rates = sustained_rates(all, main);
    let rate_of = |name| rates.iter().find(|(of, ..)| *of == name).map(|(_, rate, _)| rate.mean);
    let (ours, theirs) = (rate_of(OURS)?, rate_of(PAPER)?);
    target(
        format!("sustained throughput with uniform weights at least 1.10 of {PAPER}'s"),
        format!("{:.2} ({ours:.1} and {theirs:.1} per second)", ours / theirs),
        ours >= 1.1 * theirs,
    )
}

/// Without a prediction for the prompt, against the cheapest adequate model for all and least load.
fn uninformed(main: &[&Summary]) -> Option<Target> {
    let of_rate = |rate: f64| {
        let duels = against(main, "routebalance-constant", "cheapest-adequate", rate).duels;
        duels.iter().map(|duel| duel.mean_ratio()).collect::<Vec<_>>()
    };
    let ratios: Vec<Option<f64>> = rates(main).into_iter().flat_map(of_rate).collect();
    if ratios.is_empty() {
        return None;
    }
    let kept = ratios.iter().flatten().filter(|ratio| **ratio <= 1.0 + TIE).count();
    let worst = ratios.iter().flatten().copied().fold(0.0, f64::max);
    target(
        "with the same estimates for every prompt no worse than one adequate model for all by least load",
        format!("{kept} of {} cells of it, mean E2E at worst {worst:.3} of its", ratios.len()),
        kept == ratios.len(),
    )
}

fn wave(all: &[Summary]) -> Option<Target> {
    let wave: Vec<&Summary> =
        all.iter().filter(|s| s.experiment.workload.contains("40") && s.experiment.variant.is_empty()).collect();
    let quality = balanced_quality(&wave);
    let e2e_ms_of = |name| representatives(&wave, name, quality).last().map(|summary| summary.e2e_ms.mean);
    let ratio = e2e_ms_of(OURS)? / e2e_ms_of(PAPER)?;
    target(
        format!("on the 40/6 wave, mean E2E with uniform weights at most .85 of {PAPER}'s"),
        format!("{ratio:.3}"),
        ratio <= 0.85,
    )
}

fn dispatchers(main: &[&Summary]) -> Option<Target> {
    let theirs = main.iter().filter(|s| DISPATCHERS.contains(&s.policy()) && (12.0..=30.0).contains(&s.rate));
    let gain = |theirs: &&Summary| {
        let own = main.iter().filter(|s| s.policy() == OURS && s.is_at(theirs.rate));
        let fast = own.filter(|s| s.e2e_ms.mean <= theirs.e2e_ms.mean);
        fast.map(|s| s.quality.mean).fold(f64::NEG_INFINITY, f64::max) - theirs.quality.mean
    };
    let gains: Vec<f64> = theirs.map(gain).collect();
    let least = gains.iter().copied().reduce(f64::min)?;
    let measured = if least.is_finite() {
        format!("at least {least:+.3}")
    } else {
        let count = gains.iter().filter(|gain| !gain.is_finite()).count();
        format!("{count} of {} cells of theirs are faster than all of ours", gains.len())
    };
    target(
        "+.03 quality at no more mean E2E than each dispatcher-only contender at 12 to 30 req/s",
        measured,
        least >= 0.03,
    )
}
