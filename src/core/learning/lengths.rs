//! Output tokens: a factor per model, learnt from what its answers really have.
//!
//! The residual of an answer, `ln(tokens) - ln(estimate)` before any correction, is taken to be logistic about the model's
//! correction with scale [`SCALE`]. Its location is estimated by scoring steps (Fisher scoring for one parameter, with
//! exponential forgetting): an answer pulls by `tanh(u / 2)` and a censored one, of which only a lower bound is known, by
//! `1 / (1 + e^-u)`, where `u` is its distance from the correction in scales. These are the derivatives of the logistic log
//! density and log survival function (Kalbfleisch and Prentice, *The Statistical Analysis of Failure Time Data*, chapter 3, on
//! the log-logistic model). Both are below 1 whatever the usage says, so that no single answer moves the correction far.

use crate::fleet::ModelId;
use crate::learning::ledger::{Ledger, Tallies, Tally};

/// Answers of a model after which a share of 1/e is left of what came before.
const MEMORY: f64 = 50.0;
/// Answers that "as estimated" counts for until it is forgotten, too.
const PRIOR_ANSWERS: f64 = 20.0;
/// Scale of the residuals' distribution: a standard deviation of `ln` output tokens of 0.45, as on the committed prompts.
const SCALE: f64 = 0.25;
/// What an answer can pull by at most: `1 / (3 scale^2)` is the information in one answer about the location.
const STEP: f64 = 3.0 * SCALE;
/// No model is corrected by more than this factor, nor by less than its inverse.
pub const FACTOR_MAX: f64 = 8.0;
const LN_FACTOR_MAX: f64 = 3.0 * std::f64::consts::LN_2;

/// What a decision expects of the length of an answer, before any correction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthExpectation {
    /// The model.
    pub model: ModelId,
    /// Expected output tokens, neither corrected nor capped, at least 1.
    pub output_tokens: f64,
    /// The most that the request allows; `None` if it sets no limit.
    pub max_tokens: Option<u32>,
}

/// What an answer says about the length of a model's answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthLesson {
    /// The model.
    pub model: ModelId,
    /// `ln` of the answer's tokens less `ln` of the expected ones.
    pub residual: f64,
    /// Whether the answer was cut, so that its residual is a lower bound.
    pub censored: bool,
}

impl LengthExpectation {
    /// What a whole answer teaches; nothing if it is empty. `cut_short` is what the server says.
    pub fn lesson(&self, completion_tokens: u64, cut_short: bool) -> Option<LengthLesson> {
        let residual = (completion_tokens as f64).ln() - self.output_tokens.ln();
        let at_limit = self.max_tokens.is_some_and(|limit| completion_tokens >= u64::from(limit));
        residual.is_finite().then_some(LengthLesson { model: self.model, residual, censored: cut_short || at_limit })
    }
}

/// The corrections of all models as one worker knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct Lengths(Ledger<1>);

impl Default for Lengths {
    fn default() -> Self {
        Lengths(Ledger::new(MEMORY))
    }
}

impl Lengths {
    /// Learns from an answer.
    pub fn learn(&mut self, lesson: &LengthLesson) {
        let Ok(key) = u32::try_from(lesson.model.index()) else { return };
        let location = self.location(key);
        let distance = (lesson.residual - location) / SCALE;
        if lesson.censored {
            // It counts as far as it shows something: hardly, if it was cut long before its expected end.
            let pull = 1.0 / (1.0 + (-distance).exp());
            self.0.add(key, pull, [location + STEP]);
        } else {
            self.0.add(key, 1.0, [location + STEP * (distance / 2.0).tanh()]);
        }
    }

    /// The factor on a model's expected output tokens, between 1 / [`FACTOR_MAX`] and [`FACTOR_MAX`]; near 1 while there is
    /// little evidence.
    pub fn factor(&self, model: ModelId) -> f64 {
        u32::try_from(model.index()).map_or(1.0, |key| self.location(key).exp())
    }

    /// The factors of so many models.
    pub fn factors(&self, models: usize) -> Vec<f64> {
        (0..models).map(|model| self.factor(ModelId::new(model))).collect()
    }

    fn location(&self, key: u32) -> f64 {
        let tally = self.0.combined(key);
        let prior = PRIOR_ANSWERS * (-tally.seen / MEMORY).exp();
        let location = tally.sums.first().copied().unwrap_or_default() / (tally.weight + prior);
        if location.is_finite() { location.clamp(-LN_FACTOR_MAX, LN_FACTOR_MAX) } else { 0.0 }
    }

    /// What this worker writes for the others.
    pub fn own(&self) -> &Tallies<1> {
        self.0.own()
    }

    /// Goes on where another worker has stopped.
    pub fn adopt(&mut self, own: Tallies<1>) {
        self.0.adopt(own);
    }

    /// Takes what the other workers have written.
    pub fn read(&mut self, others: &[Tallies<1>]) {
        self.0.read(others);
    }

    /// A tally of another worker, if its numbers are possible.
    pub fn sound(tally: Tally<1>) -> Option<Tally<1>> {
        tally.sound(LN_FACTOR_MAX + STEP)
    }
}

#[cfg(test)]
mod tests;
