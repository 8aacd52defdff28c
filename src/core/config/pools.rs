//! Pools and instances, as written and checked.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::models::check_tariff;
use super::numbers::{Integer, Number};
use super::upstream::{
    ClientCredentials, RawCredential, RawMetrics, RawPoolKind, RawTls, RawUpstream, WrittenAddress, read_address,
};
use super::{ConfigError, check_names, check_number, error};
use crate::discovery::INSTANCES_MAX;
use crate::fleet::{Fleet, Instance, InstanceId, LatencyProfile, Limits, Model, Pool, PoolId, Tariff};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPool {
    pub(super) name: String,
    pub(super) model: String,
    pub(super) cluster: String,
    #[serde(default)]
    pub(super) served_model: Option<String>,
    #[serde(default)]
    pub(super) kind: RawPoolKind,
    #[serde(default)]
    pub(super) profile: Option<RawProfile>,
    #[serde(default)]
    pub(super) limits: RawLimits,
    pub(super) instances: RawInstances,
    #[serde(default)]
    pub(super) tls: Option<RawTls>,
    #[serde(default)]
    pub(super) host: Option<String>,
    #[serde(default)]
    pub(super) base_path: Option<String>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) credential: Option<RawCredential>,
    #[serde(default)]
    pub(super) client_credentials: Option<ClientCredentials>,
    #[serde(default)]
    pub(super) metrics: RawMetrics,
    #[serde(default)]
    pub(super) usd_per_million_input_tokens: Option<Number>,
    #[serde(default)]
    pub(super) usd_per_million_output_tokens: Option<Number>,
    #[serde(default)]
    pub(super) usd_per_million_cached_input_tokens: Option<Number>,
    #[serde(default)]
    pub(super) share: Option<Number>,
    #[serde(default)]
    pub(super) slow_start_ms: Integer<u64>,
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
                f.write_str("a list of ip:port or name:port, or \"discover\"")
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
    pub(super) tpot_ms: Number,
    #[serde(default)]
    pub(super) tpot_growth_per_running: Number,
    #[serde(default)]
    pub(super) tpot_growth_per_thousand_context_tokens: Number,
    pub(super) prefill_tokens_per_second: Number,
    #[serde(default)]
    pub(super) overhead_ms: Number,
    /// Where the numbers come from; for people.
    #[serde(default, rename = "source")]
    pub(super) _source: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub(super) max_running: Option<Integer<u32>>,
    pub(super) kv_tokens: Option<Integer<u64>>,
    pub(super) max_model_len: Option<Integer<u32>>,
}

/// vLLM 0.32's default `--max-num-seqs`; KV and context as a 7B model on a 24 GB GPU has them.
const OWN_LIMITS: Limits = Limits { max_running: 256, kv_tokens: 76_000, max_model_len: 8_192 };
/// Nothing bounds a provider but its context, and today's models have this one at least.
const HOSTED_LIMITS: Limits = Limits { max_running: u32::MAX, kv_tokens: u64::MAX, max_model_len: 128_000 };
/// Where nobody says how fast a provider is: a first token after half a second and 65 tokens a second, as public leaderboards have them for
/// models of middle size. Responses correct it.
const HOSTED_PROFILE: LatencyProfile = LatencyProfile {
    tpot_ms: 15.0,
    tpot_growth_per_running: 0.0,
    tpot_growth_per_thousand_context_tokens: 0.0,
    prefill_tokens_per_second: 10_000.0,
    overhead_ms: 400.0,
};

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
    check_shares(&fleet)?;
    Ok(fleet)
}

