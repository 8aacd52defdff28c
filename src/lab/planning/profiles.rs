//! Latency profiles as rows: of a CSV file, or of the plan file itself.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use routebalance_plan::problem::{GpuKind, PlannedModel};
use routebalance_plan::profile::{Point, Profile, Times};

/// What was measured of one copy of a model at one rate: a line of the CSV file, whose columns are these fields in any order.
/// The quantiles of a time are told all five, or none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileRow {
    /// Name of the model.
    pub model: String,
    /// Name of the GPU kind.
    pub gpu: String,
    /// Shards.
    pub tensor_parallel: u32,
    /// Compute that each shard may use, percent.
    pub share_percent: u32,
    /// Part of the times to the first and to the last token that no GPU takes, milliseconds: neighbours do not slow it down.
    #[serde(default)]
    pub fixed_ms: f64,
    /// Requests that the copy got, per second.
    pub requests_per_second: f64,
    /// Share of the time that it had work, 0 to 1.
    pub busy: f64,
    /// Time to the first token, milliseconds: mean and quantiles.
    pub ttft_mean_ms: f64,
    #[serde(default)]
    ttft_p50_ms: Option<f64>,
    #[serde(default)]
    ttft_p75_ms: Option<f64>,
    #[serde(default)]
    ttft_p90_ms: Option<f64>,
    #[serde(default)]
    ttft_p95_ms: Option<f64>,
    #[serde(default)]
    ttft_p99_ms: Option<f64>,
    /// Time per output token, milliseconds: mean and quantiles.
    pub tpot_mean_ms: f64,
    #[serde(default)]
    tpot_p50_ms: Option<f64>,
    #[serde(default)]
    tpot_p75_ms: Option<f64>,
    #[serde(default)]
    tpot_p90_ms: Option<f64>,
    #[serde(default)]
    tpot_p95_ms: Option<f64>,
    #[serde(default)]
    tpot_p99_ms: Option<f64>,
    /// Time to the last token, milliseconds: mean and quantiles.
    pub e2e_mean_ms: f64,
    #[serde(default)]
    e2e_p50_ms: Option<f64>,
    #[serde(default)]
    e2e_p75_ms: Option<f64>,
    #[serde(default)]
    e2e_p90_ms: Option<f64>,
    #[serde(default)]
    e2e_p95_ms: Option<f64>,
    #[serde(default)]
    e2e_p99_ms: Option<f64>,
}

const PERCENTILES: [&str; 5] = ["p50", "p75", "p90", "p95", "p99"];

impl ProfileRow {
    fn from_point(model: &str, gpu: &str, profile: &Profile, point: &Point) -> ProfileRow {
        let quantiles = |times: &Times| times.quantiles_ms.map_or([None; 5], |all| all.map(|v| Some(rounded(v))));
        let [ttft_p50_ms, ttft_p75_ms, ttft_p90_ms, ttft_p95_ms, ttft_p99_ms] = quantiles(&point.ttft);
        let [tpot_p50_ms, tpot_p75_ms, tpot_p90_ms, tpot_p95_ms, tpot_p99_ms] = quantiles(&point.tpot);
        let [e2e_p50_ms, e2e_p75_ms, e2e_p90_ms, e2e_p95_ms, e2e_p99_ms] = quantiles(&point.e2e);
        ProfileRow {
            model: model.to_owned(),
            gpu: gpu.to_owned(),
            tensor_parallel: profile.tensor_parallel,
            share_percent: profile.share_percent,
            fixed_ms: rounded(profile.fixed_ms),
            requests_per_second: rounded(point.rate),
            busy: rounded(point.busy),
            ttft_mean_ms: rounded(point.ttft.mean_ms),
            ttft_p50_ms,
            ttft_p75_ms,
            ttft_p90_ms,
            ttft_p95_ms,
            ttft_p99_ms,
            tpot_mean_ms: rounded(point.tpot.mean_ms),
            tpot_p50_ms,
            tpot_p75_ms,
            tpot_p90_ms,
            tpot_p95_ms,
            tpot_p99_ms,
            e2e_mean_ms: rounded(point.e2e.mean_ms),
            e2e_p50_ms,
            e2e_p75_ms,
            e2e_p90_ms,
            e2e_p95_ms,
            e2e_p99_ms,
        }
    }

