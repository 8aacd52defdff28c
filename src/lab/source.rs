//! What the lab is fed with: prompts with known answers, at times that are drawn or recorded.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::access_log;
use super::builtin;
use super::entrant::Estimates;
use super::outlook;
use super::pairing::{Paired, Pairing, TraceLengths, stretched};
use super::prompts::{self, LabPrompt, LabPrompts};
use super::trace::{self, Recorded};
use routebalance_core::config::Config;
use routebalance_core::fleet::{Fleet, ModelKind};
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;
use routebalance_sim::workload::{Arrival, Arrivals, Template, Workload};

/// How requests come, whatever their rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ArrivalKind {
    /// `constant`: in even gaps.
    Constant,
    /// `poisson`: independent of each other.
    Poisson,
    /// `gamma:SHAPE`: in bursts for a shape below 1.
    Gamma {
        /// Shape of the gaps.
        shape: f64,
    },
    /// `square:HIGH/LOW`: Poisson at two rates in turn, each for 30 seconds.
    Square {
        /// Requests per second.
        high: f64,
        /// Requests per second.
        low: f64,
    },
    /// `ramp:FROM-TO`: Poisson at a rate that changes linearly.
    Ramp {
        /// Requests per second at the beginning.
        from: f64,
        /// Requests per second at the end.
        to: f64,
    },
}

impl ArrivalKind {
    /// Requests per second that the kind itself names.
    pub fn own_rate(&self) -> Option<f64> {
        match self {
            ArrivalKind::Constant | ArrivalKind::Poisson | ArrivalKind::Gamma { .. } => None,
            ArrivalKind::Square { .. } | ArrivalKind::Ramp { .. } => Some(self.arrivals(1.0).mean_rate()),
        }
    }

    /// Arrivals of this kind; the rate is for kinds that name none.
    pub fn arrivals(&self, rate: f64) -> Arrivals {
        match *self {
            ArrivalKind::Constant => Arrivals::Constant { rate },
            ArrivalKind::Poisson => Arrivals::Poisson { rate },
            ArrivalKind::Gamma { shape } => Arrivals::Gamma { rate, shape },
            ArrivalKind::Square { high, low } => Arrivals::Square { high, low, hold: Arrivals::PUBLISHED_HOLD },
            ArrivalKind::Ramp { from, to } => Arrivals::Ramp { from, to },
        }
    }
}

impl FromStr for ArrivalKind {
    type Err = String;

    fn from_str(text: &str) -> Result<ArrivalKind, String> {
        const FORMS: &str = "constant, poisson, gamma:0.3, square:40/6 and ramp:6-30 are understood";
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let number = |what: &str, text: &str, min: f64| match text.parse::<f64>() {
            Ok(value) if (min..=1e6).contains(&value) => Ok(value),
            _ => Err(format!("{what} must be a number from {min} to 1000000, is {text:?}: {FORMS}")),
        };
        let pair = |separator: char, form: &str| {
            rest.split_once(separator).ok_or_else(|| format!("{kind} needs two rates, as {form}: {FORMS}"))
        };
        match kind {
            "constant" | "poisson" if !rest.is_empty() => {
                Err(format!("{kind} takes nothing after it, its rate is that of --rates: {FORMS}"))
            }
            "constant" => Ok(ArrivalKind::Constant),
            "poisson" => Ok(ArrivalKind::Poisson),
            "gamma" => Ok(ArrivalKind::Gamma { shape: number("the shape", rest, 0.01)? }),
            "square" => {
                let (high, low) = pair('/', "square:40/6")?;
                Ok(ArrivalKind::Square {
                    high: number("the high rate", high, 0.1)?,
                    low: number("the low rate", low, 0.0)?,
                })
            }
            "ramp" => {
                let (from, to) = pair('-', "ramp:6-30")?;
                let (from, to) = (number("the first rate", from, 0.0)?, number("the last rate", to, 0.0)?);
                if from + to < 0.1 {
                    return Err(format!("one of a ramp's rates must be at least 0.1: {FORMS}"));
                }
                Ok(ArrivalKind::Ramp { from, to })
            }
            _ => Err(format!("{text:?} is no kind of arrivals: {FORMS}")),
        }
    }
}

