//! What stands behind the filter where the plugin has no `allow_on_headers_stop_iteration`: a buffer, and the filter's second instance.

use routebalance_core::config::Config;
use routebalance_core::names;

use super::{body_limit, indented, plugin};

/// Least limit of the buffer: it holds bodies that are decided from their beginnings as well, which stream on where the filter itself holds
/// the headers.
const BUFFER_BYTES_MIN: u64 = 16 << 20;

/// The two filters, as items of a list.
pub(super) fn filters(config: &Config) -> String {
    format!("{}{}", buffer(config), headers(config))
}

/// Most bytes of a body that the buffer holds.
pub(crate) fn buffer_limit(config: &Config) -> u64 {
    body_limit(config).max(BUFFER_BYTES_MIN)
}

/// Envoy's buffer filter, for requests that wait for a decision and for no others: nothing else is held back.
fn buffer(config: &Config) -> String {
    let (state, held, limit) = (names::HELD_STATE, names::HELD, buffer_limit(config));
    format!(
        r#"# The filter cannot hold the headers of a request while its body comes. This one does, for requests that wait for a decision.
- name: routebalance-buffer
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher
    extension_config:
      name: envoy.filters.http.buffer
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
        # Larger bodies are answered with 413.
        max_request_bytes: {limit}
    xds_matcher:
      matcher_list:
        matchers:
        - predicate:
            not_matcher:
              single_predicate:
                input:
                  name: held
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.matching.common_inputs.network.v3.FilterStateInput
                    key: wasm.{state}
                value_match: {{ exact: "{held}" }}
          on_match:
            action:
              name: skip
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.common.matcher.action.v3.SkipFilter
"#
    )
}

/// The instance that writes a decision's headers when the buffer lets them go.
fn headers(config: &Config) -> String {
    let plugin = indented(&plugin(&config.envoy, Some(names::HEADERS_ROOT_ID)), 4);
    format!("- name: routebalance-headers\n  typed_config:\n{plugin}")
}
