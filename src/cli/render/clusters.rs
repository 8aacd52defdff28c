//! The clusters of pools: how Envoy reaches their instances, and what it does with requests on the way.

use std::fmt::Write;
use std::net::SocketAddr;

use routebalance_core::config::{Config, EnvoySettings};
use routebalance_core::fleet::{
    Credential, Fleet, Metrics, MetricsPlace, Pool, PoolKind, SecretSource, Upstream, UpstreamTls,
};
use routebalance_core::names;

use super::{endpoints_file, indented, plugin, quoted};

/// A pool's cluster, and the one of its metrics where that is another.
pub(super) fn cluster(yaml: &mut String, config: &Config, pool: &Pool) -> anyhow::Result<()> {
    let name = quoted(&pool.cluster);
    let header = names::ENDPOINT_HEADER;
    let hosted = pool.kind == PoolKind::Hosted;
    let source = match (pool.upstream.names.is_empty(), hosted) {
        // A provider's name stands for servers without number, of which each connection takes one.
        (false, true) => "LOGICAL_DNS",
        (false, false) => "STRICT_DNS",
        (true, _) if pool.reads_endpoints() => "EDS",
        (true, _) => "STATIC",
    };
    let filters = http_filters(config, pool);
    let connect_timeout = if hosted { "5s" } else { "1s" };
    let idle_timeout = if hosted {
        "# A handshake costs more than an idle connection.\n        common_http_protocol_options: { idle_timeout: 30s }"
    } else {
        "# vLLM closes idle connections after 5 s: a request must not race with that.\n        common_http_protocol_options: { idle_timeout: 4s }"
    };
    let resolution = if pool.upstream.names.is_empty() { "" } else { DNS };
    write!(
        yaml,
        r#"  - name: {name}
    type: {source}
    connect_timeout: {connect_timeout}
{resolution}    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        {idle_timeout}
        explicit_http_config:
          http_protocol_options: {{}}
{filters}    # The filter and the instances' own queues bound the load, not Envoy's defaults of 1,024.
    circuit_breakers:
      thresholds:
      - {{ max_connections: 65536, max_pending_requests: 65536, max_requests: 65536, max_retries: 1024 }}
    # Nobody is ejected here: Envoy cannot tell a request that provokes errors from an instance that is ill. The filter can.
    # Exactly the endpoint that the filter named, then its fall-backs; least request where nobody has chosen.
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: envoy.load_balancing_policies.override_host
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost
            override_host_sources:
            - header: {header}
            fallback_policy:
              policies:
              - typed_extension_config:
                  name: envoy.load_balancing_policies.least_request
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest
"#
    )?;
    if let Some(tls) = &pool.upstream.tls {
        let hosts_own = pool.upstream.names.first().map(|(name, _)| name.as_str()).filter(|_| hosted);
        yaml.push_str(&transport(tls, tls.sni.as_deref().or(hosts_own)));
    }
    hosts(yaml, config, pool)?;
    match &pool.metrics {
        Metrics::Apart(place) if place.needs_own_cluster() => metrics(yaml, pool, place),
        Metrics::Apart(_) | Metrics::Shared | Metrics::Off => Ok(()),
    }
}

/// Where a cluster has its hosts from.
fn hosts(yaml: &mut String, config: &Config, pool: &Pool) -> anyhow::Result<()> {
    if pool.reads_endpoints() {
        let path = quoted(&endpoints_file(&config.envoy.endpoints_dir, &pool.cluster));
        write!(
            yaml,
            r#"    # The filter reads the cluster's hosts from the admin listener, wherever Envoy has them from: here from a file, which is
    # replaced by a rename.
    eds_cluster_config:
      eds_config:
        path_config_source: {{ path: {path} }}
"#
        )?;
        return Ok(());
    }
    write!(
        yaml,
        r#"    load_assignment:
      cluster_name: {}
      endpoints:
      - lb_endpoints:
"#,
        quoted(&pool.cluster)
    )?;
    list(yaml, config, pool)?;
    if pool.upstream.is_apart() { Ok(()) } else { other_pools(yaml, config, pool) }
}

/// How names are resolved.
const DNS: &str = "    dns_lookup_family: V4_PREFERRED
";

