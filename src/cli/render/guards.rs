//! What keeps clients from costing more than they may: limits of bodies, connections and memory; and what Envoy says when it refuses by
//! itself.

use super::quoted;
use routebalance_core::config::{Config, Encoding};
use routebalance_core::names;

/// To how many times its size a piece of a body may unpack: repetitive text has some hundred, the worst possible is 1,032.
const INFLATE_RATIO: u64 = 500;

/// Paths whose bodies the filter reads. Bodies of others arrive as they were sent.
const READ_PATHS: &str = r#".*/(v1/(chat/completions|completions|responses|responses/compact|messages|messages/count_tokens|embeddings)|openai/deployments/[^/]+/(chat/completions|completions|embeddings))(\\?.*)?"#;

/// The filters that unpack request bodies, before the one that reads them.
pub(super) fn decompressors(config: &Config) -> String {
    config.encodings.iter().map(|encoding| decompressor(*encoding)).collect()
}

fn decompressor(encoding: Encoding) -> String {
    let (name, kind, settings) = match encoding {
        Encoding::Gzip => {
            ("gzip", "gzip.decompressor.v3.Gzip", format!("\n                      max_inflate_ratio: {INFLATE_RATIO}"))
        }
        Encoding::Brotli => ("brotli", "brotli.decompressor.v3.Brotli", String::new()),
        Encoding::Zstd => ("zstd", "zstd.decompressor.v3.Zstd", String::new()),
    };
    format!(
        r#"          - name: unpack-{name}
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher
              extension_config:
                name: envoy.filters.http.decompressor
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.filters.http.decompressor.v3.Decompressor
                  decompressor_library:
                    name: {name}
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.compression.{kind}
                      chunk_size: 65536{settings}
                  request_direction_config:
                    # Clients would take it for what answers may be packed with.
                    advertise_accept_encoding: false
                    common_config: {{ ignore_no_transform_header: true }}
                  response_direction_config:
                    common_config: {{ enabled: {{ default_value: false, runtime_key: routebalance.unpack_answers }} }}
              xds_matcher:
                matcher_list:
                  matchers:
                  - predicate:
                      not_matcher:
                        single_predicate:
                          input:
                            name: path
                            typed_config:
                              "@type": type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput
                              header_name: ":path"
                          value_match: {{ safe_regex: {{ google_re2: {{}}, regex: "{READ_PATHS}" }} }}
                    on_match:
                      action:
                        name: skip
                        typed_config:
                          "@type": type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter
"#
    )
}

/// Keeps what a client has said of its body's encoding: the filters that unpack it take that header away.
pub(super) fn remembered_encoding() -> String {
    let header = names::ENCODING_HEADER;
    format!(
        r#"              - remove: {header}
              - append:
                  header: {{ key: {header}, value: "%REQ(CONTENT-ENCODING)%" }}
"#
    )
}

/// Bounds of the whole process.
pub(super) fn overload_manager(config: &Config) -> String {
    let (heap, connections) = (config.envoy.max_heap_bytes, config.envoy.max_connections);
    let heap_monitor = "envoy.resource_monitors.fixed_heap";
    let trigger = |action: &str, at: f64| {
        format!(
            "  - name: envoy.overload_actions.{action}\n    triggers: [{{ name: {heap_monitor}, threshold: {{ value: {at} }} }}]\n"
        )
    };
    let [shrink, close, refuse] =
        [trigger("shrink_heap", 0.8), trigger("disable_http_keepalive", 0.9), trigger("stop_accepting_requests", 0.95)];
    format!(
        r#"# Without these bounds, clients that send bodies without end take all memory.
overload_manager:
  refresh_interval: 0.25s
  buffer_factory_config: {{ minimum_account_to_track_power_of_two: 20 }}
  resource_monitors:
  - name: {heap_monitor}
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig
      max_heap_size_bytes: {heap}
  - name: envoy.resource_monitors.global_downstream_max_connections
    typed_config:
      "@type": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig
      max_active_downstream_connections: {connections}
  actions:
{shrink}{close}  # The largest bodies go first.
  - name: envoy.overload_actions.reset_high_memory_stream
    triggers: [{{ name: {heap_monitor}, scaled: {{ scaling_threshold: 0.9, saturation_threshold: 0.98 }} }}]
{refuse}"#
    )
}

/// Envoy's own errors in the shape of the API that was called, also while the filter is bypassed. The filter's own answers have no
/// `code_details`, and stay as they are.
pub(super) fn local_replies(config: &Config) -> String {
    let is_anthropic =
        ["/v1/messages", "/v1/messages/count_tokens"].map(|path| format!("request.url_path.endsWith('{path}')"));
    let own = "response.code_details != ''";
    let anthropic = format!("{own} && ({})", is_anthropic.join(" || "));
    let message = "%CEL(response.code == 408 ? 'The request has not arrived in time.' : response.code_details == 'overload' ? 'The gateway has too little memory left.' : response.code == 413 ? 'The request body is too large.' : response.code >= 500 ? 'No instance has answered.' : 'The gateway cannot read this request.')%";
    let openai_type = "%CEL(response.code == 400 ? 'BadRequestError' : response.code == 404 ? 'NotFoundError' : response.code == 408 ? 'Request Timeout' : response.code == 413 ? 'Request Entity Too Large' : response.code < 500 ? 'BadRequestError' : response.code == 503 ? 'Service Unavailable' : response.code == 504 ? 'Gateway Timeout' : 'InternalServerError')%";
    let anthropic_type = "%CEL(response.code == 404 ? 'not_found_error' : response.code == 413 ? 'request_too_large' : response.code < 500 ? 'invalid_request_error' : response.code == 503 ? 'overloaded_error' : response.code == 504 ? 'timeout_error' : 'api_error')%";
    let anthropic_shape =
        format!("type: error\n                  error: {{ type: \"{anthropic_type}\", message: \"{message}\" }}");
    let openai_shape =
        format!("error: {{ message: \"{message}\", type: \"{openai_type}\", param: null, code: \"%RESPONSE_CODE%\" }}");
    let mappers: String = [(anthropic.as_str(), anthropic_shape), (own, openai_shape)]
        .into_iter()
        .map(|(expression, shape)| mapper(config, expression, &shape))
        .collect();
    format!("          local_reply_config:\n            mappers:\n{mappers}")
}

fn mapper(config: &Config, expression: &str, shape: &str) -> String {
    let origin = config.allow_origin.as_deref().map_or_else(String::new, |origin| {
        format!(
            "              headers_to_add:\n              - header: {{ key: {}, value: {} }}\n                append_action: OVERWRITE_IF_EXISTS_OR_ADD\n",
            names::ALLOW_ORIGIN_RESPONSE_HEADER,
            quoted(origin)
        )
    });
    format!(
        r#"            - filter:
                extension_filter:
                  name: envoy.access_loggers.extension_filters.cel
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter
                    expression: "{expression}"
{origin}              body_format_override:
                content_type: application/json
                json_format:
                  {shape}
"#
    )
}
