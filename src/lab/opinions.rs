//! What the learned parts of published contenders say of a prompt, and the model that each rule makes of it.
//! `models/README.md` says how they were fitted; no fit has seen the prompt.

use routebalance_core::fleet::ModelId;
use routebalance_core::router::Outlook;

/// What one cluster of prompts says of the models (Avengers-Pro), in the order of [`Opinions::models`].
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterOpinion {
    /// How near the prompt is: its vote's weight.
    pub weight: f64,
    /// Mean score in the cluster, 0 for the worst model to 1 for the best.
    pub performance: Vec<f64>,
    /// 1 less cost in the cluster, 0 for the most expensive model.
    pub efficiency: Vec<f64>,
}

/// What the learned parts of published contenders say of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Opinions {
    /// The fleet's models that they know, from the smallest to the largest; at least one.
    pub models: Vec<ModelId>,
    /// The paper's own estimates: the 10 nearest prompts by MiniLM. Its lengths are means and have no percentiles.
    pub knn: Outlook,
    /// BEST-Route's classifier: probability that a model is the best one, in the order of `models`.
    pub best_route: Vec<f64>,
    /// Avengers-Pro's nearest clusters.
    pub avengers: Vec<ClusterOpinion>,
    /// RouteLLM's probability that the largest model's answer beats the smallest one's.
    pub win_rate: f64,
    /// The model of the prompt's category (vLLM Semantic Router); `None` if the fleet does not have it.
    pub of_category: Option<ModelId>,
}

impl Opinions {
    /// The largest model.
    pub fn largest(&self) -> ModelId {
        self.models[self.models.len() - 1]
    }

    /// BEST-Route: the model that is most probably the best, or the fall-back where no probability reaches the threshold.
    pub fn best_route(&self, threshold: f64, fallback: ModelId) -> ModelId {
        let best = first_greatest(&self.best_route);
        if self.best_route[best] < threshold { fallback } else { self.models[best] }
    }

    /// Avengers-Pro: every cluster ranks the models by `p_w performance + (1 - p_w) efficiency` and gives each its weight over the
    /// rank; of equals the smaller model.
    pub fn avengers_pro(&self, performance_weight: f64) -> ModelId {
        let mut votes = vec![0.0; self.models.len()];
        for cluster in &self.avengers {
            let values = cluster.performance.iter().zip(&cluster.efficiency);
            let scores: Vec<f64> =
                values.map(|(p, e)| performance_weight * p + (1.0 - performance_weight) * e).collect();
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            for (rank, model) in order.into_iter().enumerate() {
                votes[model] += cluster.weight / (rank + 1) as f64;
            }
        }
        self.models[first_greatest(&votes)]
    }

    /// RouteLLM: the largest model where its win rate reaches the threshold, else the smallest.
    pub fn routellm(&self, threshold: f64) -> ModelId {
        if self.win_rate >= threshold { self.largest() } else { self.models[0] }
    }

    /// vLLM Semantic Router: the model of the prompt's category, and the largest one where the fleet does not have it.
    pub fn semantic_router(&self) -> ModelId {
        self.of_category.unwrap_or_else(|| self.largest())
    }
}

fn first_greatest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_chooses_as_published() {
        let cluster = |weight, performance: [f64; 3], efficiency: [f64; 3]| ClusterOpinion {
            weight,
            performance: performance.to_vec(),
            efficiency: efficiency.to_vec(),
        };
        let opinions = Opinions {
            models: [4, 2, 7].map(ModelId::new).to_vec(),
            knn: Outlook::default(),
            best_route: vec![0.2, 0.5, 0.3],
            avengers: vec![
                cluster(0.6, [0.0, 0.5, 1.0], [1.0, 0.9, 0.0]),
                cluster(0.4, [0.0, 1.0, 0.5], [1.0, 0.9, 0.0]),
            ],
            win_rate: 0.4,
            of_category: None,
        };
        let rows = [
            ("sure enough", opinions.best_route(0.5, ModelId::new(4)), 2),
            ("not sure", opinions.best_route(0.6, ModelId::new(4)), 4),
            ("quality only: .6 + .4 / 2 for the third, .4 + .6 / 2 for the second", opinions.avengers_pro(1.0), 7),
            ("cost only", opinions.avengers_pro(0.0), 4),
            // .45, .75, .5 and .5, .95, .25
            ("half and half", opinions.avengers_pro(0.5), 2),
            ("worth it", opinions.routellm(0.4), 7),
            ("not worth it", opinions.routellm(0.41), 4),
            ("no such model", opinions.semantic_router(), 7),
            (
                "the category's",
                Opinions { of_category: Some(ModelId::new(2)), ..opinions.clone() }.semantic_router(),
                2,
            ),
        ];
        for (name, choice, expected) in rows {
            assert_eq!(choice.index(), expected, "{name}");
        }
    }
}
