//! `envoy/routebalance.schema.json` says what the parser says, as far as a schema can.
#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use routebalance_cli::setup::package_root;
use serde_json::{Value, json};

#[path = "schema/changes.rs"]
mod changes;
#[path = "schema/judge.rs"]
mod judge;

use judge::{Judge, LOOSER, Verdict, parsed, path};

/// How many changes are tried.
const CHANGES: u64 = 6_000;

fn read(name: &str) -> String {
    fs::read_to_string(package_root().join(name)).unwrap_or_else(|problem| panic!("{name}: {problem}"))
}

/// A configuration that has every field.
fn everything() -> Value {
    serde_json::from_str(&read("tests/schema/everything.json")).expect("everything is JSON")
}

fn reference() -> Value {
    serde_json::from_str(&read("envoy/routebalance.json")).expect("the reference configuration is JSON")
}

fn check(findings: &[String], what: &str) {
    // One wrong limit of a pool is one of every pool.
    let first = &findings[..findings.len().min(20)];
    assert!(findings.is_empty(), "{what}, {} times:\n{}", findings.len(), first.join("\n"));
}

/// Files of the repository whose names are of this form.
fn files(form: &str) -> Vec<String> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", form]).current_dir(package_root());
    let output = git.output().expect("the schema's test asks git for the repository's files: install git");
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    names.split('\0').filter(|name| package_root().join(name).is_file()).map(str::to_owned).collect()
}

/// The pieces of JSON in a document, each with the heading above it.
fn examples(document: &str) -> Vec<(String, Value)> {
    let text = read(document);
    let mut heading = "";
    let (mut examples, mut block): (Vec<(String, Value)>, Option<String>) = (Vec::new(), None);
    for line in text.lines() {
        match (&mut block, line.trim()) {
            (Some(text), "```") => {
                let example = serde_json::from_str(text);
                // A piece of an object is no JSON by itself.
                examples.extend(example.ok().map(|example| (heading.to_owned(), example)));
                block = None;
            }
            (Some(text), line) => text.push_str(&format!("{line}\n")),
            (None, "```json") => block = Some(String::new()),
            (None, line) => heading = line.strip_prefix("## ").unwrap_or(heading),
        }
    }
    examples
}

#[test]
fn every_configuration_of_the_repository_is_accepted_by_both() {
    let committed = files("*.json").into_iter().filter_map(|file| {
        let json: Value = serde_json::from_str(&read(&file)).ok()?;
        Some((file, json))
    });
    let shown = files("*.md").into_iter().flat_map(|file| {
        let examples = examples(&file);
        examples.into_iter().map(move |(heading, example)| (format!("{file}, {heading}"), example))
    });
    let judge = Judge::new();
    let (mut findings, mut count) = (Vec::new(), 0);
    for (place, config) in committed.chain(shown) {
        if config.get("pools").is_some() && config.get("default_policy").is_some() {
            count += 1;
            let verdict = judge.verdict(&config);
            if verdict != Ok(Verdict::Accepted) {
                findings.push(format!("{place}: {verdict:?} {:?}", parsed(&config).err()));
            }
        }
    }
    assert!(count >= 11, "configurations are kept in another way: {count} were found");
    check(&findings, "not accepted by both");
}

#[test]
fn the_examples_of_objects_are_accepted_in_their_places() {
    const DOCUMENT: &str = "envoy/CONFIGURATION.md";
    let (judge, everything) = (Judge::new(), everything());
    let mut objects: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pointer in judge.objects(&everything).into_keys() {
        objects.entry(path(&pointer)).or_default().push(pointer);
    }
    let (mut findings, mut count) = (Vec::new(), 0);
    for (heading, example) in examples(DOCUMENT) {
        let Some(places) = objects.get(heading.trim_matches('`')) else { continue };
        count += 1;
        let verdicts = places.iter().map(|place| {
            let mut config = everything.clone();
            *config.pointer_mut(place).expect("an object of everything") = example.clone();
            (place, judge.verdict(&config), judge.refusals(&config))
        });
        let verdicts: Vec<_> = verdicts.collect();
        findings.extend(
            verdicts.iter().filter_map(|(place, verdict, _)| Some(format!("{place}: {}", verdict.as_ref().err()?))),
        );
        // Names of an example may refer to what this configuration does not have.
        if !verdicts.iter().any(|(_, verdict, _)| matches!(verdict, Ok(Verdict::Accepted | Verdict::Looser(_)))) {
            findings.push(format!("{heading}: {verdicts:?}"));
        }
    }
    assert!(count > 20, "{DOCUMENT} shows its examples in another way: {count} were found");
    check(&findings, "examples that the schema refuses");
}

