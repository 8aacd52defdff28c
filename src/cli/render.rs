//! `routebalance render`: the Envoy configuration that belongs to a `routebalance.json`.
//!
//! Envoy takes a plugin's configuration inline, so the file is rendered, never edited; a test fails when the committed one
//! differs. Text rather than a YAML library, because people read it: each setting that matters says why.

mod behind;
mod clusters;
mod guards;
pub mod listener;
mod rewriting;
mod routes;

pub(crate) use behind::buffer_limit;

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use routebalance_core::config::{Config, EnvoySettings, FailurePolicy};
use routebalance_core::discovery;
use routebalance_core::fleet::{Pool, SecretSource};
use routebalance_core::names;

/// Renders `envoy.yaml`.
///
/// # Errors
/// The configuration is refused.
pub fn render(config: &serde_json::Value) -> anyhow::Result<String> {
    render_from(config, "routebalance.json")
}

/// Renders `envoy.yaml`, whose head names the file that it is rendered from.
///
/// # Errors
/// The configuration is refused.
pub fn render_from(config: &serde_json::Value, file_name: &str) -> anyhow::Result<String> {
    let json = serde_json::to_string_pretty(config)?;
    let checked = Config::parse(json.as_bytes())?;
    let mut yaml = String::new();
    head(&mut yaml, &checked, file_name);
    yaml.push_str(&guards::local_replies(&checked));
    yaml.push_str("          http_filters:\n");
    yaml.push_str(&guards::decompressors(&checked));
    wasm_filter(&mut yaml, &checked.envoy, &json);
    if checked.envoy.headers_go_on {
        yaml.push_str(&indented(&behind::filters(&checked), 10));
    }
    yaml.push_str(ROUTER_FILTER);
    routes::routes(&mut yaml, &checked)?;
    yaml.push_str("  clusters:\n");
    for pool in &checked.fleet.pools {
        clusters::cluster(&mut yaml, &checked, pool)?;
    }
    if let Some(discovery) = &checked.discovery {
        admin_cluster(&mut yaml, &checked, discovery)?;
    }
    clusters::secrets(&mut yaml, &checked)?;
    Ok(yaml)
}

/// A YAML scalar in double quotes; JSON strings are a subset of them.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Whether Envoy asks for a node's name: where endpoints or secrets come from a service, be it a file.
fn needs_node(config: &Config) -> bool {
    let asks = |pool: &Pool| {
        let secret = pool.upstream.credential.as_ref().map(|credential| &credential.secret);
        pool.reads_endpoints() || matches!(secret, Some(SecretSource::Sds { .. }))
    };
    config.fleet.pools.iter().any(asks)
}

fn head(yaml: &mut String, config: &Config, file_name: &str) {
    // A comment has one line.
    let file_name = file_name.replace(char::is_control, "?");
    let envoy = &config.envoy;
    let (admin_ip, admin_port) = (envoy.admin.ip(), envoy.admin.port());
    let (ip, port) = (envoy.listen.ip(), envoy.listen.port());
    let access_log = quoted(&envoy.access_log);
    let connection_buffer = envoy.connection_buffer_bytes;
    let request_timeout = seconds(envoy.request_timeout);
    let (guards, encoding) = (guards::overload_manager(config), guards::remembered_encoding());
    let decision = names::DECISION_STATE;
    let node = if needs_node(config) { "node: { id: routebalance, cluster: routebalance }\n" } else { "" };
    let (pool_header, endpoint_header) = (names::POOL_HEADER, names::ENDPOINT_HEADER);
    yaml.push_str(&format!(
        r#"# Rendered from {file_name} by `cargo run --release -- render`. Edit that file and render again.
{node}admin:
  address:
    socket_address: {{ address: "{admin_ip}", port_value: {admin_port} }}
  ignore_global_conn_limit: true
{guards}static_resources:
  listeners:
  - name: routebalance
    address:
      socket_address: {{ address: "{ip}", port_value: {port} }}
    # The largest piece of a body that Envoy reads at once. Packed bodies are unpacked piece by piece.
    per_connection_buffer_limit_bytes: {connection_buffer}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: routebalance
          normalize_path: true
          # Instances learn whose request it is from the connection, and not from what the client says alone.
          use_remote_address: true
          preserve_external_request_id: true
          # nginx speaks HTTP/1.0 to its upstreams unless told otherwise, and so do many health checks.
          http_protocol_options: {{ accept_http_10: true, default_host_for_http_10: "routebalance" }}
          # vLLM has WebSocket endpoints: instances answer upgrades themselves.
          upgrade_configs:
          - upgrade_type: websocket
          request_headers_timeout: 10s
          # A request must arrive within this time; its answer may take longer.
          request_timeout: {request_timeout}
          # More requests at once come on further connections.
          http2_protocol_options:
            max_concurrent_streams: 256
            initial_stream_window_size: 1048576
            initial_connection_window_size: 16777216
          # The log has it, so clients must learn it.
          always_set_request_id_in_response: true
          # A generation may be silent for long, but not for ever.
          stream_idle_timeout: 600s
          # Clients cannot choose a cluster or an endpoint, also while the filter is bypassed.
          early_header_mutation_extensions:
          - name: envoy.http.early_header_mutation.header_mutation
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation
              mutations:
              - remove: {pool_header}
              - remove: {endpoint_header}
{encoding}          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: {access_log}
              log_format:
                # The filter's fields end the line, with their comma; nothing stands there if the filter was bypassed.
                omit_empty_values: true
                text_format_source:
                  inline_string: '{{"time":"%START_TIME%","method":"%REQ(:METHOD)%","status":%RESPONSE_CODE%,"flags":"%RESPONSE_FLAGS%","duration_ms":%DURATION%,"attempts":%UPSTREAM_REQUEST_ATTEMPT_COUNT%,"upstream":"%UPSTREAM_HOST%"%FILTER_STATE(wasm.{decision}:PLAIN)%}}

                    '
"#
    ));
}