/// Where load reports come from another port or by other means than answers do: whichever instance the filter names.
fn metrics(yaml: &mut String, pool: &Pool, place: &MetricsPlace) -> anyhow::Result<()> {
    let name = quoted(&place.cluster_beside(&pool.cluster));
    let header = names::ENDPOINT_HEADER;
    let token = place.bearer_token_file.as_ref().map(|file| Credential {
        secret: SecretSource::File(file.clone()),
        header: "authorization".to_owned(),
        prefix: "Bearer ".to_owned(),
    });
    let filters = token.map(|token| {
        let injector = injector(&metrics_secret(pool), &token);
        format!("        http_filters:\n{injector}{CODEC}")
    });
    write!(
        yaml,
        r#"  - name: {name}
    type: ORIGINAL_DST
    connect_timeout: 1s
    lb_policy: CLUSTER_PROVIDED
    original_dst_lb_config: {{ use_http_header: true, http_header_name: {header} }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{ idle_timeout: 4s }}
        explicit_http_config:
          http_protocol_options: {{}}
{}"#,
        filters.unwrap_or_default()
    )?;
    if let Some(tls) = &place.tls {
        yaml.push_str(&transport(tls, tls.sni.as_deref()));
    }
    Ok(())
}

/// TLS towards instances. Without a name to ask for, each one's own is asked for.
fn transport(tls: &UpstreamTls, sni: Option<&str>) -> String {
    let ca_file = quoted(&tls.ca_file);
    let (name, names) = match sni {
        Some(sni) => {
            let sni = quoted(sni);
            let names = format!(
                "\n            match_typed_subject_alt_names:\n            - {{ san_type: DNS, matcher: {{ exact: {sni} }} }}"
            );
            (format!("sni: {sni}"), names)
        }
        None => ("auto_host_sni: true\n        auto_sni_san_validation: true".to_owned(), String::new()),
    };
    let own = tls.certificate.as_ref().map(|(certificate, key)| {
        format!(
            r#"
          tls_certificates:
          - certificate_chain: {{ filename: {} }}
            private_key: {{ filename: {} }}"#,
            quoted(certificate),
            quoted(key)
        )
    });
    format!(
        r#"    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        {name}
        common_tls_context:
          validation_context:
            trusted_ca: {{ filename: {ca_file} }}{names}{}
"#,
        own.unwrap_or_default()
    )
}

/// Secrets that clusters ask for, as files that Envoy reads when it starts.
pub(super) fn secrets(yaml: &mut String, config: &Config) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for pool in &config.fleet.pools {
        if let Some(Credential { secret: SecretSource::File(file), .. }) = &pool.upstream.credential {
            files.push((secret_name(pool), file));
        }
        if let Metrics::Apart(MetricsPlace { bearer_token_file: Some(file), .. }) = &pool.metrics {
            files.push((metrics_secret(pool), file));
        }
    }
    if !files.is_empty() {
        yaml.push_str("  secrets:\n");
    }
    for (name, file) in files {
        let (name, file) = (quoted(&name), quoted(file));
        writeln!(yaml, "  - name: {name}\n    generic_secret: {{ secret: {{ filename: {file} }} }}")?;
    }
    Ok(())
}

fn secret_name(pool: &Pool) -> String {
    format!("{}-credential", pool.cluster)
}

fn metrics_secret(pool: &Pool) -> String {
    format!("{}-metrics-token", pool.cluster)
}

fn list(yaml: &mut String, config: &Config, pool: &Pool) -> anyhow::Result<()> {
    for (name, port) in &pool.upstream.names {
        let name = quoted(name);
        writeln!(
            yaml,
            "        - endpoint: {{ address: {{ socket_address: {{ address: {name}, port_value: {port} }} }} }}"
        )?;
    }
    if !pool.upstream.names.is_empty() {
        return Ok(());
    }
    for instance in pool.instances.iter().filter_map(|i| config.fleet.instance(*i)) {
        let address: SocketAddr = instance.address.parse()?;
        let (ip, port) = (address.ip(), address.port());
        writeln!(
            yaml,
            r#"        - endpoint: {{ address: {{ socket_address: {{ address: "{ip}", port_value: {port} }} }} }}"#
        )?;
    }
    Ok(())
}

/// The endpoints of other pools that may answer instead. Nobody balances to this priority: only the filter's list reaches it.
fn other_pools(yaml: &mut String, config: &Config, pool: &Pool) -> anyhow::Result<()> {
    let fleet: &Fleet = &config.fleet;
    let kind = |pool: &Pool| fleet.model_of(pool).map(|model| model.kind);
    let is_listed = |pool: &Pool| !pool.discovered && !pool.upstream.is_apart();
    let is_model = |other: &Pool| other.model == pool.model || config.envoy.model_fallback;
    let may = |other: &&Pool| {
        other.cluster != pool.cluster && is_model(other) && is_listed(other) && kind(other) == kind(pool)
    };
    let others: Vec<&Pool> = fleet.pools.iter().filter(may).filter(|other| !other.instances.is_empty()).collect();
    if others.is_empty() || pool.instances.is_empty() {
        return Ok(());
    }
    yaml.push_str(
        "      # Where the model is the filter's to choose, attempts after the first may go to other models.\n      - priority: 1\n        lb_endpoints:\n",
    );
    others.into_iter().try_for_each(|other| list(yaml, config, other))
}

