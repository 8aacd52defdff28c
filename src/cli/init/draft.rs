//! The configuration as it is written.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use routebalance_core::fleet::ModelKind;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::fitting::Measured;
use super::grouping::Group;
use super::guess::{Knowledge, USUAL};
use super::naming::{Size, free_name, last_part, model_name, pool_name};

/// The name by which requests leave the choice to the gateway.
const VIRTUAL: &str = "auto";
/// Policies that are written, the default one first.
const POLICIES: [&str; 3] = ["balanced", "quality", "cost"];
/// Their routes: Envoy takes the first that matches.
const ROUTES: [&str; 3] = ["quality", "cost", "default"];

/// The `source` of a profile that is guessed.
const GUESSED: &str = "guessed from the reference fleet's models";
const MEASURE: &str = "; `routebalance init --measure` measures it";

/// A whole file.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Draft {
    virtual_models: [&'static str; 1],
    models: Vec<DraftModel>,
    /// In the order of the groups.
    pub(super) pools: Vec<DraftPool>,
    policies: Vec<Value>,
    default_policy: &'static str,
    routes: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    envoy: Option<DraftEnvoy>,
}

#[derive(Clone, Debug, Serialize)]
struct DraftModel {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(serialize_with = "plain")]
    usd_per_million_input_tokens: f64,
    #[serde(flatten)]
    generates: Option<DraftPriors>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    adapters: Vec<String>,
    #[serde(skip)]
    root: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct DraftPriors {
    #[serde(serialize_with = "plain")]
    usd_per_million_output_tokens: f64,
    #[serde(serialize_with = "plain")]
    quality_prior: f64,
    #[serde(serialize_with = "plain")]
    output_tokens_prior: f64,
}

/// A pool of the file.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DraftPool {
    /// The pool's name.
    pub(super) name: String,
    model: String,
    cluster: String,
    served_model: String,
    /// What it is for.
    #[serde(skip)]
    pub(super) kind: ModelKind,
    profile: DraftProfile,
    limits: DraftLimits,
    instances: Vec<SocketAddr>,
}

#[derive(Clone, Debug, Serialize)]
struct DraftProfile {
    #[serde(serialize_with = "plain")]
    tpot_ms: f64,
    #[serde(serialize_with = "plain")]
    tpot_growth_per_running: f64,
    #[serde(serialize_with = "plain")]
    prefill_tokens_per_second: f64,
    #[serde(serialize_with = "plain")]
    overhead_ms: f64,
    source: String,
}

#[derive(Clone, Debug, Serialize)]
struct DraftLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
}

#[derive(Clone, Debug, Serialize)]
struct DraftEnvoy {
    default_pool: String,
}

impl Draft {
    /// A configuration of these pools; what is guessed becomes a sentence.
    ///
    /// # Errors
    /// The build is broken.
    pub(super) fn new(groups: &[Group], knowledge: &Knowledge, remarks: &mut Vec<String>) -> anyhow::Result<Draft> {
        let mut draft = Draft {
            virtual_models: [VIRTUAL],
            models: Vec::new(),
            pools: Vec::new(),
            policies: knowledge.written("policies", &POLICIES)?,
            default_policy: POLICIES[0],
            routes: knowledge.written("routes", &ROUTES)?,
            envoy: None,
        };
        // An adapter is a name among those of the models, which come first.
        let mut taken = BTreeSet::from([VIRTUAL.to_owned()]);
        let mut pools_taken = BTreeSet::new();
        let models: Vec<usize> =
            groups.iter().map(|group| draft.model_of(group, knowledge, &mut taken, remarks)).collect();
        draft.add_adapters(groups, &models, &mut taken, remarks);
        for (group, model) in groups.iter().zip(models) {
            draft.add_pool(group, model, knowledge, &mut pools_taken);
        }
        let generating = draft.pools.iter().find(|pool| pool.kind == ModelKind::Generate);
        draft.envoy = generating.map(|pool| DraftEnvoy { default_pool: pool.name.clone() });
        Ok(draft)
    }

    /// The position of a group's model, which is added if it is not there.
    fn model_of(
        &mut self,
        group: &Group,
        knowledge: &Knowledge,
        taken: &mut BTreeSet<String>,
        remarks: &mut Vec<String>,
    ) -> usize {
        let root = &group.model.root;
        let id = group.model.ids.first().map_or("", String::as_str);
        let names = group.model.ids.iter().chain(root).map(String::as_str);
        let known = knowledge.known_name(names.clone());
        let is_it = |model: &DraftModel| {
            root.is_some() && model.root == *root || known.as_ref().is_some_and(|known| *known == model.name)
        };
        if let Some(position) = self.models.iter().position(is_it) {
            return position;
        }
        let by_root = root.as_deref().map(model_name);
        let candidates: Vec<String> = known.into_iter().chain([model_name(id)]).chain(by_root).collect();
        let name = free_name(&candidates, taken);
        let size = names.chain([name.as_str()]).find_map(|name| Size::from_name(last_part(name)));
        let beliefs = knowledge.beliefs(&name, size.unwrap_or(USUAL));
        if let Some(guessed) = beliefs.guessed {
            let like = size.map_or_else(
                || format!("{id} says no size, so it counts as one of {}B", USUAL.billions),
                |size| format!("by its size of {}B", size.billions),
            );
            remarks.push(format!("model {name}: {guessed} ({like}); edit models[{}]", self.models.len()));
        }
        let generates = beliefs.kind == ModelKind::Generate;
        let [input, output] = beliefs.usd_per_million_tokens.map(rounded);
        self.models.push(DraftModel {
            name,
            kind: (!generates).then_some("embed"),
            usd_per_million_input_tokens: input,
            generates: generates.then(|| DraftPriors {
                usd_per_million_output_tokens: output,
                quality_prior: rounded(beliefs.quality),
                output_tokens_prior: beliefs.output_tokens,
            }),
            adapters: Vec::new(),
            root: root.clone(),
        });
        self.models.len() - 1
    }

