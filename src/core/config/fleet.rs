//! Models, pools and instances, as written and checked.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{ConfigError, check_address, check_names, check_number, error};
use crate::discovery::INSTANCES_MAX;
use crate::fleet::{Fleet, Instance, InstanceId, LatencyProfile, Limits, Model, ModelKind, Pool, PoolId, Tariff};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub(super) name: String,
    #[serde(default)]
    pub(super) kind: RawModelKind,
    pub(super) usd_per_million_input_tokens: f64,
    #[serde(default)]
    pub(super) usd_per_million_output_tokens: Option<f64>,
    #[serde(default)]
    pub(super) quality_prior: Option<f64>,
    #[serde(default)]
    pub(super) output_tokens_prior: Option<f64>,
    #[serde(default)]
    pub(super) adapters: Vec<String>,
    #[serde(default = "tokens_per_media_part")]
    pub(super) tokens_per_media_part: f64,
}

/// About what vision models of the Qwen family make of a picture of 900 by 900 pixels, 28 by 28 each.
fn tokens_per_media_part() -> f64 {
    1_024.0
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawModelKind {
    #[default]
    Generate,
    Embed,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) name: String,
    pub(super) model: String,
    pub(super) cluster: String,
    #[serde(default)]
    pub(super) served_model: Option<String>,
    pub(super) profile: RawProfile,
    #[serde(default)]
    pub(super) limits: RawLimits,
    pub(super) instances: RawInstances,
}

/// A list of addresses, or the word that means those of the cluster.
pub(super) enum RawInstances {
    Listed(Vec<String>),
    Discovered,
}

impl<'de> Deserialize<'de> for RawInstances {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Instances;

        impl<'de> Visitor<'de> for Instances {
            type Value = RawInstances;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of ip:port addresses, or \"discover\"")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<RawInstances, E> {
                if word == "discover" {
                    Ok(RawInstances::Discovered)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(word), &self))
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawInstances, A::Error> {
                let mut addresses = Vec::new();
                while let Some(address) = list.next_element()? {
                    addresses.push(address);
                }
                Ok(RawInstances::Listed(addresses))
            }
        }

        deserializer.deserialize_any(Instances)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProfile {
    pub(super) tpot_ms: f64,
    #[serde(default)]
    pub(super) tpot_growth_per_running: f64,
    #[serde(default)]
    pub(super) tpot_growth_per_thousand_context_tokens: f64,
    pub(super) prefill_tokens_per_second: f64,
    #[serde(default)]
    pub(super) overhead_ms: f64,
    /// Where the numbers come from; for people.
    #[serde(default, rename = "source")]
    pub(super) _source: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub(super) max_running: u32,
    pub(super) kv_tokens: u64,
    pub(super) max_model_len: u32,
}

impl Default for RawLimits {
    fn default() -> Self {
        // vLLM 0.32's default --max-num-seqs; KV and context as a 7B model on a 24 GB GPU has them.
        RawLimits { max_running: 256, kv_tokens: 76_000, max_model_len: 8_192 }
    }
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
    let needed =
        |value: Option<f64>, field: &str| value.ok_or_else(|| error(at(field), "a model of kind generate needs it"));
    let input = check_number(at("usd_per_million_input_tokens"), raw.usd_per_million_input_tokens, 0.0, 1e6)?;
    let (kind, output, quality, tokens) = match raw.kind {
        RawModelKind::Embed => (ModelKind::Embed, 0.0, raw.quality_prior.unwrap_or(0.0), 1.0),
        RawModelKind::Generate => (
            ModelKind::Generate,
            needed(raw.usd_per_million_output_tokens, "usd_per_million_output_tokens")?,
            needed(raw.quality_prior, "quality_prior")?,
            needed(raw.output_tokens_prior, "output_tokens_prior")?,
        ),
    };
    let output = check_number(at("usd_per_million_output_tokens"), output, 0.0, 1e6)?;
    Ok(Model {
        name: raw.name.clone(),
        kind,
        tariff: Tariff { usd_per_input_token: input / 1e6, usd_per_output_token: output / 1e6 },
        quality_prior: check_number(at("quality_prior"), quality, 0.0, 1.0)?,
        output_tokens_prior: check_number(at("output_tokens_prior"), tokens, 1.0, 1e6)?,
        adapters: raw.adapters.clone(),
        tokens_per_media_part: check_number(at("tokens_per_media_part"), raw.tokens_per_media_part, 0.0, 1e6)?,
    })
}

