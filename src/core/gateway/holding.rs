//! What a gateway holds of requests: nothing is left of those that are over.

use super::Gateway;

/// How much a gateway holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Requests on their way.
    pub requests: usize,
    /// Requests that wait for a batch.
    pub waiting: usize,
    /// Calls of the worker that nobody has answered.
    pub fetches: usize,
    /// Whole answers that another instance may be asked for, and the bytes of their requests.
    pub reruns: (usize, usize),
    /// Calls for such answers that are under way.
    pub rerun_calls: usize,
}

impl Gateway {
    /// What it holds now.
    pub fn holding(&self) -> Holding {
        let waiting = self.batchers.iter().flatten().map(|batcher| batcher.len()).sum();
        let (reruns, rerun_calls) = self.reruns.held();
        Holding { requests: self.streams.len(), waiting, fetches: self.fetches.len(), reruns, rerun_calls }
    }
}