    fn point(&self) -> Result<Point> {
        ensure!(
            self.requests_per_second.is_finite() && self.requests_per_second >= 0.0,
            "requests_per_second must be a number of at least 0, is {}",
            self.requests_per_second
        );
        ensure!(
            (0.0..=self.ttft_mean_ms.min(self.e2e_mean_ms)).contains(&self.fixed_ms),
            "fixed_ms must be between 0 and the mean time to the first token, is {}",
            self.fixed_ms
        );
        ensure!((0.0..=1.0).contains(&self.busy), "busy must be between 0 and 1, is {}", self.busy);
        let ttft = [self.ttft_p50_ms, self.ttft_p75_ms, self.ttft_p90_ms, self.ttft_p95_ms, self.ttft_p99_ms];
        let tpot = [self.tpot_p50_ms, self.tpot_p75_ms, self.tpot_p90_ms, self.tpot_p95_ms, self.tpot_p99_ms];
        let e2e = [self.e2e_p50_ms, self.e2e_p75_ms, self.e2e_p90_ms, self.e2e_p95_ms, self.e2e_p99_ms];
        Ok(Point {
            rate: self.requests_per_second,
            busy: self.busy,
            ttft: times("ttft", self.ttft_mean_ms, ttft)?,
            tpot: times("tpot", self.tpot_mean_ms, tpot)?,
            e2e: times("e2e", self.e2e_mean_ms, e2e)?,
        })
    }
}

fn times(name: &str, mean_ms: f64, quantiles: [Option<f64>; 5]) -> Result<Times> {
    let check = |what: &str, value: f64| {
        ensure!(value.is_finite() && value >= 0.0, "{name}_{what}_ms must be a number of at least 0, is {value}");
        Ok(value)
    };
    check("mean", mean_ms)?;
    let mut all = [0.0; 5];
    let mut below = 0.0;
    let mut known = 0;
    for ((slot, value), what) in all.iter_mut().zip(quantiles).zip(PERCENTILES) {
        let Some(value) = value else { continue };
        check(what, value)?;
        ensure!(value >= below, "{name}_{what}_ms is {value}, less than a lower percentile");
        (*slot, below) = (value, value);
        known += 1;
    }
    ensure!(known == 0 || known == 5, "of {name} all of p50, p75, p90, p95 and p99 are needed, or none");
    Ok(Times { mean_ms, quantiles_ms: (known == 5).then_some(all) })
}

/// Digits of a written number; more is noise of the measurement.
const DIGITS: usize = 5;

/// With [`DIGITS`] digits: the order of two numbers stays.
fn rounded(value: f64) -> f64 {
    let decimals = DIGITS - 1;
    format!("{value:.decimals$e}").parse().unwrap_or(value)
}

/// Reads profiles of a plan's models and GPU kinds; rows of others are passed over.
///
/// # Errors
/// One sentence: the file cannot be read, or which row or profile of it is wrong, and how.
pub fn read_profiles(file: &Path, models: &[PlannedModel], kinds: &[GpuKind]) -> Result<Vec<Profile>> {
    let name = file.display();
    let text = std::fs::read(file).with_context(|| format!("profiles: {name} cannot be read"))?;
    let mut rows = Vec::new();
    for (i, row) in csv::Reader::from_reader(text.as_slice()).deserialize().enumerate() {
        // The first line has the columns' names.
        let row: ProfileRow = row.with_context(|| format!("profiles: {name}, line {}", i + 2))?;
        rows.push(row);
    }
    profiles(&rows, models, kinds).with_context(|| format!("profiles: {name}"))
}

