//! What the repository promises about itself, checked: sizes, the map, the direction of dependencies, and what must not be in it.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::read::GzDecoder;
use routebalance::tools::setup::package_root;
use serde_json::Value;

const LINES_MAX: usize = 600;

/// Files that are, or are about to be, in the repository, relative to its root.
fn files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(package_root())
        .output()
        .expect("tidy asks git for the repository's files: install git");
    assert!(output.status.success(), "tidy needs a clone: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let mut files: Vec<String> = names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    files.retain(|name| path(name).is_file());
    assert!(files.iter().any(|name| name == "src/lib.rs"), "git lists no src/lib.rs");
    files
}

fn path(name: &str) -> PathBuf {
    package_root().join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|problem| panic!("{name}: {problem}"))
}

fn rust_files() -> impl Iterator<Item = String> {
    files().into_iter().filter(|name| name.ends_with(".rs"))
}

/// `openai` for `src/openai.rs` and for `src/openai/scan.rs`.
fn module_of(file: &str) -> Option<&str> {
    let below = file.strip_prefix("src/")?;
    below.split('/').next()?.split('.').next()
}

/// Line numbers and lines that are neither comments nor tests; unit tests stand at the end of a file or in `tests.rs`.
fn code(file: &str) -> Vec<(usize, String)> {
    if file.ends_with("/tests.rs") {
        return Vec::new();
    }
    let text = read(file);
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").enumerate();
    let code = lines.filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.map(|(index, line)| (index + 1, line.to_owned())).collect()
}

fn check(findings: &[String], what: &str) {
    assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
}

#[test]
fn no_source_file_is_too_long() {
    let lengths = rust_files().map(|file| (read(&file).lines().count(), file));
    let long = lengths.filter(|(lines, _)| *lines > LINES_MAX).map(|(lines, file)| format!("{file}: {lines} lines"));
    check(&long.collect::<Vec<_>>(), "split where the noun changes");
}

#[test]
fn nothing_names_a_machine() {
    // Split, so that this file does not contain them.
    let mut words = vec![
        ["/wo", "rk/"].concat(),
        ["/ro", "ot/"].concat(),
        ["/ho", "me/"].concat(),
        ["../sh", "ared"].concat(),
        ["index-", "url"].concat(),
        ["replace-", "with"].concat(),
    ];
    words.extend(std::env::var("CARGO_HOME").ok().filter(|home| home.len() > 1));
    let mut findings = Vec::new();
    for file in files() {
        let bytes = fs::read(path(&file)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        findings.extend(words.iter().filter(|word| text.contains(*word)).map(|word| format!("{file}: {word}")));
    }
    for line in read("Cargo.lock").lines().filter_map(|line| line.strip_prefix("source = ")) {
        if line != r#""registry+https://github.com/rust-lang/crates.io-index""# {
            findings.push(format!("Cargo.lock: {line}"));
        }
    }
    check(&findings, "paths and registries of one machine do not belong here");
}

#[test]
fn the_map_in_lib_rs_is_complete() {
    let lib = read("src/lib.rs");
    let modules: BTreeSet<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or_else(|| line.strip_prefix("mod "))?.strip_suffix(';'))
        .collect();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" |").next());
    let map: BTreeSet<&str> =
        rows.map(|cell| cell.trim_matches(['[', ']', '`'])).filter(|cell| *cell != "module").collect();
    assert!(!modules.is_empty());
    assert_eq!(map, modules, "the map in src/lib.rs and its modules differ");
}

