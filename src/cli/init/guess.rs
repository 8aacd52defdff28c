//! What is taken for true of a model before anybody has measured it.
//!
//! Known models have the priors of the reference configuration, the prices of `models/tariffs.json`, and the predictor's name. Every
//! other number is that of the reference fleet's models at the same size, in between them linear in the size's logarithm, and that of
//! the smallest or largest one beyond them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;

use super::naming::{Size, last_part};
use routebalance_core::config::Config;
use routebalance_core::fleet::{LatencyProfile, Model, ModelKind};
use routebalance_core::predictor::Predictor;

/// The configuration whose models, pools and policies serve as examples.
const REFERENCE: &str = include_str!("../../../envoy/routebalance.json");
/// Dollars per million tokens of prompts and of answers.
const TARIFFS: &str = include_str!("../../../models/tariffs.json");
/// A model whose name says no size is taken to have this one.
pub(super) const USUAL: Size = Size { billions: 7.0, active_billions: 7.0 };

/// What the project knows.
pub(super) struct Knowledge {
    reference: Config,
    written: Value,
    predicted: Vec<String>,
    usd_per_million_tokens: BTreeMap<String, [f64; 2]>,
}

/// What is believed of a model, and which of it is a guess.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Beliefs {
    /// What it is for.
    pub(super) kind: ModelKind,
    /// Dollars per million tokens of prompts and of answers.
    pub(super) usd_per_million_tokens: [f64; 2],
    /// Share of prompts that it answers well.
    pub(super) quality: f64,
    /// Tokens of an answer.
    pub(super) output_tokens: f64,
    /// What of these is guessed, as a part of a sentence; `None` for nothing.
    pub(super) guessed: Option<&'static str>,
}

impl Knowledge {
    /// Reads what is compiled in.
    ///
    /// # Errors
    /// The build is broken.
    pub(super) fn read() -> Result<Knowledge> {
        Ok(Knowledge {
            reference: Config::parse(REFERENCE.as_bytes())?,
            written: serde_json::from_str(REFERENCE)?,
            predicted: Predictor::load().map_err(anyhow::Error::msg)?.models().to_vec(),
            usd_per_million_tokens: serde_json::from_str(TARIFFS).context("the tariffs cannot be read")?,
        })
    }

