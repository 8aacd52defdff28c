//! The attempts of a request after its first one, as an upstream filter of the pools' clusters sees them: each asks for the model of the
//! instance that it goes to, and where two instances have failed alike, no third one is asked.

use std::borrow::Cow;

use super::deciding::patch_body;
use super::{Flow, Gateway, Host, Map};
use crate::fleet::{Fleet, InstanceId, PoolId};
use crate::health::Suspect;
use crate::names;
use crate::openai::{self, Api, Patch, PatchPlaces};
use crate::router::{Decision, Elsewhere, RefusalReason};

/// What attempts after the first need to know of a request.
pub(super) struct AttemptPlan {
    /// What the request must say at pools of other models.
    elsewhere: Vec<Elsewhere>,
    /// Its length as the first attempt has said it, if it has: attempts write it anew, and what one of them writes into the headers is still
    /// there at the next.
    length: Option<u64>,
    /// What of its body may be rewritten, and what has been.
    places: PatchPlaces,
    done: Vec<Patch>,
    api: Api,
    /// The instance of the first attempt, which nobody sees here, and whether it answered nobody when the second one was made.
    first: InstanceId,
    /// The pool that it was decided for.
    pool: PoolId,
    first_is_silent: bool,
    suspect: Suspect,
    /// The instances of the attempts after the first one; `None` for one that the gateway does not know.
    passed: Vec<Option<InstanceId>>,
    /// Whether the request was ended because it is the suspect: the last attempt's instance has not had it.
    given_up: bool,
}

impl AttemptPlan {
    /// `done` has been applied to the body.
    pub(super) fn new(api: Api, decision: &Decision, places: PatchPlaces, done: Vec<Patch>) -> AttemptPlan {
        AttemptPlan {
            elsewhere: decision.to.elsewhere.clone(),
            length: None,
            places,
            done,
            api,
            first: decision.to.instance,
            pool: decision.to.pool,
            first_is_silent: false,
            suspect: Suspect::default(),
            passed: Vec::new(),
            given_up: false,
        }
    }

    /// Whether the request is the reason of its failures, and no other instance is to be asked.
    fn is_suspect(&self) -> bool {
        self.suspect.is_certain(self.first_is_silent)
    }

    /// How many instances have failed at the request, if it was ended because they have: the next one has not had it.
    pub(super) fn given_up_after(&self) -> Option<usize> {
        self.given_up.then_some(self.passed.len())
    }

    /// Whether nobody has seen a further attempt.
    pub(super) fn is_first(&self) -> bool {
        self.passed.is_empty()
    }

    /// The instances of the attempts after the first one.
    pub(super) fn passed(&self) -> Vec<InstanceId> {
        self.passed.iter().copied().collect::<Option<Vec<InstanceId>>>().unwrap_or_default()
    }

    /// What makes the body ask for the model of the instance at an address.
    fn patches(&self, fleet: &Fleet, address: &str) -> Vec<Patch> {
        let patches = || {
            let (id, pool) = fleet.pool_of(fleet.serving(address, self.pool)?)?;
            let elsewhere = self.elsewhere.iter().find(|elsewhere| elsewhere.pool == id)?;
            Some(self.places.patches_after(&self.done, self.api, &pool.served_model, elsewhere.max_tokens))
        };
        patches().unwrap_or_default()
    }

    /// The body of the request as an instance needs it.
    pub(super) fn body_at<'a>(&self, fleet: &Fleet, address: &str, body: &'a [u8]) -> Cow<'a, [u8]> {
        let patches = self.patches(fleet, address);
        let patched = Some(patches).filter(|patches| !patches.is_empty());
        let patched = patched.and_then(|patches| openai::patched(&patches, body));
        patched.map_or(Cow::Borrowed(body), Cow::Owned)
    }
}

/// What an attempt after the first needs to know.
struct NextAttempt {
    api: Api,
    /// Whether it is not to be made.
    given_up: bool,
    /// The request's length as the first attempt has said it.
    length: Option<u64>,
    /// What is to be changed.
    patches: Vec<Patch>,
}

impl Gateway {
    /// Another attempt of a request begins, at this address.
    fn begin_attempt(&mut self, host: &mut impl Host, id: u32, address: &str) -> Option<NextAttempt> {
        let now = host.now();
        let pool = self.serving(id)?.sent.plan.pool;
        let instance = self.worker.router.config().fleet.serving(address, pool);
        let plan = &mut self.serving(id)?.sent.plan;
        plan.given_up = plan.is_suspect();
        let (first, is_second, given_up) = (plan.first, plan.passed.is_empty(), plan.given_up);
        if let Some(instance) = instance.filter(|_| !given_up) {
            self.moved(host, id, instance, now);
        }
        let is_silent = is_second && self.worker.is_silent(host, first, now);
        let plan = &mut self.serving(id)?.sent.plan;
        plan.first_is_silent |= is_silent;
        plan.passed.push(instance);
        if is_second {
            plan.length = host.header(Map::Request, "content-length").and_then(|length| length.trim().parse().ok());
        }
        let plan = &self.served(id)?.sent.plan;
        let patches = plan.patches(&self.worker.router.config().fleet, address);
        Some(NextAttempt { api: plan.api, given_up, length: plan.length, patches })
    }

