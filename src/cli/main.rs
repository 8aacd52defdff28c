//! The command line of RouteBalance.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use routebalance_cli::bench::{self, BenchArgs};
use routebalance_cli::beside;
use routebalance_cli::check::{check, summary, warnings};
use routebalance_cli::demo::{self, DemoArgs};
use routebalance_cli::evaluate::{self, EvaluateCommand};
use routebalance_cli::fleet::{self, FleetArgs};
use routebalance_cli::image::{self, ImageArgs};
use routebalance_cli::init::{self, InitArgs};
use routebalance_cli::merged::{Severity, check_merged};
use routebalance_cli::rendering::{self, RenderArgs};
use routebalance_cli::schema;
use routebalance_instance::prompts::PromptSet;
use routebalance_instance::{InstanceArgs, PoolProfile, profile_from_config};
use routebalance_lab::planning::{self, PlanArgs};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Set up everything and show a policy against round robin, through a real Envoy
    Demo(DemoArgs),
    /// Write Envoy's configuration next to the one it is made from
    Render(RenderArgs),
    /// Measure the filter inside a real Envoy
    Bench(BenchArgs),
    /// Check a configuration, and an Envoy configuration into which it was merged
    Check {
        /// The configuration [default with --envoy: the one that the plugin has in ENVOY_YAML]
        #[arg(required_unless_present = "envoy")]
        file: Option<PathBuf>,
        /// Envoy's own configuration: a bootstrap, a file of listeners or clusters, or what /config_dump says; several times for
        /// several files
        #[arg(long, value_name = "ENVOY_YAML")]
        envoy: Vec<PathBuf>,
    },
    /// Plan which model gets which GPUs, and what requests to each should cost
    Plan(PlanArgs),
    /// Measure the router in virtual time
    Evaluate(EvaluateCommand),
    /// Run the emulated instances of a configuration
    Fleet(FleetArgs),
    /// Write the module as an OCI image, for Istio, Envoy Gateway and Kubernetes' image volumes
    Image(ImageArgs),
    /// Write a first configuration, from what running servers say of themselves
    Init(InitArgs),
    /// Print the JSON Schema of a configuration, for editors
    Schema,
    /// Run one emulated instance
    Instance {
        #[command(flatten)]
        args: InstanceArgs,
        /// The configuration whose pools `--profile` names
        #[arg(long, default_value = "envoy/routebalance.json", value_name = "FILE")]
        config: PathBuf,
        /// Prompts whose answers have recorded lengths, one JSON object per line
        #[arg(long, value_name = "FILE")]
        answers: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    run(Cli::parse().command).unwrap_or_else(|problem| {
        eprintln!("Error: {problem:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(args) => return demo::run(&args),
        // Standard output is for what is rendered, where that goes there.
        Command::Render(args) => rendering::run(&args)?.iter().for_each(|line| eprintln!("{line}")),
        Command::Bench(args) => bench::run(&args)?,
        Command::Check { file, envoy } => return check_files(file.as_deref(), &envoy),
        Command::Plan(args) => planning::run(&args)?,
        Command::Evaluate(args) => return evaluate::run(&args),
        Command::Fleet(args) => {
            let answers = args.answers.as_deref().map(read_prompts).transpose()?;
            tokio::runtime::Runtime::new()?.block_on(fleet::run(&args, &check(&args.file)?, answers.as_ref()))?;
        }
        Command::Image(args) => image::run(&args)?,
        Command::Init(args) => tokio::runtime::Runtime::new()?.block_on(init::run(&args))?,
        Command::Schema => schema::run()?,
        Command::Instance { args, config, answers } => {
            let answers = answers.as_deref().map(read_prompts).transpose()?;
            let resolve = |name: &str| pool_profile(&config, name);
            tokio::runtime::Runtime::new()?.block_on(routebalance_instance::run(args, resolve, answers))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn pool_profile(file: &Path, name: &str) -> Result<PoolProfile> {
    let fleet = check(file)?.fleet;
    profile_from_config(&fleet, name).with_context(|| {
        let pools: Vec<&str> = fleet.pools.iter().map(|pool| pool.name.as_str()).collect();
        format!("{} has no pool {name:?}, but {}", file.display(), pools.join(", "))
    })
}

fn read_prompts(file: &Path) -> Result<Arc<PromptSet>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
    Ok(Arc::new(PromptSet::from_jsonl(&text).with_context(|| format!("{} is wrong", file.display()))?))
}

fn check_files(file: Option<&Path>, envoy: &[PathBuf]) -> Result<ExitCode> {
    if let Some(file) = file {
        let config = check(file)?;
        println!("{}: {}", file.display(), summary(&config));
        let missing = if envoy.is_empty() { beside::missing(&config, file) } else { Vec::new() };
        warnings(&config).iter().chain(&missing).for_each(|warning| println!("warning: {warning}"));
    }
    if envoy.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let findings = check_merged(file, envoy)?;
    findings.iter().for_each(|finding| println!("{finding}"));
    let names: Vec<String> = envoy.iter().map(|file| file.display().to_string()).collect();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    println!(
        "{}: {} and {}",
        names.join(", "),
        counted(count(Severity::Error), "error"),
        counted(count(Severity::Warning), "warning")
    );
    Ok(if count(Severity::Error) > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
