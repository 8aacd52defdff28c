//! What the gateway answers itself: models, feedback, questions to the predictor; and where a stored response is.

use proxy_wasm::types::{Action, BufferType, MapType};

use crate::config::Drill;
use crate::filter::access_log;
use crate::filter::debug::Probing;
use crate::filter::deciding::direct;
use crate::filter::feedback;
use crate::filter::host;
use crate::filter::stream::{Phase, Stream};
use crate::filter::worker::{Envoy, Shared};
use crate::names;
use crate::openai;
use crate::router::Refusal;

impl Stream {
    pub(super) fn models(&mut self, wanted: Option<&str>) -> Action {
        let created = host::wall_clock().as_secs();
        let body = self.worker.with(|w| {
            let models = w.router.config().models();
            match wanted {
                None => Some(openai::models_body(models.into_iter(), created)),
                Some(name) => models.into_iter().find(|m| m.name == name).map(|m| openai::model_body(m, created)),
            }
        });
        match body.flatten() {
            Some(body) => {
                access_log::publish_unrouted(&self.request_id, "answered", "models");
                self.answer(200, body)
            }
            None => {
                let message = format!("The model `{}` does not exist.", wanted.unwrap_or_default());
                let refusal = Refusal::new(404, "unknown_model", message);
                self.refuse(None, &Refusal { param: Some("model"), ..refusal })
            }
        }
    }

    /// A question to the predictor, read up to here.
    pub(super) fn probe(&mut self, mut probing: Box<Probing>, size: usize, end_of_stream: bool) -> Action {
        probing.read(size);
        let limit = self.worker.with(|w| w.router.config().max_buffered_bytes).unwrap_or(u64::MAX);
        if size as u64 >= limit {
            return self.refuse(None, &Refusal::new(413, "too_large", "The request body is too large."));
        }
        if !end_of_stream {
            self.phase = Phase::Probing(probing);
            return Action::Pause;
        }
        match self.worker.with(|w| probing.answer(&w.router)) {
            Some(Ok(body)) => {
                access_log::publish_unrouted(&self.request_id, "answered", "debug_predict");
                self.answer(200, body)
            }
            Some(Err((status, message))) => self.refuse(None, &Refusal::new(status, "body", message)),
            None => self.pass("busy"),
        }
    }

    /// Whether a request is a question to the predictor, and may be.
    pub(super) fn is_probe(&self, method: &str, path: &str) -> bool {
        let asks = method == "POST" && path == names::DEBUG_PREDICT_PATH;
        asks && self.worker.with(|w| w.router.config().debug_predict) == Some(true)
    }

    /// A stored response belongs to the instance that made it.
    pub(super) fn response_item(&mut self, id: &str) -> Action {
        let found = self.worker.with(|w| {
            let fleet = &w.router.config().fleet;
            let instance = fleet.instances.get(w.holder(&Envoy, id)?)?;
            Some((fleet.pools.get(instance.pool)?.cluster.clone(), instance.address.clone()))
        });
        match found.flatten() {
            Some((cluster, address)) => {
                direct(&cluster, Some(&address), true, None);
                access_log::publish_unrouted(&self.request_id, "returned", "response_item");
                Action::Continue
            }
            None => self.pass("unknown_response"),
        }
    }

    /// Whether a request is a feedback, and feedback is taken.
    pub(super) fn is_feedback(&self, path: &str) -> bool {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        path == names::FEEDBACK_PATH
            && self.worker.with(|w| w.router.config().learning.feedback_secret.is_some()).unwrap_or(false)
    }

    pub(super) fn begin_feedback(&mut self, method: &str, end_of_stream: bool) -> Action {
        let authorization = host::header(MapType::HttpRequestHeaders, "authorization");
        let length = host::header(MapType::HttpRequestHeaders, "content-length").and_then(|v| v.trim().parse().ok());
        let admitted = self.worker.with(|w| feedback::admit(w, method, authorization.as_deref(), length));
        match admitted {
            None => self.refuse_feedback(503, "The gateway is busy."),
            Some(Err((status, message))) => self.refuse_feedback(status, message),
            Some(Ok(())) if end_of_stream => self.finish_feedback(&feedback::Incoming::default()),
            Some(Ok(())) => {
                self.phase = Phase::Feedback(feedback::Incoming::default());
                Action::Pause
            }
        }
    }

    pub(super) fn refuse_feedback(&mut self, status: u16, message: &str) -> Action {
        access_log::publish_unrouted(&self.request_id, "refused", message);
        self.worker.with(|w| w.statistics.count("feedback.refused"));
        self.answer(status, openai::error_body(None, status, message))
    }

    pub(super) fn finish_feedback(&mut self, incoming: &feedback::Incoming) -> Action {
        match self.worker.with(|w| incoming.finish(w)) {
            None => self.refuse_feedback(503, "The gateway is busy."),
            Some(Err((status, message))) => self.refuse_feedback(status, &message),
            Some(Ok(feedback::Accepted { feedback, model, propensity })) => {
                access_log::publish_feedback(&self.request_id, &feedback, &model, propensity);
                self.worker.with(|w| w.statistics.count("feedback.accepted"));
                self.answer(200, feedback.accepted(&model))
            }
        }
    }

    pub(super) fn read_feedback(&mut self, size: usize, end_of_stream: bool) -> Action {
        let Phase::Feedback(incoming) = &mut self.phase else { return Action::Continue };
        let piece = host::buffer(BufferType::HttpRequestBody, incoming.len(), size.saturating_sub(incoming.len()));
        if let Err((status, message)) = incoming.push(&piece) {
            return self.refuse_feedback(status, message);
        }
        if !end_of_stream {
            return Action::Pause;
        }
        let incoming = std::mem::take(incoming);
        self.finish_feedback(&incoming)
    }
}

/// Whether a request asks for the end of this VM, and may.
pub(super) fn is_fatal(worker: &Shared, method: &str, path: &str) -> bool {
    let asks = method == "POST" && path == names::DRILL_VM_PATH;
    asks && worker.with(|w| w.router.config().drills(Drill::Vm)) == Some(true)
}
