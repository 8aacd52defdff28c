//! Requests that wait for their batch, held by the worker; and batches decided from the tick or from the arrival that fills one.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::types::Action;

use crate::assign::{self, Assigned, Waiting};
use crate::filter::access_log::{Batched, Timing, ms};
use crate::filter::deciding::{self, Pending};
use crate::filter::host;
use crate::filter::root::TICK;
use crate::filter::stream::{Phase, Stream};
use crate::filter::worker::{Envoy, Shared, Worker};
use crate::router::{Outlook, Verdict};

/// Time between two looks at who waits.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// Looks in the time of one ordinary tick.
pub(super) const LOOKS_PER_TICK: u32 = (TICK.as_millis() / LOOK.as_millis()) as u32;

/// A stream's claim to what becomes of its request.
pub(super) struct Ticket {
    policy: usize,
    /// The phase that follows, once the batch is decided.
    next: Rc<Cell<Option<Phase>>>,
}

/// What the worker holds of a request that waits. Its stream is out of reach when the batch is decided: the host calls one context
/// at a time.
pub(super) struct Held {
    pending: Pending,
    outlook: Outlook,
    request_id: String,
    next: Rc<Cell<Option<Phase>>>,
}

impl Stream {
    /// Lets a request wait for its batch, if it is one that waits: takes it then.
    pub(super) fn wait(&mut self, pending: &mut Option<Pending>) -> Option<Action> {
        let next = Rc::new(Cell::new(None));
        let joined = self.worker.with(|w| join(w, self.id, &self.request_id, pending, &next));
        let policy = joined.flatten()?;
        self.phase = Phase::Waiting(Ticket { policy, next });
        let action = flush(&self.worker, policy, Some(self.id)).unwrap_or(Action::Pause);
        let _ = hostcalls::set_effective_context(self.id);
        if let Phase::Waiting(ticket) = &self.phase
            && let Some(next) = ticket.next.take()
        {
            self.phase = next;
        }
        Some(action)
    }

    /// Goes on to what has become of a request that has waited. One that still waits is over: whatever happens to it now comes from
    /// its client or from Envoy.
    pub(super) fn settle(&mut self) {
        let Phase::Waiting(ticket) = &self.phase else { return };
        self.phase = ticket.next.take().unwrap_or_else(|| {
            self.worker.with(|w| w.batchers.get_mut(ticket.policy)?.as_mut()?.remove(self.id));
            Phase::Passing
        });
    }
}

/// The policy in whose batcher a request now waits.
fn join(
    worker: &mut Worker,
    id: u32,
    request_id: &str,
    pending: &mut Option<Pending>,
    next: &Rc<Cell<Option<Phase>>>,
) -> Option<usize> {
    let policy = pending.as_ref()?.reading.policy;
    worker.batchers.get(policy)?.as_ref()?;
    let ask = pending.as_ref()?.ask(worker, 0);
    let outlook = assign::outlook(&worker.router, &ask)?;
    let held = Held { pending: pending.take()?, outlook, request_id: request_id.to_owned(), next: Rc::clone(next) };
    worker.batchers.get_mut(policy)?.as_mut()?.push(id, host::now(), held);
    Some(policy)
}

/// Decides every batch that is due; `root` is the context to which the host returns.
pub(super) fn flush_all(shared: &Shared, root: u32) {
    let policies = shared.with(|w| w.batchers.len()).unwrap_or(0);
    for policy in 0..policies {
        flush(shared, policy, None);
    }
    let _ = hostcalls::set_effective_context(root);
}

/// Decides the batches of a policy that are due. The stream `own`, whose callback this is, is not resumed but told what to do.
fn flush(shared: &Shared, policy: usize, own: Option<u32>) -> Option<Action> {
    let mut told = None;
    while let Some(batch) = shared.with(|w| decide(w, policy)).flatten() {
        for (waiting, verdict, timing) in batch {
            let Waiting { id, request: Held { pending, request_id, next, .. }, .. } = waiting;
            if hostcalls::set_effective_context(id).is_err() {
                continue;
            }
            // What waits is whole.
            let received = true;
            let mut stream = Stream { worker: shared.clone(), id, request_id, received, phase: Phase::Passing };
            let action = stream.act(pending, verdict, timing);
            next.set(Some(std::mem::replace(&mut stream.phase, Phase::Passing)));
            if own == Some(id) {
                told = Some(action);
            } else if action == Action::Continue {
                let _ = hostcalls::resume_http_request();
            }
        }
    }
    told
}

type Decided = (Waiting<Held>, Verdict, Timing);

/// Decides the next batch of a policy, if one is due.
fn decide(worker: &mut Worker, policy: usize) -> Option<Vec<Decided>> {
    let now = host::now();
    let workers = worker.serving_workers();
    let batcher = worker.batchers.get_mut(policy)?.as_mut()?;
    if !batcher.due(now, now.saturating_add(LOOK), workers) {
        return None;
    }
    let mut batch = batcher.take(workers);
    let draw = worker.learner.draw();
    let (loads, sequence) = worker.loads(&Envoy, now, draw);
    if let (Some(loads), Some(batcher)) = (&loads, worker.batchers.get_mut(policy)?) {
        batcher.adapt(assign::queueing_share(loads));
    }
    batch.iter_mut().for_each(|w| w.request.pending.recall(worker, now));
    let asked = batch.iter().map(|w| (w.request.pending.ask(worker, sequence), &w.request.outlook)).collect();
    let assigned = assign::assign(&worker.router, asked, loads, worker.learner.learned(), now);
    let decision = host::now().saturating_sub(now);
    let batch_size = batch.len();
    worker.statistics.count("batches");
    worker.statistics.observe("batch_size", batch_size as u64);
    let mut batch: Vec<Option<Waiting<Held>>> = batch.into_iter().map(Some).collect();
    let in_order = assigned.into_iter().enumerate().filter_map(|(batch_position, Assigned { request, verdict })| {
        let waiting = batch.get_mut(request)?.take()?;
        let waited = now.saturating_sub(waiting.arrived);
        worker.statistics.observe("batch_wait_ms", u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let batched = Batched { batch_size, batch_position, batch_wait_ms: ms(waited.as_secs_f64()) };
        let verdict = deciding::claimed(worker, &waiting.request.pending, verdict, now);
        let scan = waiting.request.pending.reading.scan_time;
        let timing = Timing { scan, decision, batch: Some(batched), ..Timing::default() };
        Some((waiting, verdict, timing))
    });
    Some(in_order.collect())
}
