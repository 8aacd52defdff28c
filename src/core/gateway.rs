//! The gateway of one VM as a value: callbacks and ticks in, what is to be done out, on whatever host.
//!
//! A [`Gateway`] has the [`Worker`] and the requests that are on their way, each in one [`Phase`]. A [`Host`] shows it requests and
//! carries out what it says: Envoy, or memory in tests. Neither time nor chance comes from here.

mod access_log;
mod answering;
mod attempt;
mod batching;
mod checkup;
mod deciding;
mod feedback;
mod holding;
mod host;
mod local;
pub mod memory;
mod outcome;
mod passage;
mod probing;
mod rerun;
mod serving;
mod stream;
mod subset;
mod values;
mod wishes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use attempt::{Attempt, context_of};
pub use holding::Holding;
pub use host::{Body, Host, Map};
pub use outcome::{Outcome, Subject};
pub use passage::Passage;
pub use values::{listed, pairs};

use answering::OwnAnswer;
use batching::HeldRequest;
use deciding::RequestReading;
use probing::Probing;
use serving::Serving;

use crate::assign::Batcher;
use crate::openai::Api;
use crate::router::Router;
use crate::worker::{Purpose, Worker};

/// Time between two ticks: how late a scrape may be sent, and how old the progress of streams may be for other workers.
pub const TICK: Duration = Duration::from_millis(50);
/// Time between two looks at who waits for a batch.
pub const LOOK: Duration = Duration::from_millis(5);
/// Looks in the time of one ordinary tick.
const LOOKS_PER_TICK: u32 = (TICK.as_millis() / LOOK.as_millis()) as u32;
/// Bytes of a body that are read at once: bounds the VM's memory whatever the body's size.
const PIECE: usize = 64 << 10;

/// Whether the host goes on with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    /// It goes on.
    #[default]
    Continue,
    /// It waits.
    Pause,
}

/// The gateway of one VM.
pub struct Gateway {
    /// What is not about single requests.
    pub worker: Worker,
    /// Requests on their way, by the host's numbers.
    streams: BTreeMap<u32, Stream>,
    /// Requests that wait, by policy; `None` where a policy does not batch.
    batchers: Vec<Option<Batcher<()>>>,
    /// Ticks until there is more to do than to look at batches.
    looks_left: u32,
    /// What calls of the worker that are under way are for, by the host's numbers.
    fetches: BTreeMap<u32, Purpose>,
    reruns: rerun::Reruns,
    /// What the log knows of routes whose metadata cannot be understood.
    unread_routes: BTreeSet<String>,
    /// What becomes of headers while their bodies come.
    pub passage: Passage,
}

/// One request.
#[derive(Default)]
struct Stream {
    /// For the access log.
    request_id: String,
    /// Whether the whole request is here.
    received: bool,
    phase: Phase,
}

#[derive(Default)]
enum Phase {
    /// Not ours, already answered, or over.
    #[default]
    Passing,
    /// Asked for a decision, and left to Envoy's own route.
    Untouched(Api),
    /// Headers are held while the body comes.
    Reading(Box<RequestReading>),
    /// The whole request is held until its batch is decided.
    Waiting(Box<HeldRequest>),
    /// A question to the predictor: headers are held while the body comes.
    Probing(Box<Probing>),
    /// Sent to an instance.
    Serving(Box<Serving>),
    /// A feedback whose body comes.
    Feedback(feedback::Incoming),
    /// Its answer is certain, and waits until all of it is here.
    Answering(Box<OwnAnswer>),
}

impl Gateway {
    /// A gateway that begins now. `owner` is random and tells it from all others.
    pub fn new(router: Router, owner: u64, host: &mut impl Host) -> Gateway {
        let batchers = router.config().policies.iter().map(|p| p.batching.map(Batcher::new)).collect();
        let passage = Passage::new(router.config().envoy.headers_go_on);
        let mut worker = Worker::new(router, owner, host.now());
        let now = host.now();
        worker.begin(host, now);
        Gateway {
            worker,
            streams: BTreeMap::new(),
            batchers,
            looks_left: 0,
            fetches: BTreeMap::new(),
            reruns: rerun::Reruns::default(),
            unread_routes: BTreeSet::new(),
            passage,
        }
    }

    /// Time between two ticks.
    pub fn tick_period(&self) -> Duration {
        if self.batches() { LOOK } else { TICK }
    }

    fn batches(&self) -> bool {
        self.batchers.iter().any(Option::is_some)
    }

    /// Whether a request is on its way here.
    pub fn has(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    /// A tick. `root` is the context to which the host returns.
    pub fn on_tick(&mut self, host: &mut impl Host, root: u32) {
        self.flush_all(host, root);
        if let Some(looks) = self.looks_left.checked_sub(1) {
            self.looks_left = looks;
            return;
        }
        if self.batches() {
            self.looks_left = LOOKS_PER_TICK.saturating_sub(1);
        }
        let now = host.now();
        self.look_for_stuck(host, root, now);
        for fetch in self.worker.tick(host, now) {
            let call = self.worker.question(&fetch.purpose).and_then(|question| {
                let mut headers =
                    vec![(":method", "GET"), (":path", question.path), (":authority", &*question.authority)];
                headers.extend(question.endpoint.as_deref().map(|endpoint| (crate::names::ENDPOINT_HEADER, endpoint)));
                host.call(&question.cluster, &headers, &[], fetch.timeout)
            });
            match call {
                Some(token) => drop(self.fetches.insert(token, fetch.purpose)),
                None => self.worker.not_fetched(&fetch.purpose),
            }
        }
    }

    /// A call was answered, or, without headers, was not. `root` is the context to which the host returns.
    pub fn on_call_response(&mut self, host: &mut impl Host, root: u32, token: u32, has_headers: bool, size: usize) {
        let Some(purpose) = self.fetches.remove(&token) else {
            return self.call_answered(host, root, token, has_headers, size);
        };
        let status = if has_headers { host.header(Map::CallResponse, ":status") } else { None };
        let body = host.body(Body::CallResponse, 0, size);
        let now = host.now();
        self.worker.fetched(host, &purpose, status.and_then(|status| status.parse().ok()), &body, now);
    }

    /// The VM ends.
    pub fn on_done(&mut self, host: &mut impl Host) {
        let now = host.now();
        self.worker.leave(host, now);
    }

    fn take_phase(&mut self, id: u32) -> Phase {
        self.streams.get_mut(&id).map(|stream| std::mem::take(&mut stream.phase)).unwrap_or_default()
    }

    fn set_phase(&mut self, id: u32, phase: Phase) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = phase;
        }
    }

    fn phase(&self, id: u32) -> &Phase {
        self.streams.get(&id).map_or(&Phase::Passing, |stream| &stream.phase)
    }

    fn serving(&mut self, id: u32) -> Option<&mut Serving> {
        match self.streams.get_mut(&id).map(|stream| &mut stream.phase) {
            Some(Phase::Serving(serving)) => Some(serving),
            _ => None,
        }
    }

    /// The same, to look at.
    fn served(&self, id: u32) -> Option<&Serving> {
        match self.phase(id) {
            Phase::Serving(serving) => Some(serving),
            _ => None,
        }
    }

    fn request_id(&self, id: u32) -> &str {
        self.streams.get(&id).map_or("", |stream| &stream.request_id)
    }

    fn is_received(&self, id: u32) -> bool {
        self.streams.get(&id).is_some_and(|stream| stream.received)
    }

    fn receive(&mut self, id: u32, is_whole: bool) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.received = is_whole;
        }
    }
}

#[cfg(test)]
mod tests;
