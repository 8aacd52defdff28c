//! `routebalance render --for PLATFORM`: what to apply where Envoy belongs to somebody else, from the same configuration.
//!
//! Every package carries the parts of the rendered Envoy configuration that are the filter's own, and leaves the rest of the listener to
//! whom it belongs: other hosts may use it.

mod envoy_gateway;
mod istio;
mod kubernetes;
mod parts;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use routebalance_core::config::{Config, Route};
use routebalance_core::fleet::{Credential, Metrics, Pool, SecretSource};
use serde_json::{Value, json};

use super::render::render_from;
use parts::Parts;

/// Where the gateway is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Platform {
    /// Envoy by itself, with a file
    Envoy,
    /// A gateway of Istio
    IstioGateway,
    /// The sidecars of Istio beside the clients
    IstioSidecar,
    /// Envoy Gateway
    EnvoyGateway,
    /// Envoy by itself, in Kubernetes
    Kubernetes,
}

/// The kind of object by which Istio loads the module where nobody holds headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum IstioExtension {
    /// `WasmPlugin`, for every version
    #[default]
    WasmPlugin,
    /// `TrafficExtension`, for 1.30 and later
    TrafficExtension,
}

/// How Envoy Gateway names listeners and routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum XdsNames {
    /// By namespace, Gateway and listener
    #[default]
    V1,
    /// By port, where the runtime flag `XDSNameSchemeV2` is on
    V2,
}

/// What a package needs to know besides the configuration.
#[derive(Args, Clone, Debug)]
pub struct PackageArgs {
    /// The module's OCI image, as a registry has it: see `routebalance image`
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Namespace of the objects
    #[arg(long, default_value = "default", value_name = "NAME")]
    pub namespace: String,
    /// Host by which clients call, on a gateway
    #[arg(long, default_value = "*", value_name = "HOST")]
    pub host: String,
    /// Port at which clients call [default: 80; 8800 for sidecars]
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Port at which the proxies of a gateway of Istio listen, where their Service maps it [default: --port]
    #[arg(long, value_name = "PORT")]
    pub target_port: Option<u16>,
    /// Labels of the proxies of Istio [default: istio=ingressgateway; all of the namespace for sidecars]
    #[arg(long, value_name = "NAME=VALUE")]
    pub selector: Vec<String>,
    /// How Istio loads the module where nobody holds headers
    #[arg(long, value_enum, default_value_t)]
    pub istio_extension: IstioExtension,
    /// How Envoy Gateway names things
    #[arg(long, value_enum, default_value_t)]
    pub xds_names: XdsNames,
    /// An InferencePool without a picker of its own, for a pool: the port and the labels of its pods
    #[arg(long, value_name = "POOL=PORT,LABEL=VALUE")]
    pub inference_pool: Vec<String>,
    /// Place of the filter among those of the listener, for Envoy Gateway: behind those that authenticate
    #[arg(long, default_value_t, value_name = "N")]
    pub position: usize,
}

impl PackageArgs {
    /// The module's image.
    fn image(&self) -> Result<&str> {
        self.image.as_deref().context("the package names the module's image: say `--image registry/name:tag`")
    }

    /// Labels of the proxies.
    fn selected(&self) -> Result<Value> {
        labels(self.selector.iter().map(String::as_str))
    }
}

/// Names of all objects begin so.
const NAME: &str = "routebalance";

/// What to apply: YAML documents, or a file of Envoy's.
///
/// # Errors
/// The configuration is refused, or does not fit the platform.
pub fn package(config: &Value, platform: Platform, args: &PackageArgs) -> Result<String> {
    package_from(config, "routebalance.json", platform, args)
}

/// The same, where a file of Envoy's names the file that it is rendered from.
///
/// # Errors
/// The configuration is refused, or does not fit the platform.
pub fn package_from(config: &Value, file_name: &str, platform: Platform, args: &PackageArgs) -> Result<String> {
    check(args)?;
    let adapted = adapted(config, platform)?;
    let plain = render_from(&adapted, file_name)?;
    if platform == Platform::Envoy {
        return Ok(plain);
    }
    let checked = Config::parse(serde_json::to_string(&adapted)?.as_bytes())?;
    if platform.is_shared() {
        unfit(&checked).map_or(Ok(()), |problem| bail!(problem))?;
    }
    let parts = || Parts::of(&plain, &checked);
    let mut objects = match platform {
        Platform::Envoy => Vec::new(),
        Platform::IstioGateway => istio::gateway(&parts()?, args)?,
        Platform::IstioSidecar => istio::sidecar(&parts()?, args)?,
        Platform::EnvoyGateway => envoy_gateway::objects(&parts()?, args)?,
        Platform::Kubernetes => return kubernetes::objects(&plain, &checked, args),
    };
    objects.extend(inference_pools(&checked, args)?);
    let head = format!(
        "# Rendered by `routebalance render --for {}`. Edit the configuration and render again.\n",
        platform.name()
    );
    let documents: Vec<String> = objects.iter().map(serde_saphyr::to_string).collect::<Result<_, _>>()?;
    Ok(head + &documents.join("---\n"))
}

