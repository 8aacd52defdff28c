//! The lab's own prompts: real questions, what the Qwen2.5 models really answered, and what everybody expected of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::lines;
use super::opinions::{ClusterOpinion, Opinions};
use super::prompts::{LabPrompt, LabPrompts, TOKENS_MAX, answered_tokens, in_fleet_order, priors, within};
use routebalance_core::fleet::{Fleet, ModelId};
use routebalance_core::predictor::Estimate;
use routebalance_core::router::{Outlook, Router};
use routebalance_sim::workload::Template;

/// Made by `models/lab.py`; the fields are described in `models/README.md`.
const LAB: &[u8] = include_bytes!("../../models/data/lab.jsonl.gz");

/// A line. Lists are in the order of the models in `q`, from the smallest to the largest.
#[derive(Deserialize)]
struct Row {
    id: String,
    prompt_tokens: f64,
    #[serde(deserialize_with = "in_order")]
    q: Vec<(String, f64)>,
    len: BTreeMap<String, f64>,
    /// Quality, its deviation, and the 50th, 80th and 90th percentile of output tokens, before they are shrunk to the priors.
    ours: Vec<[f64; 5]>,
    familiarity: f64,
    prototype: usize,
    knn: Neighbours,
    best_route: Vec<f64>,
    avengers: Vec<Cluster>,
    routellm: f64,
    sr: String,
}

#[derive(Deserialize)]
struct Neighbours {
    q: Vec<f64>,
    len: Vec<f64>,
}

#[derive(Deserialize)]
struct Cluster {
    weight: f64,
    performance: Vec<f64>,
    efficiency: Vec<f64>,
}

/// An object's fields in the order of the file.
pub(crate) fn in_order<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, f64)>, D::Error> {
    struct Fields;
    impl<'de> Visitor<'de> for Fields {
        type Value = Vec<(String, f64)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number per model")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut fields = Vec::new();
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(fields)
        }
    }
    deserializer.deserialize_map(Fields)
}

/// The lab's prompts for a router's fleet. Estimates are what the router would make of our predictor's output.
///
/// # Errors
/// The fleet has a generating model that nobody asked these prompts.
pub fn prompts(router: &Router) -> Result<LabPrompts> {
    parse("the lab's prompts", &lines::unpacked(LAB)?, router)
}

fn parse(name: &str, text: &str, router: &Router) -> Result<LabPrompts> {
    let fleet = &router.config().fleet;
    let mut prompts = Vec::new();
    for (place, line) in lines::placed(name, text) {
        let row: Row = lines::parsed(line).with_context(|| place.clone())?;
        prompts.push(row.into_prompt(fleet, router).with_context(|| place)?);
    }
    ensure!(!prompts.is_empty(), "{name}: has no row");
    Ok(LabPrompts { prompts, notes: Vec::new() })
}

impl Row {
    fn into_prompt(self, fleet: &Fleet, router: &Router) -> Result<LabPrompt> {
        let n = self.q.len();
        let clusters_fit = self.avengers.iter().all(|c| c.performance.len() == n && c.efficiency.len() == n);
        let lengths = [self.ours.len(), self.knn.q.len(), self.knn.len.len(), self.best_route.len()];
        ensure!(clusters_fit && lengths == [n; 4], "its lists are not as long as q");
        let q: BTreeMap<String, f64> = self.q.iter().cloned().collect();
        within("q", &q, 1.0)?;
        within("len", &self.len, TOKENS_MAX)?;
        let known = |missing: String| {
            let names: Vec<&str> = self.q.iter().map(|(name, _)| name.as_str()).collect();
            anyhow::anyhow!(
                "nobody asked {missing} these prompts, but {}: give prompts of your own (--prompts), or a fleet without it",
                names.join(", ")
            )
        };
        let quality = in_fleet_order(fleet, &q).map_err(known)?;
        let tokens = in_fleet_order(fleet, &self.len).map_err(known)?;
        // Of the file's models those of the fleet, with their places in the lists.
        let places: Vec<(usize, ModelId)> =
            self.q.iter().enumerate().filter_map(|(i, (name, _))| Some((i, fleet.model_named(name)?))).collect();
        if places.is_empty() {
            bail!("the fleet has no model that writes text");
        }
        let prompt_tokens = (self.prompt_tokens.round() as u32).max(1);
        let template = Template::of_counts(prompt_tokens, answered_tokens(fleet, &tokens), quality);
        let prior = priors(router, &template.prompt);
        let ours = |i: usize, prior: &Estimate| {
            let [quality, quality_sd, output_tokens, output_tokens_p80, output_tokens_p90] = self.ours[i];
            let own = Estimate { quality, quality_sd, output_tokens, output_tokens_p80, output_tokens_p90 };
            own.shrunk_to(prior, self.familiarity)
        };
        let neighbours = |i: usize, _: &Estimate| {
            let (quality, output_tokens) = (self.knn.q[i], self.knn.len[i].max(1.0));
            let (output_tokens_p80, output_tokens_p90) = (output_tokens, output_tokens);
            Estimate { quality, quality_sd: 0.0, output_tokens, output_tokens_p80, output_tokens_p90 }
        };
        let outlook = Outlook {
            familiarity: Some(self.familiarity),
            prototype: Some(self.prototype),
            ..outlook_with(&prior, &places, ours)
        };
        let pick = |values: &[f64]| places.iter().map(|(i, _)| values[*i]).collect::<Vec<f64>>();
        let cluster = |c: &Cluster| ClusterOpinion {
            weight: c.weight,
            performance: pick(&c.performance),
            efficiency: pick(&c.efficiency),
        };
        let opinions = Opinions {
            models: places.iter().map(|(_, model)| *model).collect(),
            knn: outlook_with(&prior, &places, neighbours),
            best_route: pick(&self.best_route),
            avengers: self.avengers.iter().map(cluster).collect(),
            win_rate: self.routellm,
            of_category: fleet.model_named(&self.sr),
        };
        let template = Template { outlook: Some(outlook), ..template };
        Ok(LabPrompt { id: self.id, template, opinions: Some(Arc::new(opinions)) })
    }
}

