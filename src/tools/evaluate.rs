//! What the router is worth, measured in virtual time: one preset per question.

mod cells;
mod engine;
mod gateways;
mod latency_error;
mod objectives;
mod scenarios;
mod tpot_fit;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// Latency behind 1, 2, 8 and 32 gateways at the same total load
    Gateways,
    /// Quality, latency and cost of the objectives over their weights
    Objectives,
    /// How far the forecast of a request's times is from what happens, by utilisation
    LatencyError,
    /// The simulated engine against measured vLLM servers: fitted to half of what they did; fails if means of the other half are
    /// off by more than 20 %
    Engine,
    /// Small fleets with random faults, and what must hold after them; fails if it does not
    Scenarios,
    /// How far the published predictor of times is off, trained on a simulated sweep of each pool
    TpotFit,
}

/// Arguments of `evaluate`.
#[derive(Args, Clone, Debug)]
pub struct EvaluateArgs {
    /// What to measure
    #[arg(long, required_unless_present = "from")]
    preset: Option<Preset>,
    /// The configuration
    #[arg(default_value = "envoy/routebalance.json")]
    file: PathBuf,
    /// Also write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seeds per cell; every cell sees the same requests at the same times
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// Fewer seeds and shorter runs
    #[arg(long)]
    quick: bool,
    /// Measure nothing: draw a result of the lab that was written before
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    from: Option<PathBuf>,
    /// Write the result as one HTML page to this file
    #[arg(long, value_name = "FILE", requires = "from")]
    html: Option<PathBuf>,
    /// Write the page's plots as PNG and SVG into this folder
    #[arg(long, value_name = "FOLDER", requires = "from")]
    plots: Option<PathBuf>,
}

/// Runs a preset, prints its table and writes its result.
///
/// # Errors
/// The configuration does not load, or the result cannot be read or written.
pub fn run(args: &EvaluateArgs) -> Result<ExitCode> {
    if let Some(result) = &args.from {
        super::lab::page::render(result, args.html.as_deref(), args.plots.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    let preset = args.preset.context("nothing to measure: give --preset")?;
    let config = super::check::check(&args.file)?;
    let (result, passed) = match preset {
        Preset::Gateways => gateways::run(&config, args)?,
        Preset::Objectives => objectives::run(&config, args)?,
        Preset::LatencyError => latency_error::run(&config, args)?,
        Preset::Engine => engine::run()?,
        Preset::Scenarios => scenarios::run(&config, args)?,
        Preset::TpotFit => tpot_fit::run(&config, args)?,
    };
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&result)?;
        std::fs::write(file, text + "\n").with_context(|| format!("{} cannot be written", file.display()))?;
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
