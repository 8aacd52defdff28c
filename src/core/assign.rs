//! A batch of requests to instances: longest processing time first (LPT), load reckoned after each choice.
//!
//! # Rule
//!
//! As published (RouteBalance): requests in the order of the longest answer that any model is expected to give, longest first (of equal
//! ones the first to arrive); each is decided by the same router as a lone one, and the load that the next one sees holds what the batch
//! has sent so far. What waiting gains is the order only; without `batching` every request is decided when its body has come, on the load
//! that all workers have written until then.
//!
//! - `adaptive`, by the share of instances where requests queue when the batch before was decided: below 0.3 a batch has 4 requests and
//!   waits 50 ms, below 0.7 16 and 100 ms, else 32 and 200 ms; 8 and 100 ms at the start.
//! - `fixed` is `size` and `window_ms`.
//! - Every worker forms its own batches from what it sees, so the size is divided by the workers that have sent a request in the last 10
//!   seconds. An adaptive batch does not wait for nobody: if at the worker's own rate of the last 400 ms fewer than one more request would
//!   join within the window, it is decided at once. `max_wait_ms` caps the wait of each request. Workers look every 5 ms.
//! - Decided at once in any case: what is refused or left to Envoy's own route, what continues a stored response (one instance holds it),
//!   embeddings and `count_tokens` (they generate nothing), and bodies larger than `request.max_buffered_bytes`.
//!
//! # Configuration
//!
//! `policies[].batching`.
//!
//! # Limits
//!
//! Batches are formed per worker and per policy: workers see what the others have sent, but do not wait for each other. A client that
//! leaves while its request waits costs nothing: no instance hears of it, and no counter has moved.

mod batcher;

use std::time::Duration;

pub use batcher::{Batcher, Waiting, first_batch, next_batch};

use crate::learning::Learned;
use crate::reckoning::LoadNow;
use crate::router::{Ask, Outlook, Router, Verdict};

/// What is expected of the answers to a request that waits for a batch; `None` if it is decided at once because its policy does
/// not batch or waiting could not help: it is refused or left alone anyway, one instance holds what it continues, or it generates
/// nothing, so that it costs an instance next to nothing and its client expects an answer in milliseconds.
pub fn outlook(router: &Router, ask: &Ask<'_>) -> Option<Outlook> {
    router.config().policy(ask.policy)?.batching?;
    let generates = ask.api.generates();
    let models = router.allowed_models(ask).ok().filter(|models| !models.is_empty())?;
    (generates && ask.holder.is_none()).then(|| router.outlook(ask.prompt, &models))
}

/// What became of one request of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Assigned {
    /// Its place in the batch as given.
    pub request: usize,
    /// What is to be done with it.
    pub verdict: Verdict,
}

/// Decides a batch, given in the order of arrival; the result is in the order in which it was decided. `loads` are those at `now`,
/// in the order of the fleet's instances, `None` if there are none to read.
pub fn assign(
    router: &Router,
    batch: Vec<(Ask<'_>, &Outlook)>,
    mut loads: Option<Vec<LoadNow>>,
    learned: &Learned,
    now: Duration,
) -> Vec<Assigned> {
    let key = |(ask, outlook): &(Ask<'_>, &Outlook)| router.longest_output_tokens(ask, outlook, learned);
    let mut order: Vec<(usize, f64, (Ask<'_>, &Outlook))> =
        batch.into_iter().enumerate().map(|(request, asked)| (request, key(&asked), asked)).collect();
    // Stable: of equally long ones the first to arrive comes first.
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let mut sent = 0_u64;
    let mut assigned = Vec::with_capacity(order.len());
    for (request, _, (mut ask, outlook)) in order {
        ask.sequence = ask.sequence.saturating_add(sent);
        let verdict = router.decide(&ask, outlook, loads.as_deref(), learned);
        if let Verdict::Decided(decision) = &verdict {
            sent = sent.saturating_add(1);
            let max_running =
                router.config().fleet.pool(decision.to.pool).map_or(f64::INFINITY, |p| f64::from(p.limits.max_running));
            if let Some(load) = loads.as_mut().and_then(|l| l.get_mut(decision.to.instance.index())) {
                *load = load.after(&decision.dispatch(), max_running, now);
            }
        }
        assigned.push(Assigned { request, verdict });
    }
    assigned
}

/// The share of instances, 0 to 1, where requests queue: what the published size of a batch depends on.
pub fn queueing_share(loads: &[LoadNow]) -> f64 {
    // Load is a mixture where a report is trusted in part: half a request is nobody.
    let queueing = loads.iter().filter(|load| load.waiting >= 0.5).count();
    queueing as f64 / loads.len().max(1) as f64
}

#[cfg(test)]
mod tests;
