//! The APIs that language models are served with, as far as routing needs them: which call it is, what the client fixed, the
//! prompt's text, what the response used, and answers in each API's own shape.
//!
//! Every reader here is incremental: bytes come in pieces cut anywhere, are looked at once, and are not kept. The shapes are those
//! of vLLM 0.32, recorded in `tests/fixtures`.

mod call;
mod error;
mod form;
mod probe;
mod request;
mod response;
mod scan;
mod sse;
mod tokens;

pub use call::{Call, call_of, generates, path_of_call};
pub use error::{Listed, error_body, error_body_about, model_body, models_body, words_of_envoy};
pub use probe::{Probe, ProbeScan, REPEAT_MAX};
pub use request::{BodyError, Patch, PatchPlaces, Prompt, RequestScan, patched, patched_length};
pub use response::{Ending, ErrorCause, Observed, ResponseScan, Usage};

/// An API that takes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Api {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/messages` (Anthropic's)
    Messages,
    /// `/v1/messages/count_tokens`: nothing is generated
    CountTokens,
    /// `/v1/embeddings`: nothing is generated
    Embeddings,
    /// `/tokenize`, `/detokenize`: nothing is generated
    Tokenize,
    /// `/pooling`, `/score`, `/rerank`, `/classify`, wherever they stand: nothing is generated
    Pooling,
    /// A call that names a model, in JSON or in a form, and of which nothing else is known: speech, transcriptions, images
    Named,
}

impl Api {
    /// Whether answers are text that a model generates, with limits that are read here.
    pub fn generates(self) -> bool {
        matches!(self, Api::ChatCompletions | Api::Completions | Api::Responses | Api::Messages)
    }

    /// Whether only the model's name is read, and what cannot be understood is the instance's to refuse.
    pub fn is_guessed(self) -> bool {
        matches!(self, Api::Tokenize | Api::Pooling | Api::Named)
    }
}
