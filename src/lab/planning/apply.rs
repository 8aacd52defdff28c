//! A plan written into a configuration of the gateway: what its pools can hold, and a policy whose prices the gateway follows.

mod edit;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use jsonc_parser::ParseOptions;
use jsonc_parser::cst::{CstInputValue, CstObject, CstRootNode};

use self::edit::{Edits, number, object, text};
use super::planned::Planned;
use super::sweep::followed;
use routebalance_core::config::Config;
use routebalance_core::fleet::{ModelKind, OnlinePrices};
use routebalance_plan::device::{Device, ModelSize, kv_gb, limits};
use routebalance_plan::problem::{Metric, Problem, Statistic};
use routebalance_plan::solution::{Plan, Routing};

/// What a request to a model costs that the plan does not deploy: scores are at most 1, so nobody pays it.
const CLOSED: f64 = 1.0;

/// Writes a plan into a configuration file, and says what has changed, a line each. Everything else in the file stays as it is.
///
/// # Errors
/// One sentence: there is no plan, the file has no pool of a planned model, or it would not pass `check` afterwards.
pub fn apply(file: &Path, policy: &str, planned: &Planned, sizes: &[Option<ModelSize>]) -> Result<Vec<String>> {
    let name = file.display();
    let before = std::fs::read_to_string(file).with_context(|| format!("{name} cannot be read"))?;
    let (after, changes) = applied(&before, policy, planned, sizes).with_context(|| name.to_string())?;
    std::fs::write(file, after).with_context(|| format!("{name} cannot be written"))?;
    Ok(changes)
}

/// [`apply`] on a text.
///
/// # Errors
/// As [`apply`].
pub fn applied(
    before: &str,
    policy: &str,
    planned: &Planned,
    sizes: &[Option<ModelSize>],
) -> Result<(String, Vec<String>)> {
    let plan = planned.choice().context("there is no plan to apply")?;
    let config = Config::parse(before.as_bytes())?;
    let options = ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        ..ParseOptions::default()
    };
    let root = CstRootNode::parse(before, &options).map_err(|problem| anyhow!("{problem}"))?;
    let whole = root.object_value().context("is no JSON object")?;
    let mut edits = Edits::default();
    for (m, model) in planned.problem.models.iter().enumerate() {
        ensure!(
            config.fleet.model_named(&model.name).is_some(),
            "models: none is named {:?}, which the plan is for; it has {}",
            model.name,
            config.fleet.models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ")
        );
        if plan.setup.0[m].replicas > 0 {
            write_pool(&whole, &config, &planned.problem, plan, m, sizes.get(m).copied().flatten(), &mut edits)?;
        }
    }
    write_policy(&whole, &config, policy, planned, plan, &mut edits)?;
    let after = root.to_string();
    Config::parse(after.as_bytes()).context("would not pass check with this plan")?;
    if !config.routes.iter().any(|route| config.policies[route.policy.index()].name == policy)
        && config.policies[config.default_policy.index()].name != policy
    {
        edits.note(format!("no route uses the policy {policy:?} yet: name it in routes[].policy or default_policy"));
    }
    Ok((after, edits.lines()))
}

/// What a model's pool can hold, and how fast it is.
fn write_pool(
    whole: &CstObject,
    config: &Config,
    problem: &Problem,
    plan: &Plan,
    m: usize,
    size: Option<ModelSize>,
    edits: &mut Edits,
) -> Result<()> {
    let name = &problem.models[m].name;
    let own =
        |pool: &&routebalance_core::fleet::Pool| config.fleet.model_of(pool).is_some_and(|model| model.name == *name);
    let pools: Vec<&routebalance_core::fleet::Pool> = config.fleet.pools.iter().filter(own).collect();
    let pool = match pools.as_slice() {
        [] => bail!("pools: none serves {name:?}, which the plan deploys"),
        [pool] => *pool,
        several => bail!(
            "pools: {} serve {name:?}, but a plan gives a model one way to be deployed",
            several.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>().join(" and ")
        ),
    };
    let choice = plan.setup.0[m];
    if !pool.discovered && pool.instances.len() != choice.replicas as usize {
        edits.note(format!(
            "pool {}: has {} instances where the plan has {} copies: its addresses are left alone",
            pool.name,
            pool.instances.len(),
            choice.replicas
        ));
    }
    let kind = &problem.kinds[choice.kind];
    let (Some(device), Some(size)) = (Device::named(&kind.name), size) else {
        edits.note(format!(
            "pool {}: profile and limits are left alone: {}",
            pool.name,
            if size.is_none() {
                format!("the plan file does not say layers, kv_bytes_per_token and max_model_len of {name}")
            } else {
                format!("there is no rule for the GPU {}", kind.name)
            }
        ));
        return Ok(());
    };
    let kv = copy_kv_gb(problem, plan, m);
    let limits = limits(&size, choice.tensor_parallel, kv);
    let profile = device.profile(&size, choice.tensor_parallel, choice.share_percent);
    let at = config.fleet.pools.iter().position(|other| other.name == pool.name).unwrap_or(0);
    let place = |part: &str| -> Result<CstObject> {
        let pools = whole.array_value("pools").context("pools is no list")?;
        let pool = pools.elements().get(at).and_then(|pool| pool.as_object()).context("a pool is no object")?;
        Ok(pool.object_value_or_set(part))
    };
    let what = format!("pool {}", pool.name);
    let written = place("limits")?;
    edits.set(&written, &format!("{what}: limits"), "max_running", number(f64::from(limits.max_running)));
    edits.set(&written, &format!("{what}: limits"), "kv_tokens", number(limits.kv_tokens as f64));
    edits.set(&written, &format!("{what}: limits"), "max_model_len", number(f64::from(limits.max_model_len)));
    let written = place("profile")?;
    for (field, value) in [
        ("tpot_ms", profile.tpot_ms),
        ("tpot_growth_per_running", profile.tpot_growth_per_running),
        ("tpot_growth_per_thousand_context_tokens", profile.tpot_growth_per_thousand_context_tokens),
        ("prefill_tokens_per_second", profile.prefill_tokens_per_second),
        ("overhead_ms", profile.overhead_ms),
    ] {
        edits.set(&written, &format!("{what}: profile"), field, number(value));
    }
    let source = format!(
        "planned: tensor parallel {}, {} % of {}; the rule of src/plan/device.rs, not measured",
        choice.tensor_parallel, choice.share_percent, kind.name
    );
    edits.set(&written, &format!("{what}: profile"), "source", text(&source));
    Ok(())
}

