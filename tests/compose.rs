//! `docker-compose.yml` agrees with the configuration, and what its services run does run.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use routebalance_cli::envoy_binary::PINNED_VERSION;
use routebalance_cli::ports::free_ports;
use routebalance_cli::setup::package_root;
use routebalance_core::config::Config;
use serde_json::Value;

const CONFIGURATION: &str = "envoy/routebalance.json";

fn read(name: &str) -> String {
    fs::read_to_string(package_root().join(name)).unwrap_or_else(|problem| panic!("{name}: {problem}"))
}

fn compose() -> Value {
    serde_saphyr::from_str(&read("docker-compose.yml")).unwrap_or_else(|problem| panic!("{problem}"))
}

fn config() -> Config {
    Config::parse(read(CONFIGURATION).as_bytes()).unwrap()
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().expect("a string").to_owned()).collect()
}

/// The value after an option in a service's command.
fn option<'a>(command: &'a [String], name: &str) -> &'a str {
    let at = command.iter().position(|word| word == name).unwrap_or_else(|| panic!("{command:?} lacks {name}"));
    &command[at + 1]
}

/// The services that run instances, with their commands.
fn fleet_services(compose: &Value) -> Vec<(String, Vec<String>)> {
    let services = compose["services"].as_object().unwrap();
    let commands = services.iter().map(|(name, service)| (name.clone(), strings(&service["command"])));
    commands.filter(|(_, command)| command.first().is_some_and(|word| word == "fleet")).collect()
}

#[test]
fn every_pool_has_one_service_in_envoys_network() {
    let (compose, config) = (compose(), config());
    let services = fleet_services(&compose);
    let run: BTreeSet<&str> = services.iter().map(|(_, command)| option(command, "--pool")).collect();
    let pools: BTreeSet<&str> = config.fleet.pools.iter().map(|pool| pool.name.as_str()).collect();
    assert_eq!(run, pools);
    assert_eq!(services.len(), pools.len(), "a pool runs twice");
    for (name, command) in &services {
        assert_eq!(compose["services"][name]["network_mode"], "service:envoy", "{name}");
        assert_eq!(&command[1], CONFIGURATION, "{name}");
    }
    for instance in &config.fleet.instances {
        let address: std::net::SocketAddr = instance.address.parse().unwrap();
        assert!(address.ip().is_loopback(), "{address} is not inside the network that Envoy and the instances share");
    }
}

#[test]
fn envoy_is_the_tested_one_and_published() {
    let (compose, config) = (compose(), config());
    let (envoy, render) = (&compose["services"]["envoy"], strings(&compose["services"]["render"]["command"]));
    assert_eq!(envoy["image"], format!("envoyproxy/envoy:v{PINNED_VERSION}"));
    assert_eq!(option(&strings(&envoy["command"]), "--config-path"), option(&render, "--output"));
    let port = config.envoy.listen.port();
    assert_eq!(option(&render, "--listen"), format!("0.0.0.0:{port}"));
    assert_eq!(strings(&envoy["ports"]), [format!("127.0.0.1:{port}:{port}")]);
    assert!(config.envoy.admin.ip().is_loopback(), "the admin interface must stay inside");
}

/// Paths in commands and in the configuration are relative to `working_dir`, so each file must be mounted where it lies in the
/// repository.
#[test]
fn every_file_is_mounted_where_it_is_looked_for() {
    let (compose, config) = (compose(), config());
    let dockerfile = read("Dockerfile");
    let in_image = dockerfile.lines().filter_map(|line| line.strip_prefix("WORKDIR ")).next_back().unwrap();
    for (name, service) in compose["services"].as_object().unwrap() {
        let directory = service["working_dir"].as_str().unwrap_or(in_image);
        let mut mounted = Vec::new();
        for mount in service["volumes"].as_array().unwrap() {
            let source = mount["source"].as_str().unwrap();
            let target =
                mount["target"].as_str().unwrap().strip_prefix(directory).expect("below the working directory");
            let target = target.trim_start_matches('/');
            match mount["type"].as_str().unwrap() {
                "bind" => {
                    assert_eq!(source.strip_prefix("./"), Some(target), "{name}");
                    let exists = package_root().join(target).is_file();
                    assert!(exists || target == config.envoy.module, "{name}: {target} does not exist");
                    assert_eq!(mount["bind"]["create_host_path"], false, "{name}: {target}");
                }
                _ => assert!(compose["volumes"].as_object().unwrap().contains_key(source), "{name}: {source}"),
            }
            mounted.push(target.to_owned());
        }
        let mut wanted: Vec<String> = strings(&service["command"]).into_iter().filter(|w| w.contains('/')).collect();
        if name == "envoy" {
            wanted.push(config.envoy.module.clone());
        }
        for file in wanted {
            assert!(mounted.iter().any(|target| file.starts_with(target)), "{name}: {file} is not mounted");
        }
    }
}