/// The priors with these models' estimates in their places.
fn outlook_with(
    prior: &Outlook,
    places: &[(usize, ModelId)],
    estimate: impl Fn(usize, &Estimate) -> Estimate,
) -> Outlook {
    let mut outlook = prior.clone();
    for (place, model) in places {
        let slot = &mut outlook.estimates[model.index()];
        *slot = (estimate(*place, &slot.0), true);
    }
    outlook
}

#[cfg(test)]
mod tests {
    use super::super::prompts::tests::router;
    use super::*;

    #[test]
    fn every_prompt_is_known_to_everybody() {
        let router = router();
        let set = prompts(&router).unwrap();
        assert_eq!(set.prompts.len(), 1_521);
        for prompt in &set.prompts {
            let opinions = prompt.opinions.as_ref().unwrap();
            assert_eq!(opinions.models, [0, 1, 2, 3].map(ModelId::new), "{}", prompt.id);
            assert_eq!(prompt.template.output_tokens[4], 0, "an embedding model writes nothing");
            for outlook in [prompt.template.outlook.as_ref().unwrap(), &opinions.knn] {
                for (estimate, predicted) in &outlook.estimates {
                    let Estimate { quality, quality_sd, output_tokens, output_tokens_p80, output_tokens_p90 } =
                        estimate;
                    assert!(predicted, "{}", prompt.id);
                    assert!((0.0..=1.0).contains(quality) && (0.0..=0.5).contains(quality_sd), "{}", prompt.id);
                    let tokens = [output_tokens, output_tokens_p80, output_tokens_p90];
                    assert!(*tokens[0] >= 1.0 && tokens.is_sorted() && tokens[2].is_finite(), "{}", prompt.id);
                }
            }
            let rules = [
                opinions.best_route(0.0, ModelId::new(0)),
                opinions.avengers_pro(0.8),
                opinions.routellm(0.4),
                opinions.semantic_router(),
            ];
            assert!(rules.iter().all(|model| *model < ModelId::new(4)), "{}", prompt.id);
        }
        // As the data's card says.
        let mean = |m: usize| set.prompts.iter().map(|p| p.template.quality[m]).sum::<f64>() / 1_521.0;
        for (model, expected) in [0.295, 0.521, 0.650, 0.674].into_iter().enumerate() {
            assert!((mean(model) - expected).abs() < 0.002, "{model}: {}", mean(model));
        }
    }

    /// The estimates are those of a familiar prompt as they are, and nearer to the priors the less it is.
    #[test]
    fn an_unfamiliar_prompt_is_expected_to_be_like_any() {
        let router = router();
        let line = lines::unpacked(LAB).unwrap().lines().next().unwrap().to_owned();
        let estimate = |familiarity: f64| {
            let mut row: Row = lines::parsed(&line).unwrap();
            row.familiarity = familiarity;
            row.into_prompt(&router.config().fleet, &router).unwrap().template.outlook.unwrap().estimates[0].0
        };
        let raw: Row = lines::parsed(&line).unwrap();
        assert_eq!(estimate(1.0).quality, raw.ours[0][0]);
        assert_eq!(estimate(0.0).quality, router.config().fleet.models[0].quality_prior);
    }

    #[test]
    fn a_fleet_of_other_models_is_refused() {
        let json = include_str!("../../envoy/routebalance.json").replace("Qwen2.5-7B-Instruct", "mine");
        let config = routebalance_core::config::Config::parse(json.as_bytes()).unwrap();
        let problem = format!("{:#}", prompts(&Router::new(config, None)).unwrap_err());
        assert!(
            problem.starts_with("the lab's prompts:1: nobody asked mine these prompts, but Qwen2.5-3B"),
            "{problem}"
        );
    }
}