/// KV cache of a shard of the model's copies, GB: of shards with different neighbours the least.
fn copy_kv_gb(problem: &Problem, plan: &Plan, model: usize) -> f64 {
    let shard = |m: usize| {
        let choice = plan.setup.0[m];
        (problem.memory.shard_gb(&problem.models[m], choice.tensor_parallel), choice.share_percent)
    };
    let shards_on = |gpu: usize| -> Vec<(f64, u32)> {
        let count = |m: usize| plan.placement.gpus[m].iter().flatten().filter(|on| **on == gpu).count();
        (0..problem.models.len()).flat_map(|m| std::iter::repeat_n(m, count(m))).map(shard).collect()
    };
    let choice = plan.setup.0[model];
    let gpus = plan.placement.gpus[model].iter().flatten();
    let memory_gb = problem.kinds[choice.kind].memory_gb;
    gpus.map(|gpu| kv_gb(&problem.memory, memory_gb, &shards_on(*gpu), choice.share_percent))
        .fold(f64::INFINITY, f64::min)
}

/// The policy whose prices are the plan's; made if there is none of the name.
fn write_policy(
    whole: &CstObject,
    config: &Config,
    policy: &str,
    planned: &Planned,
    plan: &Plan,
    edits: &mut Edits,
) -> Result<()> {
    let problem = &planned.problem;
    let policies = whole.array_value("policies").context("policies is no list")?;
    let own = match config.policy_named(policy) {
        Some(at) => policies
            .elements()
            .get(at.index())
            .and_then(|policy| policy.as_object())
            .context("a policy is no object")?,
        None => {
            edits.note(format!("policy {policy}: new"));
            let weights = object([("quality", number(1.0)), ("latency", number(0.0)), ("cost", number(0.0))]);
            let new = object([("name", text(policy)), ("weights", weights)]);
            policies.append(new).as_object().context("the new policy is no object")?
        }
    };
    let what = format!("policy {policy}");
    edits.set(&own, &what, "objective", text("prices"));
    // For a gateway whose shared data cannot be used: its levels say the rest.
    let highest =
        plan.routings.iter().max_by(|a, b| a.rate.total_cmp(&b.rate)).context("the plan has no level of demand")?;
    edits.set(&own, &what, "prices", prices(config, problem, plan, highest));
    let levels = followed(problem, plan, &planned.at_demand);
    let level = |routing: &Routing| {
        let shares = problem.models.iter().zip(&routing.fractions);
        object([
            ("requests_per_second", number(routing.rate)),
            ("prices", prices(config, problem, plan, routing)),
            ("fractions", CstInputValue::Object(shares.map(|(m, share)| (m.name.clone(), number(*share))).collect())),
        ])
    };
    edits.set(&own, &what, "demand_levels", CstInputValue::Array(levels.iter().map(level).collect()));
    let ttft = problem.limits.iter().find(|limit| (limit.metric, limit.statistic) == (Metric::Ttft, Statistic::Mean));
    match ttft {
        Some(limit) => {
            let online = object([
                ("ttft_ms", number(limit.milliseconds)),
                ("max_correction", number(OnlinePrices::MAX_CORRECTION)),
                ("seconds", number(OnlinePrices::SECONDS)),
            ]);
            edits.set(&own, &what, "online_prices", online);
        }
        None => {
            if let Some(old) = own.get("online_prices") {
                old.remove();
            }
            edits.note(format!(
                "{what}: prices follow the rate alone: the plan has no limit mean_ttft_ms to hold them to"
            ));
        }
    }
    Ok(())
}

/// A price for every generating model of the configuration.
fn prices(config: &Config, problem: &Problem, plan: &Plan, routing: &Routing) -> CstInputValue {
    let generating = config.fleet.models.iter().filter(|model| model.kind == ModelKind::Generate);
    let price = |model: &routebalance_core::fleet::Model| {
        let planned = problem.models.iter().position(|planned| planned.name == model.name);
        let deployed = planned.filter(|m| plan.setup.0[*m].replicas > 0);
        let price = deployed.map_or(CLOSED, |m| routing.prices[m].clamp(0.0, CLOSED));
        (model.name.clone(), number(price))
    };
    CstInputValue::Object(generating.map(price).collect())
}