pub(super) fn check_pools(models: Vec<Model>, raw: &[RawPool]) -> Result<Fleet, ConfigError> {
    if raw.is_empty() {
        return Err(error("pools", "at least one pool is needed"));
    }
    check_names("pools[].name", raw.iter().map(|p| p.name.as_str()))?;
    check_names("pools[].cluster", raw.iter().map(|p| p.cluster.as_str()))?;
    let mut fleet = Fleet { models, pools: Vec::with_capacity(raw.len()), instances: Vec::new() };
    for (i, pool) in raw.iter().enumerate() {
        check_pool(&mut fleet, i, pool)?;
    }
    for (id, model) in fleet.models_by_id() {
        if !fleet.pools.iter().any(|p| p.model == id) {
            return Err(error(format!("models[{}].name", id.index()), format!("no pool serves {:?}", model.name)));
        }
    }
    Ok(fleet)
}

fn check_pool(fleet: &mut Fleet, i: usize, raw: &RawPool) -> Result<(), ConfigError> {
    let at = |field: &str| format!("pools[{i}].{field}");
    let model = fleet
        .model_named(&raw.model)
        .ok_or_else(|| error(at("model"), format!("no model is named {:?}", raw.model)))?;
    let served_model = raw.served_model.clone().unwrap_or_else(|| raw.model.clone());
    check_names(&at("served_model"), std::iter::once(served_model.as_str()))?;
    if fleet.model_with_adapter(&served_model).is_some() {
        return Err(error(at("served_model"), format!("{served_model:?} is also the name of an adapter")));
    }
    let profile = LatencyProfile {
        tpot_ms: check_number(at("profile.tpot_ms"), raw.profile.tpot_ms, 0.01, 60_000.0)?,
        tpot_growth_per_running: check_number(
            at("profile.tpot_growth_per_running"),
            raw.profile.tpot_growth_per_running,
            0.0,
            10.0,
        )?,
        tpot_growth_per_thousand_context_tokens: check_number(
            at("profile.tpot_growth_per_thousand_context_tokens"),
            raw.profile.tpot_growth_per_thousand_context_tokens,
            0.0,
            10.0,
        )?,
        prefill_tokens_per_second: check_number(
            at("profile.prefill_tokens_per_second"),
            raw.profile.prefill_tokens_per_second,
            1.0,
            1e9,
        )?,
        overhead_ms: check_number(at("profile.overhead_ms"), raw.profile.overhead_ms, 0.0, 60_000.0)?,
    };
    let limits = Limits {
        max_running: raw.limits.max_running,
        kv_tokens: raw.limits.kv_tokens,
        max_model_len: raw.limits.max_model_len,
    };
    for (field, value) in [
        ("limits.max_running", u64::from(limits.max_running)),
        ("limits.kv_tokens", limits.kv_tokens),
        ("limits.max_model_len", u64::from(limits.max_model_len)),
    ] {
        if value == 0 {
            return Err(error(at(field), "must be at least 1"));
        }
    }
    let start = fleet.instances.len();
    if let RawInstances::Listed(addresses) = &raw.instances {
        if addresses.is_empty() {
            return Err(error(at("instances"), "at least one ip:port is needed"));
        }
        list(fleet, PoolId::new(i), addresses)?;
    }
    fleet.pools.push(Pool {
        name: raw.name.clone(),
        model,
        cluster: raw.cluster.clone(),
        served_model,
        profile,
        limits,
        instances: (start..fleet.instances.len()).map(InstanceId::new).collect(),
        discovered: matches!(raw.instances, RawInstances::Discovered),
    });
    Ok(())
}

fn list(fleet: &mut Fleet, pool: PoolId, addresses: &[String]) -> Result<(), ConfigError> {
    let mut seen: BTreeSet<String> = fleet.instances.iter().map(|i| i.address.clone()).collect();
    for (k, address) in addresses.iter().enumerate() {
        let field = format!("pools[{}].instances[{k}]", pool.index());
        let address = check_address(&field, address)?.to_string();
        if !seen.insert(address.clone()) {
            return Err(error(field, format!("{address} appears twice in the fleet")));
        }
        if fleet.instances.len() >= INSTANCES_MAX {
            return Err(error(field, format!("a fleet has at most {INSTANCES_MAX} instances")));
        }
        fleet.instances.push(Instance::new(address, pool));
    }
    Ok(())
}
