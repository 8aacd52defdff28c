//! Requests that wait for their batch; and batches decided from the tick or from the arrival that fills one.

use std::time::Duration;

use super::access_log::{Batched, DecisionTiming};
use super::deciding::{self, Pending};
use super::{Flow, Gateway, Host, LOOK, Phase};
use crate::assign::{self, Assigned};
use crate::fleet::PolicyId;
use crate::router::{Outlook, Verdict, milliseconds};
use crate::worker::{Counter, Histogram};

/// A request that waits.
pub(super) struct HeldRequest {
    pending: Pending,
    outlook: Outlook,
    arrived: Duration,
}

impl Gateway {
    /// Lets a request wait for its batch; gives it back if it is none that waits.
    #[allow(clippy::result_large_err, reason = "it is given back to be decided at once")]
    pub(super) fn wait(&mut self, host: &mut impl Host, id: u32, pending: Pending) -> Result<Flow, Pending> {
        let policy = pending.reading.policy;
        if !self.batchers.get(policy.index()).is_some_and(Option::is_some) {
            return Err(pending);
        }
        let ask = pending.ask(host, &mut self.worker, 0);
        let Some(outlook) = assign::outlook(&self.worker.router, &ask) else { return Err(pending) };
        let arrived = host.now();
        if let Some(Some(batcher)) = self.batchers.get_mut(policy.index()) {
            batcher.push(id, arrived, ());
        }
        self.set_phase(id, Phase::Waiting(Box::new(HeldRequest { pending, outlook, arrived })));
        let flow = self.flush(host, policy, Some(id)).unwrap_or(Flow::Pause);
        host.enter(id);
        Ok(flow)
    }

    /// A request that still waits is over: whatever happens to it now comes from its client or from Envoy.
    pub(super) fn give_up_waiting(&mut self, id: u32) {
        let Phase::Waiting(held) = self.phase(id) else { return };
        let policy = held.pending.reading.policy;
        if let Some(Some(batcher)) = self.batchers.get_mut(policy.index()) {
            batcher.remove(id);
        }
        self.set_phase(id, Phase::Passing);
    }

    /// Decides every batch that is due; `root` is the context to which the host returns.
    pub(super) fn flush_all(&mut self, host: &mut impl Host, root: u32) {
        if !self.batches() {
            return;
        }
        for policy in (0..self.batchers.len()).map(PolicyId::new) {
            self.flush(host, policy, None);
        }
        host.enter(root);
    }

    /// Decides the batches of a policy that are due. The request `own`, whose callback this is, is not resumed but told what to do.
    fn flush(&mut self, host: &mut impl Host, policy: PolicyId, own: Option<u32>) -> Option<Flow> {
        let mut told = None;
        while let Some(batch) = self.decide_batch(host, policy) {
            for (id, pending, verdict, timing) in batch {
                if !host.enter(id) {
                    continue;
                }
                let flow = self.act(host, id, pending, verdict, timing);
                if own == Some(id) {
                    told = Some(flow);
                } else if flow == Flow::Continue {
                    host.resume();
                }
            }
        }
        told
    }

    /// Decides the next batch of a policy, if one is due.
    fn decide_batch(
        &mut self,
        host: &mut impl Host,
        policy: PolicyId,
    ) -> Option<Vec<(u32, Pending, Verdict, DecisionTiming)>> {
        let now = host.now();
        let workers = self.worker.serving_workers();
        let batcher = self.batchers.get_mut(policy.index())?.as_mut()?;
        if !batcher.due(now, now.saturating_add(LOOK), workers) {
            return None;
        }
        let ids: Vec<u32> = batcher.take(workers).into_iter().map(|waiting| waiting.id).collect();
        let draw = self.worker.learner.draw();
        let (loads, sequence) = self.worker.loads(host, now, draw);
        if let (Some(loads), Some(batcher)) = (&loads, self.batchers.get_mut(policy.index())?) {
            batcher.adapt(assign::queueing_share(loads));
        }
        let mut batch: Vec<(u32, Box<HeldRequest>)> = Vec::with_capacity(ids.len());
        for id in ids {
            match self.take_phase(id) {
                Phase::Waiting(mut held) => {
                    held.pending.recall(&mut self.worker, now);
                    batch.push((id, held));
                }
                other => self.set_phase(id, other),
            }
        }
        let worker = &mut self.worker;
        let asked = batch.iter().map(|(_, held)| (held.pending.ask(host, worker, sequence), &held.outlook)).collect();
        let assigned = assign::assign(&worker.router, asked, loads, worker.learner.learned(), now);
        let decision = host.clock().saturating_sub(now);
        let batch_size = batch.len();
        worker.statistics.count(Counter::Batches);
        worker.statistics.observe(Histogram::BatchSize, batch_size as u64);
        let mut batch: Vec<Option<(u32, Box<HeldRequest>)>> = batch.into_iter().map(Some).collect();
        let mut decided = Vec::with_capacity(batch_size);
        for (batch_position, Assigned { request, verdict }) in assigned.into_iter().enumerate() {
            let Some((id, held)) = batch.get_mut(request).and_then(Option::take) else { continue };
            let waited = now.saturating_sub(held.arrived);
            let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            worker.statistics.observe(Histogram::BatchWaitMs, waited_ms);
            let batched = Batched { batch_size, batch_position, batch_wait_ms: milliseconds(waited.as_secs_f64()) };
            let verdict = deciding::claimed(host, worker, &held.pending, verdict, now);
            let scan = held.pending.reading.scan_time;
            let timing = DecisionTiming { scan, decision, batch: Some(batched), ..DecisionTiming::default() };
            decided.push((id, held.pending, verdict, timing));
        }
        Some(decided)
    }
}