#[test]
fn readme_explains_every_field_of_the_configuration() {
    let readme = read("README.md");
    let sections = rust_files().filter(|file| file.starts_with("src/config/"));
    let raw: String = sections.map(|file| read(&file)).collect();
    let mut fields: BTreeSet<String> = raw
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub(super) ")?.split_once(':'))
        .map(|(field, _)| field.trim())
        .filter(|field| field.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        // A field that is only for people has its name in `rename`.
        .map(|field| field.trim_start_matches('_').to_owned())
        .collect();
    assert!(fields.len() > 70, "src/config declares its fields in another way: {fields:?}");
    keys(&serde_json::from_str(&read("envoy/routebalance.json")).unwrap(), &mut fields);
    // As a whole word, in code or in a table: `pools[].name` explains `name`.
    let words: BTreeSet<&str> = readme.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let missing: Vec<String> = fields.into_iter().filter(|field| !words.contains(field.as_str())).collect();
    check(&missing, "README.md does not explain these fields");
}

#[test]
fn readme_explains_every_field_of_a_plan_file() {
    let mut fields = BTreeSet::new();
    for file in [
        "src/tools/plan/file.rs",
        "src/tools/plan/file/raw.rs",
        "src/tools/plan/file/scores.rs",
        "src/tools/plan/profiles.rs",
    ] {
        let text = read(file);
        let mut structs = text.split("struct ").skip(1);
        let is_read = |body: &&str| ["PlanFile {", "Raw", "ProfileRow {"].iter().any(|name| body.starts_with(name));
        for body in structs.by_ref().filter(is_read) {
            let lines = body.lines().skip(1).take_while(|line| *line != "}");
            let named = lines.filter_map(|line| {
                Some(line.trim().trim_start_matches("pub(super) ").trim_start_matches("pub ").split_once(": ")?.0)
            });
            fields.extend(
                named.filter(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')).map(str::to_owned),
            );
        }
    }
    // Where the file is, and the fields that stand for a column each of the same form.
    fields.remove("folder");
    assert!(fields.len() > 40, "plan files declare their fields in another way: {fields:?}");
    keys(&serde_json::from_str(&read("envoy/plan.json")).unwrap(), &mut fields);
    let readme = read("README.md");
    let section = readme
        .split("\n## ")
        .find(|section| section.starts_with("Planning"))
        .expect("README has a section on planning");
    let words: BTreeSet<&str> = section.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let is_explained = |field: &String| {
        let by_parts =
            |(time, statistic): (&str, &str)| words.contains(time) && words.contains(format!("_{statistic}").as_str());
        words.contains(field.as_str()) || field.split_once('_').is_some_and(by_parts)
    };
    let missing: Vec<String> = fields.into_iter().filter(|field| !is_explained(field)).collect();
    check(&missing, "README.md does not explain these fields of a plan file");
}

fn keys(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            into.extend(fields.keys().cloned());
            fields.values().for_each(|value| keys(value, into));
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, into)),
        _ => {}
    }
}

#[test]
fn nothing_in_the_module_can_panic_by_a_word() {
    const WORDS: [&str; 6] = [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "unreachable!("];
    let mut findings = Vec::new();
    for file in rust_files().filter(|file| !matches!(module_of(file), None | Some("main" | "tools"))) {
        for (number, line) in code(&file) {
            findings.extend(
                WORDS.iter().filter(|word| line.contains(*word)).map(|word| format!("{file}:{number}: {word}")),
            );
        }
    }
    check(&findings, "a panic takes down every stream of a worker");
}

#[test]
fn dependencies_point_one_way() {
    let mut findings = Vec::new();
    for file in rust_files() {
        let Some(module) = module_of(&file) else { continue };
        let rows: [(&str, &[&str]); 4] = [
            ("crate::tools", &["tools"]),
            ("crate::filter", &["filter"]),
            ("proxy_wasm", &["filter"]),
            ("tract_", &["predictor"]),
        ];
        for (number, line) in code(&file) {
            for (name, may) in rows {
                if line.contains(name) && !may.contains(&module) {
                    findings.push(format!("{file}:{number}: {name}"));
                }
            }
        }
    }
    check(&findings, "src/lib.rs says who may name whom");
}

#[test]
fn no_math_problem_is_in_the_repository() {
    // An id or a split is short; a problem is not.
    const LABEL_CHARS_MAX: usize = 40;
    let mut rows = 0;
    for file in files().into_iter().filter(|file| file.starts_with("models/data/") && file.contains(".json")) {
        for line in unpacked(&path(&file)).lines() {
            let row: Value = serde_json::from_str(line).unwrap_or_else(|problem| panic!("{file}: {problem}"));
            let dataset = row["dataset"].as_str().unwrap_or_default();
            if !(dataset.starts_with("math") || file.contains("math")) {
                continue;
            }
            rows += 1;
            assert!(row.get("prompt").is_none(), "{file}: a MATH row has a prompt: {}", row["id"]);
            let longest = longest_text(&row);
            assert!(longest <= LABEL_CHARS_MAX, "{file}: a MATH row has a text of {longest} characters: {}", row["id"]);
        }
    }
    assert!(rows > 0, "models/data has no MATH rows: is this check looking in the right place?");
}

fn unpacked(file: &Path) -> String {
    let mut text = String::new();
    let bytes = fs::read(file).unwrap();
    if file.extension().is_some_and(|extension| extension == "gz") {
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
    } else {
        text = String::from_utf8(bytes).unwrap();
    }
    text
}

fn longest_text(value: &Value) -> usize {
    match value {
        Value::String(text) => text.chars().count(),
        Value::Array(items) => items.iter().map(longest_text).max().unwrap_or(0),
        Value::Object(fields) => fields.values().map(longest_text).max().unwrap_or(0),
        _ => 0,
    }
}
