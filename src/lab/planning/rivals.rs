//! What a plan is compared with: a threshold router and a cascade, which look at no load, each tuned to the quality that the plan has.
//!
//! Both have one knob, from 0 for the smallest model's answers alone to 1 for the largest model's. `sizes` lists the models by size,
//! the smallest first; rows of qualities and estimates have a column per model.

pub mod judge;

use std::sync::Arc;
use std::time::Duration;

use self::judge::Answers;
use crate::statistics::mean_or_zero;
use routebalance_core::fleet::ModelId;
use routebalance_sim::contender::{Cascade, Contender, Dispatcher};

/// How near two qualities are that count as equal (RouterWise's comparison).
pub const EQUAL: f64 = 0.01;

/// What a judge takes for an answer: one pass of an encoder as large as MiniLM on a CPU, the published RouteBalance's 30 ms less the
/// 3 ms of its trees (PUBLISHED.md, section 13.2). FrugalGPT's DistilBERT is larger.
pub const JUDGING: Duration = Duration::from_millis(27);

/// The value that a share of all values do not exceed: what a knob means for this sample, whatever the scale of its values.
fn knob_value(sorted: &[f64], share: f64) -> f64 {
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).floor() as usize;
    match rank {
        _ if share >= 1.0 => f64::INFINITY,
        0 => f64::NEG_INFINITY,
        rank => sorted.get(rank).copied().unwrap_or(f64::INFINITY),
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// A threshold router after RouteLLM (Ong et al. 2024), whose rule for two models is that the larger one answers where it is likely
/// enough to be better: for any number of models, the smallest one that no larger one is expected to beat by more than a tolerance.
/// For tolerances of at least 0 that is the smallest model within the tolerance of the best; below 0 a small model must be expected to
/// be better by a margin.
#[derive(Clone, Debug)]
pub struct Threshold {
    sizes: Vec<usize>,
    /// By how much the smallest model falls behind the best of the others, sorted.
    gaps: Vec<f64>,
}

impl Threshold {
    /// For estimates like these.
    pub fn new(sizes: &[usize], expected: &[Vec<f64>]) -> Threshold {
        let gaps = sorted(expected.iter().map(|row| gap(row, sizes)));
        Threshold { sizes: sizes.to_vec(), gaps }
    }

    /// The tolerance that a knob stands for: so that this share of the sample's prompts is not left to the smallest model.
    pub fn tolerance(&self, knob: f64) -> f64 {
        knob_value(&self.gaps, 1.0 - knob)
    }

    /// The model for a prompt.
    pub fn choose(&self, expected: &[f64], tolerance: f64) -> usize {
        let from = |place: &usize| gap(expected, &self.sizes[*place..]) <= tolerance;
        let last = self.sizes.len().saturating_sub(1);
        let place = (0..last).find(from).unwrap_or(last);
        self.sizes.get(place).copied().unwrap_or_default()
    }

    /// The rule with this knob for templates with these estimates, and the shortest queue of the model's instances.
    pub fn contender(&self, knob: f64, expected: &[Vec<f64>]) -> Contender {
        let tolerance = self.tolerance(knob);
        let models: Arc<[ModelId]> = expected.iter().map(|row| ModelId::new(self.choose(row, tolerance))).collect();
        Contender::Pipeline { models: Some(models), dispatcher: Dispatcher::ShortestQueue }
    }

    /// Mean quality of what it chooses.
    pub fn quality(&self, knob: f64, answers: &Answers<'_>) -> f64 {
        let tolerance = self.tolerance(knob);
        let rows = answers.quality.iter().zip(answers.expected);
        mean_or_zero(rows.map(|(quality, expected)| quality[self.choose(expected, tolerance)]))
    }
}

/// By how much the first of these models falls behind the best of the others.
fn gap(expected: &[f64], models: &[usize]) -> f64 {
    let Some((first, others)) = models.split_first() else { return f64::NEG_INFINITY };
    others.iter().map(|m| expected[*m]).fold(f64::NEG_INFINITY, f64::max) - expected[*first]
}

/// A cascade after FrugalGPT (Chen, Zaharia and Zou 2023): the models answer by size until an answer's score reaches a threshold, one
/// for all models.
#[derive(Clone, Debug)]
pub struct Frugal {
    sizes: Vec<usize>,
    /// Scores of all answers that may be turned down, sorted.
    scores: Vec<f64>,
}

impl Frugal {
    /// For scores like these.
    pub fn new(sizes: &[usize], scores: &[Vec<f64>]) -> Frugal {
        let judged = sizes.split_last().map_or(&[][..], |(_, judged)| judged);
        let judged_scores = |row: &Vec<f64>| judged.iter().filter_map(|m| row.get(*m).copied()).collect::<Vec<f64>>();
        Frugal { sizes: sizes.to_vec(), scores: sorted(scores.iter().flat_map(judged_scores)) }
    }

    /// The score that a knob asks of an answer: that share of the sample's answers have less.
    pub fn least_score(&self, knob: f64) -> f64 {
        knob_value(&self.scores, knob)
    }

    /// How many answers are turned down before one is accepted.
    pub fn turned_down(&self, scores: &[f64], least_score: f64) -> usize {
        let good = |m: &usize| scores.get(*m).is_some_and(|score| *score >= least_score);
        self.sizes.iter().position(good).unwrap_or(self.sizes.len()).min(self.sizes.len().saturating_sub(1))
    }

    /// The rule with this knob for templates whose answers have these scores, and the shortest queue of a model's instances.
    pub fn contender(&self, knob: f64, scores: &[Vec<f64>]) -> Contender {
        let least = self.least_score(knob);
        let turned_down: Arc<[usize]> = scores.iter().map(|row| self.turned_down(row, least)).collect();
        let models = self.sizes.iter().copied().map(ModelId::new).collect();
        Contender::Cascade(Cascade { models, turned_down, judging: JUDGING, dispatcher: Dispatcher::ShortestQueue })
    }

    /// Mean quality of the answers that it accepts.
    pub fn quality(&self, knob: f64, quality: &[Vec<f64>], scores: &[Vec<f64>]) -> f64 {
        let least = self.least_score(knob);
        let rows = quality.iter().zip(scores);
        mean_or_zero(rows.map(|(quality, scores)| quality[self.sizes[self.turned_down(scores, least)]]))
    }
}

/// A knob and what it gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuned {
    /// The knob, 0 to 1.
    pub knob: f64,
    /// The score on the sample that it was tuned on.
    pub score: f64,
}

