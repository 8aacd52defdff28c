//! Exploration: now and then a model drawn by lot, so that the log of decisions can judge policies that would choose otherwise.
//!
//! A logged propensity is the probability with which its model was chosen. Weighting every logged score by the inverse of its
//! propensity where another policy would have chosen the same model estimates that policy's mean score without bias (Horvitz and
//! Thompson 1952, *A Generalization of Sampling Without Replacement From a Finite Universe*).

use crate::fleet::ModelId;

/// Which candidate a request goes to, and how probable its model was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Position in the ranking.
    pub position: usize,
    /// Probability that a candidate of this model was chosen, given the ranking; above 0.
    pub propensity: f64,
    /// Whether the lot decided.
    pub explored: bool,
}

/// Chooses from a ranking: the best candidate, or with probability `exploration` the best one of a uniformly drawn model.
/// `models` is the model of every candidate, best candidate first; `draw` is uniform in 0 to 1. `None` if there is no candidate.
pub fn choose(models: &[ModelId], exploration: f64, draw: f64) -> Option<Choice> {
    let best = *models.first()?;
    let mut firsts: Vec<(usize, ModelId)> = Vec::new();
    for (position, model) in models.iter().enumerate() {
        if !firsts.iter().any(|(_, seen)| seen == model) {
            firsts.push((position, *model));
        }
    }
    let count = firsts.len() as f64;
    let explored = draw < exploration;
    let (position, model) = if explored {
        // Below `exploration` the draw is uniform again.
        let at = (draw / exploration * count) as usize;
        *firsts.get(at.min(firsts.len() - 1))?
    } else {
        (0, best)
    };
    let greedy = if model == best { 1.0 - exploration } else { 0.0 };
    Some(Choice { position, propensity: greedy + exploration / count, explored })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn the_best_or_a_model_by_lot() {
        let choice = |position, propensity, explored| Some(Choice { position, propensity, explored });
        type Row<'a> = (&'a str, &'a [usize], f64, f64, Option<Choice>);
        let rows: &[Row<'_>] = &[
            ("nobody", &[], 0.5, 0.1, None),
            ("off", &[3, 1], 0.0, 0.0, choice(0, 1.0, false)),
            ("the best", &[3, 1], 0.2, 0.9, choice(0, 0.9, false)),
            ("just above", &[3, 1], 0.2, 0.2, choice(0, 0.9, false)),
            ("drawn: the first", &[3, 3, 1], 0.5, 0.2, choice(0, 0.75, true)),
            ("drawn: the second", &[3, 3, 1, 3, 1], 0.5, 0.3, choice(2, 0.25, true)),
            ("one model", &[3, 3], 0.5, 0.49, choice(0, 1.0, true)),
        ];
        for (name, models, exploration, draw, expected) in rows {
            let choice = choose(&models.iter().copied().map(ModelId::new).collect::<Vec<_>>(), *exploration, *draw);
            match (choice, expected) {
                (Some(a), Some(b)) => {
                    assert_eq!((a.position, a.explored), (b.position, b.explored), "{name}");
                    assert!((a.propensity - b.propensity).abs() < 1e-12, "{name}: {a:?}");
                }
                (a, b) => assert_eq!(a, *b, "{name}"),
            }
        }
    }

    /// Every model is chosen as often as its propensity says.
    #[test]
    fn propensities_are_frequencies() {
        let models = [2, 0, 2, 5, 0];
        let mut counts = [0.0; 6];
        let mut propensities = [0.0; 6];
        const DRAWS: usize = 10_000;
        for i in 0..DRAWS {
            let choice = choose(&models.map(ModelId::new), 0.3, (i as f64 + 0.5) / DRAWS as f64).unwrap();
            counts[models[choice.position]] += 1.0 / DRAWS as f64;
            propensities[models[choice.position]] = choice.propensity;
        }
        for (count, propensity) in counts.iter().zip(propensities) {
            assert!((count - propensity).abs() < 1e-3, "{counts:?} {propensities:?}");
        }
    }
}