fn check_pool(fleet: &mut Fleet, i: usize, raw: &RawPool) -> Result<(), ConfigError> {
    let at = |field: &str| format!("pools[{i}].{field}");
    let model_id = fleet
        .model_named(&raw.model)
        .ok_or_else(|| error(at("model"), format!("no model is named {:?}", raw.model)))?;
    let model = fleet.model(model_id).ok_or_else(|| error(at("model"), "is none of the models"))?;
    let served_model = raw.served_model.clone().unwrap_or_else(|| raw.model.clone());
    check_names(&at("served_model"), std::iter::once(served_model.as_str()))?;
    if fleet.model_with_adapter(&served_model).is_some() {
        return Err(error(at("served_model"), format!("{served_model:?} is also the name of an adapter")));
    }
    let profile = match &raw.profile {
        Some(profile) => profile.check(&at)?,
        None if raw.kind == RawPoolKind::Hosted => HOSTED_PROFILE,
        None => return Err(error(at("profile"), "a pool of your own needs it")),
    };
    let (limits, tariff) = (raw.limits.check(&at, raw.kind)?, raw.check_tariff(&at, model)?);
    let id = PoolId::new(i);
    let places = Places::read(&at, raw)?;
    let upstream = RawUpstream {
        kind: raw.kind,
        tls: raw.tls.as_ref(),
        host: raw.host.as_deref(),
        base_path: raw.base_path.as_deref(),
        headers: &raw.headers,
        credential: raw.credential.as_ref(),
        client_credentials: raw.client_credentials,
        names: places.names,
    };
    let upstream = upstream.check(&at)?;
    if upstream.names.is_empty() && upstream.tls.as_ref().is_some_and(|tls| tls.sni.is_none()) {
        return Err(error(at("tls.sni"), "is needed where instances have no names: the one of their certificate"));
    }
    let share = raw.share.map(|share| check_number(at("share"), share, 0.0, 1.0)).transpose()?;
    if raw.slow_start_ms.0 > 3_600_000 {
        return Err(error(at("slow_start_ms"), format!("{} is not between 0 and 3600000", raw.slow_start_ms.0)));
    }
    let start = fleet.instances.len();
    for (field, address) in places.addresses {
        list(fleet, id, &served_model, field, address)?;
    }
    fleet.pools.push(Pool {
        name: raw.name.clone(),
        model: model_id,
        cluster: raw.cluster.clone(),
        served_model,
        kind: raw.kind.kind(),
        profile,
        limits,
        tariff,
        instances: (start..fleet.instances.len()).map(InstanceId::new).collect(),
        discovered: places.discovered,
        known: !places.discovered,
        metrics: raw.metrics.check(&at, raw.kind)?,
        upstream,
        share,
        slow_start: Duration::from_millis(raw.slow_start_ms.0),
    });
    Ok(())
}

/// Where a pool's instances are, as it is written.
struct Places {
    /// Addresses, each with its field.
    addresses: Vec<(String, String)>,
    /// Names that Envoy resolves.
    names: Vec<(String, u16)>,
    /// Whether only Envoy knows the addresses.
    discovered: bool,
}