impl Tuned {
    /// Whether the score counts as equal to another.
    pub fn is_equal(&self, target: f64) -> bool {
        (self.score - target).abs() <= EQUAL
    }
}

/// Steps of the first look at the whole range of a knob.
const STEPS: usize = 64;
/// Halvings of the step in which the target lies: finer than a prompt of any sample.
const HALVINGS: usize = 24;

/// The least knob at which the score reaches a target: by steps, as more of a knob may give less in the end, then by halves. Where no
/// step reaches the target, the step with the highest score.
pub fn tune(target: f64, evaluate: impl Fn(f64) -> f64) -> Tuned {
    let tuned_to = |knob: f64| Tuned { knob, score: evaluate(knob) };
    let steps: Vec<Tuned> = (0..=STEPS).map(|step| tuned_to(step as f64 / STEPS as f64)).collect();
    let Some(reached) = steps.iter().position(|step| step.score >= target) else {
        // Of equals the first.
        return steps.into_iter().rev().max_by(|a, b| a.score.total_cmp(&b.score)).unwrap_or(tuned_to(0.0));
    };
    let mut high = steps[reached];
    let Some(mut low) = reached.checked_sub(1).map(|below| steps[below]) else { return high };
    for _ in 0..HALVINGS {
        let middle = tuned_to((low.knob + high.knob) / 2.0);
        if middle.score >= target { high = middle } else { low = middle }
    }
    if target - low.score < high.score - target { low } else { high }
}

#[cfg(test)]
mod tests {
    use super::judge::Judge;
    use super::judge::tests::answers;
    use super::*;

    #[test]
    fn the_smallest_model_that_is_nearly_as_good() {
        let estimates = [0.5, 0.3, 0.6];
        // By size: the second, the first, the third.
        let threshold = Threshold::new(&[1, 0, 2], &[estimates.to_vec()]);
        for (tolerance, expected) in
            [(0.0, 2), (0.05, 2), (0.11, 0), (0.29, 0), (0.31, 1), (f64::INFINITY, 1), (f64::NEG_INFINITY, 2)]
        {
            assert_eq!(threshold.choose(&estimates, tolerance), expected, "{tolerance}");
        }
        let ties = [0.6, 0.6, 0.6];
        assert_eq!(threshold.choose(&ties, 0.0), 1, "of equals the smallest");
        let downhill = [0.5, 0.6, 0.35];
        for (tolerance, expected) in [(0.0, 1), (-0.09, 1), (-0.11, 0), (-0.16, 2)] {
            assert_eq!(threshold.choose(&downhill, tolerance), expected, "{tolerance}");
        }
    }

