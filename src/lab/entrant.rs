//! Contenders with their knobs set, as the lab runs them.

use routebalance_core::fleet::{Policy, Weights};
use routebalance_sim::contender::{Contender, Deciding};

/// Whose estimates a contender reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimates {
    /// Our predictor's.
    Ours,
    /// The published predictor's: MiniLM, k = 10.
    Knn,
    /// The truth.
    Truth,
    /// The same for every prompt: the models' means.
    Constant,
}

/// A contender with its knobs set.
#[derive(Clone, Debug)]
pub struct Entrant {
    /// Name of the contender.
    pub policy: &'static str,
    /// Its knobs besides the weights, for people; empty if it has none.
    pub setting: String,
    /// Its weights, if it has any.
    pub weights: Option<Weights>,
    /// Whose estimates it reads.
    pub estimates: Estimates,
    /// What decides.
    pub contender: Contender,
    /// For ours, the policy of every request.
    pub route_policy: Option<Policy>,
    /// What deciding takes where it is charged.
    pub charged: Deciding,
    /// What remains of it where it is not.
    pub uncharged: Deciding,
}
