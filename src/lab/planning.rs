//! `routebalance plan FILE`: the best way to deploy models on GPUs for a rate, and what makes a gateway follow it.

pub mod apply;
pub mod check;
pub mod comparison;
pub mod file;
pub mod measure;
pub mod page;
pub mod planned;
pub mod profiles;
pub mod rivals;
pub mod sample;
pub mod studies;
pub mod sweep;
pub mod table;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use self::file::{Overrides, PlanFile};
use routebalance_plan::placement::count;

/// Arguments of `plan`.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    /// What to plan for
    file: PathBuf,
    /// The limit of the mean time to the first token, milliseconds, instead of the file's
    #[arg(long, value_name = "N")]
    slo_ms: Option<f64>,
    /// The demand, requests per second, instead of the file's
    #[arg(long, value_name = "R")]
    rate: Option<f64>,
    /// How many GPUs there are of the only kind, instead of the file's number
    #[arg(long, value_name = "G")]
    gpus: Option<usize>,
    /// Also write the result to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also write a page to look at
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Also run the studies of the planner, some minutes long, and write a page with them
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the plan into this configuration of the gateway: limits and profiles of pools, and a policy
    #[arg(long, value_name = "CONFIG")]
    apply: Option<PathBuf>,
    /// The policy that `--apply` writes; made if there is none of the name
    #[arg(long, value_name = "NAME", default_value = "planned")]
    policy: String,
    /// Only say how many setups there are
    #[arg(long)]
    count_setups: bool,
    /// Measure the profiles that the plan needs in the simulator, and write them to this CSV file
    #[arg(long, value_name = "FILE", conflicts_with = "count_setups")]
    measure_profiles: Option<PathBuf>,
    /// Run the plan in the simulator: its copies measured once more with the prompts that it sends them, then other prompts, neighbours
    /// that slow each other down, and .5 to 1.2 of the demand
    #[arg(long, conflicts_with_all = ["count_setups", "measure_profiles"])]
    check: bool,
    /// Seed of what is measured and simulated
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Runs `plan`.
///
/// # Errors
/// One sentence: what is wrong with the file, why there is no plan and what would help, or what cannot be written.
pub fn run(args: &PlanArgs) -> Result<()> {
    let overrides = Overrides { slo_ms: args.slo_ms, rate: args.rate, gpus: args.gpus };
    let file = PlanFile::read(&args.file, &overrides)?;
    if args.count_setups {
        return count_setups(&file);
    }
    if let Some(out) = &args.measure_profiles {
        return measure_profiles(&file, args.seed, out);
    }
    let (problem, notes) = file.problem()?;
    let sizes = file.sizes()?;
    let planned = sweep::plan(&problem, notes)?;
    let studies = args.report.as_ref().map(|_| studies::run(&args.file, args.seed)).transpose()?;
    if let Some(out) = &args.json {
        let mut json = planned::to_json(&planned);
        if let Some(studies) = &studies {
            json["studies"] = studies.to_json();
        }
        let json = serde_json::to_string(&json)?;
        std::fs::write(out, json).with_context(|| format!("{} cannot be written", out.display()))?;
    }
    if let Some(out) = &args.html {
        page::write(out, &planned, &[])?;
    }
    if let (Some(out), Some(studies)) = (&args.report, &studies) {
        page::write(out, &planned, &studies.parts())?;
    }
    print!("{}", table::text(&planned));
    if let Some(studies) = &studies {
        print!("{}", studies.text());
    }
    if planned.choice().is_none() {
        return sweep::infeasible(&planned);
    }
    if args.check {
        print!("{}", checked(&file, args.seed, &planned)?);
    }
    if let Some(config) = &args.apply {
        println!("{}:", config.display());
        for line in apply::apply(config, &args.policy, &planned, &sizes)? {
            println!("  {line}");
        }
    }
    Ok(())
}

fn count_setups(file: &PlanFile) -> Result<()> {
    let problem = file.deployment()?.as_problem().context("there is no model")?;
    let counts = count(&problem);
    println!(
        "{} setups; {} of them fit by memory, first fit decreasing, as in the paper; {} have a placement whose caps are at most 100 % \
         on every GPU",
        counts.enumerated, counts.memory, counts.caps
    );
    Ok(())
}

/// The choice in the simulator, as a table.
fn checked(file: &PlanFile, seed: u64, planned: &planned::Planned) -> Result<String> {
    let problem = &planned.problem;
    let plan = planned.choice().context("there is no plan to check")?;
    let (measuring, planning) = file.measuring(seed)?;
    let fine = check::refined(problem, &measuring, &planning, plan)?;
    let said = if fine.is_some() { "" } else { "with the prompts that it gets, the setup does not keep the limits\n" };
    let plan = fine.as_ref().unwrap_or(plan);
    let sizes: Vec<_> = measuring.models.iter().map(|model| model.size).collect();
    let sample = file.sample(sample::Half::Checking)?;
    let checking = check::Checking {
        problem,
        sizes: &sizes,
        sample: &sample,
        max_tokens: measuring.max_tokens,
        requests: 30_000,
        runs: 4,
        // Other times than those of the profiles.
        seed: seed + 1_000,
    };
    let results = check::check_plan(&checking, plan)?;
    Ok(format!("{said}{}\n", check::table(problem, plan, &results)))
}

fn measure_profiles(file: &PlanFile, seed: u64, out: &std::path::Path) -> Result<()> {
    let (measuring, sample) = file.measuring(seed)?;
    let file::Deployment { models, kinds, .. } = file.deployment()?;
    let profiles = measure::run(&measuring, &sample)?;
    profiles::write_profiles(out, &profiles, &models, &kinds)?;
    println!("{}: {} profiles", out.display(), profiles.len());
    Ok(())
}