    /// The adapters that every pool of a model has, as far as their names are free.
    fn add_adapters(
        &mut self,
        groups: &[Group],
        models: &[usize],
        taken: &mut BTreeSet<String>,
        remarks: &mut Vec<String>,
    ) {
        let served: BTreeSet<&String> = groups.iter().filter_map(|group| group.model.ids.first()).collect();
        for (position, model) in self.models.iter_mut().enumerate() {
            let pools = groups.iter().zip(models).filter(|(_, of)| **of == position);
            let pools: Vec<&[String]> = pools.map(|(group, _)| group.model.adapters.as_slice()).collect();
            let all: BTreeSet<&String> = pools.iter().copied().flatten().collect();
            for adapter in all {
                let name = &model.name;
                if !pools.iter().all(|adapters| adapters.contains(adapter)) {
                    remarks
                        .push(format!("adapter {adapter} of {name} is left out: not every pool of the model has it"));
                } else if served.contains(adapter) || !taken.insert(adapter.clone()) {
                    remarks
                        .push(format!("adapter {adapter} of {name} is left out: its name means something else, too"));
                } else {
                    model.adapters.push(adapter.clone());
                }
            }
        }
    }

    fn add_pool(&mut self, group: &Group, model: usize, knowledge: &Knowledge, taken: &mut BTreeSet<String>) {
        let Some(model) = self.models.get(model) else { return };
        let name = free_name(&[pool_name(&model.name)], taken);
        let kind = if model.generates.is_some() { ModelKind::Generate } else { ModelKind::Embed };
        let names = group.model.ids.iter().chain(&group.model.root).chain([&model.name]);
        let size = names.map(|name| Size::from_name(last_part(name))).find_map(|size| size);
        let profile = knowledge.profile(kind, size.unwrap_or(USUAL));
        let source = match (kind, size) {
            (ModelKind::Embed, _) => "guessed from the reference fleet's embedding model".to_owned(),
            (_, Some(size)) => format!("{GUESSED} of about {}B{MEASURE}", size.active_billions),
            (_, None) => format!("{GUESSED} of about {}B, since the name says no size{MEASURE}", USUAL.billions),
        };
        self.pools.push(DraftPool {
            model: model.name.clone(),
            cluster: format!("pool-{name}"),
            name,
            served_model: group.model.ids.first().cloned().unwrap_or_default(),
            kind,
            profile: DraftProfile {
                tpot_ms: rounded(profile.tpot_ms),
                tpot_growth_per_running: rounded(profile.tpot_growth_per_running),
                prefill_tokens_per_second: rounded(profile.prefill_tokens_per_second),
                overhead_ms: rounded(profile.overhead_ms),
                source,
            },
            limits: DraftLimits { kv_tokens: group.kv_tokens, max_model_len: group.model.max_model_len },
            instances: group.servers.iter().map(|(address, _)| *address).collect(),
        });
    }

    /// As JSON, the same for the same answers.
    ///
    /// # Errors
    /// None that is known.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl DraftPool {
    /// Takes what was measured in the place of what was guessed; what was not measured becomes a sentence.
    pub(super) fn measured(&mut self, measured: &Measured, remarks: &mut Vec<String>) {
        let profile = &mut self.profile;
        let mut guessed = Vec::new();
        profile.tpot_ms = rounded(measured.tpot_ms);
        match measured.tpot_growth_per_running {
            Some(growth) => profile.tpot_growth_per_running = rounded(growth),
            None => guessed.push("tpot_growth_per_running"),
        }
        match measured.prefill {
            Some((rate, overhead_ms)) => {
                profile.prefill_tokens_per_second = rounded(rate);
                profile.overhead_ms = rounded(overhead_ms);
            }
            None => guessed.extend(["prefill_tokens_per_second", "overhead_ms"]),
        }
        profile.source = "measured by `routebalance init --measure`".to_owned();
        if !guessed.is_empty() {
            let guessed = guessed.join(", ");
            profile.source.push_str(&format!("; guessed: {guessed}"));
            remarks.push(format!("pool {}: the measured times do not tell {guessed}, so these are guessed", self.name));
        }
    }
}

/// A whole number without a point, as people write it.
fn plain<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.fract() == 0.0 && (0.0..1e15).contains(value) {
        serializer.serialize_u64(*value as u64)
    } else {
        serializer.serialize_f64(*value)
    }
}

/// Three digits: a measurement has no more.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    // Division by a power of ten gives the number that its three digits mean; multiplication by 0.1 does not.
    if digits >= 0 {
        let scale = 10_f64.powi(digits);
        (value * scale).round() / scale
    } else {
        let scale = 10_f64.powi(-digits);
        (value / scale).round() * scale
    }
}

#[cfg(test)]
mod tests;
