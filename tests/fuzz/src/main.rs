//! Fuzzing on stable Rust: `cargo run --profile fuzz -p routebalance-fuzz -- callbacks --seconds 60`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use routebalance_fuzz::session::{self, Failure, Until};
use routebalance_fuzz::{TARGETS, Target, corpus};

/// Gives a target random inputs until one of them shows that something does not hold.
#[derive(Parser)]
#[command(name = "fuzz")]
struct Arguments {
    /// The target; `list` names them all.
    target: String,
    /// For so many seconds.
    #[arg(long, default_value_t = 60, conflicts_with = "executions")]
    seconds: u64,
    /// For so many executions.
    #[arg(long)]
    executions: Option<u64>,
    /// Repeats what another run has done, with as many workers.
    #[arg(long)]
    seed: Option<u64>,
    /// Threads.
    #[arg(long, default_value_t = 1)]
    workers: u64,
    /// A folder with more inputs to begin with, where new ones are kept.
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Takes the input of this file, once, and lets it panic.
    #[arg(long)]
    input: Option<PathBuf>,
    /// Writes the committed inputs to a folder, as libFuzzer takes them.
    #[arg(long)]
    unpack: Option<PathBuf>,
    /// Makes the inputs of a folder the committed ones.
    #[arg(long)]
    pack: Option<PathBuf>,
    /// Of the inputs that are packed, only those that reach something new.
    #[arg(long)]
    distinct: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    if arguments.target == "list" {
        println!("{}", names.join("\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let Some(target) = TARGETS.into_iter().find(|target| target.name == arguments.target) else {
        bail!("no target is named {}; there are {}", arguments.target, names.join(", "));
    };
    if let Some(path) = &arguments.input {
        let input = std::fs::read(path).with_context(|| path.display().to_string())?;
        routebalance_fuzz::novelty::tell_all();
        (target.run)(&input);
        println!("nothing is wrong with it");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(folder) = &arguments.unpack {
        let inputs = corpus::committed(target.name)?;
        inputs.iter().try_for_each(|input| corpus::keep(folder, input).map(drop))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(folder) = &arguments.pack {
        return pack(target, folder, arguments.distinct);
    }
    fuzz(target, &arguments)
}

fn pack(target: Target, folder: &Path, distinct: bool) -> anyhow::Result<ExitCode> {
    let mut inputs = corpus::of_folder(folder)?;
    if distinct {
        inputs = session::distinct(target, inputs);
    }
    corpus::commit(target.name, &inputs)?;
    println!("{} inputs", inputs.len());
    Ok(ExitCode::SUCCESS)
}

fn fuzz(target: Target, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let seed = arguments.seed.unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0));
    println!("seed {seed}");
    let mut inputs = corpus::committed(target.name)?;
    if let Some(folder) = &arguments.corpus {
        inputs.extend(corpus::of_folder(folder)?);
    }
    if let Some(failure) = session::replay(target, &inputs) {
        return report(target, failure);
    }
    let until = match arguments.executions {
        Some(executions) => Until::Executions(executions),
        None => Until::Time(Duration::from_secs(arguments.seconds)),
    };
    let outcome = session::run(target, &inputs, seed, arguments.workers, until);
    let seconds = outcome.took.as_secs_f64();
    println!(
        "{}: {} executions in {seconds:.1} s, {:.0} per second; {} new inputs, {} things reached",
        target.name,
        outcome.executions,
        outcome.executions as f64 / seconds,
        outcome.kept.len(),
        outcome.reached
    );
    if let Some(folder) = &arguments.corpus {
        outcome.kept.iter().try_for_each(|input| corpus::keep(folder, input).map(drop))?;
    }
    outcome.failure.map_or(Ok(ExitCode::SUCCESS), |failure| report(target, failure))
}

/// Says what has failed, and how to see it again.
fn report(target: Target, failure: Failure) -> anyhow::Result<ExitCode> {
    let Failure { input, message } = session::shortened(target, failure);
    let path = corpus::keep(Path::new("fuzz-failures"), &input)?;
    println!("{message}\n{} bytes; again:", input.len());
    println!("cargo run --profile fuzz -p routebalance-fuzz -- {} --input {}", target.name, path.display());
    Ok(ExitCode::FAILURE)
}
