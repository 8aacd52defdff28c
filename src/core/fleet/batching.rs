//! How requests are batched.

use std::time::Duration;

/// How many requests a batch has, and how long its first one waits for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchSizing {
    /// As published: from the share of instances where requests queue.
    Adaptive,
    /// Always the same.
    Fixed {
        /// Requests of a batch, all workers of the gateway together.
        size: usize,
        /// How long the first one waits.
        window: Duration,
    },
}

/// Requests are held for a moment and assigned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// When a batch is complete.
    pub sizing: BatchSizing,
    /// No request waits longer, whatever else.
    pub max_wait: Duration,
}
