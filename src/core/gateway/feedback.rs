//! A feedback on its way in: who may send it, its body as it comes, and what it is answered with.

use super::Host;
use crate::learning::feedback::{self, Feedback};
use crate::worker::{Scored, Worker};

/// A feedback that is refused: status and one sentence.
pub(super) type FeedbackRefusal = (u16, &'static str);

const TOO_LARGE: FeedbackRefusal = (413, "The request body is larger than a feedback can be, 4096 bytes.");

/// The body of a feedback as far as it has come.
#[derive(Default)]
pub(super) struct Incoming(Vec<u8>);

/// Whether this request may send feedback at all, from its headers.
pub(super) fn admit(
    worker: &Worker,
    method: &str,
    authorization: Option<&str>,
    content_length: Option<u64>,
) -> Result<(), FeedbackRefusal> {
    if method != "POST" {
        return Err((405, "Feedback is sent with POST."));
    }
    let secret = worker.router.config().learning.feedback_secret.as_ref();
    let guess = authorization.and_then(feedback::bearer).unwrap_or_default();
    if !secret.is_some_and(|secret| secret.accepts(guess)) {
        return Err((401, "The authorization header does not carry the feedback secret."));
    }
    if content_length.is_some_and(|length| length > feedback::BODY_BYTES_MAX as u64) {
        return Err(TOO_LARGE);
    }
    Ok(())
}

impl Incoming {
    /// Bytes read so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), FeedbackRefusal> {
        if self.0.len().saturating_add(piece.len()) > feedback::BODY_BYTES_MAX {
            return Err(TOO_LARGE);
        }
        self.0.extend_from_slice(piece);
        Ok(())
    }

    /// The body is whole: counts the score, and says what to answer and to log.
    pub(super) fn finish(&self, host: &mut impl Host, worker: &mut Worker) -> Result<AcceptedFeedback, (u16, String)> {
        let feedback = Feedback::parse(&self.0).map_err(|sentence| (400, sentence))?;
        let now = host.now();
        match worker.score(host, &feedback, now) {
            Scored::Unknown => Err((404, "No recent decision has this id: it is unknown, or too long ago. The header x-routebalance-decision-id of a response has it.".to_owned())),
            Scored::Already => Err((409, "The request with this id was scored already.".to_owned())),
            Scored::Accepted(decision) => {
                let fleet = &worker.router.config().fleet;
                let model = fleet.model(decision.model).map(|model| model.name.clone()).unwrap_or_default();
                Ok(AcceptedFeedback { feedback, model, propensity: decision.propensity })
            }
        }
    }
}

/// A feedback that counts.
pub(super) struct AcceptedFeedback {
    pub(super) feedback: Feedback,
    /// Name of the model whose answer was scored.
    pub(super) model: String,
    /// Probability with which that model was chosen.
    pub(super) propensity: f64,
}