/// As cells name their workload.
impl fmt::Display for ArrivalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArrivalKind::Constant => f.write_str("constant"),
            ArrivalKind::Poisson => f.write_str("poisson"),
            ArrivalKind::Gamma { shape } => write!(f, "gamma-{shape}"),
            ArrivalKind::Square { high, low } => write!(f, "square-{high}-{low}"),
            ArrivalKind::Ramp { from, to } => write!(f, "ramp-{from}-{to}"),
        }
    }
}

/// What to feed the lab with.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    /// Prompts with each model's scores and answer lengths, JSON lines, packed or plain [default: the lab's own 1,521]
    #[arg(long, value_name = "FILE", conflicts_with = "from_access_log")]
    pub prompts: Option<PathBuf>,
    /// When requests come: constant, poisson, gamma:SHAPE, square:HIGH/LOW or ramp:FROM-TO
    #[arg(long, value_name = "KIND", default_value = "poisson", conflicts_with_all = ["trace", "from_access_log"])]
    pub arrivals: ArrivalKind,
    /// Recorded requests: a CSV file with Azure's or ServeGen's columns, or Mooncake's JSON lines; packed or plain
    #[arg(long, value_name = "FILE", conflicts_with = "from_access_log")]
    pub trace: Option<PathBuf>,
    /// How long the answers to a trace's requests are
    #[arg(long, value_enum, default_value_t, requires = "trace")]
    pub trace_lengths: TraceLengths,
    /// Requests that the filter has routed: its access log
    #[arg(long, value_name = "FILE")]
    pub from_access_log: Option<PathBuf>,
    /// The most tokens that an answer may have, whatever the client's limit
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub output_cap: Option<u32>,
}

impl Default for SourceArgs {
    fn default() -> SourceArgs {
        SourceArgs {
            prompts: None,
            arrivals: ArrivalKind::Poisson,
            trace: None,
            trace_lengths: TraceLengths::default(),
            from_access_log: None,
            output_cap: None,
        }
    }
}

/// When requests come and which they are.
#[derive(Clone, Debug)]
enum Course {
    /// Passes over all prompts, at drawn times.
    Drawn(ArrivalKind),
    /// A trace's requests.
    Traced(Vec<Recorded>, TraceLengths),
    /// The prompts themselves, in their order, at these times.
    Logged(Arrivals),
}

/// Prompts and when they come: makes workloads for one fleet.
#[derive(Clone, Debug)]
pub struct Source {
    fleet: Fleet,
    prompts: Arc<[LabPrompt]>,
    templates: Arc<[Template]>,
    course: Course,
    output_cap: Option<u32>,
    /// What a person should know of it, a sentence each.
    pub notes: Vec<String>,
}

/// A workload and where its kinds of requests come from.
#[derive(Clone, Debug)]
pub struct Feed {
    /// The requests; what is expected of them is our predictor's.
    pub workload: Workload,
    /// For each of the workload's templates, the index of its prompt in [`Source::prompts`].
    pub prompts: Arc<[usize]>,
    /// For each template, the length of its answers over that of its prompt's.
    pub stretches: Arc<[f64]>,
}

impl Source {
    /// Reads what the arguments name. The predictor is that of the filter.
    ///
    /// # Errors
    /// A file that cannot be read or is wrong, or prompts that the fleet's models were not asked.
    pub fn open(args: &SourceArgs, config: &Config) -> Result<Source> {
        let predictor = Predictor::load().map_err(|problem| anyhow::anyhow!(problem))?;
        let router = Router::new(config.clone(), Some(predictor));
        let source = |set: LabPrompts, course| Source::new(config.fleet.clone(), set, course, args.output_cap);
        if let Some(file) = &args.from_access_log {
            let (set, times) = access_log::read(file, &router)?;
            return Ok(source(set, Course::Logged(Arrivals::Given(times))));
        }
        let mut set = match &args.prompts {
            Some(file) => prompts::read(file, &router)?,
            None => builtin::prompts(&router)?,
        };
        let Some(file) = &args.trace else { return Ok(source(set, Course::Drawn(args.arrivals))) };
        let requests = fitting(&config.fleet, trace::read(file)?, &file.display().to_string(), &mut set)?;
        Ok(source(set, Course::Traced(requests, args.trace_lengths)))
    }

