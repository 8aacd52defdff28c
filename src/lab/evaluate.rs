//! What the router is worth, measured in virtual time: one preset per question.

pub mod cells;
mod engine;
mod gateways;
pub mod lab;
mod latency_error;
mod scenarios;
mod tpot_fit;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use routebalance_core::config::Config;

use crate::page;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The lab: a look at every contender, in under a minute
    Quick,
    /// The lab: the paper's experiments, with every contender
    Paper,
    /// The lab: limits of times, and budgets
    SloBudget,
    /// The lab: bursts, waves, recorded requests, other prices, no largest model
    Robustness,
    /// Latency behind 1, 2, 8 and 32 gateways at the same total load
    Gateways,
    /// How far the forecast of a request's times is from what happens, by utilisation
    LatencyError,
    /// The simulated engine against measured vLLM servers: fitted to half of what they did; fails if means of the other half are
    /// off by more than 20 %
    Engine,
    /// Small fleets with random faults, or with a client or an instance that misbehaves, and what must hold; fails if it does not
    Scenarios,
    /// How far the published predictor of times is off, trained on a simulated sweep of each pool
    TpotFit,
}

/// Arguments of `evaluate`.
#[derive(Args, Clone, Debug)]
pub struct EvaluateArgs {
    /// What to measure [default: the lab, on the fleet and the requests that are given]
    #[arg(long)]
    preset: Option<Preset>,
    /// The configuration
    #[arg(default_value = "envoy/routebalance.json")]
    pub file: PathBuf,
    /// Also write the result to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Seeds per cell; every cell sees the same requests at the same times
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Fewer seeds and shorter runs
    #[arg(long)]
    quick: bool,
    /// The lab's own.
    #[command(flatten)]
    pub lab: lab::LabArgs,
    /// Measure nothing: draw a result of the lab that was written before
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    pub from: Option<PathBuf>,
    /// Write the result as one HTML page to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write the page's plots as PNG and SVG into this folder
    #[arg(long, value_name = "FOLDER")]
    pub plots: Option<PathBuf>,
}

/// Runs a preset, prints its table and writes its result.
///
/// # Errors
/// The configuration does not suit the preset, or the result cannot be written.
pub fn run(args: &EvaluateArgs, file: &Path, config: &Config) -> Result<ExitCode> {
    let (result, passed) = match args.preset {
        None | Some(Preset::Quick | Preset::Paper | Preset::SloBudget | Preset::Robustness) => {
            let json = args.json.as_deref();
            let cells = lab::run(file, config, args.preset, args.seeds, &args.lab, json)?;
            page::write(&cells, args.html.as_deref(), args.plots.as_deref())?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Preset::Gateways) => gateways::run(config, args)?,
        Some(Preset::LatencyError) => latency_error::run(config, args)?,
        Some(Preset::Engine) => engine::run()?,
        Some(Preset::Scenarios) => scenarios::run(config, args)?,
        Some(Preset::TpotFit) => tpot_fit::run(config, args)?,
    };
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&result)?;
        std::fs::write(file, text + "\n").with_context(|| format!("{} cannot be written", file.display()))?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
