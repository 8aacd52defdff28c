//! What the gateway answers itself: models, feedback, questions to the predictor; and where a stored response is.

use super::deciding::direct;
use super::probing::Probing;
use super::{Body, Flow, Gateway, Host, Map, Outcome, Phase, Subject, access_log, feedback};
use crate::fleet::PoolKind;
use crate::names;
use crate::openai;
use crate::router::{Refusal, RefusalReason, UntouchedReason};
use crate::worker::Counter;

impl Gateway {
    pub(super) fn models(&mut self, host: &mut impl Host, id: u32, wanted: Option<&str>) -> Flow {
        let created = host.wall_clock().as_secs();
        let models = self.worker.router.config().models();
        let body = match wanted {
            None => Some(openai::models_body(models.into_iter(), created)),
            Some(name) => models.into_iter().find(|m| m.name == name).map(|m| openai::model_body(m, created)),
        };
        match body {
            Some(body) => {
                access_log::publish_unrouted(host, self.request_id(id), Outcome::Answered, Subject::Models.name());
                self.answer(host, id, 200, body)
            }
            None => {
                let message = format!("The model `{}` does not exist.", wanted.unwrap_or_default());
                let refusal = Refusal::new(404, RefusalReason::UnknownModel, message);
                self.refuse(host, id, None, &Refusal { param: Some("model"), ..refusal })
            }
        }
    }

    /// Whether a request asks if the gateway is alive.
    pub(super) fn asks_liveness(&self, method: &str, path: &str) -> bool {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        ["GET", "HEAD"].contains(&method) && self.worker.router.config().liveness_path.as_deref() == Some(path)
    }

    /// The gateway is alive, whoever of the instances is.
    pub(super) fn live(&mut self, host: &mut impl Host, id: u32) -> Flow {
        access_log::publish_unrouted(host, self.request_id(id), Outcome::Answered, Subject::Liveness.name());
        self.answer(host, id, 200, r#"{"status":"ok"}"#.to_owned())
    }

    /// A question to the predictor, read up to here.
    pub(super) fn probe(
        &mut self,
        host: &mut impl Host,
        id: u32,
        mut probing: Box<Probing>,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        probing.read(host, size);
        if size as u64 >= self.worker.router.config().max_buffered_bytes {
            return self.refuse(
                host,
                id,
                None,
                &Refusal::new(413, RefusalReason::TooLarge, "The request body is too large."),
            );
        }
        if !end_of_stream {
            self.set_phase(id, Phase::Probing(probing));
            return Flow::Pause;
        }
        match probing.answer(host, &self.worker.router) {
            Ok(body) => {
                access_log::publish_unrouted(
                    host,
                    self.request_id(id),
                    Outcome::Answered,
                    Subject::DebugPredict.name(),
                );
                self.answer(host, id, 200, body)
            }
            Err((status, message)) => self.refuse(host, id, None, &Refusal::new(status, RefusalReason::Body, message)),
        }
    }

    /// Whether a request is a question to the predictor, and may be.
    pub(super) fn is_probe(&self, method: &str, path: &str) -> bool {
        method == "POST" && path == names::DEBUG_PREDICT_PATH && self.worker.router.config().debug_predict
    }

    /// A stored response belongs to the instance that made it.
    pub(super) fn response_item(&mut self, host: &mut impl Host, id: u32, response: &str) -> Flow {
        let subset = match self.subset(host, self.policy(host)) {
            Err(refusal) => return self.refuse(host, id, Some(openai::Api::Responses), &refusal),
            Ok(subset) => subset,
        };
        let fleet = &self.worker.router.config().fleet;
        let holder = self.worker.holder(host, response);
        if subset.is_some_and(|subset| holder.is_none_or(|holder| !subset.contains(&holder))) {
            return self.refuse(host, id, Some(openai::Api::Responses), &Refusal::subset());
        }
        let holder = holder.and_then(|instance| fleet.instance(instance));
        let found = holder.and_then(|holder| Some((fleet.pool(holder.pool)?, holder)));
        let Some((pool, holder)) = found else { return self.pass(host, id, UntouchedReason::UnknownResponse) };
        let endpoint = Some(holder.address.as_str()).filter(|_| pool.kind == PoolKind::Own);
        direct(host, &pool.cluster, endpoint, true, None);
        access_log::publish_unrouted(host, self.request_id(id), Outcome::Returned, Subject::ResponseItem.name());
        Flow::Continue
    }

    /// Whether a request is a feedback, and feedback is taken.
    pub(super) fn is_feedback(&self, path: &str) -> bool {
        let path = path.split(['?', '#']).next().unwrap_or_default();
        path == names::FEEDBACK_PATH && self.worker.router.config().learning.feedback_secret.is_some()
    }

    pub(super) fn begin_feedback(&mut self, host: &mut impl Host, id: u32, method: &str, end_of_stream: bool) -> Flow {
        let authorization = host.header(Map::Request, "authorization");
        let length = host.header(Map::Request, "content-length").and_then(|v| v.trim().parse().ok());
        match feedback::admit(&self.worker, method, authorization.as_deref(), length) {
            Err((status, message)) => self.refuse_feedback(host, id, status, message),
            Ok(()) if end_of_stream => self.finish_feedback(host, id, &feedback::Incoming::default()),
            Ok(()) => {
                self.set_phase(id, Phase::Feedback(feedback::Incoming::default()));
                Flow::Pause
            }
        }
    }

    fn refuse_feedback(&mut self, host: &mut impl Host, id: u32, status: u16, message: &str) -> Flow {
        access_log::publish_unrouted(host, self.request_id(id), Outcome::Refused, message);
        self.worker.statistics.count(Counter::FeedbackRefused);
        self.answer(host, id, status, openai::error_body(None, status, message))
    }

    pub(super) fn finish_feedback(&mut self, host: &mut impl Host, id: u32, incoming: &feedback::Incoming) -> Flow {
        match incoming.finish(host, &mut self.worker) {
            Err((status, message)) => self.refuse_feedback(host, id, status, &message),
            Ok(feedback::AcceptedFeedback { feedback, model, propensity }) => {
                access_log::publish_feedback(host, self.request_id(id), &feedback, &model, propensity);
                self.worker.statistics.count(Counter::FeedbackAccepted);
                self.answer(host, id, 200, feedback.accepted(&model))
            }
        }
    }

    pub(super) fn read_feedback(
        &mut self,
        host: &mut impl Host,
        id: u32,
        mut incoming: feedback::Incoming,
        size: usize,
        end_of_stream: bool,
    ) -> Flow {
        let piece = host.body(Body::Request, incoming.len(), size.saturating_sub(incoming.len()));
        if let Err((status, message)) = incoming.push(&piece) {
            return self.refuse_feedback(host, id, status, message);
        }
        if !end_of_stream {
            self.set_phase(id, Phase::Feedback(incoming));
            return Flow::Pause;
        }
        self.finish_feedback(host, id, &incoming)
    }
}
