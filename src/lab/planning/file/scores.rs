//! Predicted scores of a sample of prompts: from a file that has them, or from the predictor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Deserialize;

use super::number;
use crate::builtin::in_order;
use crate::lines;
use crate::planning::sample::{Half, Sample};
use routebalance_core::features::{TextWindow, extract};
use routebalance_core::predictor::Predictor;
use routebalance_core::random::Random;
use routebalance_plan::problem::PlannedModel;
use routebalance_plan::scores::Scores;

/// Prompts of a plan: more make it slower, hardly better.
const PROMPTS_MAX: usize = 2_000;

/// Where the scores come from: one of the two files.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawScores {
    #[serde(default)]
    file: Option<PathBuf>,
    #[serde(default)]
    prompts: Option<PathBuf>,
    #[serde(default = "prompts_max")]
    prompts_max: usize,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    hold_out: bool,
}

fn prompts_max() -> usize {
    PROMPTS_MAX
}

/// What tells to which half a line belongs.
#[derive(Deserialize)]
struct Named {
    id: String,
}

/// A line of a file of scores: `scores` by model, or `ours` in the order of `q` as `models/lab.py` writes them; other fields are
/// left alone.
#[derive(Deserialize)]
struct ScoreRow {
    #[serde(default)]
    scores: Option<BTreeMap<String, f64>>,
    #[serde(default, deserialize_with = "some_in_order")]
    q: Option<Vec<(String, f64)>>,
    /// Quality first.
    #[serde(default)]
    ours: Option<Vec<[f64; 5]>>,
    #[serde(default = "known")]
    familiarity: f64,
}

fn some_in_order<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<(String, f64)>>, D::Error> {
    in_order(deserializer).map(Some)
}

fn known() -> f64 {
    1.0
}

/// A line of a file of prompts; other fields are left alone.
#[derive(Deserialize)]
struct PromptRow {
    prompt: String,
}

impl RawScores {
    /// The scores of the plan's models; a prompt that the predictor knows little of gets the models' priors as far as they are
    /// given, as in the gateway. Notes are for people.
    pub(super) fn read(
        &self,
        folder: &Path,
        models: &[PlannedModel],
        priors: &[Option<f64>],
    ) -> Result<(Scores, Vec<String>)> {
        ensure!(self.prompts_max > 0, "plan field scores.prompts_max: at least one prompt is needed");
        let (field, path) = match (&self.file, &self.prompts) {
            (Some(path), None) => ("scores.file", path),
            (None, Some(path)) => ("scores.prompts", path),
            _ => bail!("plan field scores: needs file or prompts, one of the two"),
        };
        let path = folder.join(path);
        let name = path.display().to_string();
        let text = lines::text_of(&path).with_context(|| format!("plan field {field}"))?;
        let all: Vec<(String, &str)> = lines::placed(&name, &text).collect();
        ensure!(!all.is_empty(), "plan field {field}: {name} has no row: without scores there is nothing to choose by");
        let mut notes = Vec::new();
        let all = if self.hold_out {
            planning_half(all, &name, &mut notes).with_context(|| format!("plan field {field}"))?
        } else {
            all
        };
        let drawn = self.drawn(all.len());
        if drawn.len() < all.len() {
            notes.push(format!("{name}: {} of {} rows, drawn with seed {}", drawn.len(), all.len(), self.seed));
        }
        let rows = drawn.iter().map(|i| &all[*i]);
        let values = if self.file.is_some() {
            rows.map(|(place, line)| of_row(line, models, priors).with_context(|| place.clone()))
                .collect::<Result<Vec<_>>>()
        } else {
            predicted(rows, models, priors)
        };
        let values = values.with_context(|| format!("plan field {field}"))?.concat();
        let scores = Scores::new(models.len(), values)
            .with_context(|| format!("plan field {field}: {name} has a score that is no number"))?;
        Ok((scores, notes))
    }

    /// The prompts of a half, with what models really made of them.
    pub(super) fn sample(&self, folder: &Path, models: &[String], half: Half) -> Result<Sample> {
        let file = self.file.as_ref().context("plan field scores.file: answers of the models to prompts are needed")?;
        Sample::read(&folder.join(file), models, half).context("plan field scores.file")
    }

