//! `evaluate --real`: the same requests at the same times through a real Envoy with emulated instances, and through the simulator.

mod agreement;
mod cases;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use clap::Args;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;
use tokio::sync::mpsc::unbounded_channel;

use crate::demo::{INTERRUPTED, interrupted, read_prompts};
use crate::envoy_binary::envoy_binary;
use crate::gateway::{Gateway, GatewayOptions};
use crate::load::{self, Arrival, Target, chat_request};
use crate::setup::build_filter;
use agreement::{Compared, compared};
use cases::{Case, cases, names};
use routebalance_core::config::Config;
use routebalance_core::fleet::Fleet;
use routebalance_core::openai::{Api, RequestScan};
use routebalance_core::predictor::Predictor;
use routebalance_core::router::Router;
use routebalance_instance::prompts::{PromptRow, PromptSet};
use routebalance_instance::tokens_read;
use routebalance_lab::cell::{Cell, Cells, Target as Aim};
use routebalance_lab::contenders::{Fits, LabInputs, OUR_DECISION};
use routebalance_lab::evaluate::lab::LabArgs;
use routebalance_lab::ground::Demand;
use routebalance_lab::measure::{FIRST_SEED, Plan, measure, summarised};
use routebalance_lab::prompts::{answered_tokens, generating, in_fleet_order};
use routebalance_sim::contender::{Contender, Deciding};
use routebalance_sim::outcome::{End, Outcome};
use routebalance_sim::simulation::Options;
use routebalance_sim::workload::{Arrivals, Template, Workload, sustainable_rates};

/// Share of what the fleet sustains that comes, if no rate is asked for ...
const UTILISATION: f64 = 0.5;
/// ... but no more requests per second than this: Envoy, all instances and the client share the machine's few cores, and a machine
/// that falls behind would be measured instead of the router.
const RATE_MAX: f64 = 16.0;
/// How long requests come.
const LENGTH: Duration = Duration::from_secs(60);
/// The published cap of answers, as in the presets; it bounds the time after the last request.
const MAX_TOKENS: u32 = 1_024;
/// The longest answer takes the slowest model, busy, some 60 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(180);
/// Simulated runs, which differ in what happens by chance (which worker has a request, when scrapes come): under a policy that follows
/// the load chance decides which prompt meets which model, and so the quality of a run.
const SIMULATED_RUNS: u64 = 9;
/// Reasons of failures that are shown, most.
const REASONS_SHOWN: usize = 5;

/// Arguments of `--real`.
#[derive(Args, Clone, Debug)]
pub(super) struct RealArgs {
    /// Run the contenders that the module runs through a real Envoy and emulated instances too, on the demo's prompts in real time;
    /// fails where the simulator does not agree
    #[arg(long, conflicts_with_all = [
        "preset", "from", "quick", "seeds", "gateways", "workload", "overhead", "prompts", "trace", "from_access_log",
    ])]
    pub(super) real: bool,
    /// With --real, how often each cell runs; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, requires = "real", value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
}

/// What all cells of a command share.
struct Field {
    /// The configuration as written.
    json: Value,
    config: Config,
    /// What is sent, with the answers that are recorded.
    prompts: Arc<PromptSet>,
    templates: Arc<[Template]>,
    module: std::path::PathBuf,
    envoy: std::path::PathBuf,
}

/// A cell to run: one case at one rate.
struct Job<'a> {
    case: &'a Case,
    json: Value,
    config: Config,
    workload: Workload,
    plan: Plan,
}

