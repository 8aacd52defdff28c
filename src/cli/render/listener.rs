//! `routebalance render --listener FILE`: the listener in a file of its own, which Envoy reads again when another is renamed to it (LDS).

use anyhow::{Context, Result};
use routebalance_core::hash::fnv1a;

use super::quoted;

/// The rendered configuration in two files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Everything but the listener, and where that is.
    pub main: String,
    /// What Envoy takes for an answer of a server that discovers listeners.
    pub listener: String,
}

const STATIC: &str = "static_resources:\n";
const LISTENERS: &str = "  listeners:\n";
const CLUSTERS: &str = "\n  clusters:\n";
const LISTENER: &str = "- name: routebalance\n";
const ADMIN: &str = "\nadmin:\n";

/// Takes the listener out of a rendered configuration, which then names this path.
///
/// # Errors
/// The configuration is not a rendered one.
pub fn split(rendered: &str, path: &str) -> Result<Split> {
    let found = || {
        let (before, rest) = rendered.split_once(&format!("{STATIC}{LISTENERS}"))?;
        let (listeners, clusters) = rest.split_once(CLUSTERS)?;
        let (head, rest) = before.split_once(ADMIN)?;
        Some((head, rest, listeners, clusters))
    };
    let (head, rest, listeners, clusters) = found().context("the rendered configuration has no listener")?;
    let comment = head.lines().next().unwrap_or_default();
    // Envoy asks for it where anything is discovered.
    let node = if head.contains("\nnode:") { "" } else { "\nnode: { id: routebalance, cluster: routebalance }" };
    let path = quoted(path);
    let main = format!(
        r#"{head}{node}{ADMIN}{rest}# The listener is in a file of its own. Envoy reads it again when another is renamed to it.
dynamic_resources:
  lds_config:
    resource_api_version: V3
    path_config_source: {{ path: {path} }}
{STATIC}{}{clusters}"#,
        CLUSTERS.trim_start_matches('\n')
    );
    let body: String = listeners.lines().map(|line| format!("{}\n", line.strip_prefix("  ").unwrap_or(line))).collect();
    let body = body.strip_prefix(LISTENER).context("the rendered configuration has no listener")?;
    // By its content, so that `/config_dump` tells which one Envoy has taken.
    let version = fnv1a(body.as_bytes());
    let listener = format!(
        r#"{comment}
version_info: "{version:016x}"
resources:
- "@type": type.googleapis.com/envoy.config.listener.v3.Listener
  name: routebalance
{body}"#
    );
    Ok(Split { main, listener })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::render;
    use super::*;

    fn yaml(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap()
    }

    fn example() -> Value {
        serde_json::from_str(include_str!("../../../envoy/routebalance.json")).unwrap()
    }

    #[test]
    fn both_files_together_are_what_one_was() {
        let mut discovered = example();
        discovered["pools"][1]["instances"] = json!("discover");
        let mut passing = example();
        passing["envoy"]["allow_on_headers_stop_iteration"] = json!(false);
        for config in [example(), discovered, passing] {
            let whole = render(&config).unwrap();
            let Split { main, listener } = split(&whole, "run/listener.yaml").unwrap();
            let (whole, mut main, mut listener) = (yaml(&whole), yaml(&main), yaml(&listener));
            assert_eq!(main["node"]["id"], "routebalance");
            assert_eq!(main["dynamic_resources"]["lds_config"]["path_config_source"]["path"], "run/listener.yaml");
            let mut only = listener["resources"][0].take();
            assert_eq!(only["@type"], "type.googleapis.com/envoy.config.listener.v3.Listener");
            only.as_object_mut().unwrap().remove("@type");
            main["static_resources"]["listeners"] = json!([only]);
            for added in ["node", "dynamic_resources"] {
                main.as_object_mut().unwrap().remove(added);
            }
            let mut whole = whole;
            whole.as_object_mut().unwrap().remove("node");
            assert_eq!(main, whole);
        }
    }

    #[test]
    fn weights_change_the_listener_alone() {
        let mut config = example();
        let before = split(&render(&config).unwrap(), "l").unwrap();
        config["policies"][0]["weights"] = json!({"cost": 0.5, "latency": 0.25, "quality": 0.25});
        let after = split(&render(&config).unwrap(), "l").unwrap();
        assert_eq!(before.main, after.main);
        let version = |split: &Split| yaml(&split.listener)["version_info"].as_str().unwrap().to_owned();
        assert_ne!(version(&before), version(&after));
    }

    #[test]
    fn what_was_not_rendered_is_not_split() {
        assert_eq!(split("admin: {}\n", "l").unwrap_err().to_string(), "the rendered configuration has no listener");
    }
}