    /// The project's own name of a model that one of these names means, the predictor's first.
    pub(super) fn known_name<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
        let of_fleet = self.reference.fleet.models.iter().map(|model| &model.name);
        let mut known = self.predicted.iter().chain(of_fleet);
        known.find(|known| names.clone().any(|name| last_part(name).eq_ignore_ascii_case(known))).cloned()
    }

    /// Policies or routes of the reference configuration by their names, as they are written there.
    ///
    /// # Errors
    /// It has none of that name.
    pub(super) fn written(&self, list: &str, names: &[&str]) -> Result<Vec<Value>> {
        let entries = self.written.get(list).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let named =
            |name: &&str| entries.iter().find(|entry| entry.get("name").and_then(Value::as_str) == Some(name)).cloned();
        names.iter().map(|name| named(name).with_context(|| format!("the reference has no {name} in {list}"))).collect()
    }

    /// What is believed of the model of this name.
    pub(super) fn beliefs(&self, name: &str, size: Size) -> Beliefs {
        let known = self.reference.fleet.models.iter().find(|model| model.name == name);
        let prices = self.prices(name);
        if known.is_some_and(|model| model.kind == ModelKind::Embed) || known.is_none() && is_embedding_model(name) {
            let like = known.or_else(|| self.reference.fleet.models.iter().find(|m| m.kind == ModelKind::Embed));
            let usd = like.map_or(0.0, |model| model.tariff.usd_per_input_token * 1e6);
            let guessed = (known.is_none() && prices.is_none()).then_some("its price is guessed");
            let usd = prices.unwrap_or([usd, 0.0]);
            return Beliefs {
                kind: ModelKind::Embed,
                usd_per_million_tokens: usd,
                quality: 0.0,
                output_tokens: 1.0,
                guessed,
            };
        }
        let like = |value: fn(&Model) -> f64| self.by_size(size.billions, |model, _| value(model));
        let usd = [|m: &Model| m.tariff.usd_per_input_token * 1e6, |m: &Model| m.tariff.usd_per_output_token * 1e6];
        Beliefs {
            kind: ModelKind::Generate,
            usd_per_million_tokens: prices.unwrap_or_else(|| usd.map(like)),
            quality: known.map_or_else(|| like(|m| m.quality_prior), |m| m.quality_prior),
            output_tokens: known.map_or_else(|| like(|m| m.output_tokens_prior).round(), |m| m.output_tokens_prior),
            guessed: match (known, prices) {
                (Some(_), _) => None,
                (None, Some(_)) => Some("its quality_prior and its output_tokens_prior are guessed"),
                (None, None) => Some("its quality_prior, its output_tokens_prior and its prices are guessed"),
            },
        }
    }

    /// A profile as the reference fleet has it for models of this kind and size.
    pub(super) fn profile(&self, kind: ModelKind, size: Size) -> LatencyProfile {
        let like = |value: fn(&LatencyProfile) -> f64| {
            let embedding = self.profiles(ModelKind::Embed).next().map(|(_, profile)| value(profile));
            match kind {
                ModelKind::Embed => embedding.unwrap_or(1.0),
                ModelKind::Generate => self.by_size(size.active_billions, |_, profile| value(profile)),
            }
        };
        LatencyProfile {
            tpot_ms: like(|p| p.tpot_ms),
            tpot_growth_per_running: like(|p| p.tpot_growth_per_running),
            tpot_growth_per_thousand_context_tokens: 0.0,
            prefill_tokens_per_second: like(|p| p.prefill_tokens_per_second),
            overhead_ms: like(|p| p.overhead_ms),
        }
    }

    fn prices(&self, name: &str) -> Option<[f64; 2]> {
        let of_other_case = || self.usd_per_million_tokens.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        self.usd_per_million_tokens.get(name).or_else(|| of_other_case().map(|(_, usd)| usd)).copied()
    }

    /// Models of a kind with the profile of their pool.
    fn profiles(&self, kind: ModelKind) -> impl Iterator<Item = (&Model, &LatencyProfile)> {
        let fleet = &self.reference.fleet;
        let of_pool = fleet.pools.iter().filter_map(|pool| Some((fleet.model_of(pool)?, &pool.profile)));
        of_pool.filter(move |(model, _)| model.kind == kind)
    }

    fn by_size(&self, billions: f64, value: impl Fn(&Model, &LatencyProfile) -> f64) -> f64 {
        let sized = self
            .profiles(ModelKind::Generate)
            .filter_map(|(model, profile)| Some((Size::from_name(&model.name)?.billions, value(model, profile))));
        let mut points: Vec<(f64, f64)> = sized.collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        interpolated(&points, billions)
    }
}

/// The value at `x`, linear in `ln x` between the points, constant beyond them.
fn interpolated(points: &[(f64, f64)], x: f64) -> f64 {
    let above = points.iter().position(|point| point.0 >= x).unwrap_or(points.len());
    match (above.checked_sub(1).and_then(|below| points.get(below)), points.get(above)) {
        (Some(low), Some(high)) => {
            let share = (x / low.0).ln() / (high.0 / low.0).ln();
            low.1 + share * (high.1 - low.1)
        }
        (Some(end), None) | (None, Some(end)) => end.1,
        (None, None) => 0.0,
    }
}

