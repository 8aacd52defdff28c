//! A whole gateway on loopback: the emulated fleet of a configuration and an Envoy in front of it, on ports of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::envoy::{Envoy, EnvoyOptions};
use super::fleet;
use super::ports::{HeldPort, free_ports};
use super::render::{endpoints, endpoints_file, render};
use routebalance_core::config::Config;
use routebalance_core::fleet::Pool;
use routebalance_instance::RunningInstance;
use routebalance_instance::network::Network;
use routebalance_instance::prompts::PromptSet;

/// Compiling the module takes Envoy seconds, and longer on a machine that is busy with a build.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(120);

/// What to start.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// `routebalance.json`; its addresses, module and access log are replaced.
    pub config: Value,
    /// The module.
    pub module: PathBuf,
    /// Envoy's executable.
    pub envoy: PathBuf,
    /// Envoy's worker threads.
    pub workers: u32,
    /// Pools whose instances the filter reads from Envoy, which has them from a file: [`Gateway::set_endpoints`].
    pub discovered: Vec<String>,
    /// Envoy's `--log-level`.
    pub log_level: String,
    /// How much faster than real time the instances work.
    pub time_scale: f64,
    /// Prompts whose answers have known lengths.
    pub answers: Option<Arc<PromptSet>>,
    /// Changes the rendered Envoy configuration, as its operator may.
    pub edit: Option<fn(&str) -> String>,
}

/// A running gateway; dropping it frees every port, process and file.
#[derive(Debug)]
pub struct Gateway {
    // Dropped in this order: Envoy first, so that it meets no closed instance.
    envoy: Envoy,
    instances: Vec<RunningInstance>,
    config: Config,
    envoy_options: EnvoyOptions,
    run_dir: TempDir,
}

impl Gateway {
    /// Starts every instance of the configuration, renders the configuration and starts Envoy with it.
    pub async fn start(options: GatewayOptions) -> Result<Self> {
        let run_dir =
            tempfile::Builder::new().prefix("routebalance-").tempdir().context("no directory for temporary files")?;
        let mut json = options.config;
        let ports = relocate(&mut json)?;
        set(&mut json, "module", options.module.display().to_string())?;
        set(&mut json, "access_log", run_dir.path().join("access.log").display().to_string())?;
        let config = Config::parse(json.to_string().as_bytes())?;
        discover(&mut json, &config, &options.discovered, run_dir.path())?;
        let rendered = render(&json)?;
        let yaml = options.edit.map_or_else(|| rendered.clone(), |edit| edit(&rendered));
        // From here on everyone binds the port it was given.
        drop(ports);
        let instances =
            fleet::start(&config, &Network::Sockets, &[], options.time_scale, options.answers.as_ref()).await?;
        let envoy_options = EnvoyOptions {
            binary: options.envoy,
            config: yaml,
            listen: config.envoy.listen,
            admin: config.envoy.admin,
            workers: options.workers,
            log_level: options.log_level,
            ready_within: READY_WITHIN,
        };
        let envoy = Envoy::start(&envoy_options, run_dir.path()).await?;
        Ok(Self { envoy, instances, config, envoy_options, run_dir })
    }

    /// Kills Envoy (SIGKILL) and starts it again; the instances live on.
    pub async fn restart_envoy(&mut self) -> Result<()> {
        self.envoy.kill();
        self.envoy = Envoy::start(&self.envoy_options, self.run_dir.path()).await?;
        Ok(())
    }

    /// Envoy.
    pub fn envoy(&self) -> &Envoy {
        &self.envoy
    }

    /// The instances, in the order of [`routebalance_core::fleet::Fleet::instances`].
    pub fn instances(&self) -> &[RunningInstance] {
        &self.instances
    }

    /// Tells Envoy which endpoints a discovered pool's cluster has from now on, each with Envoy's name of its health.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_endpoints(&self, pool: &Pool, hosts: &[(SocketAddr, &str)]) -> Result<()> {
        write_endpoints(self.run_dir.path(), &pool.cluster, hosts)
    }

    /// The configuration with the addresses in use, also those of pools that are discovered.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The URL of a path behind a route's prefix.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.envoy.address())
    }

    /// Envoy's access log so far: one JSON line per request.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.run_dir.path().join("access.log")).unwrap_or_default()
    }
}

/// Gives Envoy and every instance a free loopback port, held until it is dropped.
fn relocate(config: &mut Value) -> Result<Vec<HeldPort>> {
    let pools = config.get_mut("pools").and_then(Value::as_array_mut).context("the configuration has no pools")?;
    let addresses: Vec<&mut Value> =
        pools.iter_mut().filter_map(|pool| pool.get_mut("instances")?.as_array_mut()).flatten().collect();
    let ports = free_ports(addresses.len() + 2)?;
    let mut free = ports.iter().map(|port| port.address().to_string());
    for (address, port) in addresses.into_iter().zip(free.by_ref()) {
        *address = port.into();
    }
    for (field, port) in ["listen", "admin"].into_iter().zip(free) {
        set(config, field, port)?;
    }
    Ok(ports)
}

/// Makes the filter read the instances of some pools from Envoy, and Envoy read them from files.
fn discover(json: &mut Value, listed: &Config, pools: &[String], directory: &Path) -> Result<()> {
    for name in pools {
        let index = listed.fleet.pools.iter().position(|p| p.name == *name).context("no such pool to discover")?;
        let pool = listed.fleet.pools.get(index).context("no such pool to discover")?;
        let instances = pool.instances.iter().filter_map(|i| listed.fleet.instance(*i));
        let hosts: Vec<(SocketAddr, &str)> =
            instances.map(|i| Ok((i.address.parse()?, "HEALTHY"))).collect::<Result<_>>()?;
        write_endpoints(directory, &pool.cluster, &hosts)?;
        let written = json.get_mut("pools").and_then(|pools| pools.get_mut(index)?.get_mut("instances"));
        *written.context("the pool lists no instances")? = "discover".into();
    }
    set(json, "endpoints_dir", directory.display().to_string())
}

/// Envoy looks at a file when another is renamed to it.
fn write_endpoints(directory: &Path, cluster: &str, hosts: &[(SocketAddr, &str)]) -> Result<()> {
    let file = endpoints_file(&directory.display().to_string(), cluster);
    let new = format!("{file}.new");
    std::fs::write(&new, endpoints(cluster, hosts)).with_context(|| format!("{new} cannot be written"))?;
    std::fs::rename(&new, &file).with_context(|| format!("{file} cannot be replaced"))
}

pub(super) fn set(config: &mut Value, field: &str, value: String) -> Result<()> {
    let settings =
        config.get_mut("envoy").and_then(Value::as_object_mut).context("the configuration has no envoy section")?;
    settings.insert(field.to_owned(), value.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_address_is_replaced_by_a_held_port() {
        let mut config = json!({
            "pools": [{"instances": ["10.0.0.1:1", "10.0.0.2:1"]}, {"instances": ["10.0.0.3:1"]}],
            "envoy": {"listen": "0.0.0.0:80", "admin": "127.0.0.1:9901", "module": "m"},
        });
        let ports = relocate(&mut config).unwrap();
        let text = config.to_string();
        let used: BTreeSet<String> = ports.iter().map(|p| p.address().to_string()).collect();
        assert_eq!(used.len(), 5);
        assert!(used.iter().all(|address| text.contains(&format!("{address:?}"))), "{text}");
        assert!(["10.0.0", "0.0.0.0", "9901"].iter().all(|old| !text.contains(old)), "{text}");
        assert_eq!(config["envoy"]["module"], "m");
    }
}