    /// The lab's own prompts at times of this kind.
    ///
    /// # Errors
    /// The fleet's models were not asked these prompts.
    pub fn built_in(config: &Config, arrivals: ArrivalKind, output_cap: Option<u32>) -> Result<Source> {
        Source::open(&SourceArgs { arrivals, output_cap, ..SourceArgs::default() }, config)
    }

    fn new(fleet: Fleet, set: LabPrompts, course: Course, output_cap: Option<u32>) -> Source {
        let templates = set.prompts.iter().map(|p| capped(p.template.clone(), output_cap)).collect();
        Source { fleet, prompts: set.prompts.into(), templates, course, output_cap, notes: set.notes }
    }

    /// The same prompts at times of another kind.
    #[must_use]
    pub fn with_arrivals(&self, arrivals: ArrivalKind) -> Source {
        Source { course: Course::Drawn(arrivals), ..self.clone() }
    }

    /// The prompts as kinds of requests, with the limit of their answers.
    pub fn templates(&self) -> &Arc<[Template]> {
        &self.templates
    }

    /// The prompts.
    pub fn prompts(&self) -> &[LabPrompt] {
        &self.prompts
    }

    /// As cells name their workload.
    pub fn name(&self) -> String {
        match &self.course {
            Course::Drawn(kind) => kind.to_string(),
            Course::Traced(..) => "trace".to_owned(),
            Course::Logged(_) => "access-log".to_owned(),
        }
    }

    /// Requests per second if nobody asks for another rate; `None` if somebody has to.
    pub fn own_rate(&self) -> Option<f64> {
        let recorded = match &self.course {
            Course::Drawn(kind) => return kind.own_rate(),
            Course::Traced(requests, _) => Arrivals::Given(requests.iter().map(|r| r.at).collect()).mean_rate(),
            Course::Logged(times) => times.mean_rate(),
        };
        Some(recorded).filter(|rate| *rate > 0.0)
    }

    /// Requests if nobody asks for another number: all that are recorded, or each prompt once.
    pub fn own_requests(&self) -> usize {
        match &self.course {
            Course::Traced(requests, _) => requests.len(),
            Course::Drawn(_) | Course::Logged(_) => self.prompts.len(),
        }
    }

    /// Requests of a policy. A mean rate other than the source's own moves recorded
    /// requests together or apart, and multiplies the rates of waves and ramps. Of recorded requests the first ones are taken;
    /// they come at the same times for every seed. The same arguments give the same requests.
    ///
    /// # Errors
    /// There is no rate, or fewer requests are recorded than asked for.
    pub fn feed(&self, rate: Option<f64>, requests: Option<usize>, policy: usize, seed: u64) -> Result<Feed> {
        if let Some(rate) = rate {
            ensure!(rate > 0.0 && rate.is_finite(), "a rate must be above 0, is {rate}");
        }
        let n = requests.unwrap_or_else(|| self.own_requests());
        let own = self.own_requests();
        let recorded = || {
            ensure!(n <= own, "{n} requests are asked for, and {own} are recorded");
            Ok(())
        };
        match &self.course {
            Course::Drawn(kind) => {
                let rate = rate.or(kind.own_rate()).with_context(|| format!("{kind} arrivals need a rate"))?;
                let times = kind.arrivals(rate).at_mean_rate(rate).times_of(n, seed);
                ensure!(times.len() == n, "{kind} arrivals at {rate} per second never come to {n} requests");
                let workload = Workload::in_passes(self.templates.clone(), &times, policy, seed);
                Ok(self.unstretched(workload))
            }
            Course::Logged(times) => {
                recorded()?;
                let arrivals = arrivals(times.times_of(n, seed), rate, 0..n, policy);
                Ok(self.unstretched(Workload { templates: self.templates.clone(), arrivals }))
            }
            Course::Traced(requests, lengths) => {
                recorded()?;
                let requests = &requests[..n];
                let Paired { templates, prompts, stretches, requests: kinds } =
                    Pairing::new(&self.fleet, &self.prompts, *lengths).paired(requests, seed);
                let times = requests.iter().map(|r| r.at).collect();
                let templates = templates.into_iter().map(|t| capped(t, self.output_cap)).collect();
                let workload = Workload { templates, arrivals: arrivals(times, rate, kinds, policy) };
                Ok(Feed { workload, prompts: prompts.into(), stretches: stretches.into() })
            }
        }
    }