impl Platform {
    /// Its name on the command line.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Where the admin listener of its proxies listens.
    fn admin(self) -> Option<&'static str> {
        match self {
            Platform::Envoy => None,
            Platform::IstioGateway | Platform::IstioSidecar => Some("127.0.0.1:15000"),
            Platform::EnvoyGateway => Some("127.0.0.1:19000"),
            Platform::Kubernetes => Some("127.0.0.1:9901"),
        }
    }

    /// Whether other hosts use the listener.
    fn is_shared(self) -> bool {
        matches!(self, Platform::IstioGateway | Platform::IstioSidecar | Platform::EnvoyGateway)
    }

    /// Where its proxies have the module as a file.
    fn module(self) -> Option<&'static str> {
        matches!(self, Platform::EnvoyGateway | Platform::Kubernetes).then_some("/routebalance/plugin.wasm")
    }
}

/// The configuration with what the platform knows better.
fn adapted(config: &Value, platform: Platform) -> Result<Value> {
    let mut config = config.clone();
    if !config.is_object() {
        bail!("the configuration is no object");
    }
    if platform.is_shared() {
        config["only_marked_routes"] = true.into();
    }
    let mut set = |field: &str, value: Option<&str>| {
        if let Some(value) = value {
            config["envoy"][field] = value.into();
        }
    };
    set("admin", platform.admin());
    set("module", platform.module());
    if platform == Platform::Kubernetes {
        set("listen", Some("0.0.0.0:10000"));
        set("access_log", Some("/dev/stdout"));
    }
    Ok(config)
}

/// What of a configuration a package for a mesh cannot carry, as a sentence.
fn unfit(config: &Config) -> Option<String> {
    let is_file = |credential: &Credential| matches!(credential.secret, SecretSource::File(_));
    let of_pool = |(i, pool): (usize, &Pool)| {
        let has_token = matches!(&pool.metrics, Metrics::Apart(place) if place.bearer_token_file.is_some());
        let (field, advice) = if pool.upstream.credential.as_ref().is_some_and(is_file) {
            ("credential.file", "a package brings no secrets: say sds_file and sds_name")
        } else if has_token {
            ("metrics.bearer_token_file", "a package brings no secrets")
        } else if pool.discovered && pool.upstream.tls.is_some() {
            (
                "tls",
                "the cluster is the platform's: say it there (Istio: DestinationRule; Envoy Gateway: BackendTLSPolicy)",
            )
        } else {
            return None;
        };
        Some(format!("configuration field pools[{i}].{field}: {advice}"))
    };
    let of_route = |(i, _): (usize, &Route)| {
        format!("configuration field routes[{i}].hosts: a package has one virtual host, that of `--host`")
    };
    let pools = config.fleet.pools.iter().enumerate().find_map(of_pool);
    pools.or_else(|| config.routes.iter().enumerate().find(|(_, route)| !route.hosts.is_empty()).map(of_route))
}

/// Pools as the Gateway API Inference Extension has them (`inference.networking.k8s.io/v1`,
/// <https://gateway-api-inference-extension.sigs.k8s.io/reference/spec/>). The filter picks the endpoint, so none of them names a picker,
/// which may be left out since version 1.5.
fn inference_pools(config: &Config, args: &PackageArgs) -> Result<Vec<Value>> {
    let pool = |given: &String| {
        let (name, rest) = given.split_once('=').with_context(|| format!("`{given}` is no POOL=PORT,LABEL=VALUE"))?;
        let is_known = config.fleet.pools.iter().any(|pool| pool.name == name);
        ensure!(is_known, "the configuration has no pool `{name}`");
        let mut parts = rest.split(',');
        let port: u16 = parts.next().unwrap_or_default().parse().with_context(|| format!("`{given}` has no port"))?;
        let labels = labels(parts)?;
        ensure!(labels.as_object().is_some_and(|labels| !labels.is_empty()), "`{given}` has no label");
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
        let spec = json!({"selector": {"matchLabels": labels}, "targetPorts": [{"number": port}]});
        Ok(object("inference.networking.k8s.io/v1", "InferencePool", &name, args, spec))
    };
    args.inference_pool.iter().map(pool).collect()
}

/// Labels as an object.
fn labels<'a>(given: impl Iterator<Item = &'a str>) -> Result<Value> {
    let pairs = given.map(|label| {
        let (name, value) = label.split_once('=').with_context(|| format!("`{label}` is no NAME=VALUE"))?;
        Ok((name.to_owned(), Value::from(value)))
    });
    Ok(Value::Object(pairs.collect::<Result<_>>()?))
}

/// What is wrong with names would be found by the cluster only.
fn check(args: &PackageArgs) -> Result<()> {
    let is_label = |text: &str| {
        let is_middle = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !text.is_empty()
            && text.len() <= 63
            && text.chars().all(is_middle)
            && !text.starts_with('-')
            && !text.ends_with('-')
    };
    ensure!(is_label(&args.namespace), "`{}` is no name of a namespace", args.namespace);
    let host = args.host.strip_prefix("*.").unwrap_or(&args.host);
    ensure!(args.host == "*" || host.split('.').all(is_label), "`{}` is no name of a host", args.host);
    ensure!(![args.port, args.target_port].contains(&Some(0)), "the port 0 is none");
    if let Some(image) = &args.image {
        ensure!(!image.contains("://"), "the image `{image}` is named without a scheme");
        ensure!(image.contains('/') && !image.contains(char::is_whitespace), "`{image}` is no image of a registry");
    }
    Ok(())
}

/// An object of Kubernetes.
fn object(api_version: &str, kind: &str, name: &str, args: &PackageArgs, spec: Value) -> Value {
    json!({
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {"name": name, "namespace": args.namespace},
        "spec": spec,
    })
}

#[cfg(test)]
mod tests;