/// A configuration with another value at a pointer, whose last step may be a new field.
fn with(mut config: Value, pointer: &str, value: &Value) -> Value {
    let (parent, step) = pointer.rsplit_once('/').expect("a pointer");
    let parent = config.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer} is nowhere"));
    match step.parse::<usize>() {
        Ok(index) => parent[index] = value.clone(),
        Err(_) => parent[step] = value.clone(),
    }
    config
}

fn without(mut config: Value, pointer: &str, field: &str) -> Value {
    let object = config.pointer_mut(pointer).and_then(Value::as_object_mut).expect("an object");
    object.remove(field);
    config
}

#[test]
fn what_depends_on_another_field_is_judged_alike() {
    const ACCEPTED: bool = true;
    const REFUSED: bool = false;
    let hosted = |more: Value| {
        let mut pool =
            json!({"name": "p", "model": "large", "cluster": "p", "kind": "hosted", "instances": ["a.b:443"]});
        pool.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        pool
    };
    let policy = |more: Value| {
        let mut policy = json!({"name": "priced", "weights": {"quality": 0, "latency": 0, "cost": 1}});
        policy.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        policy
    };
    let (pool, last) = ("/pools/3", "/policies/1");
    let level = json!({"requests_per_second": 1, "prices": {}, "fractions": {"small": 1}});
    let rows = [
        (pool, hosted(json!({})), ACCEPTED),
        (pool, hosted(json!({"kind": "own"})), REFUSED),
        (pool, hosted(json!({"instances": ["a:1", "b:1"]})), REFUSED),
        (pool, hosted(json!({"instances": "discover"})), REFUSED),
        (pool, hosted(json!({"instances": ["10.0.0.8:443"], "tls": {}})), REFUSED),
        (pool, hosted(json!({"instances": ["10.0.0.8:443"], "tls": {"sni": "a"}})), ACCEPTED),
        (pool, hosted(json!({"instances": ["10.0.0.8:443"], "tls": null})), ACCEPTED),
        (pool, hosted(json!({"metrics": {}})), REFUSED),
        (pool, hosted(json!({"metrics": "off"})), ACCEPTED),
        (pool, hosted(json!({"credential": {}})), REFUSED),
        (pool, hosted(json!({"credential": {"file": "/a", "sds_file": null}})), ACCEPTED),
        (pool, hosted(json!({"credential": {"file": "/a", "sds_name": "b"}})), REFUSED),
        (pool, hosted(json!({"credential": {"sds_file": "/a"}})), REFUSED),
        (pool, hosted(json!({"tls": {"key_file": "/a"}})), REFUSED),
        (pool, hosted(json!({"tls": {"certificate_file": "/a", "key_file": null}})), REFUSED),
        (pool, hosted(json!({"headers": {"Content-Length": "1"}})), REFUSED),
        (pool, hosted(json!({"headers": {"Content-Lengths": "1"}})), ACCEPTED),
        ("/pools/1/tls", json!({}), REFUSED),
        ("/pools/1/limits", json!({"kv_tokens": 1e5, "max_running": 256.0}), ACCEPTED),
        ("/pools/1/limits", json!({"kv_tokens": 1.5}), REFUSED),
        ("/models/1/kind", json!("embed"), ACCEPTED),
        ("/models/3/kind", json!("generate"), REFUSED),
        ("/models/1/quality_prior", json!(null), REFUSED),
        (last, policy(json!({"objective": "prices"})), REFUSED),
        (last, policy(json!({"objective": "prices", "prices": {}})), REFUSED),
        (last, policy(json!({"objective": "prices", "prices": {"small": 0}})), ACCEPTED),
        (last, policy(json!({"objective": "prices", "demand_levels": [level]})), ACCEPTED),
        (last, policy(json!({"objective": "paper", "demand_levels": [level]})), REFUSED),
        (last, policy(json!({"prices": {"small": 0}})), REFUSED),
        (last, policy(json!({"prices": {}, "demand_levels": []})), ACCEPTED),
        (last, policy(json!({"online_prices": {"ttft_ms": 1}})), REFUSED),
        (last, policy(json!({"online_prices": null})), ACCEPTED),
        (last, policy(json!({"overload": {"action": "shed"}})), REFUSED),
        (last, policy(json!({"overload": {"action": "shed", "ttft_ms": null}})), REFUSED),
        (last, policy(json!({"overload": {"action": "shed", "ttft_ms": 9}})), ACCEPTED),
        (last, policy(json!({"batching": {"mode": "adaptive", "size": 1}})), REFUSED),
        (last, policy(json!({"batching": {"mode": "adaptive", "size": null}})), ACCEPTED),
        (last, policy(json!({"batching": {"mode": "fixed", "size": 1}})), REFUSED),
        (last, policy(json!({"batching": null})), ACCEPTED),
        (last, policy(json!({"weights": {"quality": 0, "latency": 0, "cost": 0}})), REFUSED),
        (last, policy(json!({"weights": null})), REFUSED),
        ("/routes/0/weights", json!(null), ACCEPTED),
        ("/routes/0/hosts", json!(["*"]), REFUSED),
        ("/affinity/session_header", json!(null), ACCEPTED),
        ("/$schema", json!(1), REFUSED),
        ("/virtual_models", json!(["a", "a"]), REFUSED),
        ("/models/0/adapters", json!(["a", "a"]), REFUSED),
        ("/request/encodings", json!(["br", "br"]), REFUSED),
        ("/drill", json!(["vm", "vm"]), ACCEPTED),
        ("/envoy/listen", json!("localhost:80"), REFUSED),
        ("/envoy/listen", json!("[fe80::1%1]:00080"), ACCEPTED),
        ("/envoy/listen", json!("127.0.0.1:0"), REFUSED),
        ("/pools/1/instances", json!(["a"]), REFUSED),
        ("/pools/1/instances", json!(["a:0"]), REFUSED),
        ("/pools/1/instances", json!(["a:+80"]), REFUSED),
        ("/pools/1/instances", json!(["a.:00080"]), ACCEPTED),
        ("/pools/1/instances", json!(["http://a:80"]), REFUSED),
        ("/pools/1/instances", json!(["10.0.0:80"]), REFUSED),
    ];
    let judge = Judge::new();
    // No policy has prices, so a model may become another one.
    let mut base = everything();
    base["policies"] = json!([base["policies"][0], policy(json!({}))]);
    for (pointer, value, accepted) in rows {
        let config = with(base.clone(), pointer, &value);
        let expected = if accepted { Verdict::Accepted } else { Verdict::Refused };
        assert_eq!(judge.verdict(&config), Ok(expected), "{pointer} = {value}: {:?}", parsed(&config).err());
    }
}