    fn unstretched(&self, workload: Workload) -> Feed {
        let n = workload.templates.len();
        Feed { workload, prompts: (0..n).collect(), stretches: vec![1.0; n].into() }
    }

    /// The same requests with other estimates, of answers of the same lengths; `None` if those estimates do not know the prompts.
    pub fn seen_by(&self, feed: &Feed, estimates: Estimates) -> Option<Workload> {
        let templates = &feed.workload.templates;
        let constant = outlook::constant(&feed.workload);
        let outlook = |i: usize, template: &Template| match estimates {
            Estimates::Ours => template.outlook.clone(),
            Estimates::Knn => {
                let opinions = self.prompts.get(*feed.prompts.get(i)?)?.opinions.as_ref()?;
                Some(stretched(&opinions.knn, *feed.stretches.get(i)?))
            }
            Estimates::Truth => Some(outlook::truth(template)),
            Estimates::Constant => Some(constant.clone()),
        };
        let seen = |(i, template): (usize, &Template)| {
            Some(Template { outlook: Some(outlook(i, template)?), ..template.clone() })
        };
        let templates: Option<Vec<Template>> = templates.iter().enumerate().map(seen).collect();
        Some(Workload { templates: templates?.into(), arrivals: feed.workload.arrivals.clone() })
    }
}

impl Feed {
    /// The model that a rule chooses for each of the workload's templates; `None` if nobody asked the rule's author about a prompt.
    pub fn chosen(&self, source: &Source, rule: impl Fn(&super::opinions::Opinions) -> usize) -> Option<Arc<[usize]>> {
        self.prompts.iter().map(|p| Some(rule(source.prompts.get(*p)?.opinions.as_ref()?))).collect()
    }
}

fn arrivals(
    times: Vec<std::time::Duration>,
    rate: Option<f64>,
    kinds: impl IntoIterator<Item = usize>,
    policy: usize,
) -> Vec<Arrival> {
    let given = Arrivals::Given(times);
    let given = rate.map_or(given.clone(), |rate| given.at_mean_rate(rate));
    let Arrivals::Given(times) = given else { return Vec::new() };
    let arrival = |(at, template)| Arrival::new(at, template, policy);
    times.into_iter().zip(kinds).map(arrival).collect()
}

fn capped(mut template: Template, cap: Option<u32>) -> Template {
    template.prompt.max_tokens = [template.prompt.max_tokens, cap].into_iter().flatten().min();
    template
}

/// The requests of a trace that some instance can hold.
fn fitting(fleet: &Fleet, requests: Vec<Recorded>, name: &str, set: &mut LabPrompts) -> Result<Vec<Recorded>> {
    let writes =
        |pool: &&routebalance_core::fleet::Pool| fleet.model_of(pool).is_some_and(|m| m.kind == ModelKind::Generate);
    let holds = |pool: &routebalance_core::fleet::Pool| pool.limits.kv_tokens.min(u64::from(pool.limits.max_model_len));
    let most = fleet.pools.iter().filter(writes).map(holds).max().unwrap_or_default();
    let all = requests.len();
    let fits = |r: &Recorded| u64::from(r.prompt_tokens) + u64::from(r.output_tokens) <= most;
    let kept: Vec<Recorded> = requests.into_iter().filter(fits).collect();
    if kept.is_empty() {
        bail!("{name}: no request fits in the {most} tokens that an instance holds at most");
    }
    if kept.len() < all {
        set.notes.push(format!(
            "{name}: {} of {all} requests have more tokens than any instance holds ({most}): left out",
            all - kept.len()
        ));
    }
    let longest = Pairing::new(fleet, &set.prompts, TraceLengths::Prompt).longest();
    let longer = kept.iter().filter(|r| r.prompt_tokens > longest).count();
    if longer > 0 {
        set.notes.push(format!(
            "{name}: {longer} of {} requests have longer prompts than any whose answers are known ({longest} tokens): they get \
             the answers to the longest ones",
            kept.len()
        ));
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
