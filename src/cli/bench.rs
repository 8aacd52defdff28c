//! `routebalance bench`: what the filter's work and the simulator's cost, as a table for people and as JSON for machines.

mod body;
mod envoy;
mod fleet;
mod predictor;
mod rivals;
mod simulator;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use super::demo::read_config;
use super::envoy_binary::envoy_binary;
use super::gateway::GatewayOptions;
use super::setup::{build_filter, build_floor};

/// Arguments of `routebalance bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    /// Scan, decision and patch in microseconds, by the body's size and the place of `model` in it
    Body {
        /// Requests per row
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=10_000))]
        requests: u32,
        /// Write the rows to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Processor time per request, throughput, latency and crossings in a real Envoy, beside the same Envoy without the module
    Envoy {
        /// Turns of each variant in each cell, of which the median counts
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// Seconds of a turn
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// Measure this cell alone, by its name
        #[arg(long, value_name = "CELL")]
        cell: Option<String>,
        /// Measure the module without its router, its predictor and shared data as well
        #[arg(long)]
        drills: bool,
        /// Another module, measured beside that of this source
        #[arg(long, value_name = "FILE")]
        against: Option<PathBuf>,
        /// Write the measurements to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Decision in microseconds and time between reports, by the number of instances
    Fleet {
        /// Requests per row
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=10_000))]
        requests: u32,
        /// Write the rows to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Other gateways before the same instances: processor time per request, throughput and latency
    ///
    /// They are measured where they are installed, below `target/rivals`; the command says how.
    Rivals {
        /// Turns of each gateway, of which the median counts
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: u32,
        /// Seconds of a turn
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
        seconds: u32,
        /// Write the rows to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Requests per second that the simulator gets through on one core, by the number of requests and of instances
    Simulator {
        /// At most 100,000 requests
        #[arg(long)]
        quick: bool,
        /// Write the rows to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Features and inference in microseconds, natively and inside Envoy, by the prompt's size
    Predictor {
        /// Repetitions per text
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=10_000))]
        repeat: u32,
        /// Write the rows to this file
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Runs a benchmark and prints its table.
///
/// # Errors
/// Set-up fails, or a request is not answered as it must be.
pub fn run(args: &BenchArgs) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    match &args.what {
        What::Body { requests, json } => {
            let rows = runtime.block_on(body::run(options()?, *requests))?;
            show(body::table(&rows), &rows, json.as_deref())
        }
        What::Envoy { rounds, seconds, cell, drills, against, json } => {
            let report = runtime.block_on(envoy::run(
                &parts(against.clone(), *drills)?,
                &effort(*rounds, *seconds),
                cell.as_deref(),
            ))?;
            report.tables().iter_mut().for_each(print);
            write(&report, json.as_deref())
        }
        What::Fleet { requests, json } => {
            let rows = runtime.block_on(fleet::run(&options()?, *requests))?;
            show(fleet::table(&rows), &rows, json.as_deref())
        }
        What::Rivals { rounds, seconds, json } => {
            let rows = runtime.block_on(rivals::run(&parts(None, false)?, &effort(*rounds, *seconds)))?;
            show(rivals::table(&rows), &rows, json.as_deref())
        }
        What::Simulator { quick, json } => {
            let rows = simulator::run(&read_config()?, *quick)?;
            show(simulator::table(&rows), &rows, json.as_deref())
        }
        What::Predictor { repeat, json } => {
            let report = runtime.block_on(predictor::run(options()?, *repeat))?;
            show(report.table(), &report, json.as_deref())
        }
    }
}

/// What Envoys are started with, and another module to compare with.
fn parts(other: Option<PathBuf>, drills: bool) -> Result<envoy::Parts> {
    Ok(envoy::Parts {
        config: read_config()?,
        module: build_filter()?,
        drills,
        other,
        floor: build_floor()?,
        envoy: envoy_binary()?,
    })
}

fn effort(rounds: u32, seconds: u32) -> envoy::Effort {
    envoy::Effort { rounds: rounds as usize, turn: Duration::from_secs(u64::from(seconds)) }
}

/// The reference fleet behind an Envoy with two workers.
fn options() -> Result<GatewayOptions> {
    Ok(GatewayOptions {
        config: read_config()?,
        module: build_filter()?,
        envoy: envoy_binary()?,
        workers: 2,
        discovered: Vec::new(),
        log_level: "warning".to_owned(),
        time_scale: 1.0,
        answers: None,
        edit: None,
    })
}

fn show(mut table: Table, rows: &impl Serialize, json: Option<&Path>) -> Result<()> {
    print(&mut table);
    write(rows, json)
}

fn print(table: &mut Table) {
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
}

fn write(rows: &impl Serialize, json: Option<&Path>) -> Result<()> {
    if let Some(file) = json {
        std::fs::write(file, serde_json::to_string_pretty(rows)?)
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    Ok(())
}
