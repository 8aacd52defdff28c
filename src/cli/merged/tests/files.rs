//! Parts of a configuration, files that name others, and files of no use.

use super::*;
use crate::render::listener::split;

/// Files that say a part only.
#[test]
fn what_is_not_in_the_file_is_not_held_against_it() {
    let config = config(&json!([]));
    let whole = render(&config).unwrap();
    let envoy = rendered(&config);
    let parts = split(&whole, "nowhere/listener.yaml").unwrap();
    let no_clusters = "note: no clusters in this file: they come from elsewhere and were not checked";
    let no_listeners = "note: no listeners in this file: they come from elsewhere and were not checked";
    let by_name = json!({"rds": {"route_config_name": "r", "config_source": {"ads": {}}}});
    let routes = envoy.pointer(&format!("{MANAGER}/route_config")).unwrap().clone();
    let rds = edited(
        envoy.clone(),
        json!([{"op": "remove", "path": "@/route_config"}, {"op": "add", "path": "@/rds", "value": by_name["rds"]}]),
    );
    let filter = envoy.pointer(&format!("{MANAGER}/http_filters/3")).unwrap().clone();
    let ecds = edited(
        envoy.clone(),
        replace(
            "@/http_filters/3",
            json!({"name": "routebalance", "config_discovery": {"config_source": {"ads": {}}}}),
        ),
    );
    let cds = edited(
        envoy.clone(),
        json!([{"op": "remove", "path": "#"}, {"op": "add", "path": "/dynamic_resources", "value": {"cds_config": {"ads": {}}}}]),
    );
    let listener = envoy["static_resources"]["listeners"][0].clone();
    let mut any = listener.clone();
    any["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener".into();
    let dump = |items: Value| json!({"configs": items}).to_string();
    let state = json!([{"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump", "dynamic_listeners": [{"active_state": {"listener": any}}]}]);
    let mut named_routes = routes;
    named_routes["name"] = "r".into();
    named_routes["@type"] = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration".into();
    let mut extension = filter;
    extension["@type"] = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig".into();
    let resources = |resource: &Value| json!({"resources": [resource]}).to_string();
    let (rds, ecds) = (rds.to_string(), ecds.to_string());
    let with_file: [(&[&str], &[&str]); 9] = [
        (
            &[&parts.main],
            &[
                "note: lds_config names a file that was not checked: nowhere/listener.yaml cannot be read: No such file or directory (os error 2)",
                no_listeners,
            ],
        ),
        (&[&parts.listener], &[no_clusters]),
        (&[&dump(state)], &[no_clusters]),
        (&[&rds], &["note: listener routebalance: its routes (`r`) come from elsewhere and were not checked"]),
        (&[&rds, &resources(&named_routes)], &[]),
        (
            &[&ecds],
            &[
                "note: listener routebalance: the filter `routebalance` comes from elsewhere, and no other filter is the module: the listeners were not checked",
            ],
        ),
        (&[&ecds, &resources(&extension)], &[]),
        (
            &[&cds.to_string()],
            &["note: cluster pool-qwen2.5-3b of pool qwen2.5-3b comes from elsewhere and was not checked"],
        ),
        (&["admin: {}"], &[no_listeners, "error"]),
    ];
    for (files, expected) in with_file {
        let mut all = said(Some(&config), files).unwrap();
        if expected.last() == Some(&"error") {
            assert!(all.iter().any(|line| line.starts_with("error: there is no cluster")), "{all:#?}");
            continue;
        }
        all.sort();
        assert_eq!(all, expected, "{files:?}");
    }
    let mut others = edited(envoy.clone(), remove("@/http_filters/3"));
    others["dynamic_resources"] = json!({"lds_config": {"ads": {}}});
    let all = said(Some(&config), &[&others.to_string()]).unwrap();
    assert_eq!(
        all,
        ["note: no listener in this file runs the filter: others come from elsewhere and were not checked"]
    );
    let clusters = json!({"static_resources": {"clusters": envoy["static_resources"]["clusters"]}}).to_string();
    assert_eq!(
        said(None, &[&clusters]).unwrap(),
        [
            "error: no plugin in the file has a configuration to check against: name routebalance.json, too",
            no_listeners
        ]
    );
}

/// A main file names the listener's, and both are read.
#[test]
fn a_listener_in_a_file_of_its_own_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(&json!([]));
    let parts = split(&render(&config).unwrap(), "listener.yaml").unwrap();
    let main = directory.path().join("envoy.yaml");
    fs::write(&main, &parts.main).unwrap();
    let itself = parts.main.clone();
    let limited = parts.listener.replace("timeout: 0s", "timeout: 9s");
    // The last one names itself for ever, and leaves out what was in the other.
    for (listener, count) in [(parts.listener.clone(), 0), (limited, 3), (itself, 2)] {
        fs::write(directory.path().join("listener.yaml"), listener).unwrap();
        let findings = check_merged(None, std::slice::from_ref(&main)).unwrap();
        assert_eq!(findings.len(), count, "{findings:#?}");
    }
}

