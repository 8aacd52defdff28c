//! `routebalance init URL...`: a first configuration, from what running servers say of themselves.
//!
//! | module | is |
//! |---|---|
//! | `place` | an argument to an address |
//! | `asking` | HTTP to a server that may answer anything |
//! | `listing` | its models and its KV cache |
//! | `grouping` | servers to pools |
//! | `naming`, `guess` | names, sizes, and what is believed of a model before it was measured |
//! | `measuring`, `fitting` | requests that measure a pool, and the profile that their times make |
//! | `draft` | the file |

mod asking;
mod draft;
mod fitting;
mod grouping;
mod guess;
mod listing;
mod measuring;
mod naming;
mod place;

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use futures::future::join_all;

use super::check;
use asking::Asker;
use draft::Draft;
use grouping::{Group, Server, groups};
use guess::Knowledge;
use place::Place;
use routebalance_core::config::Config;
use routebalance_core::fleet::ModelKind;
use routebalance_core::telemetry::parse_metrics;

/// Where a report of load is found, as in the configuration that is written.
const METRICS_PATH: &str = "/metrics";

/// Arguments of `routebalance init`.
#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Servers with OpenAI's API, `http://ip:port` each
    #[arg(required = true, value_name = "URL")]
    pub urls: Vec<String>,
    /// Where to write
    #[arg(long, default_value = "routebalance.json", value_name = "FILE")]
    pub output: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
    /// Measure one server of each pool with some 30 chat requests, a minute or less for most models
    #[arg(long)]
    pub measure: bool,
    /// A file with the servers' API key
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// How long a server may take for its list of models; a measured answer may take twelve times as long
    #[arg(long, default_value_t = 5_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub timeout_ms: u64,
}

/// Asks the servers and writes the file. What could not be learnt is said on standard error.
///
/// # Errors
/// No server can be used, the file is there, or it cannot be written.
pub async fn run(args: &InitArgs) -> Result<()> {
    let InitArgs { output, force, .. } = args;
    ensure!(*force || !output.exists(), "{} is there: name another --output, or say --force", output.display());
    let mut remarks = Vec::new();
    let drawn = draw(args, &mut remarks).await;
    remarks.iter().for_each(|remark| eprintln!("{}", printable(remark)));
    let json = drawn?;
    // Servers may say more than a configuration may hold, such as more instances than a fleet has.
    let config = Config::parse(json.as_bytes())
        .context("what the servers say makes no valid configuration, and nothing is written")?;
    write(output, &json, *force)?;
    let file = output.display();
    unknown_limits(&config, &json).iter().chain(&check::warnings(&config)).for_each(|remark| eprintln!("{remark}"));
    println!("{file}: {}", check::summary(&config));
    println!("Read it, then: routebalance render {file}");
    Ok(())
}

/// A sentence cites strangers, whose characters may be a terminal's commands.
fn printable(remark: &str) -> String {
    remark.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// The file's text; whatever it does not rest on what servers say becomes a sentence.
async fn draw(args: &InitArgs, remarks: &mut Vec<String>) -> Result<String> {
    let asker = Asker::new(Duration::from_millis(args.timeout_ms), args.api_key_file.as_deref())?;
    let knowledge = Knowledge::read()?;
    let mut servers = Vec::new();
    for (server, sentences) in join_all(args.urls.iter().map(|url| ask(&asker, url))).await {
        servers.extend(server);
        remarks.extend(sentences);
    }
    let groups = groups(&servers, remarks);
    if groups.is_empty() {
        bail!("none of the servers can be used, and nothing is written");
    }
    let mut draft = Draft::new(&groups, &knowledge, remarks)?;
    if args.measure {
        measure(&asker, &groups, &mut draft, remarks).await;
    } else {
        remarks.push("the profiles are guessed: --measure measures them".to_owned());
    }
    draft.json()
}

/// What a server says of itself, if it can be used; and what there is to say of it.
async fn ask(asker: &Asker, url: &str) -> (Option<Server>, Vec<String>) {
    let mut remarks = Vec::new();
    let address = match Place::parse(url) {
        Ok(place) => place.resolve(asker.limit).await,
        Err(problem) => Err(problem),
    };
    let address = match address {
        Ok((address, sentence)) => {
            remarks.extend(sentence);
            address
        }
        Err(problem) => return (None, vec![problem]),
    };
    let listed = asker.get(address, "/v1/models").await.and_then(|body| listing::read_models(&body));
    let models = match listed {
        Ok(models) => models,
        Err(problem) => {
            remarks.push(format!("{address} {problem}: it is left out"));
            return (None, remarks);
        }
    };
    let (kv_tokens, requests) = read_page(asker, address, &mut remarks).await;
    (Some(Server { address, models, kv_tokens, requests }), remarks)
}

/// KV tokens and requests that a metrics page shows.
async fn read_page(asker: &Asker, address: SocketAddr, remarks: &mut Vec<String>) -> (Option<u64>, Option<f64>) {
    let page = match asker.get(address, METRICS_PATH).await {
        Ok(page) => page,
        Err(problem) => {
            remarks.push(format!("{address} {problem}: its load will be reckoned from the gateway's own requests"));
            return (None, None);
        }
    };
    let (load, kv_tokens) = (parse_metrics(&page).load, listing::read_kv_tokens(&page));
    // An instance of vLLM with several engines has no gauges before its first request.
    if load.is_empty() && kv_tokens.is_none() {
        remarks.push(format!(
            "{address} has a page {METRICS_PATH} of no server that is known: its load will be reckoned from the gateway's own requests"
        ));
    }
    let requests = load.running.map(|running| running + load.waiting.unwrap_or(0.0));
    (kv_tokens, requests)
}

async fn measure(asker: &Asker, groups: &[Group], draft: &mut Draft, remarks: &mut Vec<String>) {
    for (group, pool) in groups.iter().zip(&mut draft.pools) {
        if pool.kind != ModelKind::Generate {
            remarks.push(format!("pool {} has no chat requests: its profile is guessed", pool.name));
            continue;
        }
        eprintln!("measuring pool {} ...", pool.name);
        match measuring::measure(asker, group, remarks).await {
            Some(measured) => pool.measured(&measured, remarks),
            None => remarks.push(format!("pool {} could not be measured: its profile is guessed", pool.name)),
        }
    }
}

/// A sentence for each pool whose file leaves limits to their defaults.
fn unknown_limits(config: &Config, json: &str) -> Vec<String> {
    let written: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let mut remarks = Vec::new();
    for (i, pool) in config.fleet.pools.iter().enumerate() {
        let limits = [
            ("max_running", u64::from(pool.limits.max_running)),
            ("kv_tokens", pool.limits.kv_tokens),
            ("max_model_len", u64::from(pool.limits.max_model_len)),
        ];
        let unknown = limits.iter().filter(|(field, _)| written["pools"][i]["limits"].get(field).is_none());
        let unknown: Vec<String> = unknown.map(|(field, value)| format!("{field} = {value}")).collect();
        if !unknown.is_empty() {
            let unknown = unknown.join(", ");
            remarks.push(format!("pool {} has default limits where no server says them: {unknown}", pool.name));
        }
    }
    remarks
}

fn write(file: &Path, json: &str, force: bool) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    // Whoever has made the file in the meantime keeps it.
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    let opened = options.open(file).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            anyhow::anyhow!("{} is there: name another --output, or say --force", file.display())
        }
        _ => anyhow::Error::new(e).context(format!("{} cannot be written", file.display())),
    });
    opened?.write_all(json.as_bytes()).with_context(|| format!("{} cannot be written", file.display()))
}

#[cfg(test)]
mod tests;
