//! The attempts of a request after its first one, as an upstream filter of the pools' clusters sees them: each asks for the model of the
//! instance that it goes to, and where two instances have failed alike, no third one is asked.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, MapType};

use crate::config::Config;
use crate::filter::deciding::patch_body;
use crate::filter::host;
use crate::filter::worker::{Envoy, Shared};
use crate::health::Suspect;
use crate::names;
use crate::openai::{self, Api, Patch, Prompt};
use crate::reckoning::Dispatch;
use crate::router::Decision;

/// What attempts after the first need to know of a request.
pub(super) struct Plan {
    /// For the address of every instance of another model among the fall-backs, what makes the body ask for that model.
    elsewhere: Vec<(String, Vec<Patch>)>,
    api: Api,
    worker: Shared,
    /// The instance of the first attempt, which nobody sees here, and whether it answered nobody when the second one was made.
    first: usize,
    first_is_silent: bool,
    suspect: Suspect,
    /// The instances of the attempts after the first one; `None` for one that the filter does not know.
    passed: Vec<Option<usize>>,
    /// The request's load.
    dispatch: Rc<Cell<Option<Dispatch>>>,
    /// Whether the request was ended because it is the suspect: the last attempt's instance has not had it.
    given_up: bool,
}

impl Plan {
    /// `done` has been applied to the body.
    pub(super) fn new(
        worker: Shared,
        config: &Config,
        api: Api,
        prompt: &Prompt,
        decision: &Decision,
        (done, dispatch): (&[Patch], Rc<Cell<Option<Dispatch>>>),
    ) -> Plan {
        let fleet = &config.fleet;
        let target = |i: &usize| {
            let (index, pool) = fleet.pool_of(*i)?;
            let elsewhere = decision.elsewhere.iter().find(|elsewhere| elsewhere.pool == index)?;
            let address = fleet.instances.get(*i)?.address.clone();
            Some((address, prompt.patches_after(done, api, &pool.served_model, elsewhere.max_tokens)))
        };
        let elsewhere = decision.fallbacks.iter().filter_map(target).collect();
        Plan {
            elsewhere,
            api,
            worker,
            first: decision.instance,
            first_is_silent: false,
            suspect: Suspect::default(),
            passed: Vec::new(),
            dispatch,
            given_up: false,
        }
    }

    /// Whether the request is the reason of its failures, and no other instance is to be asked.
    fn is_suspect(&self) -> bool {
        self.suspect.is_certain(self.first_is_silent)
    }

    /// Another attempt begins, at this address.
    fn pass(&mut self, context: u32, address: &str) {
        self.given_up = self.is_suspect();
        let (first, is_second, given_up) = (self.first, self.passed.is_empty(), self.given_up);
        let dispatch = Rc::clone(&self.dispatch);
        let seen = self.worker.with(|worker| {
            let now = host::now();
            let instance = worker.router.config().fleet.instance_at(address);
            if let Some(instance) = instance.filter(|_| !given_up) {
                worker.reruns.moved(context, instance, now);
                worker.carry(&dispatch, instance, now);
            }
            (is_second && worker.is_silent(&Envoy, first, now), instance)
        });
        let (is_silent, instance) = seen.unwrap_or_default();
        self.first_is_silent |= is_silent;
        self.passed.push(instance);
    }
}

thread_local! {
    /// The plans of this VM's requests, by the context of each. The two filters have root contexts of their own, and share the VM.
    static PLANS: RefCell<HashMap<u32, Plan>> = RefCell::new(HashMap::new());
}

fn with_plans<R>(f: impl FnOnce(&mut HashMap<u32, Plan>) -> R) -> Option<R> {
    PLANS.try_with(|plans| plans.try_borrow_mut().ok().map(|mut plans| f(&mut plans))).ok().flatten()
}

/// A request on its way: its plan stands as long as this lives.
pub(super) struct Planned {
    context: u32,
}

impl Planned {
    pub(super) fn new(context: u32, plan: Plan) -> Planned {
        with_plans(|plans| plans.insert(context, plan));
        Planned { context }
    }

    pub(super) fn context(&self) -> u32 {
        self.context
    }

    /// How many instances have failed at the request, if it was ended because they have: the next one has not had it.
    pub(super) fn given_up_after(&self) -> Option<usize> {
        with_plans(|plans| plans.get(&self.context).filter(|plan| plan.given_up).map(|plan| plan.passed.len()))
            .flatten()
    }

    /// The instances of the attempts after the first one.
    pub(super) fn passed(&self) -> Vec<usize> {
        with_plans(|plans| plans.get(&self.context).and_then(|plan| plan.passed.iter().copied().collect()))
            .flatten()
            .unwrap_or_default()
    }
}

