//! `routebalance evaluate`: the lab's presets, and the same requests through a real Envoy.

mod real;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use routebalance_lab::evaluate::{self, lab};
use routebalance_lab::page;

use crate::check::check;

/// Arguments of `evaluate`.
#[derive(Args, Clone, Debug)]
pub struct EvaluateCommand {
    #[command(flatten)]
    lab: evaluate::EvaluateArgs,
    #[command(flatten)]
    real: real::RealArgs,
}

/// Runs a preset, prints its table and writes its result.
///
/// # Errors
/// The configuration does not load, the result cannot be read or written, or Envoy does not start.
pub fn run(command: &EvaluateCommand) -> Result<ExitCode> {
    let EvaluateCommand { lab: args, real } = command;
    if let Some(result) = &args.from {
        page::render(result, args.html.as_deref(), args.plots.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.lab.fleet.as_ref().unwrap_or(&args.file);
    if real.real {
        let (cells, code) = real::run(file, real, &args.lab)?;
        lab::write(&cells, args.json.as_deref())?;
        page::write(&cells, args.html.as_deref(), args.plots.as_deref())?;
        return Ok(code);
    }
    evaluate::run(args, file, &check(file)?)
}