/// What requests meet on their way to an instance: who sees to further attempts, and what is added and taken away.
fn http_filters(config: &Config, pool: &Pool) -> String {
    let injector = pool.upstream.credential.as_ref().map(|credential| injector(&secret_name(pool), credential));
    let attempts = attempts_filter(&config.envoy);
    format!("        http_filters:\n{attempts}{}{}{CODEC}", mutation(config, pool), injector.unwrap_or_default())
}

const CODEC: &str = r#"        - name: envoy.filters.http.upstream_codec
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec
"#;

/// Headers of this gateway, and of the path to it, that are no provider's affair.
const OWN_AFFAIRS: [&str; 11] = [
    names::POOL_HEADER,
    names::ENDPOINT_HEADER,
    names::ATTEMPT_COUNT_HEADER,
    names::MAX_RETRIES_HEADER,
    names::TIMEOUT_HEADER,
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-envoy-original-host",
    "x-envoy-original-path",
    "x-forwarded-for",
];

/// The filter that takes headers away and sets others, where there are any.
fn mutation(config: &Config, pool: &Pool) -> String {
    let mut lines = String::new();
    let mut removed: Vec<&str> = Vec::new();
    if pool.upstream.drops_client_credentials {
        removed.extend(Upstream::CLIENT_CREDENTIALS);
    }
    if pool.kind == PoolKind::Hosted {
        removed.extend(OWN_AFFAIRS);
        removed.extend(config.affinity.session_header.as_deref());
    }
    for name in removed {
        lines.push_str(&format!("              - remove: {}\n", quoted(name)));
    }
    for (name, value) in &pool.upstream.headers {
        // Envoy reads a percent sign as the beginning of a command.
        let (name, value) = (quoted(name), quoted(&value.replace('%', "%%")));
        lines.push_str(&format!(
            "              - append: {{ header: {{ key: {name}, value: {value} }}, append_action: OVERWRITE_IF_EXISTS_OR_ADD }}\n"
        ));
    }
    if lines.is_empty() {
        return lines;
    }
    format!(
        r#"        - name: headers
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
            mutations:
              request_mutations:
{lines}"#
    )
}

/// The filter that adds a secret. No request goes without it.
fn injector(name: &str, credential: &Credential) -> String {
    let secret = match &credential.secret {
        SecretSource::File(_) => format!("{{ name: {} }}", quoted(name)),
        SecretSource::Sds { file, name } => format!(
            "{{ name: {}, sds_config: {{ path_config_source: {{ path: {} }}, resource_api_version: V3 }} }}",
            quoted(name),
            quoted(file)
        ),
    };
    let header = quoted(&credential.header);
    let prefix = if credential.prefix.is_empty() {
        String::new()
    } else {
        // Envoy 1.37 and later.
        format!("\n                header_value_prefix: {}", quoted(&credential.prefix))
    };
    format!(
        r#"        - name: credential
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector
            overwrite: true
            credential:
              name: envoy.http.injected_credentials.generic
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic
                credential: {secret}
                header: {header}{prefix}
"#
    )
}

/// The filter that sees attempts after the first one: it makes the body name the model of the attempt's instance, and ends a request that
/// two instances have answered with an error. First attempts pass it by.
fn attempts_filter(envoy: &EnvoySettings) -> String {
    let (header, root_id) = (names::ATTEMPT_COUNT_HEADER, names::ATTEMPTS_ROOT_ID);
    let plugin = indented(&plugin(envoy, Some(root_id)), 26);
    format!(
        r#"        - name: attempts
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher
            extension_config:
              name: composite
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.http.composite.v3.Composite
            xds_matcher:
              matcher_list:
                matchers:
                # Calls of the filter itself, such as scrapes, have no such header: its VM must not be entered from within.
                - predicate:
                    single_predicate:
                      input:
                        name: attempt
                        typed_config:
                          "@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput
                          header_name: {header}
                      value_match: {{ safe_regex: {{ google_re2: {{}}, regex: "[2-9]|[1-9][0-9]+" }} }}
                  on_match:
                    action:
                      name: attempts
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.filters.http.composite.v3.ExecuteFilterAction
                        typed_config:
                          name: routebalance
                          typed_config:
{}"#,
        indented(&plugin, 2)
    )
}