/// The profiles that rows tell of, in the order of their first rows.
///
/// # Errors
/// One sentence: which profile is wrong, and how.
pub fn profiles(rows: &[ProfileRow], models: &[PlannedModel], kinds: &[GpuKind]) -> Result<Vec<Profile>> {
    let mut all: Vec<Profile> = Vec::new();
    for row in rows {
        let model = models.iter().position(|model| model.name == row.model);
        let kind = kinds.iter().position(|kind| kind.name == row.gpu);
        let (Some(model), Some(kind)) = (model, kind) else { continue };
        let point = row
            .point()
            .with_context(|| format!("{} at {} requests per second", place(row), row.requests_per_second))?;
        let is_own = |profile: &Profile| {
            (profile.model, profile.kind) == (model, kind)
                && (profile.tensor_parallel, profile.share_percent) == (row.tensor_parallel, row.share_percent)
        };
        // Rows of a profile mostly follow each other.
        match all.iter_mut().rev().find(|profile| is_own(profile)) {
            Some(profile) => {
                let last = profile.points.last().copied().unwrap_or_default();
                follows(&last, &point).with_context(|| place(row))?;
                ensure!(
                    row.fixed_ms == profile.fixed_ms,
                    "{}: fixed_ms is {} and {}, but a profile has one",
                    place(row),
                    profile.fixed_ms,
                    row.fixed_ms
                );
                profile.points.push(point);
            }
            None => all.push(Profile {
                model,
                kind,
                tensor_parallel: row.tensor_parallel,
                share_percent: row.share_percent,
                fixed_ms: row.fixed_ms,
                points: vec![point],
            }),
        }
    }
    if all.is_empty() {
        let mut names: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
        names.dedup();
        let mut gpus: Vec<&str> = rows.iter().map(|row| row.gpu.as_str()).collect();
        gpus.dedup();
        bail!(
            "no row is of a model and a GPU of the plan: its models are {}, its GPUs {}",
            listed(&names),
            listed(&gpus)
        );
    }
    for profile in &all {
        if let [only] = profile.points.as_slice() {
            bail!(
                "{} on {}, tensor_parallel {}, share {} %: has one point, at {} requests per second, but a line needs two",
                models[profile.model].name,
                kinds[profile.kind].name,
                profile.tensor_parallel,
                profile.share_percent,
                only.rate
            );
        }
    }
    Ok(all)
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn place(row: &ProfileRow) -> String {
    format!("{} on {}, tensor_parallel {}, share {} %", row.model, row.gpu, row.tensor_parallel, row.share_percent)
}

/// Whether a point may come after another.
fn follows(last: &Point, next: &Point) -> Result<()> {
    ensure!(
        next.rate > last.rate,
        "requests_per_second must grow from row to row, but {} follows {}",
        next.rate,
        last.rate
    );
    ensure!(next.busy >= last.busy, "busy falls from {} to {} as the rate grows", last.busy, next.busy);
    for (name, before, after) in
        [("ttft", &last.ttft, &next.ttft), ("tpot", &last.tpot, &next.tpot), ("e2e", &last.e2e, &next.e2e)]
    {
        let grows = |what: &str, before: f64, after: f64| {
            ensure!(
                after >= before,
                "{name}_{what}_ms falls from {before} at {} requests per second to {after} at {}: latency must not fall as the \
                 rate grows",
                last.rate,
                next.rate
            );
            Ok(())
        };
        grows("mean", before.mean_ms, after.mean_ms)?;
        match (before.quantiles_ms, after.quantiles_ms) {
            (Some(before), Some(after)) => {
                for ((before, after), what) in before.into_iter().zip(after).zip(PERCENTILES) {
                    grows(what, before, after)?;
                }
            }
            (None, None) => {}
            _ => bail!("{name} has percentiles at some rates only"),
        }
    }
    Ok(())
}

/// Profiles as a CSV file that [`read_profiles`] reads.
///
/// # Errors
/// The file cannot be written.
pub fn write_profiles(file: &Path, profiles: &[Profile], models: &[PlannedModel], kinds: &[GpuKind]) -> Result<()> {
    let wrong = || format!("{} cannot be written", file.display());
    let mut writer = csv::Writer::from_path(file).with_context(wrong)?;
    for profile in profiles {
        let (model, gpu) = (&models[profile.model].name, &kinds[profile.kind].name);
        for point in &profile.points {
            writer.serialize(ProfileRow::from_point(model, gpu, profile, point)).with_context(wrong)?;
        }
    }
    writer.flush().with_context(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> Vec<PlannedModel> {
        ["small", "large"].map(|name| PlannedModel { name: name.to_owned(), weights_gb: 10.0 }).to_vec()
    }

    fn kinds() -> Vec<GpuKind> {
        vec![GpuKind { name: "A".to_owned(), count: 4, memory_gb: 80.0, usd_per_hour: 1.0 }]
    }

    fn read(text: &str) -> Result<Vec<Profile>> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        read_profiles(file.path(), &models(), &kinds())
    }

    const HEAD: &str =
        "model,gpu,tensor_parallel,share_percent,requests_per_second,busy,ttft_mean_ms,tpot_mean_ms,e2e_mean_ms\n";

    #[test]
    fn what_is_written_is_read() {
        let times = |mean_ms: f64| Times {
            mean_ms,
            quantiles_ms: Some([0.5, 0.8, 1.2, 1.5, 2.0].map(|q| rounded(q * mean_ms))),
        };
        let point = |rate: f64| Point {
            rate,
            busy: rate / 10.0,
            ttft: times(10.0 + rate),
            tpot: times(5.0),
            e2e: Times { mean_ms: 100.0 + rate, quantiles_ms: None },
        };
        let profile = |model: usize, share_percent: u32| Profile {
            model,
            kind: 0,
            tensor_parallel: 2,
            share_percent,
            fixed_ms: 3.0,
            points: vec![point(1.0), point(2.5)],
        };
        let all = [profile(0, 50), profile(1, 50), profile(1, 100)];
        let file = tempfile::NamedTempFile::new().unwrap();
        write_profiles(file.path(), &all, &models(), &kinds()).unwrap();
        assert_eq!(read_profiles(file.path(), &models(), &kinds()).unwrap(), all);
    }

    #[test]
    fn rows_of_others_are_passed_over() {
        let text = format!(
            "{HEAD}other,A,1,50,1,0,1,1,1\nsmall,B,1,50,1,0,1,1,1\nsmall,A,1,50,1,.1,1,1,1\nsmall,A,1,50,2,.2,1,1,1\n"
        );
        let [profile] = read(&text).unwrap().try_into().unwrap();
        assert_eq!((profile.model, profile.points.len()), (0, 2));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let at = "small on A, tensor_parallel 1, share 50 %";
        for (rows, expected) in [
            ("small,A,1,50,1,0,9,9,9", "has one point, at 1 requests per second, but a line needs two".to_owned()),
            (
                "small,A,1,50,1,0,9,9,9\nsmall,A,1,50,1,0,9,9,9",
                format!("{at}: requests_per_second must grow from row to row, but 1 follows 1"),
            ),
            (
                "small,A,1,50,1,0,9,9,9\nsmall,A,1,50,2,0,8,9,9",
                format!("{at}: ttft_mean_ms falls from 9 at 1 requests per second to 8 at 2"),
            ),
            ("small,A,1,50,1,0,9,9,9\nsmall,A,1,50,2,0,9,9,8", format!("{at}: e2e_mean_ms falls from 9")),
            ("small,A,1,50,1,.5,9,9,9\nsmall,A,1,50,2,.4,9,9,9", format!("{at}: busy falls from 0.5 to 0.4")),
            (
                "small,A,1,50,1,0,NaN,9,9",
                format!("{at} at 1 requests per second: ttft_mean_ms must be a number of at least 0, is NaN"),
            ),
            ("small,A,1,50,1,0,9,-9,9", "tpot_mean_ms must be a number of at least 0, is -9".to_owned()),
            ("small,A,1,50,-1,0,9,9,9", "requests_per_second must be a number of at least 0, is -1".to_owned()),
            ("small,A,1,50,1,1.5,9,9,9", "busy must be between 0 and 1, is 1.5".to_owned()),
            ("small,A,1,50,1,0,x,9,9", "line 2".to_owned()),
            (
                "other,A,1,50,1,0,9,9,9",
                "no row is of a model and a GPU of the plan: its models are other, its GPUs A".to_owned(),
            ),
            ("", "no row is of a model and a GPU of the plan: its models are none".to_owned()),
        ] {
            let problem = format!("{:#}", read(&format!("{HEAD}{rows}\n")).unwrap_err());
            assert!(problem.starts_with("profiles: "), "{problem}");
            assert!(problem.contains(&expected), "{problem}\nexpected: {expected}");
        }
        let problem_of = |columns: &str, rows: &str| {
            let head = HEAD.replace('\n', &format!(",{columns}\n"));
            format!("{:#}", read(&format!("{head}{rows}\n")).unwrap_err())
        };
        let few = problem_of("ttft_p50_ms,ttft_p95_ms", "small,A,1,50,1,0,9,9,9,8,10");
        assert!(few.contains("of ttft all of p50, p75, p90, p95 and p99 are needed, or none"), "{few}");
        let order = problem_of("ttft_p50_ms,ttft_p75_ms", "small,A,1,50,1,0,9,9,9,8,7");
        assert!(order.contains("ttft_p75_ms is 7, less than a lower percentile"), "{order}");
        let unknown = problem_of("colour", "small,A,1,50,1,0,9,9,9,red");
        assert!(unknown.contains("unknown field `colour`"), "{unknown}");
    }
}
