//! What to replace in a body, so that it asks for what was decided.

use std::ops::Range;

use super::{Api, Prompt};

/// Replaces a range of the body's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What to take out; empty to insert only.
    pub replace: Range<u64>,
    /// What to put there.
    pub with: String,
}

impl Prompt {
    /// The patches, in the body's order, that make it name the model `served` and limit its answer to so many tokens. None
    /// where it does so already, or where no object has begun.
    pub fn patches(&self, api: Api, served: &str, max_tokens: Option<u32>) -> Vec<Patch> {
        let mut patches = Vec::new();
        let mut fields = Vec::new();
        let model = (self.model.as_deref() != Some(served)).then(|| serde_json::Value::from(served).to_string());
        match (model, &self.model_span) {
            (Some(with), Some(span)) => patches.push(Patch { replace: span.clone(), with }),
            (Some(with), None) => fields.push(format!("\"model\":{with}")),
            (None, _) => {}
        }
        let limits = max_tokens.map(|limit| (limit, self.limit_spans.iter().flatten()));
        if let Some((limit, spans)) = limits {
            let before = patches.len();
            patches.extend(spans.map(|span| Patch { replace: span.clone(), with: limit.to_string() }));
            if patches.len() == before {
                fields.push(format!("\"{}\":{limit}", limit_field(api)));
            }
        }
        if let Some(at) = self.insert_at.filter(|_| !fields.is_empty()) {
            let comma = if self.empty_object { "" } else { "," };
            patches.push(Patch { replace: at..at, with: fields.join(",") + comma });
        }
        patches.sort_by_key(|patch| patch.replace.start);
        patches
    }
}

/// The field that limits generated tokens in every server of this API.
fn limit_field(api: Api) -> &'static str {
    match api {
        Api::Responses => "max_output_tokens",
        Api::ChatCompletions | Api::Completions | Api::Messages | Api::CountTokens | Api::Embeddings => "max_tokens",
    }
}
