//! The plan file: what a person asks of the planner, as written and checked, or one sentence that names the field.

mod raw;
mod scores;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use self::raw::{
    RawBeyond, RawDemand, RawGoal, RawGpu, RawLevel, RawMemory, RawModel, RawProfiles, everything, one_copy,
    paper_shares, paper_tensor_parallel,
};
use self::scores::RawScores;
use super::measure::{MeasuredModel, Measuring};
use super::profiles::{profiles, read_profiles};
use super::sample::{Half, Sample};
use routebalance_plan::device::{DEVICES, Device, ModelSize};
use routebalance_plan::problem::{
    Beyond, Goal, GpuKind, Level, Limit, Metric, PlannedModel, Problem, ShardMemory, Space, Statistic,
};
use routebalance_plan::profile::{Profile, QUANTILES};
use routebalance_plan::scores::Scores;

/// A plan file as written. Its fields are explained in README.md.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanFile {
    gpus: Vec<RawGpu>,
    models: Vec<RawModel>,
    #[serde(default)]
    memory: RawMemory,
    #[serde(default = "paper_tensor_parallel")]
    tensor_parallel: Vec<u32>,
    #[serde(default = "paper_shares")]
    shares_percent: Vec<u32>,
    #[serde(default = "one_copy")]
    replicas: Vec<u32>,
    #[serde(default = "everything")]
    compute_min: f64,
    #[serde(default)]
    oversubscribe: bool,
    #[serde(default)]
    interference: Option<f64>,
    profiles: RawProfiles,
    #[serde(default)]
    profiles_beyond: RawBeyond,
    scores: RawScores,
    demand: RawDemand,
    #[serde(default)]
    slo: BTreeMap<String, f64>,
    #[serde(default)]
    goal: RawGoal,
    #[serde(default)]
    score_min: Option<f64>,
    #[serde(default)]
    max_tokens: Option<u32>,
    /// Where the file is: what the paths in it are relative to.
    #[serde(skip)]
    folder: PathBuf,
}

/// GB of weights per billion parameters at 16 bits each.
const GB_PER_BILLION: f64 = 2.0;

/// What the command line says instead of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Mean time to the first token, milliseconds.
    pub slo_ms: Option<f64>,
    /// The only level of demand, requests per second.
    pub rate: Option<f64>,
    /// GPUs of the only kind.
    pub gpus: Option<usize>,
}

/// What may be deployed, without demand, profiles and scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// The models.
    pub models: Vec<PlannedModel>,
    /// The GPUs.
    pub kinds: Vec<GpuKind>,
    /// What shards need.
    pub memory: ShardMemory,
    /// The setups to look at.
    pub space: Space,
}

impl PlanFile {
    /// Reads a plan file; what the command line says comes instead of its fields.
    ///
    /// # Errors
    /// One sentence: the file cannot be read, or which field cannot be what it is.
    pub fn read(file: &Path, overrides: &Overrides) -> Result<PlanFile> {
        let json = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        PlanFile::parse(&json, file.parent().unwrap_or(Path::new("")), overrides)
    }

