//! The judge of a cascade: a score for every answer, after which it is accepted or not.
//!
//! FrugalGPT's judge is a DistilBERT that reads query and answer and regresses whether the answer is right. No scores of such a judge
//! for these answers are at hand, so this one is drawn: it knows the truth and what was expected of the answer, blurred by as much
//! noise as makes it as reliable as is said. **Reliability** is the area under the ROC curve (AUC): how often a good answer scores
//! higher than a bad one.

use anyhow::{Result, ensure};

use routebalance_core::random::Random;

/// From this quality on an answer is good.
const GOOD: f64 = 0.5;
/// Halvings of the noise's range: finer than the AUC of any sample can tell.
const HALVINGS: usize = 40;
/// Noise that drowns truths and estimates between 0 and 1.
const NOISE_MAX: f64 = 64.0;

/// Answers of models to a sample of prompts: a row per prompt, a column per model.
#[derive(Clone, Copy, Debug)]
pub struct Answers<'a> {
    /// How good they are, 0 to 1.
    pub quality: &'a [Vec<f64>],
    /// What was expected of them before.
    pub expected: &'a [Vec<f64>],
}

/// A judge whose scores scatter by so much.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judge {
    /// Standard deviation of what it adds to the mean of truth and estimate.
    noise: f64,
    seed: u64,
}

impl Judge {
    /// A judge that is so reliable on these answers.
    ///
    /// # Errors
    /// A reliability outside .5 to 1, or answers that are all good or all bad.
    pub fn with_reliability(reliability: f64, answers: &Answers<'_>, seed: u64) -> Result<Judge> {
        ensure!((0.5..=1.0).contains(&reliability), "a judge's reliability is between .5 and 1, not {reliability}");
        let (mut low, mut high) = (0.0, NOISE_MAX);
        for _ in 0..HALVINGS {
            let noise = (low + high) / 2.0;
            let judge = Judge { noise, seed };
            let Some(auc) = auc(&judge.scores(answers), answers.quality) else {
                anyhow::bail!("a judge needs good answers and bad ones to learn from: all are alike");
            };
            if auc > reliability { low = noise } else { high = noise }
        }
        Ok(Judge { noise: (low + high) / 2.0, seed })
    }

    /// The same judge on other answers, whose noise is drawn anew.
    pub fn elsewhere(self, seed: u64) -> Judge {
        Judge { seed, ..self }
    }

    /// Its scores.
    pub fn scores(&self, answers: &Answers<'_>) -> Vec<Vec<f64>> {
        let mut random = Random::for_use(self.seed, 1);
        let mut score = |(quality, expected): (&f64, &f64)| (quality + expected) / 2.0 + self.noise * random.normal();
        let rows = answers.quality.iter().zip(answers.expected);
        rows.map(|(quality, expected)| quality.iter().zip(expected).map(&mut score).collect()).collect()
    }
}

/// How often a good answer scores higher than a bad one, ties counted half (Mann and Whitney 1947); `None` without one of each.
pub fn auc(scores: &[Vec<f64>], quality: &[Vec<f64>]) -> Option<f64> {
    let mut all: Vec<(f64, bool)> =
        scores.iter().flatten().zip(quality.iter().flatten()).map(|(score, q)| (*score, *q >= GOOD)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    let good = all.iter().filter(|(_, good)| *good).count();
    let (mut below, mut wins) = (0, 0.0);
    for ties in all.chunk_by(|a, b| a.0 == b.0) {
        let good = ties.iter().filter(|(_, good)| *good).count();
        let bad = ties.len() - good;
        wins += good as f64 * (below as f64 + bad as f64 / 2.0);
        below += bad;
    }
    let pairs = good as f64 * below as f64;
    (pairs > 0.0).then(|| wins / pairs)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Three models of growing size and quality on prompts of all difficulties, and estimates that know part of it.
    pub(crate) fn answers(prompts: usize, seed: u64) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let mut random = Random::new(seed);
        let mut row = || {
            let ease = random.uniform();
            let chance = [0.4, 0.55, 0.65].map(|model| (model + ease - 0.5).clamp(0.0, 1.0));
            let quality = chance.map(|chance| f64::from(u8::from(random.uniform() < chance))).to_vec();
            let expected = chance.map(|chance| (chance + 0.1 * random.normal()).clamp(0.0, 1.0)).to_vec();
            (quality, expected)
        };
        (0..prompts).map(|_| row()).unzip()
    }

    #[test]
    fn areas_under_small_curves() {
        type Row<'a> = (&'a str, &'a [f64], &'a [f64], Option<f64>);
        let rows: [Row<'_>; 6] = [
            ("in order", &[0.1, 0.2, 0.3], &[0.0, 0.0, 1.0], Some(1.0)),
            ("the other way round", &[0.3, 0.2, 0.1], &[0.0, 1.0, 1.0], Some(0.0)),
            ("one of two pairs", &[0.1, 0.2, 0.3], &[0.0, 1.0, 0.0], Some(0.5)),
            ("all tie", &[0.1, 0.1, 0.1, 0.1], &[0.0, 1.0, 0.0, 1.0], Some(0.5)),
            ("three of four pairs", &[0.1, 0.2, 0.3, 0.4], &[0.0, 1.0, 0.0, 1.0], Some(0.75)),
            ("nothing bad", &[0.1, 0.2], &[1.0, 1.0], None),
        ];
        for (name, scores, quality, expected) in rows {
            assert_eq!(auc(&[scores.to_vec()], &[quality.to_vec()]), expected, "{name}");
        }
    }

    /// As reliable as was asked for, and nearly so on answers that it was not fitted to.
    #[test]
    fn a_judge_is_as_reliable_as_is_said() {
        let (quality, expected) = answers(3_000, 1);
        let here = Answers { quality: &quality, expected: &expected };
        let (other_quality, other_expected) = answers(3_000, 2);
        let there = Answers { quality: &other_quality, expected: &other_expected };
        for reliability in [0.6, 0.7, 0.8, 0.9, 0.99] {
            let judge = Judge::with_reliability(reliability, &here, 7).unwrap();
            let measured = auc(&judge.scores(&here), &quality).unwrap();
            assert!((measured - reliability).abs() < 1e-3, "{reliability}: {measured}");
            let elsewhere = auc(&judge.elsewhere(8).scores(&there), &other_quality).unwrap();
            assert!((elsewhere - reliability).abs() < 0.02, "{reliability}: {elsewhere} elsewhere");
            assert_eq!(judge.scores(&here), judge.scores(&here));
        }
        for (reliability, expected) in [(0.4, "between .5 and 1, not 0.4"), (f64::NAN, "between .5 and 1, not NaN")] {
            let problem = Judge::with_reliability(reliability, &here, 7).unwrap_err().to_string();
            assert!(problem.contains(expected), "{problem}");
        }
        let good = vec![vec![1.0; 3]; 10];
        let problem =
            Judge::with_reliability(0.8, &Answers { quality: &good, expected: &good }, 7).unwrap_err().to_string();
        assert!(problem.contains("all are alike"), "{problem}");
    }
}
