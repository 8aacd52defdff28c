//! What the repository promises about itself, checked: sizes, the map, the direction of dependencies, and what must not be in it.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::read::GzDecoder;
use routebalance_cli::setup::package_root;
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
    assert!(files.iter().any(|name| name == "src/core/lib.rs"), "git lists no src/core/lib.rs");
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

/// Crates that end up in the module, or decide as it does: what holds for the module holds for them.
const PURE: [&str; 4] = ["core", "filter", "plan", "sim"];

/// `core` for all files below `src/core`.
fn crate_of(file: &str) -> Option<&str> {
    Some(file.strip_prefix("src/")?.split_once('/')?.0)
}

/// `openai` for `src/core/openai.rs` and for `src/core/openai/scan.rs`; no other crate has modules in layers.
fn module_of(file: &str) -> Option<&str> {
    let below = file.strip_prefix("src/core/")?;
    if below.starts_with("build") {
        return None;
    }
    below.split('/').next()?.split('.').next()
}

/// Line numbers and lines that are neither comments nor tests. Tests are what stands behind `#[cfg(test)]`, up to the end of that item,
/// and what is in `tests.rs` or in a folder `tests`.
fn code(file: &str) -> Vec<(usize, String)> {
    if file.ends_with("/tests.rs") || file.contains("/tests/") || file.contains("/against_engine") {
        return Vec::new();
    }
    let text = read(file);
    let mut code = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        match line.strip_suffix("#[cfg(test)]") {
            Some(indent) => {
                // As rustfmt writes it, the item's last line stands as far left as its first, and no line between them ends so.
                let mut item = lines.by_ref().filter_map(|(_, line)| line.strip_prefix(indent));
                item.find(|rest| !rest.starts_with(' ') && rest.ends_with([';', '}', ',']));
            }
            None if line.trim_start().starts_with("//") => {}
            None => code.push((index + 1, line.to_owned())),
        }
    }
    code
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
fn the_map_names_every_module_and_every_crate() {
    let readme = read("src/README.md");
    let table = |heading: &str, cell: usize| {
        let section = readme.split("\n## ").find(|section| section.starts_with(heading)).expect("the section is there");
        let cells = section.lines().filter_map(|line| line.strip_prefix('|')?.split('|').nth(cell));
        let code = cells.filter_map(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`'));
        code.map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let lib = read("src/core/lib.rs");
    let modules = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let modules: BTreeSet<String> = modules.map(str::to_owned).collect();
    assert_eq!(table("The map", 0), modules, "the map and the modules of src/core/lib.rs differ");
    let members = files().into_iter().filter_map(|file| {
        let folder = file.strip_suffix("Cargo.toml")?.trim_end_matches('/').to_owned();
        // The top package is the command line; crates outside of the workspace are no part of the house.
        (!folder.starts_with("vendor") && !folder.ends_with("cargo-fuzz")).then_some(folder)
    });
    let members: BTreeSet<String> =
        members.map(|folder| if folder.is_empty() { "src/cli".into() } else { folder }).collect();
    assert_eq!(table("The crates", 1), members, "the table of crates and the packages differ");
}

#[test]
fn nothing_in_the_module_can_panic_by_a_word() {
    const WORDS: [&str; 6] = [".unwrap()", ".expect(", "panic!(", "todo!(", "unimplemented!(", "unreachable!("];
    let mut findings = Vec::new();
    for file in
        rust_files().filter(|file| crate_of(file).is_some_and(|name| PURE.contains(&name)) && !file.contains("/build"))
    {
        for (number, line) in code(&file) {
            findings.extend(
                WORDS.iter().filter(|word| line.contains(*word)).map(|word| format!("{file}:{number}: {word}")),
            );
        }
    }
    check(&findings, "a panic takes down every stream of a worker");
}

/// Leases, ages and back-offs are told by a clock that nobody sets.
#[test]
fn the_clock_that_people_set_is_read_for_one_answer_alone() {
    let mut findings = Vec::new();
    for file in rust_files().filter(|file| crate_of(file).is_some_and(|name| PURE.contains(&name))) {
        for (line, text) in code(&file) {
            let reads = ["wall_clock()", "get_current_time", "SystemTime"].iter().any(|word| text.contains(word));
            let is_allowed = match file.as_str() {
                // When the list of models was made.
                "src/core/gateway/local.rs" => text.contains("let created = "),
                "src/filter/host.rs" | "src/filter/envoy.rs" => true,
                _ => text.contains("fn wall_clock(&self)"),
            };
            if reads && !is_allowed {
                findings.push(format!("{file}:{line}: {}", text.trim()));
            }
        }
    }
    check(&findings, "only the list of models tells the time of day");
}

#[test]
fn a_dependency_belongs_to_one_module() {
    let mut findings = Vec::new();
    for file in rust_files() {
        if crate_of(&file).is_none() || file.starts_with("src/core/build") {
            continue;
        }
        for (number, line) in code(&file) {
            let is_out_of_place = (line.contains("proxy_wasm") && !file.starts_with("src/filter/"))
                || (line.contains("tract_") && !file.starts_with("src/onnx/") && module_of(&file) != Some("predictor"));
            if is_out_of_place {
                findings.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    check(&findings, "the filter alone names its host, and the predictor and its compiler alone tract");
}

/// The modules from the inside out. A module may name those of the rows above its own and no others, so there is no circle, and
/// whoever changes one of them knows whom that can concern: the rows below.
const LAYERS: [&[&str]; 9] = [
    &["features", "hash", "names", "random", "telemetry"],
    &["fleet"],
    &["affinity", "discovery", "predictor", "reckoning"],
    &["latency", "openai"],
    &["health", "learning", "prices", "score"],
    &["admission", "config", "shared"],
    &["router"],
    &["assign", "worker"],
    &["gateway"],
];

/// Line numbers and names of what code takes from the root of the crate: by `crate::a`, wherever it stands, by
/// `use crate::{a, b::{c}}`, on one line or on several, and by as many `super::` as lead there.
fn named_from_the_root(file: &str, code: &[(usize, String)]) -> Vec<(usize, String)> {
    let depth = file.trim_start_matches("src/").trim_end_matches(".rs").matches('/').count();
    let text: String = code.iter().map(|(_, line)| format!("{line}\n")).collect();
    let text = text.replace(&"super::".repeat(depth), "crate::");
    let mut named = Vec::new();
    for (at, word) in text.match_indices("crate") {
        if text[..at].ends_with(is_of_a_word) {
            continue;
        }
        let rest = &text[at + word.len()..];
        let names = match rest.strip_prefix("::") {
            Some(group) if group.starts_with('{') => first_names(group),
            Some(path) => vec![path],
            // Under another name of the crate, nobody would see what is taken from it.
            None if rest.starts_with(" as ") || rest.starts_with(" self ") => vec![&text[at..]],
            None => continue,
        };
        for path in names {
            // Each is the end of the text from there on.
            let line = code[text[..text.len() - path.len()].matches('\n').count()].0;
            let name: String = path.chars().take_while(|c| is_of_a_word(*c)).collect();
            named.push((line, if name.is_empty() { "everything".to_owned() } else { name }));
        }
    }
    named
}

fn is_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text from `a` on and the text from `b` on, of one that begins with the group `{a, b::{c}}`.
fn first_names(text: &str) -> Vec<&str> {
    let (mut paths, mut depth, mut is_next) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        if is_next && !c.is_whitespace() && c != '}' {
            paths.push(&text[at..]);
            is_next = false;
        }
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        is_next |= depth == 1 && matches!(c, '{' | ',');
        if depth == 0 {
            break;
        }
    }
    paths
}

#[test]
fn modules_form_no_circle() {
    let layer_of = |module: &str| LAYERS.iter().position(|row| row.contains(&module));
    let lib = read("src/core/lib.rs");
    let modules =
        lib.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    let mut modules: Vec<&str> = modules.collect();
    modules.sort_unstable();
    let mut rows = LAYERS.concat();
    rows.sort_unstable();
    assert_eq!(rows, modules, "LAYERS and the modules of src/core/lib.rs differ");
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for file in rust_files().filter(|file| file != "src/core/lib.rs") {
        let Some(module) = module_of(&file) else { continue };
        for (line, name) in named_from_the_root(&file, &code(&file)) {
            let is_above = layer_of(&name).is_some_and(|layer| Some(layer) < layer_of(module));
            if name != module && !is_above {
                findings.push(format!("{file}:{line}: {module} may not name {name}"));
            }
            seen.insert((module.to_owned(), name));
        }
    }
    assert!(seen.len() > 80, "modules name each other in another way: {seen:?}");
    check(&findings, "LAYERS says who may name whom");
}

/// The crates from the inside out: what each may depend on. So a change of the lab rebuilds neither the core nor the filter.
const CRATES: [(&str, &[&str]); 9] = [
    ("src/core", &[]),
    ("src/filter", &["core"]),
    ("src/plan", &["core"]),
    ("src/sim", &["core", "plan"]),
    ("src/instance", &["core", "sim"]),
    ("src/lab", &["core", "plan", "sim"]),
    ("src/onnx", &[]),
    (".", &["core", "fuzz", "instance", "lab", "plan", "sim"]),
    ("tests/fuzz", &["core"]),
];

#[test]
fn crates_form_no_circle() {
    let mut findings = Vec::new();
    let manifests = files().into_iter().filter(|file| file.ends_with("Cargo.toml") && !file.starts_with("vendor"));
    for manifest in manifests.filter(|file| !file.contains("cargo-fuzz")) {
        let folder = manifest.trim_end_matches("Cargo.toml").trim_end_matches('/');
        let folder = if folder.is_empty() { "." } else { folder };
        let Some((_, may)) = CRATES.iter().find(|(name, _)| *name == folder) else {
            findings.push(format!("{folder} is not in CRATES"));
            continue;
        };
        let text = read(&manifest);
        let sections = text.split("\n[").filter(|section| {
            section
                .split(']')
                .next()
                .is_some_and(|head| head.ends_with("dependencies") && !head.starts_with("workspace"))
        });
        let named = sections.flat_map(|section| section.lines()).filter_map(|line| line.strip_prefix("routebalance-"));
        for name in named.map(|line| line.split(['.', ' ']).next().unwrap_or_default()) {
            if !may.contains(&name) {
                findings.push(format!("{manifest}: {name}"));
            }
        }
    }
    check(&findings, "CRATES says which crate may depend on which");
}

/// What decides is tested without a socket: its crates, and those that they depend on, have none.
#[test]
fn the_pure_crates_need_no_socket_crate() {
    for name in ["core", "plan", "sim"] {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--locked",
                "--edges",
                "all",
                "--prefix",
                "none",
                "--package",
                &format!("routebalance-{name}"),
            ])
            .current_dir(package_root())
            .output()
            .expect("cargo starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let tree = String::from_utf8_lossy(&output.stdout).into_owned();
        let crates: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(crates.contains("tract-core"), "cargo tree says something else: {tree}");
        for socket in ["axum", "hyper", "mio", "reqwest", "socket2", "tokio"] {
            assert!(!crates.contains(socket), "routebalance-{name} depends on {socket}");
        }
    }
}

#[test]
fn names_from_the_root_are_seen_however_they_are_written() {
    let code = "use crate::{\n    alpha::{one, two},\n    beta as other,\n};\nfn f() {\n    g(crate::gamma::three, super::super::delta);\n}\n\
                use crate::*;\nuse crate as root;\npub(crate) use subcrate::x;\nuse super::near;\n";
    let lines: Vec<_> = code.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect();
    let named = named_from_the_root("src/core/alpha/one.rs", &lines);
    let named: Vec<(usize, &str)> = named.iter().map(|(line, name)| (*line, name.as_str())).collect();
    assert_eq!(named, [(2, "alpha"), (3, "beta"), (6, "gamma"), (6, "delta"), (8, "everything"), (9, "crate")]);
}

/// The name that a line declares with one of these words: `struct`, `fn`.
fn declared<'a>(line: &'a str, words: &[&str]) -> Option<&'a str> {
    let mut rest = line.trim_start();
    if let Some(after) = rest.strip_prefix("pub") {
        let after = if after.starts_with('(') { after.split_once(')')?.1 } else { after };
        rest = after.strip_prefix(' ')?;
    }
    for word in ["const ", "async ", "unsafe "] {
        rest = rest.strip_prefix(word).unwrap_or(rest);
    }
    let name = words.iter().find_map(|word| rest.strip_prefix(word)?.strip_prefix(' '))?;
    Some(&name[..name.find(|c| !is_of_a_word(c)).unwrap_or(name.len())]).filter(|name| !name.is_empty())
}

/// Who reads `Settings` or searches for it has one thing to find.
#[test]
fn no_two_types_of_the_core_have_one_name() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in rust_files().filter(|file| module_of(file).is_some()) {
        for (number, line) in code(&file) {
            // A type inside of an implementation is named by its trait.
            let alias = declared(&line, &["type"]).filter(|_| !line.starts_with(' '));
            if let Some(name) = declared(&line, &["struct", "enum", "trait", "union"]).or(alias) {
                places.entry(name.to_owned()).or_default().push(format!("{file}:{number}"));
            }
        }
    }
    assert!(places.len() > 200, "types are declared in another way: {places:?}");
    let twice = places.iter().filter(|(_, places)| places.len() > 1);
    check(
        &twice.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect::<Vec<_>>(),
        "a second type of one name",
    );
}

/// Crates whose functions have names that say what comes out.
const NAMED: [&str; 2] = ["core", "filter"];

/// `Index::of` says nothing where it is read, and cannot be searched for.
#[test]
fn no_function_is_called_by_a_preposition() {
    const WORDS: [&str; 8] = ["of", "at", "by", "is", "on", "with", "to", "in"];
    let mut findings = Vec::new();
    for file in rust_files().filter(|file| crate_of(file).is_some_and(|name| NAMED.contains(&name))) {
        for (number, line) in read(&file).lines().enumerate() {
            if let Some(name) = declared(line, &["fn"]).filter(|name| WORDS.contains(name)) {
                findings.push(format!("{file}:{}: fn {name}", number + 1));
            }
        }
    }
    check(&findings, "a name says what comes out");
}

/// Crates whose functions are short.
const SHORT: [&str; 8] = ["cli", "core", "filter", "instance", "lab", "onnx", "plan", "sim"];
const FUNCTION_LINES_MAX: usize = 80;

#[test]
fn no_function_is_too_long() {
    let mut findings = Vec::new();
    let mut functions = 0;
    for file in rust_files().filter(|file| crate_of(file).is_some_and(|name| SHORT.contains(&name))) {
        let code = code(&file);
        for (index, (number, line)) in code.iter().enumerate() {
            let Some(name) = declared(line, &["fn"]) else { continue };
            let indent = &line[..line.len() - line.trim_start().len()];
            // As rustfmt writes it, its last line stands as far left as its first, if it has several.
            let ends = |line: &str| {
                line.strip_prefix(indent)
                    .is_some_and(|rest| matches!(rest, "}" | ");") || rest.starts_with(") -> ") && rest.ends_with(';'))
            };
            let end = if line.ends_with([';', '}']) { Some(line) } else { None };
            let end = end.map_or_else(
                || code[index..].iter().find(|(_, line)| ends(line)).map(|(end, _)| *end),
                |_| Some(*number),
            );
            let lines = end.map_or(0, |end| end + 1 - number);
            functions += 1;
            if lines > FUNCTION_LINES_MAX {
                findings.push(format!("{file}:{number}: fn {name} has {lines} lines"));
            }
        }
    }
    assert!(functions > 2_000, "functions are written in another way: {functions} were found");
    check(&findings, "what a function does has parts with names");
}

/// A time that is a number says its unit; else it is a `Duration`.
#[test]
fn times_of_the_core_say_their_unit() {
    const TIMES: [&str; 6] = ["ttft", "tpot", "e2e", "time", "wait", "age"];
    let mut findings = Vec::new();
    for file in rust_files().filter(|file| module_of(file).is_some()) {
        for (number, line) in code(&file) {
            let field = line.trim_start().trim_start_matches("pub(super) ").trim_start_matches("pub(crate) ");
            let field = field.trim_start_matches("pub ").split_once(": ");
            let is_number = |kind: &str| {
                let kind = kind.trim_end_matches(',').trim_start_matches("Option<").trim_end_matches('>');
                matches!(kind, "f64" | "f32" | "u64" | "u32")
            };
            if let Some((name, kind)) = field
                && is_number(kind)
                && TIMES.iter().any(|time| name.split('_').next_back() == Some(time))
            {
                findings.push(format!("{file}:{number}: {}", line.trim()));
            }
        }
    }
    check(&findings, "times say their unit");
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