fn wasm_filter(yaml: &mut String, envoy: &EnvoySettings, json: &str) {
    yaml.push_str("          - name: routebalance\n            typed_config:\n");
    yaml.push_str(&indented(&plugin(envoy, None), 14));
    yaml.push_str(
        r#"                configuration:
                  "@type": type.googleapis.com/google.protobuf.StringValue
                  value: |
"#,
    );
    yaml.push_str(&indented(json, 20));
}

/// The plugin in its VM, up to its configuration: the same VM for all of its root contexts.
fn plugin(envoy: &EnvoySettings, root_id: Option<&str>) -> String {
    let failure_policy = match envoy.failure_policy {
        FailurePolicy::Reload => "FAIL_RELOAD",
        FailurePolicy::Open => "FAIL_OPEN",
    };
    let module = quoted(&envoy.module);
    // Other instances of the module never pause at the headers.
    let flag = if envoy.headers_go_on || root_id.is_some() {
        ""
    } else {
        "\n  # Without it a pause at the headers also stops the body.\n  allow_on_headers_stop_iteration: true"
    };
    let root_id = root_id.map(|id| format!("\n  root_id: {id}")).unwrap_or_default();
    format!(
        r#""@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
config:
  name: routebalance{root_id}{flag}
  failure_policy: {failure_policy}
  vm_config:
    # Workers share data by this id.
    vm_id: routebalance
    runtime: envoy.wasm.runtime.v8
    code:
      local: {{ filename: {module} }}
"#
    )
}

/// Every line of a text, so many spaces further right.
fn indented(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{:by$}{line}\n", "")).collect()
}

const ROUTER_FILTER: &str = r#"          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"#;

/// Most bytes of a body in Envoy: the filter lets a body go when it has as many as the configuration says, and Envoy's own limit must
/// leave room for one more piece.
pub(crate) fn body_limit(config: &Config) -> u64 {
    config.max_buffered_bytes.saturating_add(config.envoy.connection_buffer_bytes.saturating_mul(2))
}

/// A duration as Envoy reads it.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

/// Where Envoy reads the endpoints of a discovered pool's cluster.
pub fn endpoints_file(directory: &str, cluster: &str) -> String {
    format!("{directory}/{cluster}.yaml")
}

/// The content of such a file: the endpoints of a cluster, each with Envoy's name of its health (`HEALTHY`, `DRAINING`, ...).
pub fn endpoints(cluster: &str, hosts: &[(SocketAddr, &str)]) -> String {
    let mut yaml = format!(
        r#"resources:
- "@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
  cluster_name: {}
  endpoints:
  - lb_endpoints:
"#,
        quoted(cluster)
    );
    for (address, health) in hosts {
        let (ip, port) = (address.ip(), address.port());
        yaml.push_str(&format!(
            r#"    - endpoint: {{ address: {{ socket_address: {{ address: "{ip}", port_value: {port} }} }} }}
      health_status: {health}
"#
        ));
    }
    if hosts.is_empty() {
        yaml.push_str("    []\n");
    }
    yaml
}

/// Envoy's own admin listener, where the filter reads which hosts the clusters have.
fn admin_cluster(yaml: &mut String, config: &Config, discovery: &discovery::DiscoverySettings) -> anyhow::Result<()> {
    let name = quoted(&discovery.cluster);
    let (ip, port) = (config.envoy.admin.ip(), config.envoy.admin.port());
    write!(
        yaml,
        r#"  - name: {name}
    type: STATIC
    connect_timeout: 1s
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: "{ip}", port_value: {port} }} }} }}
"#
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_envoy_yaml_is_the_rendered_one() {
        let json = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
        let committed = include_str!("../../envoy/envoy.yaml");
        assert!(
            render(&json).unwrap() == committed,
            "envoy/envoy.yaml is not what envoy/routebalance.json renders to: run `cargo run --release -- render`"
        );
    }

    #[test]
    fn a_discovered_pool_reads_its_endpoints_from_a_file_and_the_filter_asks_the_admin_listener() {
        let mut json: serde_json::Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
        let listed = render(&json).unwrap();
        assert!(!listed.contains("type: EDS") && !listed.contains("routebalance-admin") && !listed.contains("node:"));
        json["pools"][1]["instances"] = "discover".into();
        let yaml = render(&json).unwrap();
        for part in [
            "node: { id:",
            r#"path_config_source: { path: "envoy/endpoints/pool-qwen2.5-7b.yaml" }"#,
            "- name: \"routebalance-admin\"\n    type: STATIC",
            r#"address: "127.0.0.1", port_value: 9901"#,
        ] {
            assert!(yaml.contains(part), "{part}");
        }
        assert_eq!((yaml.matches("type: EDS").count(), yaml.matches("port_value: 18011").count()), (1, 0));
        let hosts = [("[::1]:80".parse().unwrap(), "HEALTHY"), ("10.0.0.1:81".parse().unwrap(), "DRAINING")];
        let file = endpoints("a", &hosts);
        assert!(
            file.contains(r#"address: "::1", port_value: 80"#) && file.contains("health_status: DRAINING"),
            "{file}"
        );
        assert!(endpoints("a", &[]).contains("lb_endpoints:\n    []"));
    }

    #[test]
    fn a_wrong_configuration_is_not_rendered() {
        let error = render(&serde_json::json!({"models": []})).unwrap_err().to_string();
        assert!(error.contains("pools"), "{error}");
    }
}
