//! What stands in the place of the module: the rendered configuration with nothing, another filter, or the module itself.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// What a request passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum Variant {
    /// The route alone.
    Route,
    /// Envoy's buffer filter.
    Buffer,
    /// The least that a wasm filter can do: `src/filter/examples/floor.rs`.
    Floor,
    /// The module.
    Module,
    /// The module where the plugin cannot hold headers, with the buffer and the second instance behind it.
    ModuleWithoutFlag,
    /// Another module, to compare with: that of an earlier commit.
    Other,
    /// The module, of which one part acts as if it had failed: what it costs without.
    Without(&'static str),
}

/// Parts whose drills show what they cost.
const DRILLS: [&str; 3] = ["router", "predictor", "shared_data"];

impl Variant {
    /// All, with another module where there is one, and with drills where they are wanted. The base cell alone has the module without the
    /// flag.
    pub(super) fn all(is_base: bool, has_other: bool, drills: bool) -> impl Iterator<Item = Variant> {
        let always = [Variant::Route, Variant::Buffer, Variant::Floor, Variant::Module];
        let always = always.into_iter().chain(is_base.then_some(Variant::ModuleWithoutFlag));
        let without = DRILLS.map(Variant::Without).into_iter().filter(move |_| drills);
        always.chain(has_other.then_some(Variant::Other)).chain(without)
    }

    /// As the table calls it.
    pub(in super::super) fn name(self) -> &'static str {
        match self {
            Variant::Route => "route alone",
            Variant::Buffer => "buffer filter",
            Variant::Floor => "minimal wasm",
            Variant::Module => "RouteBalance",
            Variant::ModuleWithoutFlag => "RouteBalance without the flag",
            Variant::Other => "other module",
            Variant::Without("router") => "drill `router`",
            Variant::Without("predictor") => "drill `predictor`",
            Variant::Without(_) => "drill `shared_data`",
        }
    }

    /// The rendered configuration with this variant in it. `targets` are a cluster and its endpoints.
    pub(super) fn configuration(self, rendered: &str, floor: &Path, targets: &str) -> Result<String> {
        let filter = match self {
            Variant::Module | Variant::ModuleWithoutFlag | Variant::Other | Variant::Without(_) => {
                return Ok(rendered.to_owned());
            }
            Variant::Route => String::new(),
            Variant::Buffer => BUFFER.to_owned(),
            Variant::Floor => floor_filter(floor, targets),
        };
        let bare = replaced(
            rendered,
            "          - name: routebalance\n",
            "          - name: envoy.filters.http.router\n",
            &filter,
        )?;
        let mut without_attempts = bare;
        while without_attempts.contains(ATTEMPTS) {
            without_attempts =
                replaced(&without_attempts, ATTEMPTS, "        - name: envoy.filters.http.upstream_codec\n", "")?;
        }
        Ok(without_attempts)
    }
}

/// Where the filter of a cluster begins that sees further attempts.
const ATTEMPTS: &str = "        - name: attempts\n";

const BUFFER: &str = r#"          - name: envoy.filters.http.buffer
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer
              max_request_bytes: 4194304
"#;

fn floor_filter(module: &Path, targets: &str) -> String {
    let module = module.display();
    format!(
        r#"          - name: floor
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
              config:
                name: floor
                allow_on_headers_stop_iteration: true
                failure_policy: FAIL_RELOAD
                vm_config:
                  vm_id: floor
                  runtime: envoy.wasm.runtime.v8
                  code:
                    local: {{ filename: "{module}" }}
                configuration:
                  "@type": type.googleapis.com/google.protobuf.StringValue
                  value: "{targets}"
"#
    )
}

/// A text with what stands from one mark up to the next replaced.
fn replaced(text: &str, from: &str, until: &str, with: &str) -> Result<String> {
    let (before, rest) =
        text.split_once(from).with_context(|| format!("the rendered configuration has no `{}`", from.trim()))?;
    let at = rest.find(until).with_context(|| format!("the rendered configuration has no `{}`", until.trim()))?;
    Ok(format!("{before}{with}{}", rest.get(at..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_variant_but_the_module_has_the_module() {
        let rendered = include_str!("../../../../envoy/envoy.yaml");
        for variant in Variant::all(false, false, false) {
            let text = variant.configuration(rendered, Path::new("floor.wasm"), "pool 1.2.3.4:5").unwrap();
            assert_eq!(text.contains("/routebalance.wasm\" }"), variant == Variant::Module, "{variant:?}");
            assert_eq!(text.contains("filters.http.buffer.v3"), variant == Variant::Buffer, "{variant:?}");
            assert_eq!(text.contains("value: \"pool 1.2.3.4:5\""), variant == Variant::Floor, "{variant:?}");
            assert_eq!(text.matches("upstream_codec.v3").count(), rendered.matches("upstream_codec.v3").count());
        }
    }
}