    /// Reads the text of a plan file that lies in a folder.
    ///
    /// # Errors
    /// As [`PlanFile::read`].
    pub fn parse(json: &[u8], folder: &Path, overrides: &Overrides) -> Result<PlanFile> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let mut file: PlanFile = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            let path = e.path().to_string();
            let field = if path == "." { "(whole file)" } else { &path };
            anyhow::anyhow!("plan field {field}: {}", e.inner())
        })?;
        reader.end().map_err(|e| anyhow::anyhow!("plan field (whole file): {e}"))?;
        file.folder = folder.to_owned();
        if let Some(slo_ms) = overrides.slo_ms {
            file.slo.insert("mean_ttft_ms".to_owned(), slo_ms);
        }
        if let Some(rate) = overrides.rate {
            file.demand.0 = vec![RawLevel { requests_per_second: rate, weight: 1.0 }];
        }
        if let Some(count) = overrides.gpus {
            let [only] = file.gpus.as_mut_slice() else {
                bail!("--gpus is for plans of one GPU kind; this one has {}: change gpus[].count", file.gpus.len());
            };
            only.count = count;
        }
        Ok(file)
    }

    /// What may be deployed, checked.
    ///
    /// # Errors
    /// One sentence that names the field, or the model that fits nowhere.
    pub fn deployment(&self) -> Result<Deployment> {
        let kinds = self.kinds()?;
        let models = self.models()?;
        let factor = number("memory.factor", self.memory.factor, 0.0, 100.0)?;
        let fixed_gb = number("memory.fixed_gb", self.memory.fixed_gb, 0.0, 1e6)?;
        let memory = ShardMemory { factor, fixed_gb };
        let space = Space {
            tensor_parallel: list("tensor_parallel", &self.tensor_parallel, 1, GPUS_MAX)?,
            shares_percent: list("shares_percent", &self.shares_percent, 1, 100)?,
            replicas: list("replicas", &self.replicas, 0, GPUS_MAX)?,
            compute_min: number("compute_min", self.compute_min, 0.0, 1.0)?,
            oversubscribe: self.oversubscribe,
            interference: self.interference.map(|strength| number("interference", strength, 0.0, 100.0)).transpose()?,
        };
        ensure!(space.replicas.iter().any(|n| *n > 0), "plan field replicas: with 0 alone no model is deployed");
        let deployment = Deployment { models, kinds, memory, space };
        for model in 0..deployment.models.len() {
            deployment.ensure_fits(model)?;
        }
        Ok(deployment)
    }

    /// What is to be measured where nobody has profiles, and the prompts to measure with.
    ///
    /// # Errors
    /// One sentence that names the field or the file, and what is missing or wrong.
    pub fn measuring(&self, seed: u64) -> Result<(Measuring, Sample)> {
        let Deployment { models, kinds, memory, space } = self.deployment()?;
        let device = |(k, kind): (usize, &GpuKind)| {
            let known = Device::named(&kind.name).with_context(|| {
                let names: Vec<&str> = DEVICES.iter().map(|device| device.name).collect();
                format!(
                    "plan field gpus[{k}].kind: {:?} is none of those whose speed is known: {}",
                    kind.name,
                    names.join(", ")
                )
            })?;
            Ok(Device { memory_gb: kind.memory_gb, usd_per_hour: kind.usd_per_hour, ..*known })
        };
        let sizes = models.into_iter().zip(self.sizes()?).enumerate();
        let sized = |(m, (model, size)): (usize, (PlannedModel, Option<ModelSize>))| {
            let size = size.with_context(|| {
                format!(
                    "plan field models[{m}]: to measure {} its layers, kv_bytes_per_token and max_model_len are needed",
                    model.name
                )
            })?;
            Ok(MeasuredModel { model, size })
        };
        let measuring = Measuring {
            models: sizes.map(sized).collect::<Result<_>>()?,
            devices: kinds.iter().enumerate().map(device).collect::<Result<_>>()?,
            memory,
            tensor_parallel: space.tensor_parallel,
            shares_percent: space.shares_percent,
            max_tokens: self.max_tokens()?,
            seed,
        };
        Ok((measuring, self.sample(Half::Planning)?))
    }

    /// The prompts of a half, with what models really made of them.
    ///
    /// # Errors
    /// One sentence: the file of scores has no answers.
    pub fn sample(&self, half: Half) -> Result<Sample> {
        let names: Vec<String> = self.models.iter().map(|model| model.name.clone()).collect();
        self.scores.sample(&self.folder, &names, half)
    }

    /// Tokens after which clients want answers cut; `None` if they want all.
    ///
    /// # Errors
    /// It is 0.
    pub fn max_tokens(&self) -> Result<Option<u32>> {
        ensure!(self.max_tokens != Some(0), "plan field max_tokens: answers of no token are none");
        Ok(self.max_tokens)
    }

    /// The whole problem, checked; files that it names are read. Notes on what was read are for people.
    ///
    /// # Errors
    /// One sentence that names the field or the file, and what is wrong with it.
    pub fn problem(&self) -> Result<(Problem, Vec<String>)> {
        let Deployment { models, kinds, memory, space } = self.deployment()?;
        let levels = self.levels()?;
        let limits = self.limits()?;
        let (goal, score_min) = self.goal(&kinds)?;
        let profiles = match &self.profiles {
            RawProfiles::File(path) => read_profiles(&self.folder.join(path), &models, &kinds)?,
            RawProfiles::Rows(rows) => profiles(rows, &models, &kinds).context("plan field profiles")?,
        };
        let beyond = match self.profiles_beyond {
            RawBeyond::Never => Beyond::Never,
            RawBeyond::LastSlope => Beyond::LastSlope,
        };
        ensure!(
            beyond == Beyond::Never || limits.iter().all(|limit| limit.statistic == Statistic::Mean),
            "plan field profiles_beyond: last_slope goes with limits of means only: how quantiles go on is not known"
        );
        let priors: Vec<Option<f64>> = self.models.iter().map(|model| model.quality_prior).collect();
        let (scores, notes) = self.scores.read(&self.folder, &models, &priors)?;
        let problem =
            Problem { models, kinds, memory, space, profiles, beyond, scores, levels, limits, goal, score_min };
        ensure_profiled(&problem)?;
        ensure_in_reach(&problem)?;
        Ok((problem, notes))
    }

    /// What the device rule needs of each model; `None` where the file does not say all of it.
    ///
    /// # Errors
    /// One sentence that names the field.
    pub fn sizes(&self) -> Result<Vec<Option<ModelSize>>> {
        let size = |(i, (raw, planned)): (usize, (&RawModel, PlannedModel))| {
            let (Some(layers), Some(kv_bytes), Some(len)) = (raw.layers, raw.kv_bytes_per_token, raw.max_model_len)
            else {
                return Ok(None);
            };
            let field_name = |field: &str| format!("models[{i}].{field}");
            Ok(Some(ModelSize {
                weights_gb: planned.weights_gb,
                layers: number(&field_name("layers"), f64::from(layers), 1.0, 1e4)?,
                kv_bytes_per_token: number(&field_name("kv_bytes_per_token"), f64::from(kv_bytes), 1.0, 1e9)?,
                max_model_len: number(&field_name("max_model_len"), f64::from(len), 1.0, 1e8)? as u32,
            }))
        };
        self.models.iter().zip(self.models()?).enumerate().map(size).collect()
    }

    fn kinds(&self) -> Result<Vec<GpuKind>> {
        ensure!(!self.gpus.is_empty(), "plan field gpus: at least one kind is needed");
        names("gpus", "kind", self.gpus.iter().map(|gpu| gpu.kind.as_str()))?;
        let kind = |(i, gpu): (usize, &RawGpu)| {
            let field_name = |field: &str| format!("gpus[{i}].{field}");
            ensure!(
                (1..=GPUS_MAX as usize).contains(&gpu.count),
                "plan field {}: {} is not between 1 and {GPUS_MAX}",
                field_name("count"),
                gpu.count
            );
            Ok(GpuKind {
                name: gpu.kind.clone(),
                count: gpu.count,
                memory_gb: number(&field_name("memory_gb"), gpu.memory_gb, 0.1, 1e6)?,
                usd_per_hour: {
                    let known = || Device::named(&gpu.kind).map(|device| device.usd_per_hour);
                    let usd = gpu.usd_per_hour.or_else(known);
                    let usd = usd.with_context(|| format!("plan field {}: is missing", field_name("usd_per_hour")))?;
                    number(&field_name("usd_per_hour"), usd, 0.0, 1e6)?
                },
            })
        };
        self.gpus.iter().enumerate().map(kind).collect()
    }

    fn models(&self) -> Result<Vec<PlannedModel>> {
        ensure!(!self.models.is_empty(), "plan field models: at least one model is needed");
        names("models", "name", self.models.iter().map(|model| model.name.as_str()))?;
        let model = |(i, model): (usize, &RawModel)| {
            let field_name = |field: &str| format!("models[{i}].{field}");
            let weights_gb = match (model.parameters_billion, model.weights_gb) {
                (Some(billion), None) => {
                    GB_PER_BILLION * number(&field_name("parameters_billion"), billion, 1e-3, 1e5)?
                }
                (None, Some(gb)) => number(&field_name("weights_gb"), gb, 1e-3, 1e6)?,
                _ => bail!(
                    "plan field models[{i}]: {:?} needs parameters_billion or weights_gb, one of the two",
                    model.name
                ),
            };
            if let Some(prior) = model.quality_prior {
                number(&field_name("quality_prior"), prior, 0.0, 1.0)?;
            }
            Ok(PlannedModel { name: model.name.clone(), weights_gb })
        };
        self.models.iter().enumerate().map(model).collect()
    }

    fn levels(&self) -> Result<Vec<Level>> {
        let levels = &self.demand.0;
        ensure!(!levels.is_empty(), "plan field demand: at least one level is needed");
        for (i, level) in levels.iter().enumerate() {
            let rate = level.requests_per_second;
            ensure!(
                rate > 0.0 && rate <= RATE_MAX,
                "plan field demand[{i}].requests_per_second: {rate} is not demand: it must be above 0, and at most {RATE_MAX}"
            );
            number(&format!("demand[{i}].weight"), level.weight, 0.0, 1e9)?;
        }
        let sum: f64 = levels.iter().map(|level| level.weight).sum();
        ensure!(sum > 0.0, "plan field demand: at least one weight must be above 0");
        Ok(levels.iter().map(|l| Level { rate: l.requests_per_second, weight: l.weight / sum }).collect())
    }

    fn limits(&self) -> Result<Vec<Limit>> {
        ensure!(!self.slo.is_empty(), "plan field slo: at least one limit is needed, such as mean_ttft_ms");
        let limit = |(name, milliseconds): (&String, &f64)| {
            let (statistic, metric) = limit_named(name).with_context(|| {
                format!(
                    "plan field slo.{name}: is no limit; limits are STATISTIC_TIME_ms with mean, p50, p75, p90, p95 or p99 and \
                     ttft, tpot or e2e, such as p95_ttft_ms"
                )
            })?;
            let milliseconds = number(&format!("slo.{name}"), *milliseconds, 1e-3, 1e9)?;
            Ok(Limit { metric, statistic, milliseconds })
        };
        self.slo.iter().map(limit).collect()
    }

    fn goal(&self, kinds: &[GpuKind]) -> Result<(Goal, f64)> {
        let goal = match self.goal {
            RawGoal::Score => Goal::Score,
            RawGoal::ScorePerUsd => Goal::ScorePerUsd,
            RawGoal::Usd => Goal::Usd,
        };
        if let Some(kind) = kinds.iter().position(|kind| goal != Goal::Score && kind.usd_per_hour <= 0.0) {
            bail!("plan field gpus[{kind}].usd_per_hour: the goal needs what a GPU costs");
        }
        match (goal, self.score_min) {
            (Goal::Usd, Some(least)) => Ok((goal, number("score_min", least, 0.0, 1.0)?)),
            (Goal::Usd, None) => bail!("plan field score_min: the goal usd needs it"),
            (_, Some(_)) => bail!("plan field score_min: belongs to the goal usd"),
            (_, None) => Ok((goal, 0.0)),
        }
    }
}

