//! Models, as written and checked.

use serde::Deserialize;

use super::numbers::Number;
use super::{ConfigError, check_names, check_number, error};
use crate::fleet::{Model, ModelKind, Tariff};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub(super) name: String,
    #[serde(default)]
    pub(super) kind: RawModelKind,
    pub(super) usd_per_million_input_tokens: Number,
    #[serde(default)]
    pub(super) usd_per_million_output_tokens: Option<Number>,
    #[serde(default)]
    pub(super) usd_per_million_cached_input_tokens: Option<Number>,
    #[serde(default)]
    pub(super) quality_prior: Option<Number>,
    #[serde(default)]
    pub(super) output_tokens_prior: Option<Number>,
    #[serde(default)]
    pub(super) adapters: Vec<String>,
    #[serde(default = "tokens_per_media_part")]
    pub(super) tokens_per_media_part: Number,
}

/// About what vision models of the Qwen family make of a picture of 900 by 900 pixels, 28 by 28 each.
fn tokens_per_media_part() -> Number {
    Number(1_024.0)
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawModelKind {
    #[default]
    Generate,
    Embed,
}

pub(super) fn check_models(raw: &[RawModel]) -> Result<Vec<Model>, ConfigError> {
    if raw.is_empty() {
        return Err(error("models", "at least one model is needed"));
    }
    check_names("models[].name", raw.iter().map(|m| m.name.as_str()))?;
    // An adapter is asked for by its name alone, so it is a name among those of the models.
    check_names(
        "models[].adapters",
        raw.iter().flat_map(|m| std::iter::once(&m.name).chain(&m.adapters)).map(String::as_str),
    )?;
    raw.iter().enumerate().map(|(i, m)| check_model(i, m)).collect()
}

fn check_model(i: usize, raw: &RawModel) -> Result<Model, ConfigError> {
    let at = |field: &str| format!("models[{i}].{field}");
    let needed = |value: Option<Number>, field: &str| {
        value.map(f64::from).ok_or_else(|| error(at(field), "a model of kind generate needs it"))
    };
    let (kind, output, quality, tokens) = match raw.kind {
        RawModelKind::Embed => (ModelKind::Embed, 0.0, raw.quality_prior.map_or(0.0, f64::from), 1.0),
        RawModelKind::Generate => (
            ModelKind::Generate,
            needed(raw.usd_per_million_output_tokens, "usd_per_million_output_tokens")?,
            needed(raw.quality_prior, "quality_prior")?,
            needed(raw.output_tokens_prior, "output_tokens_prior")?,
        ),
    };
    let cached = raw.usd_per_million_cached_input_tokens.map(f64::from);
    Ok(Model {
        name: raw.name.clone(),
        kind,
        tariff: check_tariff(&at, (raw.usd_per_million_input_tokens.0, cached, output))?,
        quality_prior: check_number(at("quality_prior"), quality, 0.0, 1.0)?,
        output_tokens_prior: check_number(at("output_tokens_prior"), tokens, 1.0, 1e6)?,
        adapters: raw.adapters.clone(),
        tokens_per_media_part: check_number(at("tokens_per_media_part"), raw.tokens_per_media_part, 0.0, 1e6)?,
    })
}

/// A tariff of USD per million tokens: of prompts, of those of their tokens that are cached (as the others where nobody says it), and of
/// answers. `at` makes a field's path.
pub(super) fn check_tariff(
    at: &impl Fn(&str) -> String,
    (input, cached, output): (f64, Option<f64>, f64),
) -> Result<Tariff, ConfigError> {
    let usd_per_token = |field: &str, usd: f64| Ok::<_, ConfigError>(check_number(at(field), usd, 0.0, 1e6)? / 1e6);
    Ok(Tariff {
        usd_per_input_token: usd_per_token("usd_per_million_input_tokens", input)?,
        usd_per_cached_input_token: usd_per_token("usd_per_million_cached_input_tokens", cached.unwrap_or(input))?,
        usd_per_output_token: usd_per_token("usd_per_million_output_tokens", output)?,
    })
}
