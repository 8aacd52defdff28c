//! Cascades: models answer one after the other until an answer is good enough.

use std::sync::Arc;
use std::time::Duration;

use super::Dispatcher;
use routebalance_core::fleet::ModelId;

/// A cascade (Chen, Zaharia and Zou 2023, *FrugalGPT*): the first model answers, a judge reads the whole answer, and where it does
/// not accept that, the request goes on to the next model. The client sees no byte of an answer that is not accepted.
///
/// A judge reads prompt and answer and nothing of the load, so which answer it accepts is known before the simulation begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Cascade {
    /// Models, the first one asked first.
    pub models: Arc<[ModelId]>,
    /// Answers that the judge turns down, in the order of the workload's templates. The last model's answer is always accepted.
    pub turned_down: Arc<[usize]>,
    /// What the judge takes for an answer; the last model's is not judged.
    pub judging: Duration,
    /// How the instance of a model is chosen.
    pub dispatcher: Dispatcher,
}

impl Cascade {
    /// The model to ask after so many answers.
    pub fn model(&self, answers: usize) -> Option<ModelId> {
        self.models.get(answers).copied()
    }

    /// Whether an answer after so many others was the last model's.
    pub fn is_last(&self, answers: usize) -> bool {
        answers.saturating_add(1) >= self.models.len()
    }

    /// Whether the judge accepts the answer to a template that came after so many others.
    pub fn accepts(&self, template: usize, answers: usize) -> bool {
        self.is_last(answers) || self.turned_down.get(template).is_none_or(|n| answers >= *n)
    }
}