    /// Indices of the rows that count, in the order of the file.
    fn drawn(&self, rows: usize) -> Vec<usize> {
        let mut indices: Vec<usize> = (0..rows).collect();
        let count = rows.min(self.prompts_max);
        let mut random = Random::new(self.seed);
        for i in 0..count {
            indices.swap(i, i + random.below(rows - i));
        }
        indices.truncate(count);
        indices.sort_unstable();
        indices
    }
}

/// Without the lines that are kept for the check.
fn planning_half<'a>(
    all: Vec<(String, &'a str)>,
    name: &str,
    notes: &mut Vec<String>,
) -> Result<Vec<(String, &'a str)>> {
    let rows = all.len();
    let mut kept = Vec::new();
    for (place, line) in all {
        let named: Named =
            lines::parsed(line).with_context(|| format!("{place}: with hold_out every row needs a name"))?;
        if Half::from_id(&named.id) == Half::Planning {
            kept.push((place, line));
        }
    }
    ensure!(!kept.is_empty(), "{name}: hold_out keeps all {rows} rows for the check");
    notes.push(format!("{name}: {} of {rows} rows are kept for the check", rows - kept.len()));
    Ok(kept)
}

fn of_row(line: &str, models: &[PlannedModel], priors: &[Option<f64>]) -> Result<Vec<f64>> {
    let row: ScoreRow = lines::parsed(line)?;
    let scores: BTreeMap<String, f64> = match (row.scores, row.q, row.ours) {
        (Some(scores), ..) => scores,
        (None, Some(q), Some(ours)) => {
            ensure!(q.len() == ours.len(), "ours has {} models, q {}", ours.len(), q.len());
            q.into_iter().zip(ours).map(|((model, _), [quality, ..])| (model, quality)).collect()
        }
        _ => bail!("has no scores: a row needs scores by model, or q and ours"),
    };
    number("familiarity", row.familiarity, 0.0, 1.0)?;
    let score = |(model, prior): (&PlannedModel, &Option<f64>)| {
        let own = scores.get(&model.name).with_context(|| {
            let names: Vec<&str> = scores.keys().map(String::as_str).collect();
            format!("unknown model: there is no score of {}, but of {}", model.name, names.join(", "))
        })?;
        number(&format!("scores.{}", model.name), *own, 0.0, 1.0)?;
        Ok(shrunk(*own, *prior, row.familiarity))
    };
    models.iter().zip(priors).map(score).collect()
}

/// What the gateway makes of an estimate of a prompt that its predictor knows so little of.
fn shrunk(own: f64, prior: Option<f64>, familiarity: f64) -> f64 {
    prior.map_or(own, |prior| prior + familiarity * (own - prior))
}

fn predicted<'a>(
    rows: impl Iterator<Item = &'a (String, &'a str)>,
    models: &[PlannedModel],
    priors: &[Option<f64>],
) -> Result<Vec<Vec<f64>>> {
    let predictor = Predictor::load().map_err(|problem| anyhow!(problem))?;
    let place_of = |model: &PlannedModel| {
        predictor.models().iter().position(|name| *name == model.name).with_context(|| {
            format!("unknown model: the predictor does not know {}, but {}", model.name, predictor.models().join(", "))
        })
    };
    let places = models.iter().map(place_of).collect::<Result<Vec<usize>>>()?;
    let of_prompt = |(place, line): &(String, &str)| {
        let row: PromptRow = lines::parsed(line).with_context(|| place.clone())?;
        let mut window = TextWindow::default();
        window.push_str(&row.prompt);
        let prediction =
            predictor.predict(&extract(&window)).with_context(|| format!("{place}: the predictor has no estimate"))?;
        let quality = |(i, prior): (&usize, &Option<f64>)| {
            shrunk(prediction.estimates[*i].quality, *prior, prediction.familiarity)
        };
        Ok(places.iter().zip(priors).map(quality).collect())
    };
    rows.map(of_prompt).collect()
}
