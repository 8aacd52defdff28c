//! What is run: a contender that the module can run, as a configuration that Envoy and the simulator both get.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, ModelKind, Objective, Policy, QualityNormalisation, Weights};
use routebalance_lab::contenders::{Knobs, LabInputs, NAMES, entrants, ours};
use routebalance_lab::entrant::Entrant;
use routebalance_lab::presets::UNIFORM;

/// Contenders that the module runs, in the order in which they are run.
pub(super) const REAL: [&str; 5] = ["routebalance", "routebalance-paper", "prices", "least-load", "round-robin"];

/// A contender with its knobs set.
#[derive(Clone, Debug)]
pub(super) struct Case {
    /// Name of the contender.
    pub(super) name: &'static str,
    /// Its knobs besides the weights.
    pub(super) setting: String,
    /// Its weights, if it has any.
    pub(super) weights: Option<Weights>,
    policy: Policy,
}

/// The names that are asked for, all without any.
///
/// # Errors
/// A contender that the module does not run, or none at all.
pub(super) fn names(asked: Option<&[String]>) -> Result<Vec<&'static str>> {
    let Some(asked) = asked else { return Ok(REAL.to_vec()) };
    let known = |name: &String| {
        ensure!(NAMES.contains(&name.as_str()), "there is no contender {name}: Envoy runs {}", REAL.join(", "));
        let real = REAL.into_iter().find(|real| real == name);
        real.with_context(|| {
            format!("{name} is simulator-only, the module does not run it: --real has {}", REAL.join(", "))
        })
    };
    asked.iter().map(known).collect()
}

/// A contender at a rate, once for each of the weights if it has any.
///
/// # Errors
/// Prices cannot be had.
pub(super) fn cases(name: &'static str, weights: Option<&[Weights]>, lab: &LabInputs<'_>) -> Result<Vec<Case>> {
    let weights = weights.unwrap_or(&[UNIFORM]);
    let fixed = |objective| {
        let policy = Policy { objective, ..ours(UNIFORM) };
        vec![Case { name, setting: String::new(), weights: None, policy }]
    };
    Ok(match name {
        // Unbatched: the simulator's batches are those of the published contender, not the filter's.
        "routebalance-paper" => {
            let case = |w: &Weights| {
                let policy = Policy {
                    objective: Objective::Paper,
                    quality_normalisation: QualityNormalisation::MinMax,
                    ..ours(*w)
                };
                Case { name, setting: "unbatched".to_owned(), weights: Some(*w), policy }
            };
            weights.iter().map(case).collect()
        }
        "least-load" => fixed(Objective::LeastLoad),
        "round-robin" => fixed(Objective::RoundRobin),
        _ => {
            let entrants = entrants(name, Knobs::Headline, weights, lab)?;
            let case = |e: Entrant| {
                let policy = e.route_policy.with_context(|| format!("{name} has no policy that a route can use"))?;
                Ok(Case { name, setting: e.setting, weights: e.weights, policy })
            };
            entrants.into_iter().map(case).collect::<Result<_>>()?
        }
    })
}

impl Case {
    /// The configuration with this policy and no other, on every path.
    pub(super) fn configured(&self, json: &Value, fleet: &Fleet) -> Result<(Value, Config)> {
        let mut json = json.clone();
        let fields = json.as_object_mut().context("the configuration is no JSON object")?;
        fields.insert("policies".to_owned(), json!([written(&self.policy, fleet)]));
        fields.insert("default_policy".to_owned(), json!(self.policy.name));
        fields.insert("routes".to_owned(), json!([{ "name": "all", "prefix": "/", "policy": self.policy.name }]));
        without_prefixes(fields);
        let config = Config::parse(json.to_string().as_bytes())?;
        Ok((json, config))
    }
}

/// The simulator's gateway does not remember the beginnings of prompts: neither does the real one here. The instances' prefix caches are
/// the same in both.
fn without_prefixes(fields: &mut Map<String, Value>) {
    let affinity = fields.entry("affinity").or_insert_with(|| json!({}));
    affinity["prefix"] = json!(false);
}

/// A policy of the lab as a configuration has it.
fn written(policy: &Policy, fleet: &Fleet) -> Value {
    let Weights { quality, latency, cost } = policy.weights;
    let mut written = json!({
        "name": policy.name,
        "weights": { "quality": quality, "latency": latency, "cost": cost },
        "objective": policy.objective,
        "quality_normalisation": policy.quality_normalisation,
    });
    if policy.objective == Objective::Prices {
        let generates = |(model, _): &(&routebalance_core::fleet::Model, &f64)| model.kind == ModelKind::Generate;
        let prices = fleet.models.iter().zip(&policy.prices).filter(generates);
        written["prices"] =
            prices.map(|(model, price)| (model.name.clone(), json!(price))).collect::<Map<_, _>>().into();
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use routebalance_lab::contenders::Fits;
    use routebalance_sim::workload::Template;

    #[test]
    fn only_what_the_module_runs_is_run() {
        let names_or_problem = |names_asked: &[&str]| {
            let asked: Vec<String> = names_asked.iter().map(|name| (*name).to_owned()).collect();
            names(Some(&asked)).map_err(|problem| problem.to_string())
        };
        assert_eq!(names(None).unwrap(), REAL);
        assert_eq!(names_or_problem(&["prices", "routebalance"]).unwrap(), ["prices", "routebalance"]);
        for (name, part) in [("avengers-pro", "is simulator-only"), ("nobody", "there is no contender nobody")] {
            let problem = names_or_problem(&["prices", name]).unwrap_err();
            assert!(problem.contains(part) && problem.contains("least-load"), "{problem}");
        }
    }

    #[test]
    fn a_configuration_has_the_policy_of_the_case() {
        let text = include_bytes!("../../../../envoy/routebalance.json");
        let json: Value = serde_json::from_slice(text).unwrap();
        let config = Config::parse(text).unwrap();
        let templates = std::sync::Arc::from(vec![Template::of_counts(100, vec![200; 5], vec![0.5; 5])]);
        let fits = Fits::default();
        let lab = LabInputs { config: &config, templates: &templates, opinions: None, rate: 10.0, fits: &fits };
        let weights = Weights { quality: 0.8, latency: 0.1, cost: 0.1 };
        for name in REAL {
            let cases = cases(name, Some(&[weights]), &lab).unwrap();
            let [case] = cases.as_slice() else { panic!("{name}: {} cases", cases.len()) };
            let (_, configured) = case.configured(&json, &config.fleet).unwrap();
            let [policy] = configured.policies.as_slice() else { panic!("{name}") };
            let mut expected = case.policy.clone();
            expected.prices.resize(config.fleet.models.len(), 0.0);
            assert_eq!(policy, &expected, "{name}");
            assert!(case.weights.is_none_or(|w| (w.quality - 0.8).abs() < 1e-9), "{name}");
            assert!(
                configured.routes.iter().all(|route| route.policy.index() == 0) && !configured.affinity.prefix,
                "{name}"
            );
        }
    }
}
