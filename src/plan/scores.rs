//! Predicted scores of a sample of prompts, and the best that any shares of the models can reach with them.

/// A matrix of scores, one row per prompt and one column per model, all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    models: usize,
    /// Row after row.
    rows: Vec<f64>,
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
}