impl Deployment {
    /// The deployment as a problem of which only setups are asked: no demand, no latency, and every score 0.
    pub fn as_problem(&self) -> Option<Problem> {
        let Deployment { models, kinds, memory, space } = self.clone();
        let scores = Scores::new(models.len(), vec![0.0; models.len()])?;
        Some(Problem {
            models,
            kinds,
            memory,
            space,
            profiles: Vec::new(),
            beyond: Beyond::Never,
            scores,
            levels: Vec::new(),
            limits: Vec::new(),
            goal: Goal::Score,
            score_min: 0.0,
        })
    }

    fn ensure_fits(&self, model: usize) -> Result<()> {
        let model = &self.models[model];
        let mut least: Option<(f64, u32)> = None;
        for kind in &self.kinds {
            for shards in self.space.tensor_parallel.iter().filter(|shards| **shards as usize <= kind.count) {
                let gb = self.memory.shard_gb(model, *shards);
                if gb <= kind.memory_gb {
                    return Ok(());
                }
                if least.is_none_or(|(known, _)| gb < known) {
                    least = Some((gb, *shards));
                }
            }
        }
        let Some((gb, shards)) = least else {
            bail!(
                "plan field tensor_parallel: {} needs more shards than any kind has GPUs ({})",
                model.name,
                self.kinds.iter().map(|kind| kind.count).max().unwrap_or(0)
            );
        };
        let largest = self.kinds.iter().max_by(|a, b| a.memory_gb.total_cmp(&b.memory_gb));
        let (name, has) = largest.map_or(("none", 0.0), |kind| (kind.name.as_str(), kind.memory_gb));
        bail!(
            "{} fits nowhere: {} {gb:.1} GB, and the largest GPU, {name}, has {has} GB",
            model.name,
            if shards == 1 { "it needs".to_owned() } else { format!("even over {shards} GPUs it needs, on each,") }
        )
    }
}