impl Places {
    fn read(at: &impl Fn(&str) -> String, raw: &RawPool) -> Result<Places, ConfigError> {
        let hosted = raw.kind == RawPoolKind::Hosted;
        let RawInstances::Listed(list) = &raw.instances else {
            if hosted {
                return Err(error(at("instances"), "a hosted pool has one address, name:port"));
            }
            return Ok(Places { addresses: Vec::new(), names: Vec::new(), discovered: true });
        };
        if list.is_empty() {
            return Err(error(at("instances"), "at least one ip:port or name:port is needed"));
        }
        if hosted && list.len() > 1 {
            return Err(error(at("instances"), "a hosted pool has one address: give each region a pool of its own"));
        }
        let (mut addresses, mut names) = (Vec::new(), Vec::new());
        for (k, text) in list.iter().enumerate() {
            let field = at(&format!("instances[{k}]"));
            match read_address(&field, text)? {
                WrittenAddress::Address(address) => addresses.push((field, address.to_string())),
                WrittenAddress::Name(name, port) if names.contains(&(name.clone(), port)) => {
                    return Err(error(field, format!("{name}:{port} appears twice in the pool")));
                }
                WrittenAddress::Name(name, port) => names.push((name, port)),
            }
        }
        match names.first() {
            // The provider is one instance, whatever its name resolves to.
            Some((name, port)) if hosted => {
                addresses = vec![(at("instances[0]"), format!("{name}:{port}"))];
                Ok(Places { addresses, names, discovered: false })
            }
            // Envoy resolves the names and takes the addresses along.
            Some(_) => {
                let address = |(_, address): (String, String)| {
                    let (ip, port) = address.rsplit_once(':')?;
                    Some((ip.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
                };
                names.extend(addresses.into_iter().filter_map(address));
                Ok(Places { addresses: Vec::new(), names, discovered: true })
            }
            None => Ok(Places { addresses, names, discovered: false }),
        }
    }
}

impl RawProfile {
    fn check(&self, at: &impl Fn(&str) -> String) -> Result<LatencyProfile, ConfigError> {
        let number = |field: &str, value: Number, low: f64, high: f64| {
            check_number(at(&format!("profile.{field}")), value, low, high)
        };
        let per_thousand = self.tpot_growth_per_thousand_context_tokens;
        Ok(LatencyProfile {
            tpot_ms: number("tpot_ms", self.tpot_ms, 0.01, 60_000.0)?,
            tpot_growth_per_running: number("tpot_growth_per_running", self.tpot_growth_per_running, 0.0, 10.0)?,
            tpot_growth_per_thousand_context_tokens: number(
                "tpot_growth_per_thousand_context_tokens",
                per_thousand,
                0.0,
                10.0,
            )?,
            prefill_tokens_per_second: number("prefill_tokens_per_second", self.prefill_tokens_per_second, 1.0, 1e9)?,
            overhead_ms: number("overhead_ms", self.overhead_ms, 0.0, 60_000.0)?,
        })
    }
}

impl RawLimits {
    fn check(&self, at: &impl Fn(&str) -> String, kind: RawPoolKind) -> Result<Limits, ConfigError> {
        let default = if kind == RawPoolKind::Hosted { HOSTED_LIMITS } else { OWN_LIMITS };
        let limits = Limits {
            max_running: self.max_running.map_or(default.max_running, |n| n.0),
            kv_tokens: self.kv_tokens.map_or(default.kv_tokens, |n| n.0),
            max_model_len: self.max_model_len.map_or(default.max_model_len, |n| n.0),
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
        Ok(limits)
    }
}

impl RawPool {
    /// The pool's own tariff, if it has one; what it leaves out is the model's.
    fn check_tariff(&self, at: &impl Fn(&str) -> String, model: &Model) -> Result<Option<Tariff>, ConfigError> {
        let usd = |written: Option<Number>| written.map(f64::from);
        let input = usd(self.usd_per_million_input_tokens);
        let output = usd(self.usd_per_million_output_tokens);
        let cached = usd(self.usd_per_million_cached_input_tokens);
        if input.is_none() && output.is_none() && cached.is_none() {
            return Ok(None);
        }
        let Tariff { usd_per_input_token, usd_per_output_token, usd_per_cached_input_token } = model.tariff;
        // A price of cached tokens that the model has belongs to the model's price of the others.
        let cached = cached.or_else(|| input.is_none().then_some(usd_per_cached_input_token * 1e6));
        let (input, output) =
            (input.unwrap_or(usd_per_input_token * 1e6), output.unwrap_or(usd_per_output_token * 1e6));
        check_tariff(at, (input, cached, output)).map(Some)
    }
}

fn list(
    fleet: &mut Fleet,
    pool: PoolId,
    served_model: &str,
    field: String,
    address: String,
) -> Result<(), ConfigError> {
    let mut is_shared = false;
    for other in fleet.instances.iter().filter(|other| other.address == address) {
        is_shared = true;
        // One server may serve several models, each a pool.
        if fleet.pool(other.pool).is_none_or(|pool| pool.served_model == served_model) {
            return Err(error(field, format!("{address} appears twice with the model {served_model:?}")));
        }
    }
    if fleet.instances.len() >= INSTANCES_MAX {
        return Err(error(field, format!("a fleet has at most {INSTANCES_MAX} instances")));
    }
    let beside = is_shared.then_some(served_model);
    fleet.instances.push(Instance::sharing(address, pool, beside));
    Ok(())
}

/// Pools of one model that ask for shares of its requests must leave a sense to what is left.
fn check_shares(fleet: &Fleet) -> Result<(), ConfigError> {
    for (id, model) in fleet.models_by_id() {
        let of_model = || fleet.pools_by_id().filter(move |(_, pool)| pool.model == id);
        let shares: f64 = of_model().filter_map(|(_, pool)| pool.share).sum();
        let Some((last, _)) = of_model().filter(|(_, pool)| pool.share.is_some()).last() else { continue };
        let field = format!("pools[{}].share", last.index());
        let rest = of_model().any(|(_, pool)| pool.share.is_none());
        if shares > 1.0 + 1e-9 {
            return Err(error(field, format!("the shares of {:?} sum to {shares}, more than 1", model.name)));
        }
        if !rest && shares < 1.0 - 1e-9 {
            let problem =
                format!("the shares of {:?} sum to {shares}, and no pool without a share takes the rest", model.name);
            return Err(error(field, problem));
        }
    }
    Ok(())
}
