//! The command line of RouteBalance.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use routebalance_cli::bench::{self, BenchArgs};
use routebalance_cli::check::{check, summary, warnings};
use routebalance_cli::demo::{self, DemoArgs};
use routebalance_cli::evaluate::{self, EvaluateCommand};
use routebalance_cli::fleet::{self, FleetArgs};
use routebalance_cli::image::{self, ImageArgs};
use routebalance_cli::init::{self, InitArgs};
use routebalance_cli::packages::{self, PackageArgs, Platform};
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
    Render {
        /// The configuration
        #[arg(default_value = "envoy/routebalance.json")]
        file: PathBuf,
        /// Where to write [default: envoy.yaml beside FILE]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Listen on this ip:port instead of the configured one
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<SocketAddr>,
        /// Write nothing; fail if the output differs from what would be written
        #[arg(long)]
        check: bool,
        /// Where it is to run: what to apply there is written to standard output, unless --output says where
        #[arg(long = "for", value_enum, default_value = "envoy", value_name = "PLATFORM")]
        platform: Platform,
        #[command(flatten, next_help_heading = "Options of packages")]
        package: PackageArgs,
    },
    /// Measure the filter inside a real Envoy
    Bench(BenchArgs),
    /// Check a configuration
    Check {
        /// The configuration
        file: PathBuf,
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
        Command::Render { file, output, listen, check, platform, package } => {
            let output = output.or_else(|| (platform == Platform::Envoy).then(|| file.with_file_name("envoy.yaml")));
            render_file(&file, output.as_deref(), listen, check, |config| {
                packages::package(config, platform, &package)
            })?;
        }
        Command::Bench(args) => bench::run(&args)?,
        Command::Check { file } => {
            let config = check(&file)?;
            println!("{}: {}", file.display(), summary(&config));
            warnings(&config).iter().for_each(|warning| println!("warning: {warning}"));
        }
        Command::Plan(args) => planning::run(&args)?,
        Command::Evaluate(args) => return evaluate::run(&args),
        Command::Fleet(args) => {
            let answers = args.answers.as_deref().map(read_prompts).transpose()?;
            tokio::runtime::Runtime::new()?.block_on(fleet::run(&args, &check(&args.file)?, answers.as_ref()))?;
        }
        Command::Image(args) => image::run(&args)?,
        Command::Init(args) => tokio::runtime::Runtime::new()?.block_on(init::run(&args))?,
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

fn render_file(
    file: &Path,
    output: Option<&Path>,
    listen: Option<SocketAddr>,
    compare: bool,
    render: impl FnOnce(&serde_json::Value) -> Result<String>,
) -> Result<()> {
    check(file)?;
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(file)?)?;
    if let Some(listen) = listen {
        config["envoy"]["listen"] = listen.to_string().into();
    }
    let yaml = render(&config)?;
    let Some(output) = output else {
        anyhow::ensure!(!compare, "what is written to standard output cannot be compared: say --output FILE");
        print!("{yaml}");
        return Ok(());
    };
    if !compare {
        return std::fs::write(output, yaml).with_context(|| format!("{} cannot be written", output.display()));
    }
    let written = std::fs::read_to_string(output).with_context(|| format!("{} cannot be read", output.display()))?;
    if written != yaml {
        bail!("{} is not what {} renders to: run `routebalance render`", output.display(), file.display());
    }
    Ok(())
}
