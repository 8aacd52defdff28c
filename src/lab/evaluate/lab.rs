//! The lab's presets: contenders on the same requests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::Preset;
use crate::cell::{Cell, Cells};
use crate::contenders::NAMES;
use crate::ground::Ground;
use crate::pairing::TraceLengths;
use crate::presets::{self, OUTPUT_CAP, TARIFFS, TRACES, Wishes, without};
use crate::resume::Partial;
use crate::run::{self, Job, Overhead};
use crate::source::{ArrivalKind, Source, SourceArgs};
use crate::statistics::mean;
use crate::summary::{SUSTAINED, Summary, main_experiment, summaries};
use crate::{reproduction, targets};
use routebalance_core::config::Config;
use routebalance_core::fleet::Weights;

/// The recorded requests of the robustness preset, in the order of [`TRACES`].
const TRACE_FILES: [&str; 3] = [
    "models/data/traces/AzureLLMInferenceTrace_conv_2023.csv.gz",
    "models/data/traces/servegen_m-mid_1h_10rps.csv.gz",
    "models/data/traces/mooncake_synthetic_trace.jsonl.gz",
];

/// What deciding takes in cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OverheadChoice {
    /// No time
    Zero,
    /// What it takes
    Charged,
    /// Cells of either kind
    Both,
}

/// What of a preset of the lab is otherwise.
#[derive(Args, Clone, Debug)]
pub struct LabArgs {
    /// Contenders, by name
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    pub policies: Option<Vec<String>>,
    /// Weights of quality, latency and cost of the contenders that have some
    #[arg(long, value_name = "Q/L/C,..", value_delimiter = ',', value_parser = weights)]
    pub weights: Option<Vec<Weights>>,
    /// Requests per second
    #[arg(long, value_name = "RATE,..", value_delimiter = ',', value_parser = rate)]
    pub rates: Option<Vec<f64>>,
    /// Requests of a cell
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub requests: Option<u32>,
    /// Gateways
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    gateways: Option<u32>,
    /// How requests come, without a preset: constant, poisson, gamma:SHAPE, square:HIGH/LOW or ramp:FROM-TO
    #[arg(long, value_name = "KIND,..", value_delimiter = ',', conflicts_with_all = ["preset", "trace", "from_access_log"])]
    workload: Option<Vec<ArrivalKind>>,
    /// What deciding takes
    #[arg(long, value_enum)]
    overhead: Option<OverheadChoice>,
    /// The configuration, as FILE is
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    pub fleet: Option<PathBuf>,
    /// Prompts with each model's scores and answer lengths, JSON lines, packed or plain [default: the lab's own]
    #[arg(long, value_name = "FILE", conflicts_with = "from_access_log")]
    prompts: Option<PathBuf>,
    /// Recorded requests: a CSV file with Azure's or ServeGen's columns, or Mooncake's JSON lines; packed or plain
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from_access_log", "preset"])]
    trace: Option<PathBuf>,
    /// How long the answers to a trace's requests are
    #[arg(long, value_enum, default_value_t, requires = "trace")]
    trace_lengths: TraceLengths,
    /// Requests that the filter has routed: its access log
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    from_access_log: Option<PathBuf>,
}

fn weights(text: &str) -> Result<Weights, String> {
    let problem = || format!("{text:?} are no weights: three numbers from 0 to 1 with a sum above 0, as .8/.1/.1");
    let numbers: Vec<f64> = text.split('/').map(|w| w.parse().map_err(|_| problem())).collect::<Result<_, _>>()?;
    let [quality, latency, cost] = numbers.try_into().map_err(|_| problem())?;
    let sum = quality + latency + cost;
    if ![quality, latency, cost].iter().all(|w| (0.0..=1.0).contains(w)) || sum <= 0.0 {
        return Err(problem());
    }
    Ok(Weights { quality: quality / sum, latency: latency / sum, cost: cost / sum })
}

fn rate(text: &str) -> Result<f64, String> {
    let valid = text.parse().ok().filter(|rate: &f64| (0.01..=1e5).contains(rate));
    valid.ok_or_else(|| format!("{text:?} is no rate: a number of requests per second from 0.01 to 100000"))
}

impl LabArgs {
    fn wishes(&self, seeds: Option<u64>) -> Result<Wishes> {
        for name in self.policies.iter().flatten() {
            ensure!(NAMES.contains(&name.as_str()), "there is no contender {name}: there are {}", NAMES.join(", "));
        }
        let overheads = self.overhead.map(|overhead| match overhead {
            OverheadChoice::Zero => vec![Overhead::Zero],
            OverheadChoice::Charged => vec![Overhead::Charged],
            OverheadChoice::Both => vec![Overhead::Charged, Overhead::Zero],
        });
        Ok(Wishes {
            policies: self.policies.clone(),
            weights: self.weights.clone(),
            rates: self.rates.clone(),
            seeds,
            requests: self.requests.map(|n| n as usize),
            gateways: self.gateways.map(|n| n as usize),
            workloads: self.workload.clone(),
            overheads,
        })
    }

