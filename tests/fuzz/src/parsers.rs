//! Parsers against oracles: whatever the bytes are and wherever they are cut, a parser reads what a plain one reads.

pub mod configuration;
mod json;
pub mod paths;
pub mod records;
pub mod request;
pub mod response;
pub mod telemetry;

use routebalance_core::openai::Api;

use crate::choices::Choices;

const APIS: [Api; 9] = [
    Api::ChatCompletions,
    Api::Completions,
    Api::Responses,
    Api::Messages,
    Api::Embeddings,
    Api::CountTokens,
    Api::Tokenize,
    Api::Pooling,
    Api::Named,
];

fn any_api(choices: &mut Choices<'_>) -> Api {
    choices.pick(&APIS)
}