#[test]
fn whatever_is_changed_is_judged_alike() {
    let (judge, everything) = (Judge::new(), everything());
    assert_eq!(judge.verdict(&everything), Ok(Verdict::Accepted));
    let (mut findings, mut accepted, mut refused) = (Vec::new(), 0, 0);
    let mut met = BTreeSet::new();
    let drawn = (0..CHANGES).map(|seed| changes::changed(&everything, seed));
    // What the lot seldom meets.
    let rare = [
        ("/virtual_models/0", json!("small")),
        ("/virtual_models/0", json!("sql")),
        ("/envoy/listen", json!("300.0.0.1:80")),
        ("/policies/1/demand_levels/0/fractions", json!({"vectors": 1})),
        ("/pools/0/limits/kv_tokens", json!(1e18)),
    ];
    let rare = rare.map(|(pointer, value)| (with(everything.clone(), pointer, &value), format!("{pointer} = {value}")));
    for (config, what) in drawn.chain(rare) {
        match judge.verdict(&config) {
            Ok(Verdict::Accepted) => accepted += 1,
            Ok(Verdict::Refused) => refused += 1,
            Ok(Verdict::Looser(row)) => {
                met.insert(row);
            }
            Err(difference) => findings.push(format!("{what}: {difference}")),
        }
    }
    check(&findings, "schema and parser differ");
    let unmet: Vec<&str> = (0..LOOSER.len()).filter(|row| !met.contains(row)).map(|row| LOOSER[row]).collect();
    assert_eq!(unmet, [""; 0], "no change meets these rows of LOOSER");
    assert!(accepted > CHANGES / 20 && refused > CHANGES / 3, "changes are of one kind: {accepted} and {refused}");
}