    /// An instance has failed at a request; whether the request is the reason.
    fn attempt_failed(&mut self, id: u32) -> bool {
        let Some(serving) = self.serving(id) else { return false };
        serving.sent.plan.suspect.failed();
        serving.sent.plan.is_suspect()
    }
}

/// One attempt.
#[derive(Default)]
pub struct Attempt {
    api: Option<Api>,
    /// What makes the body ask for the model of this attempt's instance; none once it does.
    patches: Vec<Patch>,
    /// Bytes of the body that are in the host's buffer.
    size: usize,
    /// Whether the instance has answered.
    answered: bool,
}

/// Whose attempt this is: the routed state ends with the number of the request's context. `None` for one that nobody has decided.
pub fn context_of(host: &impl Host) -> Option<u32> {
    host.property(&[names::ROUTED_STATE])?.rsplit(' ').next()?.parse().ok()
}

impl Attempt {
    /// Ends the request: no instance gets it any more.
    fn give_up(&self, host: &mut impl Host, status: u16, reason: RefusalReason, message: &str) -> Flow {
        let body = openai::error_body(self.api, status, message);
        let headers = [("content-type", "application/json"), (names::REFUSED_REASON_RESPONSE_HEADER, reason.name())];
        host.respond(status, &headers, body.as_bytes());
        Flow::Pause
    }

    /// The whole body is here. The headers have said its length, so that a body which cannot be written goes nowhere.
    fn write_body(&mut self, host: &mut impl Host, size: usize) -> Flow {
        let patches = std::mem::take(&mut self.patches);
        if patches.is_empty() || patch_body(host, &patches, size, None).is_some() {
            return Flow::Continue;
        }
        let message = "The gateway cannot write this request as the next instance needs it.";
        self.give_up(host, 503, RefusalReason::Unwritten, message)
    }

    /// The attempt begins. `gateway` has the request; `None` if its VM has been replaced since, and nobody knows what to ask for.
    pub fn on_request_headers(
        &mut self,
        host: &mut impl Host,
        gateway: Option<&mut Gateway>,
        id: u32,
        end_of_stream: bool,
    ) -> Flow {
        let address = host.property(&["upstream", "address"]).unwrap_or_default();
        let Some(next) = gateway.and_then(|gateway| gateway.begin_attempt(host, id, &address)) else {
            let message = "The gateway was restarted while it looked for an instance.";
            return self.give_up(host, 503, RefusalReason::Restarted, message);
        };
        self.api = Some(next.api);
        if next.given_up {
            let message = "Two instances have broken this request off.";
            return self.give_up(host, 502, RefusalReason::Suspect, message);
        }
        if !end_of_stream {
            // Also where nothing is changed: an attempt before this one may have written another length.
            if let Some(length) = next.length.map(|length| openai::patched_length(&next.patches, length)) {
                host.set_header(Map::Request, "content-length", Some(&length.to_string()));
            }
            self.patches = next.patches;
        }
        Flow::Continue
    }

    /// More of the body is here.
    pub fn on_request_body(&mut self, host: &mut impl Host, size: usize, end_of_stream: bool) -> Flow {
        if !self.patches.is_empty() && !end_of_stream {
            self.size = size;
            return Flow::Pause;
        }
        self.write_body(host, size)
    }

    /// A body that ends with trailers has no last piece of its own.
    pub fn on_request_trailers(&mut self, host: &mut impl Host) -> Flow {
        self.write_body(host, self.size)
    }

    /// The instance answers.
    pub fn on_response_headers(&mut self, host: &mut impl Host, gateway: Option<&mut Gateway>, id: u32) {
        self.answered = true;
        let status = host.header(Map::Response, ":status").and_then(|status| status.parse().ok());
        let failed = status.is_some_and(|status| Suspect::STATUSES.contains(&status));
        if failed && gateway.is_some_and(|gateway| gateway.attempt_failed(id)) {
            host.set_header(Map::Response, names::NO_RETRY_RESPONSE_HEADER, Some("true"));
        }
    }

    /// The attempt is over. With a connection, it had the request.
    pub fn on_done(&mut self, host: &impl Host, gateway: Option<&mut Gateway>, id: u32) {
        if !self.answered
            && host.property(&["upstream", "local_address"]).is_some()
            && let Some(gateway) = gateway
        {
            gateway.attempt_failed(id);
        }
    }
}