/// Runs the cells, prints how they agree and gives back all of them.
///
/// # Errors
/// A contender that the module does not run, a fleet that the recorded answers do not fit, or an Envoy that does not start.
pub(super) fn run(file: &Path, args: &RealArgs, lab: &LabArgs) -> Result<(Cells, ExitCode)> {
    let names = names(lab.policies.as_deref())?;
    let field = Field::new(file)?;
    let sustained: f64 = sustainable_rates(&field.config.fleet, &field.templates).iter().sum();
    let rates = lab.rates.clone().unwrap_or_else(|| vec![(UTILISATION * sustained).min(RATE_MAX)]);
    let mut cells = Cells { preset: "real".to_owned(), ..Cells::default() };
    let runtime = tokio::runtime::Runtime::new()?;
    let mut agree = true;
    for rate in rates {
        let requests = lab.requests.map_or((rate * LENGTH.as_secs_f64()).round().max(1.0) as usize, |n| n as usize);
        eprintln!(
            "{requests} requests at {rate:.1} a second: {:.0} % of the {sustained:.0} a second that the fleet sustains with these prompts",
            100.0 * rate / sustained
        );
        let fits = Fits::default();
        let inputs =
            LabInputs { config: &field.config, templates: &field.templates, opinions: None, rate, fits: &fits };
        for name in &names {
            for case in cases(name, lab.weights.as_deref(), &inputs)? {
                let job = field.job(&case, rate, requests)?;
                let simulated = simulated(&job, field.predictor()?);
                let title = title(&job.plan);
                let measured = runtime.block_on(async {
                    tokio::select! {
                        measured = measured(&field, &job, args.runs) => measured.map(Some),
                        signal = interrupted() => signal.map(|()| None),
                    }
                });
                let Some(measured) = measured? else {
                    eprintln!("\nInterrupted: the fleet and Envoy are stopped.");
                    runtime.shutdown_timeout(Duration::from_secs(1));
                    return Ok((cells, ExitCode::from(INTERRUPTED)));
                };
                let compared = compared(&measured, &simulated);
                println!("{}", table(&title, &compared));
                agree &= compared.iter().all(Compared::agrees);
                cells.targets.extend(compared.iter().map(|c| aim(&title, c)));
                cells.cells.extend(measured);
                cells.cells.extend(simulated);
            }
        }
    }
    // Connections of the last run may still be open: nobody needs to wait for them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    println!("{}", if agree { "simulator and reality agree" } else { "simulator and reality DISAGREE" });
    Ok((cells, if agree { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

impl Field {
    fn new(file: &Path) -> Result<Field> {
        let text = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
        let json = serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", file.display()))?;
        let config = Config::parse(&text).with_context(|| format!("{} is wrong", file.display()))?;
        let prompts = Arc::new(read_prompts()?);
        let router = Router::new(config.clone(), predictor_of(&config)?);
        let templates: Vec<Template> =
            prompts.rows().iter().map(|row| template(&router, row)).collect::<Result<_>>()?;
        Ok(Field {
            json,
            config,
            prompts,
            templates: templates.into(),
            module: build_filter()?,
            envoy: envoy_binary()?,
        })
    }

    fn predictor(&self) -> Result<Option<Predictor>> {
        predictor_of(&self.config)
    }

    /// The same requests for every case.
    fn job<'a>(&self, case: &'a Case, rate: f64, requests: usize) -> Result<Job<'a>> {
        let (json, config) = case.configured(&self.json, &self.config.fleet)?;
        let times = Arrivals::Poisson { rate }.times_of(requests, FIRST_SEED);
        let workload = Workload::in_passes(self.templates.clone(), &times, 0, FIRST_SEED);
        let plan = Plan {
            policy: case.name.to_owned(),
            setting: case.setting.clone(),
            weights: case.weights,
            contender: Contender::Ours,
            deciding: Deciding::Concurrently(OUR_DECISION),
            workload: "simulated".to_owned(),
            rate,
            seed: FIRST_SEED,
            gateways: 1,
            overhead: "charged".to_owned(),
            variant: String::new(),
            demand: Demand::default(),
        };
        Ok(Job { case, json, config, workload, plan })
    }
}

fn predictor_of(config: &Config) -> Result<Option<Predictor>> {
    config.predictor_enabled.then(|| Predictor::load().map_err(|problem| anyhow!(problem))).transpose()
}

/// A prompt as it is sent, as the instance reads it, with what the module's predictor says of it.
fn template(router: &Router, row: &PromptRow) -> Result<Template> {
    let fleet = &router.config().fleet;
    let mut scan = RequestScan::new(Api::ChatCompletions);
    scan.push(chat_request(&target(router.config(), String::new()), &row.prompt).as_bytes());
    let prompt = scan.finish().map_err(|problem| anyhow!("prompt {}: {problem}", row.id))?;
    let (prompt_tokens, blocks) = tokens_read(&row.prompt);
    let recorded = |values| {
        in_fleet_order(fleet, values).map_err(|model| {
            anyhow!("no answer of {model} to prompt {} is recorded: --real cannot run this fleet", row.id)
        })
    };
    let outlook = router.outlook(&prompt, &generating(fleet));
    Ok(Template {
        outlook: Some(outlook),
        blocks: blocks.into(),
        ..Template::from_prompt(prompt, prompt_tokens, answered_tokens(fleet, &recorded(&row.len)?), recorded(&row.q)?)
    })
}

fn target(config: &Config, url: String) -> Target {
    let model = config.virtual_models.first().cloned().unwrap_or_default();
    Target { url, model, max_tokens: MAX_TOKENS, timeout: REQUEST_TIMEOUT }
}

/// The same requests in every run; the seed is of what happens by chance.
fn simulated(job: &Job<'_>, predictor: Option<Predictor>) -> Vec<Cell> {
    let router = Router::new(job.config.clone(), predictor);
    let run = |number: u64| {
        let plan = Plan { seed: number, variant: format!("run {number}"), ..job.plan.clone() };
        Cell { seed: FIRST_SEED, ..measure(&plan, &router, &job.workload) }
    };
    (1..=SIMULATED_RUNS).map(run).collect()
}

/// A cell a run, each with an Envoy and instances of its own: nobody has learnt anything before.
async fn measured(field: &Field, job: &Job<'_>, runs: u32) -> Result<Vec<Cell>> {
    let mut cells = Vec::new();
    for number in 1..=runs {
        let outcomes = sent(field, job).await?;
        let plan = Plan {
            workload: "real".to_owned(),
            overhead: "measured".to_owned(),
            variant: format!("run {number}"),
            ..job.plan.clone()
        };
        let cell = summarised(&plan, &job.config.fleet, &job.workload, &outcomes);
        eprintln!(
            "{} run {number} of {runs}: {} requests, {} failed, quality {:.3}, TTFT {:.0} ms, E2E {:.0} ms",
            job.case.name, cell.requests, cell.failed, cell.quality, cell.ttft_ms.mean, cell.e2e_ms.mean
        );
        cells.push(cell);
    }
    Ok(cells)
}

/// Sends the requests through an Envoy; what became of them, in their order.
async fn sent(field: &Field, job: &Job<'_>) -> Result<Vec<Outcome>> {
    let gateway = Gateway::start(GatewayOptions {
        config: job.json.clone(),
        module: field.module.clone(),
        envoy: field.envoy.clone(),
        workers: Options::default().workers as u32,
        discovered: Vec::new(),
        log_level: "warning".to_owned(),
        time_scale: 1.0,
        answers: Some(field.prompts.clone()),
        edit: None,
    })
    .await?;
    let texts: Vec<String> = field.prompts.rows().iter().map(|row| row.prompt.clone()).collect();
    let arrivals: Vec<Arrival> =
        job.workload.arrivals.iter().map(|a| Arrival { at: a.at, prompt: a.template }).collect();
    let (observer, mut outcomes) = unbounded_channel();
    let target = target(gateway.config(), gateway.url("/v1/chat/completions"));
    load::run(&target, &texts, &arrivals, observer).await?;
    let mut sent = Vec::with_capacity(arrivals.len());
    let mut reasons = Vec::new();
    while let Some(outcome) = outcomes.recv().await {
        let (outcome, reason) = as_simulated(&job.config.fleet, outcome);
        reasons.extend(reason);
        sent.push(outcome);
    }
    reasons.iter().take(REASONS_SHOWN).for_each(|reason| eprintln!("failed: {reason}"));
    ensure!(
        sent.len() == arrivals.len(),
        "{} of {} requests were not sent",
        arrivals.len() - sent.len(),
        arrivals.len()
    );
    sent.sort_by_key(|outcome| outcome.at);
    Ok(sent)
}

/// What a client saw as the simulator writes it down, and why it is no whole answer if it is none.
fn as_simulated(fleet: &Fleet, seen: load::Outcome) -> (Outcome, Option<String>) {
    let model = seen.model.as_deref().and_then(|name| fleet.model_named(name));
    let reason = seen.failure.or_else(|| match (model, &seen.usage) {
        (None, _) => Some(format!("{:?} is no model of the fleet", seen.model)),
        (_, None) => Some("the answer has no usage".to_owned()),
        _ => None,
    });
    let outcome = Outcome {
        template: seen.prompt,
        gateway: 0,
        at: seen.at,
        decided: seen.decision_us.map(Duration::from_micros),
        model,
        decision: None,
        instance: None,
        attempts: 1,
        reruns: 0,
        turned_down: Vec::new(),
        ttft: seen.ttft,
        e2e: Some(seen.e2e),
        output_tokens: seen.usage.map_or(0, |usage| usage.completion_tokens as u32),
        end: if reason.is_none() { End::Answered } else { End::Unserved { healthy_peer: true } },
    };
    (outcome, reason)
}

/// The contender with its knobs, for people.
fn title(plan: &Plan) -> String {
    let weights = plan.weights.map(|w| format!(" {:.2}/{:.2}/{:.2}", w.quality, w.latency, w.cost)).unwrap_or_default();
    let setting = if plan.setting.is_empty() { String::new() } else { format!(", {}", plan.setting) };
    format!("{}{weights}{setting}, {:.1} a second", plan.policy, plan.rate)
}

fn table(title: &str, rows: &[Compared]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([title, "real, median", "each run", "simulated, median", "may differ by", "agree"]);
    for row in rows {
        let number = |value: f64| format!("{value:.*}", row.decimals());
        table.add_row([
            row.what.clone(),
            number(row.real),
            row.runs.iter().map(|run| number(*run)).collect::<Vec<_>>().join(" "),
            number(row.simulated),
            number(row.limit),
            if row.agrees() { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    for column in 1..=4 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn aim(title: &str, row: &Compared) -> Aim {
    let number = |value: f64| format!("{value:.*}", row.decimals());
    Aim {
        what: format!("{title}: {} within {}", row.what, number(row.limit)),
        measured: format!("real {}, simulated {}", number(row.real), number(row.simulated)),
        met: row.agrees(),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::super::EvaluateCommand;
    use super::*;
    use crate::answer::Usage;
    use routebalance_core::fleet::ModelId;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: EvaluateCommand,
    }

    #[test]
    fn real_time_goes_with_what_envoy_can_do() {
        Cli::command().debug_assert();
        let rows: [(&[&str], bool); 6] = [
            (&["--real"], true),
            (&["--real", "--policies", "prices", "--rates", "6,12", "--weights", ".8/.1/.1", "--runs", "1"], true),
            (&["--real", "--preset", "quick"], false),
            (&["--real", "--trace", "a.csv"], false),
            (&["--real", "--gateways", "2"], false),
            (&["--runs", "2"], false),
        ];
        for (arguments, good) in rows {
            let parsed = Cli::try_parse_from([&["evaluate"], arguments].concat());
            assert_eq!(parsed.is_ok(), good, "{arguments:?}: {parsed:?}");
        }
    }

    #[test]
    fn what_a_client_saw_becomes_an_outcome() {
        let fleet = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap().fleet;
        let seen = load::Outcome {
            at: Duration::from_secs(1),
            prompt: 3,
            model: Some("Qwen2.5-7B-Instruct".to_owned()),
            decision_us: Some(90),
            ttft: Some(Duration::from_millis(50)),
            e2e: Duration::from_millis(650),
            usage: Some(Usage { prompt_tokens: 10, completion_tokens: 31 }),
            failure: None,
        };
        let (outcome, reason) = as_simulated(&fleet, seen.clone());
        assert_eq!((outcome.template, outcome.model, reason), (3, Some(ModelId::new(1)), None));
        assert!(outcome.is_answered() && outcome.tpot() == Some(Duration::from_millis(20)));
        let rows = [
            (load::Outcome { failure: Some("status 503".to_owned()), ..seen.clone() }, "status 503"),
            (load::Outcome { model: Some("GPT-1".to_owned()), ..seen.clone() }, "is no model of the fleet"),
            (load::Outcome { usage: None, ..seen }, "has no usage"),
        ];
        for (seen, part) in rows {
            let (outcome, reason) = as_simulated(&fleet, seen);
            assert!(!outcome.is_answered() && reason.is_some_and(|reason| reason.contains(part)), "{part}");
        }
    }

    #[test]
    fn a_template_is_what_the_instance_reads_and_answers() {
        let config = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap();
        let router = Router::new(config, None);
        let row = |models: &[&str]| PromptRow {
            id: "a".to_owned(),
            dataset: "d".to_owned(),
            prompt: "x".repeat(400),
            q: models.iter().map(|m| ((*m).to_owned(), 0.5)).collect(),
            len: models.iter().map(|m| ((*m).to_owned(), 7.0)).collect(),
        };
        let all = ["Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct", "Qwen2.5-32B-Instruct", "Qwen2.5-72B-Instruct"];
        let template = template(&router, &row(&all)).unwrap();
        // 400 characters and the chat template's 3 tokens; six whole blocks of 16 tokens.
        assert_eq!((template.prompt_tokens, template.blocks.len()), (103, 6));
        assert_eq!(
            (template.prompt.max_tokens, template.output_tokens.as_slice()),
            (Some(1_024), &[7, 7, 7, 7, 0][..])
        );
        let problem = super::template(&router, &row(&all[..3])).unwrap_err().to_string();
        assert!(problem.contains("Qwen2.5-72B-Instruct") && problem.contains("prompt a"), "{problem}");
    }
}