    fn source(&self, preset: Option<Preset>) -> SourceArgs {
        SourceArgs {
            prompts: self.prompts.clone(),
            trace: self.trace.clone(),
            trace_lengths: self.trace_lengths,
            from_access_log: self.from_access_log.clone(),
            output_cap: preset.map(|_| OUTPUT_CAP),
            ..SourceArgs::default()
        }
    }
}

fn opened(config: &Config, args: &SourceArgs) -> Result<Ground> {
    let source = Source::open(args, config)?;
    for note in &source.notes {
        eprintln!("{note}");
    }
    Ok(Ground::new(config.clone(), source))
}

/// The grounds of a preset and the files that they are made of.
fn grounds(config: &Config, args: &LabArgs, preset: Option<Preset>) -> Result<(Vec<Ground>, Vec<PathBuf>)> {
    let own = args.source(preset);
    let mut grounds = vec![opened(config, &own)?];
    let mut files: Vec<PathBuf> =
        [&own.prompts, &own.trace, &own.from_access_log].into_iter().flatten().cloned().collect();
    if preset == Some(Preset::Robustness) {
        for (name, file) in TRACES.iter().zip(TRACE_FILES) {
            let file = PathBuf::from(file);
            let args = SourceArgs { trace: Some(file.clone()), trace_lengths: TraceLengths::Prompt, ..own.clone() };
            grounds.push(opened(config, &args).with_context(|| format!("trace {name}"))?);
            files.push(file);
        }
        for (_, change) in TARIFFS {
            let mut config = config.clone();
            change(&mut config.fleet);
            grounds.push(opened(&config, &own)?);
        }
        grounds.push(opened(&without::largest(config), &own)?);
    }
    Ok((grounds, files))
}

/// Measures a preset of the lab, or what is asked for without one; prints its tables.
///
/// # Errors
/// What is asked for cannot be had, or a file cannot be read or written.
pub(super) fn run(
    file: &Path,
    config: &Config,
    preset: Option<Preset>,
    seeds: Option<u64>,
    args: &LabArgs,
    json: Option<&Path>,
) -> Result<Cells> {
    let wishes = args.wishes(seeds)?;
    let (grounds, mut files) = grounds(config, args, preset)?;
    files.push(file.to_owned());
    let jobs: Vec<Job> = match preset {
        Some(Preset::Paper) => presets::paper(&grounds, &wishes)?,
        Some(Preset::SloBudget) => presets::slo_budget(&grounds, &wishes)?,
        Some(Preset::Robustness) => presets::robustness(&grounds, TRACES.len(), &wishes)?,
        Some(Preset::Quick) => presets::quick(&grounds, &wishes)?,
        _ => presets::custom(&grounds, &wishes)?,
    };
    ensure!(!jobs.is_empty(), "nothing is left to measure: the preset has none of these contenders");
    eprintln!("{} cells", jobs.len());
    let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let mut partial = json.map(|json| Partial::open(json, &inputs)).transpose()?;
    let measured = run::run(&jobs, &grounds, partial.as_mut())?;
    let name = preset.and_then(|preset| Some(preset.to_possible_value()?.get_name().to_owned()));
    let mut cells = Cells { preset: name.unwrap_or_else(|| "custom".to_owned()), cells: measured, ..Cells::default() };
    if preset == Some(Preset::Paper) {
        cells.targets = targets::judged(&cells);
    }
    cells.reproduction = reproduction::reproduced_rows(&cells);
    println!("{}", table(&cells));
    show_targets(&cells);
    write(&cells, json)?;
    if let Some(partial) = partial {
        partial.remove()?;
    }
    Ok(cells)
}

/// Writes a result, if a file is named.
///
/// # Errors
/// The file cannot be written.
pub fn write(cells: &Cells, json: Option<&Path>) -> Result<()> {
    let Some(json) = json else { return Ok(()) };
    std::fs::write(json, text(cells)?).with_context(|| format!("{} cannot be written", json.display()))
}

/// The result with a cell a line.
fn text(cells: &Cells) -> Result<String> {
    let mut lines = Vec::with_capacity(cells.cells.len());
    for cell in &cells.cells {
        lines.push(serde_json::to_string(cell)?);
    }
    let rest = serde_json::to_string_pretty(&Cells { cells: Vec::new(), ..cells.clone() })?;
    Ok(rest.replacen("\"cells\": []", &format!("\"cells\": [\n{}\n]", lines.join(",\n")), 1) + "\n")
}

