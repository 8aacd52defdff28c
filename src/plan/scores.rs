//! Predicted scores of a sample of prompts, and what prices make of them.

/// A matrix of scores, one row per prompt and one column per model, all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    models: usize,
    /// Row after row.
    rows: Vec<f64>,
}

/// A way to give every prompt a model, as far as plans see it. No way with these shares has a higher score: it is what prices
/// choose.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Mean score of the prompts.
    pub score: f64,
    /// Share of the prompts for each model.
    pub shares: Vec<f64>,
}

impl Scores {
    /// Scores of so many models, prompt after prompt; `None` unless there is a whole number of rows, at least one, of finite values.
    pub fn new(models: usize, rows: Vec<f64>) -> Option<Scores> {
        let whole = models > 0 && !rows.is_empty() && rows.len().checked_rem(models) == Some(0);
        (whole && rows.iter().all(|v| v.is_finite())).then_some(Scores { models, rows })
    }

    /// Models.
    pub fn models(&self) -> usize {
        self.models
    }

    /// Prompts.
    pub fn prompts(&self) -> usize {
        self.rows.len() / self.models
    }

    /// The scores of each prompt.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.rows.chunks_exact(self.models)
    }

    /// Every prompt goes to `argmax (score - price)`, the first of several; a model with a price of infinity gets none.
    pub fn assign(&self, prices: &[f64]) -> Assignment {
        let mut counts = vec![0_u32; self.models];
        let mut total = 0.0;
        for row in self.rows() {
            let (mut chosen, mut score, mut gain) = (0, 0.0, f64::NEG_INFINITY);
            for (model, (s, price)) in row.iter().zip(prices).enumerate() {
                if s - price > gain {
                    (chosen, score, gain) = (model, *s, s - price);
                }
            }
            total += score;
            if let Some(count) = counts.get_mut(chosen) {
                *count = count.saturating_add(1);
            }
        }
        let prompts = self.prompts() as f64;
        Assignment { score: total / prompts, shares: counts.iter().map(|n| f64::from(*n) / prompts).collect() }
    }

    /// What prompts gain at these prices: mean of the best `score - price`.
    pub fn gain(&self, prices: &[f64]) -> f64 {
        let best = |row: &[f64]| row.iter().zip(prices).map(|(s, price)| s - price).fold(f64::NEG_INFINITY, f64::max);
        self.rows().map(best).sum::<f64>() / self.prompts() as f64
    }

    /// The lowest and the highest score of all.
    pub fn range(&self) -> (f64, f64) {
        let fold = |f: fn(f64, f64) -> f64, from| self.rows.iter().copied().fold(from, f);
        (fold(f64::min, f64::INFINITY), fold(f64::max, f64::NEG_INFINITY))
    }
}