impl Drop for Planned {
    fn drop(&mut self) {
        with_plans(|plans| plans.remove(&self.context));
    }
}

/// The body of a request as an instance needs it.
pub(super) fn body_at<'a>(context: u32, address: &str, body: &'a [u8]) -> Cow<'a, [u8]> {
    let patched = with_plans(|plans| {
        let (_, patches) = plans.get(&context)?.elsewhere.iter().find(|(other, _)| other == address)?;
        openai::patched(patches, body)
    });
    patched.flatten().map_or(Cow::Borrowed(body), Cow::Owned)
}

/// The context of the request whose attempt this is: the routed state ends with it.
fn context() -> Option<u32> {
    host::property(&[names::ROUTED_STATE])?.rsplit(' ').next()?.parse().ok()
}

/// One attempt.
#[derive(Default)]
pub(super) struct Attempt {
    context: Option<u32>,
    /// What makes the body ask for the model of this attempt's instance; `None` once it does.
    patches: Option<Vec<Patch>>,
    /// Bytes of the body that are in the host's buffer.
    size: usize,
    /// Whether the instance has answered.
    answered: bool,
}

impl Attempt {
    fn with_plan<R>(&self, f: impl FnOnce(&mut Plan) -> R) -> Option<R> {
        let context = self.context?;
        with_plans(|plans| plans.get_mut(&context).map(f)).flatten()
    }

    /// Ends the request: no instance gets it any more.
    fn give_up(api: Option<Api>, status: u16, reason: &str, message: &str) -> Action {
        let body = openai::error_body(api, status, message);
        let headers = vec![("content-type", "application/json"), (names::REFUSED_REASON_RESPONSE_HEADER, reason)];
        let _ = hostcalls::send_http_response(u32::from(status), headers, Some(body.as_bytes()));
        Action::Pause
    }

    fn write_body(&mut self, size: usize) {
        let Some(patches) = self.patches.take() else { return };
        let length = patch_body(&patches, size).unwrap_or(size);
        // What an attempt writes into the headers is still there at the next one; what it does to the body is not.
        if host::header(MapType::HttpRequestHeaders, "content-length").is_some() {
            host::set_header(MapType::HttpRequestHeaders, "content-length", Some(&length.to_string()));
        }
    }
}

impl Context for Attempt {
    fn on_done(&mut self) -> bool {
        // With a connection, it had the request.
        if !self.answered && host::property(&["upstream", "local_address"]).is_some() {
            self.with_plan(|plan| plan.suspect.failed());
        }
        true
    }
}

impl HttpContext for Attempt {
    fn on_http_request_headers(&mut self, _headers: usize, end_of_stream: bool) -> Action {
        self.context = context();
        let Some(context) = self.context else { return Action::Continue };
        let address = host::property(&["upstream", "address"]).unwrap_or_default();
        let turn = self.with_plan(|plan| {
            plan.pass(context, &address);
            let of_this = plan.elsewhere.iter().find(|(other, _)| *other == address);
            (plan.api, plan.given_up, of_this.map(|(_, patches)| patches.clone()).unwrap_or_default())
        });
        let (api, is_suspect, patches) = match turn {
            Some(turn) => turn,
            // The VM has been replaced since, and nobody knows what to ask for there.
            None => {
                let message = "The gateway was restarted while it looked for an instance.";
                return Attempt::give_up(None, 503, "restarted", message);
            }
        };
        if is_suspect {
            return Attempt::give_up(
                Some(api),
                502,
                names::SUSPECT_REASON,
                "Two instances have broken this request off.",
            );
        }
        self.patches = Some(patches);
        if end_of_stream {
            return Action::Continue;
        }
        // Also where nothing is changed: an attempt before this one may have written another length.
        Action::Pause
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.patches.is_some() && !end_of_stream {
            self.size = size;
            return Action::Pause;
        }
        self.write_body(size);
        Action::Continue
    }

    fn on_http_request_trailers(&mut self, _trailers: usize) -> Action {
        // A body that ends with trailers has no last piece of its own.
        self.write_body(self.size);
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _headers: usize, _end_of_stream: bool) -> Action {
        self.answered = true;
        let status = host::header(MapType::HttpResponseHeaders, ":status").and_then(|status| status.parse().ok());
        if !status.is_some_and(|status| Suspect::STATUSES.contains(&status)) {
            return Action::Continue;
        }
        let is_suspect = self.with_plan(|plan| {
            plan.suspect.failed();
            plan.is_suspect()
        });
        if is_suspect == Some(true) {
            host::set_header(MapType::HttpResponseHeaders, names::NO_RETRY_RESPONSE_HEADER, Some("true"));
        }
        Action::Continue
    }
}