/// By its name: no list of models says what they are for.
fn is_embedding_model(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("embed")
        || ["bge-", "e5-", "gte-", "multilingual-e5", "all-minilm"].iter().any(|p| name.starts_with(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knowledge() -> Knowledge {
        Knowledge::read().unwrap()
    }

    #[test]
    fn known_models_have_their_names() {
        let knowledge = knowledge();
        for (names, expected) in [
            (vec!["Qwen/Qwen2.5-7B-Instruct"], Some("Qwen2.5-7B-Instruct")),
            (vec!["llm", "/models/qwen2.5-7b-instruct/"], Some("Qwen2.5-7B-Instruct")),
            (vec!["BAAI/bge-small-en-v1.5"], Some("bge-small-en-v1.5")),
            (vec!["Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5:7b", ""], None),
        ] {
            assert_eq!(knowledge.known_name(names.iter().copied()).as_deref(), expected, "{names:?}");
        }
    }

    #[test]
    fn beliefs_are_known_or_guessed_by_size() {
        let knowledge = knowledge();
        let size = |billions| Size { billions, active_billions: billions };
        let believed = |name: &str, billions| {
            let beliefs = knowledge.beliefs(name, size(billions));
            (
                beliefs.kind,
                beliefs.quality,
                beliefs.output_tokens,
                beliefs.usd_per_million_tokens,
                beliefs.guessed.is_some(),
            )
        };
        let of_7b = (0.52, 290.0, [0.07, 0.07]);
        for (name, billions, (quality, tokens, usd), guessed) in [
            ("Qwen2.5-7B-Instruct", 7.0, of_7b, false),
            ("Qwen2.5-72B-Instruct", 72.0, (0.67, 250.0, [0.38, 0.4]), false),
            ("other-7B", 7.0, of_7b, true),
            ("other-0.5B", 0.5, (0.3, 330.0, [0.06, 0.06]), true),
            ("other-405B", 405.0, (0.67, 250.0, [0.38, 0.4]), true),
            ("mistral-7b-instruct-v0.3", 7.0, (0.52, 290.0, [0.2, 0.2]), true),
            ("Mistral-7B-Instruct-v0.3", 7.0, (0.52, 290.0, [0.2, 0.2]), true),
        ] {
            let found = believed(name, billions);
            assert_eq!((found.0, found.2, found.4), (ModelKind::Generate, tokens, guessed), "{name}");
            let pairs = [(found.1, quality), (found.3[0], usd[0]), (found.3[1], usd[1])];
            assert!(pairs.iter().all(|(one, other)| (one - other).abs() < 1e-9), "{name}: {found:?}");
        }
        let between = believed("other-15B", 15.0);
        assert!(between.1 > 0.52 && between.1 < 0.66 && between.3[0] > 0.07 && between.3[0] < 0.2, "{between:?}");
        for (name, guessed) in
            [("bge-small-en-v1.5", false), ("nomic-embed-text", true), ("multilingual-e5-large", true)]
        {
            assert_eq!(believed(name, 7.0), (ModelKind::Embed, 0.0, 1.0, [0.01, 0.0], guessed), "{name}");
        }
    }

    #[test]
    fn speed_goes_by_the_parameters_that_a_token_meets() {
        let knowledge = knowledge();
        let tpot_ms = |billions, active_billions| {
            knowledge.profile(ModelKind::Generate, Size { billions, active_billions }).tpot_ms
        };
        for (size, expected) in [((7.0, 7.0), 19.6), ((30.0, 3.0), 10.2), ((0.5, 0.5), 10.2), ((400.0, 400.0), 41.6)] {
            assert!((tpot_ms(size.0, size.1) - expected).abs() < 1e-9, "{size:?}: {}", tpot_ms(size.0, size.1));
        }
        assert!((knowledge.profile(ModelKind::Embed, USUAL).prefill_tokens_per_second - 50_000.0).abs() < 1e-9);
    }

    #[test]
    fn values_between_the_points() {
        let points = [(1.0, 10.0), (100.0, 30.0)];
        for (x, expected) in [(0.1, 10.0), (1.0, 10.0), (10.0, 20.0), (100.0, 30.0), (1e9, 30.0)] {
            assert!((interpolated(&points, x) - expected).abs() < 1e-9, "{x}");
        }
    }

    #[test]
    fn policies_and_routes_are_those_of_the_reference() {
        let knowledge = knowledge();
        assert_eq!(knowledge.written("policies", &["cost", "balanced"]).unwrap()[0]["weights"]["cost"], 0.8);
        assert!(knowledge.written("routes", &["nobody"]).is_err());
    }
}