#[test]
fn strange_files_are_one_sentence() {
    let rows: [(&str, &str); 10] = [
        ("", "envoy0.yaml is empty"),
        (" \n", "envoy0.yaml is empty"),
        ("\u{feff}", "envoy0.yaml is empty"),
        ("{\"a\": ", "envoy0.yaml is neither JSON nor YAML: "),
        ("a: [", "envoy0.yaml is neither JSON nor YAML: "),
        ("a: *b", "envoy0.yaml is neither JSON nor YAML: "),
        ("- a\n- b\n", "envoy0.yaml is no configuration of Envoy: it holds no object"),
        ("just text", "envoy0.yaml is no configuration of Envoy: it holds no object"),
        ("services: {}", "envoy0.yaml is neither a bootstrap of Envoy, nor a file of its resources, nor a config_dump"),
        ("# only a comment", "envoy0.yaml is no configuration of Envoy: it holds no object"),
    ];
    for (text, sentence) in rows {
        let problem = format!("{:#}", said(None, &[text]).unwrap_err());
        assert!(problem.contains(sentence) && !problem.contains('\n'), "{text:?}: {problem}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("envoy.yaml");
    fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
    let problem = check_merged(None, std::slice::from_ref(&file)).unwrap_err().to_string();
    assert!(problem.ends_with("envoy.yaml is no text in UTF-8"), "{problem}");
    let problem = check_merged(None, &[directory.path().join("nowhere")]).unwrap_err().to_string();
    assert!(problem.ends_with("nowhere cannot be read"), "{problem}");
    fs::write(&file, render(&config(&json!([]))).unwrap()).unwrap();
    let wrong = directory.path().join("my.json");
    fs::write(&wrong, "{}").unwrap();
    let problem = format!("{:#}", check_merged(Some(&wrong), &[file]).unwrap_err());
    assert!(problem.contains("my.json is wrong: "), "{problem}");
}

#[test]
fn yaml_may_have_anchors_and_a_byte_order_mark_but_no_merge_keys() {
    let config = config(&json!([]));
    let whole = render(&config).unwrap();
    assert_eq!(said(Some(&config), &[&format!("\u{feff}{whole}")]).unwrap(), [""; 0]);
    let breakers = "    circuit_breakers:\n";
    let thresholds = "      thresholds:\n      - { max_connections: 65536, max_pending_requests: 65536, max_requests: 65536, max_retries: 1024 }\n";
    let (first, rest) = whole.split_once(&format!("{breakers}{thresholds}")).unwrap();
    let anchored = |alias: &str| {
        let rest = rest.replace(&format!("{breakers}{thresholds}"), alias);
        format!("{first}    circuit_breakers: &bounds\n{thresholds}{rest}")
    };
    assert_eq!(said(Some(&config), &[&anchored("    circuit_breakers: *bounds\n")]).unwrap(), [""; 0]);
    assert_eq!(
        said(Some(&config), &[&anchored("    circuit_breakers: { <<: *bounds }\n")]).unwrap(),
        ["error: envoy0.yaml has the merge key `<<`, which Envoy refuses: write the fields out"]
    );
}