/// Means over seeds, by rate; of contenders with weights the uniform ones, and the only ones where there are no others.
fn table(cells: &Cells) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let limited = cells.cells.iter().any(|c| c.slo_attainment.is_some() || c.budget_exhausted.is_some());
    let mut head = vec![
        "rate",
        "variant",
        "contender",
        "knobs",
        "quality",
        "USD per 1,000",
        "E2E mean s",
        "E2E p99 s",
        "answered per s",
    ];
    if limited {
        head.extend(["kept limits", "used up", "refused"]);
    }
    table.set_header(&head);
    let all = summaries(cells);
    let main = main_experiment(&all);
    let has_uniform = all.iter().any(Summary::is_uniform);
    let is_shown = |s: &&Summary| {
        let weights = !has_uniform || s.weights().is_none() || s.is_uniform();
        let variant =
            cells.preset != "paper" || Some(&s.experiment) == main.as_ref() || s.experiment.variant == SUSTAINED;
        weights && variant && Some(&s.experiment.overhead) == main.as_ref().map(|main| &main.overhead)
    };
    let mut shown: Vec<&Summary> = all.iter().filter(is_shown).collect();
    shown.sort_by(|a, b| {
        let experiment =
            (&a.experiment.workload, &a.experiment.variant).cmp(&(&b.experiment.workload, &b.experiment.variant));
        experiment.then(a.rate.total_cmp(&b.rate))
    });
    for s in shown {
        let e = &s.experiment;
        let variant = if e.variant.is_empty() { e.workload.clone() } else { format!("{}, {}", e.workload, e.variant) };
        let mut row = vec![
            format!("{:.1}", s.rate),
            variant,
            s.policy().to_owned(),
            s.knobs(),
            format!("{:.3}", s.quality.mean),
            format!("{:.4}", s.cost_usd.mean * 1e3),
            format!("{:.2}", s.e2e_ms.mean / 1e3),
            format!("{:.2}", s.e2e_p99_ms / 1e3),
            format!("{:.1}", s.throughput_rps),
        ];
        if limited {
            row.extend([share(s, |c| c.slo_attainment), share(s, |c| c.budget_exhausted), share(s, |c| c.shed)]);
        }
        table.add_row(row);
    }
    for column in [0, 4, 5, 6, 7, 8, 9, 10, 11] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Mean over seeds in percent; empty where nothing is measured.
fn share(summary: &Summary, of: fn(&Cell) -> Option<f64>) -> String {
    let values: Vec<f64> = summary.cells.iter().filter_map(|cell| of(cell)).collect();
    mean(&values).map_or_else(String::new, |share| format!("{:.1} %", share * 100.0))
}

fn show_targets(cells: &Cells) {
    if !cells.targets.is_empty() {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["target", "measured", "met"]);
        for target in &cells.targets {
            table.add_row([target.what.as_str(), &target.measured, if target.met { "yes" } else { "no" }]);
        }
        println!("{table}");
    }
    if !cells.reproduction.is_empty() {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["the paper's shape", "published", "measured here", "why it differs"]);
        for row in &cells.reproduction {
            table.add_row([&row.what, &row.published, &row.ours, &row.why]);
        }
        println!("{table}");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::EvaluateArgs;
    use super::*;
    use crate::entrant::Estimates;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: EvaluateArgs,
    }

    #[test]
    fn every_request_of_the_robustness_preset_can_be_had() {
        let config = Config::parse(include_bytes!("../../../envoy/routebalance.json")).unwrap();
        // The preset's files stand where users start commands: at the top of the repository.
        std::env::set_current_dir(crate::package_root()).unwrap();
        let args = Cli::parse_from(["evaluate"]).args.lab;
        let (grounds, _) = grounds(&config, &args, Some(Preset::Robustness)).unwrap();
        let wishes = Wishes { policies: Some(vec!["shortest-queue".to_owned()]), ..Wishes::default() };
        let jobs = presets::robustness(&grounds, TRACES.len(), &wishes).unwrap();
        for job in jobs.iter().filter(|job| job.asked.seed == 1) {
            let had = grounds[job.ground].workload(&job.asked, Estimates::Ours).unwrap().1.arrivals.len();
            assert_eq!(Some(had), job.asked.requests, "{}", job.identity());
        }
    }

    #[test]
    fn weights_are_read() {
        let w = weights("8/1/1").unwrap_err();
        assert!(w.contains("as .8/.1/.1"), "{w}");
        let w = weights(".8/.1/.1").unwrap();
        assert!((w.quality - 0.8).abs() < 1e-9 && (w.latency - 0.1).abs() < 1e-9);
        let w = weights("1/1/1").unwrap();
        assert!((w.cost - 1.0 / 3.0).abs() < 1e-9);
        for bad in ["", "1/2", "0/0/0", "1/1/1/1", "a/b/c", "NaN/1/1", "-1/1/1"] {
            assert!(weights(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_result_has_a_cell_a_line() {
        let empty = text(&Cells { preset: "quick".to_owned(), ..Cells::default() }).unwrap();
        assert_eq!(serde_json::from_str::<Cells>(&empty).unwrap().preset, "quick");
    }
}