/// The most GPUs of a kind, and the most shards or copies of a model.
const GPUS_MAX: u32 = 64;
/// Requests per second; more is a mistake.
const RATE_MAX: f64 = 1e6;

/// A limit by its name.
fn limit_named(name: &str) -> Option<(Statistic, Metric)> {
    let (statistic, metric) = name.strip_suffix("_ms")?.split_once('_')?;
    let metric = match metric {
        "ttft" => Metric::Ttft,
        "tpot" => Metric::Tpot,
        "e2e" => Metric::E2e,
        _ => return None,
    };
    if statistic == "mean" {
        return Some((Statistic::Mean, metric));
    }
    let quantile = QUANTILES.into_iter().find(|quantile| statistic == format!("p{:.0}", quantile * 100.0))?;
    Some((Statistic::Quantile(quantile), metric))
}

/// The name of a limit, as in `slo`.
pub fn limit_name(limit: &Limit) -> String {
    let metric = match limit.metric {
        Metric::Ttft => "ttft",
        Metric::Tpot => "tpot",
        Metric::E2e => "e2e",
    };
    match limit.statistic {
        Statistic::Mean => format!("mean_{metric}_ms"),
        Statistic::Quantile(quantile) => format!("p{}_{metric}_ms", (quantile * 100.0).round()),
    }
}