#[test]
fn every_limit_is_the_parsers() {
    let (judge, everything) = (Judge::new(), everything());
    let (mut findings, mut count) = (Vec::new(), 0);
    for (pointer, name) in judge.objects(&everything) {
        let definition = judge.definitions()[name.as_str()];
        let later = definition["else"]["properties"].as_object().into_iter().flatten();
        for (field, schema) in definition["properties"].as_object().into_iter().flatten().chain(later) {
            let is_whole = schema["type"] == "integer" || schema["type"] == json!(["integer", "null"]);
            for (limit, outwards) in [("minimum", -1.0), ("maximum", 1.0)] {
                let Some(edge) = schema[limit].as_f64() else { continue };
                count += 1;
                let beyond = if is_whole { edge + outwards } else { edge + outwards * (edge.abs() * 1e-9).max(1e-12) };
                for value in [schema[limit].clone(), json!(beyond)] {
                    let config = with(everything.clone(), &format!("{pointer}/{field}"), &value);
                    findings.extend(judge.verdict(&config).err().map(|e| format!("{pointer}/{field} = {value}: {e}")));
                }
            }
        }
    }
    assert!(count > 200, "limits are written in another way: {count} were found");
    check(&findings, "limits of schema and parser differ");
}

/// The fields that the parser knows in an object: it lists them where it meets one that it does not know.
fn fields(config: &Value, pointer: &str) -> BTreeSet<String> {
    let refusal =
        parsed(&with(config.clone(), &format!("{pointer}/surprise"), &json!(1))).expect_err("a strict parser");
    let (_, listed) = refusal.split_once("unknown field `surprise`, expected").unwrap_or_else(|| panic!("{refusal}"));
    listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn schema_and_parser_have_the_same_fields() {
    let (judge, everything) = (Judge::new(), everything());
    let (mut findings, mut used): (_, BTreeMap<String, BTreeSet<String>>) = (Vec::new(), BTreeMap::new());
    for (pointer, name) in judge.objects(&everything) {
        let properties = judge.definitions()[name.as_str()]["properties"].as_object().expect("properties");
        let properties: BTreeSet<String> = properties.keys().cloned().collect();
        let fields = fields(&everything, &pointer);
        let differ: Vec<&String> = properties.symmetric_difference(&fields).collect();
        if !differ.is_empty() {
            findings.push(format!("{pointer}: {differ:?}"));
        }
        let object = everything.pointer(&pointer).and_then(Value::as_object).expect("an object");
        used.entry(name).or_default().extend(object.keys().cloned());
    }
    check(&findings, "fields of schema and parser differ");
    for (name, definition) in judge.definitions() {
        let properties = definition["properties"].as_object().expect("properties").keys();
        let unused: Vec<&String> =
            properties.filter(|field| !used.get(name).is_some_and(|used| used.contains(*field))).collect();
        assert!(unused.is_empty(), "tests/schema/everything.json has no {unused:?} of {name:?}");
    }
}

#[test]
fn every_property_is_described_in_a_sentence() {
    let judge = Judge::new();
    let mut findings = Vec::new();
    for (name, definition) in judge.definitions() {
        assert_eq!(definition["additionalProperties"], false, "{name}");
        for (field, schema) in definition["properties"].as_object().expect("properties") {
            let description = schema["description"].as_str().unwrap_or_default();
            if !description.ends_with('.') || description.contains(". ") || description.contains('\n') {
                findings.push(format!("{name}.{field}: {description:?}"));
            }
        }
    }
    check(&findings, "not one sentence");
}

#[test]
fn a_default_that_is_written_out_changes_nothing() {
    let judge = Judge::new();
    let definitions = judge.definitions();
    let (mut findings, mut same) = (Vec::new(), BTreeSet::new());
    for config in [everything(), reference()] {
        for (pointer, name) in judge.objects(&config) {
            for (field, schema) in definitions[name.as_str()]["properties"].as_object().expect("properties") {
                // What has no default is nothing where it is left out.
                let nothing = judge.is_nullable(schema).then_some(&Value::Null);
                let Some(default) = schema.get("default").or(nothing) else { continue };
                let left_out = parsed(&without(config.clone(), &pointer, field));
                let written = parsed(&with(config.clone(), &format!("{pointer}/{field}"), default));
                if left_out != written {
                    let (left_out, written) = (left_out.err(), written.err());
                    findings.push(format!("{pointer}/{field} = {default}: {left_out:?}, {written:?}"));
                } else if written.is_ok() {
                    same.insert((name.clone(), field.clone()));
                }
            }
        }
    }
    check(&findings, "these are no defaults");
    for (name, definition) in definitions {
        let required = definition["required"].as_array().into_iter().flatten();
        let required: Vec<&str> = required.filter_map(Value::as_str).collect();
        for field in definition["properties"].as_object().expect("properties").keys() {
            // What `metrics` is where it is left out cannot be written.
            let is_optional = !required.contains(&field.as_str()) && (name, field.as_str()) != ("pool", "metrics");
            let is_same = same.contains(&(name.to_owned(), field.clone()));
            assert_eq!(is_optional, is_same, "{name}.{field}: what is optional has a default, or may be null");
        }
    }
}
