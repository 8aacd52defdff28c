//! Rules of the comparison in the simulator, on the fleet that plans are checked on.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Deployment, Ground, Panel, Row, Rule, compare};
use crate::planning::check::{self, Checking};
use crate::planning::rivals::judge::Answers;
use crate::planning::sample::{Sample, SamplePrompt};
use routebalance_core::fleet::ModelId;
use routebalance_core::router::Router;
use routebalance_plan::baselines::Baseline;
use routebalance_plan::placement;
use routebalance_plan::problem::Problem;
use routebalance_plan::setup::{Placement, Setup, Setups};
use routebalance_sim::contender::{Cascade, Contender};
use routebalance_sim::outcome::Outcome;
use routebalance_sim::simulation::{Options, Simulation};
use routebalance_sim::workload::{Arrivals, Workload};

/// How reliable the cascade's judge is. FrugalGPT does not say; 0.8 is generous to a small encoder that has never seen the right answer.
const RELIABILITY: f64 = 0.8;
/// How long requests come. Where a rule overloads a model, times grow with it.
const COURSE: Duration = Duration::from_secs(120);
/// Until when they are not counted.
const WARM_UP: Duration = Duration::from_secs(20);

/// The whole comparison: rivals tuned on the prompts that plans are made of, all rules simulated on those that plans are checked with.
///
/// # Errors
/// As [`compare`] and [`simulated`].
pub fn study(checking: &Checking<'_>, planning: &Sample, panels: &[Panel<'_>]) -> Result<Vec<Row>> {
    let models = &checking.problem.models;
    let mut sizes: Vec<usize> = (0..models.len()).collect();
    sizes.sort_by(|a, b| models[*a].weights_gb.total_cmp(&models[*b].weights_gb));
    let ((quality, expected), (check_quality, check_expected)) = (columns(planning), columns(checking.sample));
    let ground = Ground {
        sizes: &sizes,
        planning: Answers { quality: &quality, expected: &expected },
        checking: Answers { quality: &check_quality, expected: &check_expected },
        reliability: RELIABILITY,
        warm_up: WARM_UP,
        seed: checking.seed,
    };
    compare(panels, &ground, |deployment, rule, rate| simulated(checking, COURSE, deployment, rule, rate))
}

/// The isolated setup whose compute is closest to the models' sizes ([`Baseline::Isolated`]); `None` where not every model fits on
/// GPUs of its own.
pub fn isolated(problem: &Problem) -> Option<(Setup, Placement)> {
    let setups: Vec<Setup> = Setups::new(problem).collect();
    let closest = Baseline::Isolated.ranked(problem, &setups).first()?.index;
    let setup = setups.into_iter().nth(closest)?;
    let placement = placement::isolated(problem, &setup)?;
    Some((setup, placement))
}

/// Qualities of answers, and what was expected of them.
fn columns(sample: &Sample) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let expected = |p: &SamplePrompt| p.expected.iter().map(|estimate| estimate.quality).collect();
    sample.prompts.iter().map(|p| (p.quality.clone(), expected(p))).unzip()
}

/// Who overloads a fleet waits for as long as it takes; so much is never needed.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

/// What becomes of the checking half's prompts on a setup, all of them answered: nobody gives up waiting. Requests come for `course`
/// at Poisson's times, and every rule gets the same ones.
///
/// # Errors
/// The setup cannot be deployed.
pub fn simulated(
    checking: &Checking<'_>,
    course: Duration,
    deployment: &Deployment<'_>,
    rule: &Rule<'_>,
    rate: f64,
) -> Result<Vec<Outcome>> {
    let none = vec![0.0; checking.problem.models.len()];
    let (prices, contender) = match rule {
        Rule::Prices(prices) => (*prices, Contender::Ours),
        Rule::Contender(contender) => (&none[..], contender.clone()),
    };
    let Deployment { setup, placement } = *deployment;
    let deployed = check::deploy(checking.problem, checking.sizes, setup, placement, prices)?;
    let contender = of_fleet(contender, &deployed.models)?;
    let templates = check::templates(checking, &deployed.models);
    let times = Arrivals::Poisson { rate }.times(course, checking.seed);
    let workload = Workload::in_passes(templates, &times, 0, checking.seed);
    let options = Options {
        sharing: deployed.sharing.clone(),
        keep_decisions: false,
        per_try_idle: Some(PATIENCE),
        seed: checking.seed,
        ..Options::default()
    };
    let router = Router::new(deployed.config, None);
    let mut simulation = Simulation::deciding_by(contender, &router, &workload, &[], options);
    simulation.finish(PATIENCE);
    let of_problem = |mut outcome: Outcome| {
        let model = |m: ModelId| deployed.models.get(m.index()).copied().map_or(m, ModelId::new);
        outcome.model = outcome.model.map(model);
        outcome.turned_down.iter_mut().for_each(|answer| answer.model = model(answer.model));
        outcome
    };
    Ok(simulation.into_outcomes().into_iter().map(of_problem).collect())
}

/// A contender that names models as a fleet of all of the problem's would have them, for a fleet that has only some of them.
fn of_fleet(contender: Contender, deployed: &[usize]) -> Result<Contender> {
    let place = |model: &ModelId| {
        let place = deployed.iter().position(|m| *m == model.index()).map(ModelId::new);
        place.with_context(|| format!("model {} is not deployed", model.index()))
    };
    Ok(match contender {
        Contender::Pipeline { models: Some(models), dispatcher } => {
            Contender::Pipeline { models: Some(models.iter().map(place).collect::<Result<_>>()?), dispatcher }
        }
        Contender::Cascade(cascade) => {
            Contender::Cascade(Cascade { models: cascade.models.iter().map(place).collect::<Result<_>>()?, ..cascade })
        }
        other => other,
    })
}

#[cfg(test)]
mod tests;