#[test]
fn the_image_is_built_from_what_is_here_and_runs_as_a_user() {
    let (dockerfile, ignore) = (read("Dockerfile"), read(".dockerignore"));
    let mut copied = 0;
    for line in dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--"))
    {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.pop();
        for source in words {
            copied += 1;
            assert!(package_root().join(source).exists(), "COPY {source}");
            assert!(ignore.lines().any(|line| line == format!("!{source}")), ".dockerignore leaves {source} out");
        }
    }
    assert!(copied > 0);
    let user = dockerfile.lines().filter_map(|line| line.strip_prefix("USER ")).next_back();
    assert!(user.is_some_and(|user| user != "root" && user != "0"), "{user:?}");
}

/// Envoy's configuration in the container differs from the committed one in where it listens, and in nothing else.
#[test]
fn the_rendered_configuration_only_listens_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("envoy.yaml");
    let mut command = strings(&compose()["services"]["render"]["command"]);
    let at = command.iter().position(|word| word == "--output").unwrap();
    command[at + 1] = output.display().to_string();
    let status = routebalance().args(&command).status().unwrap();
    assert!(status.success(), "{command:?}");
    let (rendered, committed) = (fs::read_to_string(output).unwrap(), read("envoy/envoy.yaml"));
    assert_eq!(rendered.lines().count(), committed.lines().count());
    let differing: Vec<&str> =
        rendered.lines().zip(committed.lines()).filter(|(new, old)| new != old).map(|(new, _)| new.trim()).collect();
    assert!(
        matches!(differing.as_slice(), [listener, setting] if listener.contains("0.0.0.0") && setting.starts_with("\"listen\"")),
        "{differing:#?}"
    );
}

#[tokio::test]
async fn every_service_of_instances_answers() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("routebalance.json");
    let mut json: Value = serde_json::from_str(&read(CONFIGURATION)).unwrap();
    let pools = json["pools"].as_array_mut().unwrap().iter_mut();
    let addresses: Vec<&mut Value> = pools.flat_map(|pool| pool["instances"].as_array_mut().unwrap()).collect();
    let ports = free_ports(addresses.len()).unwrap();
    for (address, port) in addresses.into_iter().zip(&ports) {
        *address = port.address().to_string().into();
    }
    let config = Config::parse(json.to_string().as_bytes()).unwrap();
    fs::write(&file, json.to_string()).unwrap();
    drop(ports);

    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().unwrap();
    for (name, mut command) in fleet_services(&compose()) {
        command[1] = file.display().to_string();
        let mut process = routebalance().args(&command).stdout(Stdio::null()).spawn().map(Ended).unwrap();
        let pool = config.fleet.pools.iter().find(|pool| pool.name == option(&command, "--pool")).unwrap();
        for instance in pool.instances.iter().map(|i| &config.fleet.instances[i.index()]) {
            let url = format!("http://{}/v1/models", instance.address);
            let mut tries = 0;
            let page = loop {
                match http.get(&url).send().await {
                    Ok(response) => break response.text().await.unwrap(),
                    Err(_) if tries < 200 && process.0.try_wait().unwrap().is_none() => tries += 1,
                    Err(problem) => panic!("{name}: {problem}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            assert!(page.contains(&pool.served_model), "{name}: {page}");
        }
    }
}

#[test]
fn docker_accepts_the_file() {
    let compose = |arguments: &[&str]| {
        let mut command = Command::new("docker");
        command.arg("compose").args(arguments).current_dir(package_root()).stdin(Stdio::null());
        command.output().ok()
    };
    if !compose(&["version"]).is_some_and(|output| output.status.success()) {
        println!("skipped: there is no `docker compose` here");
        return;
    }
    let output = compose(&["config", "--quiet"]).expect("docker starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn routebalance() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_routebalance"));
    command.current_dir(package_root());
    command
}

/// A process that does not outlive its test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
