//! `routebalance fleet`: the emulated instances of a configuration, on the addresses that it names, in one process.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::Args;

use routebalance_core::config::Config;
use routebalance_instance::network::Network;
use routebalance_instance::prompts::PromptSet;
use routebalance_instance::{self, InstanceOptions, RunningInstance, profile_from_config};

/// Arguments of `routebalance fleet`.
#[derive(Args, Clone, Debug)]
pub struct FleetArgs {
    /// The configuration
    #[arg(default_value = "envoy/routebalance.json")]
    pub file: PathBuf,
    /// Run this pool only; can be given several times
    #[arg(long, value_name = "NAME")]
    pub pool: Vec<String>,
    /// 2 is twice as fast as the real thing
    #[arg(long, default_value_t = 1.0)]
    pub time_scale: f64,
    /// Prompts whose answers have recorded lengths, one JSON object per line
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
}

/// Runs the instances until Ctrl-C.
///
/// # Errors
/// An unknown pool, an address that is taken.
pub async fn run(args: &FleetArgs, config: &Config, answers: Option<&Arc<PromptSet>>) -> Result<()> {
    let instances = start(config, &Network::Sockets, &args.pool, args.time_scale, answers).await?;
    for instance in &instances {
        println!("http://{}", instance.address());
    }
    tokio::signal::ctrl_c().await?;
    for instance in instances {
        instance.stop().await;
    }
    Ok(())
}

/// Starts the instances of the named pools, or of all pools if none is named, in the order of
/// [`routebalance_core::fleet::Fleet::instances`]; providers that have a name are left out.
///
/// # Errors
/// An unknown pool, an address that is taken.
pub async fn start(
    config: &Config,
    network: &Network,
    pools: &[String],
    time_scale: f64,
    answers: Option<&Arc<PromptSet>>,
) -> Result<Vec<RunningInstance>> {
    let names: Vec<&str> = config.fleet.pools.iter().map(|pool| pool.name.as_str()).collect();
    for wanted in pools {
        ensure!(names.contains(&wanted.as_str()), "there is no pool {wanted:?}, but {}", names.join(", "));
    }
    let mut running = Vec::new();
    for (id, instance) in config.fleet.instances_by_id() {
        let (_, pool) = config.fleet.pool_of(id).context("an instance without a pool")?;
        if !pools.is_empty() && !pools.contains(&pool.name) {
            continue;
        }
        let profile = profile_from_config(&config.fleet, &pool.name).context("a pool without a model")?;
        // A provider that has a name is somebody else's.
        let Ok(listen) = instance.address.parse() else {
            eprintln!("pool {} is at {}: it is not emulated", pool.name, instance.address);
            continue;
        };
        let adapters = config.fleet.model_of(pool).map(|model| model.adapters.clone()).unwrap_or_default();
        let options = InstanceOptions {
            network: network.clone(),
            listen,
            time_scale,
            adapters,
            answers: answers.cloned(),
            ..InstanceOptions::new(profile)
        };
        running.push(routebalance_instance::start(options).await?);
    }
    Ok(running)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::free_ports;

    /// The reference configuration with free ports.
    fn config() -> Config {
        let mut json: serde_json::Value =
            serde_json::from_str(include_str!("../../envoy/routebalance.json")).expect("JSON");
        let addresses: Vec<&mut serde_json::Value> = json["pools"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .flat_map(|pool| pool["instances"].as_array_mut().unwrap())
            .collect();
        let ports = free_ports(addresses.len()).unwrap();
        for (address, port) in addresses.into_iter().zip(&ports) {
            *address = port.address().to_string().into();
        }
        Config::parse(json.to_string().as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn the_named_pools_run_on_their_addresses() {
        let config = config();
        let (first, second) = (&config.fleet.pools[0], &config.fleet.pools[1]);
        for (pools, expected) in [
            (vec![second.name.clone()], second.instances.clone()),
            (
                vec![first.name.clone(), second.name.clone()],
                first.instances.iter().chain(&second.instances).copied().collect::<Vec<_>>(),
            ),
            (vec![], config.fleet.instances_by_id().map(|(id, _)| id).collect()),
        ] {
            let running = start(&config, &Network::Sockets, &pools, 1.0, None).await.unwrap();
            let addresses: Vec<String> = running.iter().map(|instance| instance.address().to_string()).collect();
            let wanted: Vec<&str> =
                expected.iter().map(|i| config.fleet.instances[i.index()].address.as_str()).collect();
            assert_eq!(addresses, wanted, "{pools:?}");
            for instance in running {
                instance.stop().await;
            }
        }
        let problem =
            start(&config, &Network::Sockets, &["nobody".to_owned()], 1.0, None).await.unwrap_err().to_string();
        assert!(problem.contains("nobody") && problem.contains(&first.name), "{problem}");
    }
}