    #[test]
    fn answers_are_turned_down_until_one_is_good_enough() {
        let scores = [0.5, 0.3, 0.6];
        let cascade = Frugal::new(&[1, 0, 2], &[scores.to_vec()]);
        for (least, expected) in [(f64::NEG_INFINITY, 0), (0.3, 0), (0.31, 1), (0.51, 2), (0.61, 2), (f64::INFINITY, 2)]
        {
            assert_eq!(cascade.turned_down(&scores, least), expected, "{least}");
        }
    }

    #[test]
    fn knobs_go_from_the_smallest_model_to_the_whole_rule() {
        let (quality, expected) = answers(2_000, 3);
        let of = Answers { quality: &quality, expected: &expected };
        let column = |m: usize| mean_or_zero(quality.iter().map(|row| row[m]));
        let sizes = [0, 1, 2];
        let threshold = Threshold::new(&sizes, &expected);
        let scores = Judge::with_reliability(0.8, &of, 1).unwrap().scores(&of);
        let cascade = Frugal::new(&sizes, &scores);
        assert_eq!(threshold.quality(0.0, &of), column(0));
        assert_eq!(cascade.quality(0.0, &quality, &scores), column(0));
        assert_eq!(cascade.quality(1.0, &quality, &scores), column(2), "nothing but the last answer is accepted");
        assert_eq!(threshold.quality(1.0, &of), column(2));
        let shares = |knob: f64| {
            mean_or_zero(
                expected.iter().map(|row| f64::from(u8::from(threshold.choose(row, threshold.tolerance(knob)) == 0))),
            )
        };
        for knob in [0.25, 0.5, 0.75] {
            assert!((shares(knob) - (1.0 - knob)).abs() < 0.02, "{knob}: {}", shares(knob));
        }
    }

    /// Both rules reach any quality between the smallest model's and the largest one's within what counts as equal.
    #[test]
    fn rivals_are_tuned_to_equal_quality() {
        let (quality, expected) = answers(2_000, 4);
        let of = Answers { quality: &quality, expected: &expected };
        let sizes = [0, 1, 2];
        let threshold = Threshold::new(&sizes, &expected);
        let scores = Judge::with_reliability(0.8, &of, 1).unwrap().scores(&of);
        let cascade = Frugal::new(&sizes, &scores);
        for target in [0.42, 0.5, 0.55, 0.6] {
            let router = tune(target, |knob| threshold.quality(knob, &of));
            let frugal = tune(target, |knob| cascade.quality(knob, &quality, &scores));
            for (name, tuned) in [("threshold", router), ("cascade", frugal)] {
                assert!(tuned.is_equal(target), "{name} for {target}: {tuned:?}");
            }
            assert_eq!(router.score, threshold.quality(router.knob, &of));
        }
    }

    #[test]
    fn tuning_finds_the_least_knob() {
        type Curve = fn(f64) -> f64;
        let rows: [(&str, Curve, f64, f64); 6] = [
            ("a line", |x| x, 0.3, 0.3),
            ("up and down again", |x| 1.0 - (2.0 * x - 1.0).abs(), 0.5, 0.25),
            ("out of reach: its highest point", |x| 1.0 - (2.0 * x - 1.0).abs(), 2.0, 0.5),
            ("reached from the start", |x| 0.5 + x, 0.4, 0.0),
            ("a plateau", |_| 0.5, 0.7, 0.0),
            ("a jump", |x| f64::from(u8::from(x >= 0.6)), 0.9, 0.6),
        ];
        for (name, curve, target, expected) in rows {
            let tuned = tune(target, curve);
            assert!((tuned.knob - expected).abs() < 1e-6, "{name}: {tuned:?}");
            assert_eq!(tuned.score, curve(tuned.knob), "{name}");
        }
        assert!(!tune(0.7, |_| 0.5).is_equal(0.7));
        assert!(tune(0.7, |_| 0.695).is_equal(0.7));
    }
}