/// Whether every choice that a setup may contain has a profile that tells what the limits ask.
fn ensure_profiled(problem: &Problem) -> Result<()> {
    for (m, model) in problem.models.iter().enumerate() {
        for (k, kind) in problem.kinds.iter().enumerate() {
            for shards in problem.space.tensor_parallel.iter().filter(|shards| **shards as usize <= kind.count) {
                if problem.memory.shard_gb(model, *shards) > kind.memory_gb {
                    continue;
                }
                for share in &problem.space.shares_percent {
                    let is_own =
                        |p: &&Profile| (p.model, p.kind, p.tensor_parallel, p.share_percent) == (m, k, *shards, *share);
                    let place = format!("{} on {}, tensor_parallel {shards}, share {share} %", model.name, kind.name);
                    let Some(profile) = problem.profiles.iter().find(is_own) else {
                        bail!(
                            "profiles: none for {place}: measure it, or take the number out of tensor_parallel or shares_percent"
                        );
                    };
                    ensure_told(profile, &problem.limits).with_context(|| format!("profiles: {place}"))?;
                }
            }
        }
    }
    Ok(())
}

fn ensure_told(profile: &Profile, limits: &[Limit]) -> Result<()> {
    for limit in limits.iter().filter(|limit| limit.statistic != Statistic::Mean) {
        let told = profile.points.iter().all(|point| match limit.metric {
            Metric::Ttft => point.ttft.quantiles_ms.is_some(),
            Metric::Tpot => point.tpot.quantiles_ms.is_some(),
            Metric::E2e => point.e2e.quantiles_ms.is_some(),
        });
        ensure!(told, "has no percentiles of the time that the limit {} is about", limit_name(limit));
    }
    Ok(())
}

/// Whether profiles reach as far as the demand, if each model had the choice that was measured furthest.
fn ensure_in_reach(problem: &Problem) -> Result<()> {
    if problem.beyond == Beyond::LastSlope {
        return Ok(());
    }
    let copies = f64::from(problem.space.replicas.iter().copied().max().unwrap_or(1));
    let furthest = |m: usize| {
        let own = problem.profiles.iter().filter(|profile| profile.model == m);
        own.filter_map(|profile| profile.points.last()).map(|point| point.rate).fold(0.0, f64::max)
    };
    let reach: f64 = (0..problem.models.len()).map(|m| copies * furthest(m)).sum();
    for (i, level) in problem.levels.iter().enumerate() {
        ensure!(
            level.rate <= reach,
            "plan field demand[{i}].requests_per_second: {} is beyond all profiles, which end at {reach:.1} for all models \
             together: measure higher rates, plan for more copies (replicas), or say \"profiles_beyond\": \"last_slope\"",
            level.rate
        );
    }
    Ok(())
}

/// A number within bounds.
fn number(field: &str, value: f64, low: f64, high: f64) -> Result<f64> {
    ensure!((low..=high).contains(&value), "plan field {field}: {value} is not between {low} and {high}");
    Ok(value)
}

/// Whole numbers within bounds, each once, at least one; in ascending order.
fn list(field: &str, values: &[u32], low: u32, high: u32) -> Result<Vec<u32>> {
    ensure!(!values.is_empty(), "plan field {field}: at least one number is needed");
    if let Some((i, value)) = values.iter().enumerate().find(|(_, value)| !(low..=high).contains(*value)) {
        bail!("plan field {field}[{i}]: {value} is not between {low} and {high}");
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("plan field {field}: {} appears twice", pair[0]);
    }
    Ok(sorted)
}

fn names<'a>(list: &str, field: &str, names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for (i, name) in names.enumerate() {
        ensure!(!name.trim().is_empty(), "plan field {list}[{i}].{field}: a name is needed");
        ensure!(seen.insert(name), "plan field {list}[{i}].{field}: {name:?} appears twice");
    }
    Ok(())
}
