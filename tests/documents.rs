//! What the documents promise, checked: their sizes, that their links lead somewhere, that every field has its row, and that the commands
//! they show are there.

#![allow(clippy::disallowed_methods, reason = "tests start processes")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use routebalance_cli::setup::package_root;
use routebalance_core::gateway::{Outcome, Subject};
use routebalance_core::health::Failure;
use routebalance_core::names;
use routebalance_core::router::{RefusalReason, Rung, UntouchedReason};
use routebalance_core::worker::{Counter, Gauge, Histogram};
use serde_json::Value;

fn read(name: &str) -> String {
    fs::read_to_string(package_root().join(name)).unwrap_or_else(|problem| panic!("{name}: {problem}"))
}

fn check(findings: &[String], what: &str) {
    assert!(findings.is_empty(), "{what}:\n{}", findings.join("\n"));
}

/// Files that are, or are about to be, in the repository, relative to its root, whose names are of one of these forms.
fn files(forms: &[&str]) -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .args(forms)
        .current_dir(package_root())
        .output()
        .expect("the documents' test asks git for the repository's files: install git");
    assert!(output.status.success(), "the documents' test needs a clone: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("file names are UTF-8");
    let mut files: Vec<String> = names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    files.retain(|name| package_root().join(name).is_file());
    assert!(files.iter().any(|name| name == "README.md"), "git lists no README.md");
    files
}

fn documents() -> Vec<String> {
    files(&["*.md"])
}

/// A line of a document, with its number.
struct Line<'a> {
    number: usize,
    text: &'a str,
}

/// A piece of code between fences.
struct Block<'a> {
    number: usize,
    language: &'a str,
    lines: Vec<&'a str>,
}

/// The lines outside of code, and the pieces of code.
fn parts(text: &str) -> (Vec<Line<'_>>, Vec<Block<'_>>) {
    let (mut lines, mut blocks): (Vec<Line<'_>>, Vec<Block<'_>>) = (Vec::new(), Vec::new());
    let mut is_code = false;
    for (index, text) in text.lines().enumerate() {
        let number = index + 1;
        if let Some(language) = text.trim_start().strip_prefix("```") {
            is_code = !is_code;
            if is_code {
                blocks.push(Block { number, language: language.trim(), lines: Vec::new() });
            }
        } else if is_code {
            blocks.last_mut().expect("a fence before").lines.push(text);
        } else {
            lines.push(Line { number, text });
        }
    }
    (lines, blocks)
}

/// The text of a heading.
fn heading(line: &str) -> Option<&str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    (1..=6).contains(&level).then(|| text.strip_prefix(' '))?.map(str::trim)
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for heading in parts(text).0.iter().filter_map(|line| heading(line.text)) {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect();
        let count = seen.entry(anchor.clone()).or_default();
        anchors.insert(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
        *count += 1;
    }
    anchors
}

/// A line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<&str>>().join("`")
}

/// Where the links of a line lead.
fn targets(line: &str) -> Vec<String> {
    // Of `[`code`](target)`, the target stands outside of the backticks.
    let line = without_code(line);
    let starts = line.match_indices("](").map(|(at, link)| at + link.len());
    starts.filter_map(|at| line[at..].split(')').next()).map(str::to_owned).collect()
}

/// A path without `.` and `..`; `None` if it leaves the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => normal.pop().then_some(())?,
            Component::Normal(name) => normal.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}

#[test]
fn what_must_be_read_first_is_short() {
    for (name, lines_max) in [("README.md", 150), ("CONTRIBUTING.md", 120)] {
        let lines = read(name).lines().count();
        assert!(lines <= lines_max, "{name} has {lines} lines, and may have {lines_max}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let mut findings = Vec::new();
    let mut links = 0;
    for document in documents() {
        let text = read(&document);
        let folder = Path::new(&document).parent().expect("a file has a folder");
        for line in parts(&text).0 {
            for target in targets(line.text) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                links += 1;
                let (path, anchor) = match target.split_once('#') {
                    Some((path, anchor)) => (path, Some(anchor)),
                    None => (target.as_str(), None),
                };
                let place = format!("{document}:{}: {target}", line.number);
                let file = if path.is_empty() { Some(PathBuf::from(&document)) } else { normal(&folder.join(path)) };
                let Some(file) = file.filter(|file| package_root().join(file).exists()) else {
                    findings.push(place);
                    continue;
                };
                if let Some(anchor) = anchor {
                    let name = file.to_str().expect("file names are UTF-8");
                    if !name.ends_with(".md") || !anchors(&read(name)).contains(anchor) {
                        findings.push(format!("{place}: no such heading"));
                    }
                }
            }
        }
    }
    assert!(links > 100, "links are written in another way: {links} were found");
    check(&findings, "these links lead nowhere");
}

/// A struct that is read from a file: its fields, each with its type.
type Fields = Vec<(String, String)>;

/// The structs of Rust files by their names.
fn structs(files: &[String]) -> BTreeMap<String, Fields> {
    let mut structs = BTreeMap::new();
    for file in files {
        let text = read(file);
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let Some((_, name)) = line.split_once("struct ") else { continue };
            let Some(name) = name.strip_suffix(" {") else { continue };
            let (mut fields, mut attribute) = (Vec::new(), "");
            for line in lines.by_ref().map(str::trim).take_while(|line| *line != "}") {
                if line.starts_with("#[") {
                    attribute = line;
                    continue;
                }
                let declared = line.trim_start_matches("pub(super) ").trim_start_matches("pub ");
                let Some((field, kind)) = declared.split_once(": ").filter(|_| !line.starts_with("//")) else {
                    continue;
                };
                // A field that is only for people has its name in `rename`.
                let renamed = attribute.split_once("rename = \"").and_then(|(_, rest)| rest.split('"').next());
                if !attribute.contains("serde(skip)") {
                    let kind = kind.trim_end_matches(',').to_owned();
                    fields.push((renamed.unwrap_or(field).to_owned(), kind));
                }
                attribute = "";
            }
            structs.insert(name.to_owned(), fields);
        }
    }
    structs
}

/// The objects of a file, as paths, in the order in which they are declared, each with the names of its fields.
fn objects(root: &str, structs: &BTreeMap<String, Fields>, aliases: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
    fn visit(
        path: &str,
        name: &str,
        structs: &BTreeMap<String, Fields>,
        aliases: &[(&str, &str)],
        objects: &mut Vec<(String, Vec<String>)>,
    ) {
        let fields = &structs[name];
        objects.push((path.to_owned(), fields.iter().map(|(field, _)| field.clone()).collect()));
        for (field, kind) in fields {
            let alias = aliases.iter().find(|(written, _)| written == kind).map_or(kind.as_str(), |(_, meant)| *meant);
            let inner = alias.trim_start_matches("Option<").trim_start_matches("Vec<").trim_end_matches('>');
            if structs.contains_key(inner) {
                let list = if alias.contains("Vec<") { "[]" } else { "" };
                let below = if path.is_empty() { format!("{field}{list}") } else { format!("{path}.{field}{list}") };
                visit(&below, inner, structs, aliases, objects);
            }
        }
    }
    let mut objects = Vec::new();
    visit("", root, structs, aliases, &mut objects);
    objects
}

/// What a document says of one object.
#[derive(Debug)]
struct Section {
    /// The object's path; empty for the whole file.
    path: String,
    /// What stands between backticks in the first cell of each row of its table.
    rows: Vec<String>,
    /// Its first example.
    example: Option<Value>,
}

/// The sections of a document that are about an object: below the heading `whole`, and below each that is a path between backticks.
fn sections(document: &str, whole: &str) -> Vec<Section> {
    let text = read(document);
    let (lines, blocks) = parts(&text);
    let mut sections: Vec<(usize, Section)> = Vec::new();
    let mut is_about = false;
    for line in &lines {
        if let Some(heading) = heading(line.text) {
            let path = heading.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'));
            let path = if heading == whole { Some("") } else { path };
            is_about = path.is_some();
            if let Some(path) = path {
                let section = Section { path: path.to_owned(), rows: Vec::new(), example: None };
                sections.push((line.number, section));
            }
        } else if let (true, Some((_, section))) = (is_about, sections.last_mut())
            && let Some(cell) = line.text.strip_prefix("| `").and_then(|rest| rest.split('`').next())
        {
            section.rows.push(cell.to_owned());
        }
    }
    for block in blocks.iter().filter(|block| block.language == "json") {
        let example = serde_json::from_str(&block.lines.join("\n"));
        let example = example.unwrap_or_else(|problem| panic!("{document}:{}: {problem}", block.number));
        let before = sections.iter_mut().rev().find(|(number, _)| *number < block.number);
        if let Some((_, section)) = before {
            section.example.get_or_insert(example);
        }
    }
    sections.into_iter().map(|(_, section)| section).collect()
}

/// Compares the sections of a document with the objects that are declared.
fn explains(document: &str, whole: &str, objects: &[(String, Vec<String>)]) {
    let sections = sections(document, whole);
    let expected: Vec<&str> = objects.iter().map(|(path, _)| path.as_str()).collect();
    let found: Vec<&str> = sections.iter().map(|section| section.path.as_str()).collect();
    assert_eq!(found, expected, "{document}: one section for each object, in the order of the file");
    let mut findings = Vec::new();
    for ((path, fields), section) in objects.iter().zip(&sections) {
        let place = format!("{document}, {}", if path.is_empty() { whole } else { path });
        let missing = fields.iter().filter(|field| !section.rows.contains(*field));
        findings.extend(missing.map(|field| format!("{place}: no row for `{field}`")));
        let unknown = section.rows.iter().filter(|row| !fields.contains(*row));
        findings.extend(unknown.map(|row| format!("{place}: `{row}` is no field")));
        let once: BTreeSet<&String> = section.rows.iter().collect();
        if once.len() != section.rows.len() {
            findings.push(format!("{place}: a field has two rows"));
        }
        match section.example.as_ref().map(Value::as_object) {
            None => findings.push(format!("{place}: no example")),
            Some(None) => findings.push(format!("{place}: the example is no object")),
            Some(Some(example)) => {
                let unknown = example.keys().filter(|key| !fields.contains(*key));
                findings.extend(unknown.map(|key| format!("{place}: the example has `{key}`, which is no field")));
            }
        }
    }
    check(&findings, "documents and fields differ");
}

#[test]
fn configuration_md_explains_every_field() {
    let folder = package_root().join("src/core/config");
    let files =
        fs::read_dir(folder).expect("src/core/config is there").map(|entry| entry.expect("readable").file_name());
    let names = files.map(|name| name.into_string().expect("file names are UTF-8"));
    let files: Vec<String> =
        names.filter(|name| name.ends_with(".rs")).map(|name| format!("src/core/config/{name}")).collect();
    let objects = objects("RawConfig", &structs(&files), &[("RawMetrics", "Option<RawMetricsPlace>")]);
    let fields: usize = objects.iter().map(|(_, fields)| fields.len()).sum();
    assert!(fields > 110, "src/core/config declares its fields in another way: {objects:?}");
    explains("envoy/CONFIGURATION.md", "Top level", &objects);
}

#[test]
fn the_planners_readme_explains_every_field_of_a_plan_file() {
    let files =
        ["file.rs", "file/raw.rs", "file/scores.rs", "profiles.rs"].map(|name| format!("src/lab/planning/{name}"));
    // Both may be written in a shorter way, too.
    let aliases = [("RawProfiles", "Vec<ProfileRow>"), ("RawDemand", "Vec<RawLevel>")];
    let objects = objects("PlanFile", &structs(&files), &aliases);
    let fields: usize = objects.iter().map(|(_, fields)| fields.len()).sum();
    assert!(fields > 60, "plan files declare their fields in another way: {objects:?}");
    explains("src/lab/planning/README.md", "The plan file", &objects);
}

/// The first cells of the rows of a section's table whose heading row begins so, without backticks.
fn first_cells(document: &str, section: &str, column: &str) -> Vec<String> {
    let text = read(document);
    let lines = parts(&text).0.into_iter().map(|line| line.text).skip_while(|line| heading(line) != Some(section));
    let section = lines.skip(1).take_while(|line| heading(line).is_none());
    let cells = section.skip_while(|line| !line.starts_with(&format!("| {column} |"))).skip(2);
    let cells = cells.map_while(|line| line.strip_prefix("| ")?.split(" |").next());
    cells.map(|cell| cell.replace('`', "")).collect()
}

#[test]
fn telemetry_md_has_a_row_for_every_statistic_and_every_reason() {
    fn of<T>(all: &[T], name: impl Fn(&T) -> String) -> Vec<String> {
        all.iter().map(name).collect()
    }
    let rungs = of(&Rung::ALL, Rung::to_string).into_iter().chain([names::RUNG_UNHONOURED.to_owned()]).collect();
    // A part of a name that differs stands behind a space.
    let counters = of(Counter::ALL, |counter| format!("{} {}", counter.name(), counter.parts()).trim_end().to_owned());
    let gauges = of(Gauge::ALL, |gauge| format!("{} {}", gauge.name(), gauge.parts()).trim_end().to_owned());
    let tables = [
        ("Counters", "name", counters),
        ("Gauges", "name", gauges),
        ("Histograms", "name", of(&Histogram::ALL, Histogram::to_string)),
        ("Rungs", "rung", rungs),
        ("Why a request was refused", "reason", of(&RefusalReason::ALL, RefusalReason::to_string)),
        ("Why a request was left alone", "reason", of(&UntouchedReason::ALL, UntouchedReason::to_string)),
        ("Outcomes", "outcome", of(&Outcome::ALL, Outcome::to_string)),
        ("Outcomes", "reason of answered and returned", of(&Subject::ALL, Subject::to_string)),
        ("Kinds of failure", "kind", of(&Failure::ALL, Failure::to_string)),
    ];
    let mut findings = Vec::new();
    for (section, column, expected) in tables {
        let column = column.replace("answered and returned", "`answered` and `returned`");
        let rows = first_cells("envoy/TELEMETRY.md", section, &column);
        let missing = expected.iter().filter(|name| !rows.contains(name));
        findings.extend(missing.map(|name| format!("{section}: no row for `{name}`")));
        let unknown = rows.iter().filter(|row| !expected.contains(row));
        findings.extend(unknown.map(|row| format!("{section}: nothing is called `{row}`")));
        if rows.len() > expected.len() {
            findings.push(format!("{section}: something has two rows"));
        }
    }
    check(&findings, "envoy/TELEMETRY.md and the core's names differ");
}

/// The names that a record has in JSON: its own fields, and those of the groups that are flattened into it.
fn names_in_json(record: &str, structs: &BTreeMap<String, Fields>) -> Vec<String> {
    let mut names = Vec::new();
    for (field, kind) in &structs[record] {
        let inner = kind.trim_start_matches("Option<").trim_end_matches('>').trim_start_matches("&'a ");
        // A forecast is told by its times.
        let inner = if inner == "Forecast" { "Times" } else { inner };
        if structs.contains_key(inner) && field != "response" {
            names.extend(names_in_json(inner, structs));
        } else {
            names.push(field.clone());
        }
    }
    names
}

#[test]
fn telemetry_md_explains_every_field_of_the_log() {
    let files = ["gateway/access_log.rs", "router/decision.rs"].map(|name| format!("src/core/{name}"));
    let structs = structs(&files);
    for (record, section) in [("Routed<'a>", "`decision` of a routed request"), ("Response", "`decision.response`")] {
        let names = names_in_json(record, &structs);
        assert!(names.len() > 8, "{record} declares its fields in another way: {names:?}");
        assert_eq!(first_cells("envoy/TELEMETRY.md", section, "field"), names, "{section}, in the order of the log");
    }
}

/// What Cargo can do by itself, as far as the documents need it, and tools that have names of their own.
const CARGO: [&str; 12] =
    ["add", "build", "check", "clippy", "deny", "doc", "fmt", "fuzz", "install", "run", "rustc", "test"];

/// The words at the start of the lines of a section of a TOML file: `[alias]`.
fn keys_of_table(file: &str, table: &str) -> Vec<String> {
    let text = read(file);
    let lines = text.lines().skip_while(|line| *line != table).skip(1).take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())).collect()
}

/// The subcommands of `routebalance`.
fn subcommands() -> Vec<String> {
    let text = read("src/cli/main.rs");
    let (_, rest) = text.split_once("enum Command {\n").expect("the subcommands are an enum");
    let lines = rest.lines().take_while(|line| *line != "}");
    let variants =
        lines.filter_map(|line| line.strip_prefix("    ")).filter(|line| line.starts_with(char::is_uppercase));
    variants.filter_map(|line| line.split(['(', ' ', ',']).next()).map(str::to_lowercase).collect()
}

/// The names of the integration tests.
fn test_names() -> Vec<String> {
    let mut names = Vec::new();
    for manifest in
        ["Cargo.toml", "tests/fuzz/Cargo.toml"].into_iter().filter(|file| package_root().join(file).is_file())
    {
        let text = read(manifest);
        let tables = text.split("[[test]]\n").skip(1);
        names.extend(tables.filter_map(|table| Some(table.strip_prefix("name = \"")?.split('"').next()?.to_owned())));
    }
    names
}

#[test]
fn every_command_is_there() {
    let aliases = keys_of_table(".cargo/config.toml", "[alias]");
    let (subcommands, tests) = (subcommands(), test_names());
    assert!(aliases.len() > 1 && subcommands.len() > 5, "{aliases:?} {subcommands:?}");
    let mut findings = Vec::new();
    let mut commands = 0;
    for document in documents() {
        let text = read(&document);
        for block in parts(&text).1.iter().filter(|block| block.language == "sh") {
            for line in &block.lines {
                let mut words = line.split_whitespace().skip_while(|word| word.contains('=') && !word.starts_with('-'));
                if words.next() != Some("cargo") {
                    continue;
                }
                commands += 1;
                let words = words.skip_while(|word| word.starts_with('+'));
                let words: Vec<&str> = words.take_while(|word| !word.starts_with('#')).collect();
                let command = words.first().copied().unwrap_or_default();
                let mut wrong = !CARGO.contains(&command) && !aliases.iter().any(|alias| alias == command);
                let after = |flag: &str| {
                    let at = words.iter().position(|word| *word == flag)?;
                    words.get(at + 1).copied()
                };
                // Of another package, its own test says what it understands.
                if command == "run" && after("-p").is_none() {
                    wrong |= !after("--").is_some_and(|name| subcommands.iter().any(|known| known == name));
                }
                if let Some(name) = after("--test") {
                    wrong |= !tests.iter().any(|known| known == name);
                }
                if wrong {
                    findings.push(format!("{document}:{}: {line}", block.number));
                }
            }
        }
    }
    assert!(commands > 20, "commands are shown in another way: {commands} were found");
    check(&findings, "these commands are not there");
}

/// A text as one line, without the marks of comments, so that a phrase is found wherever its line ends.
fn joined(text: &str) -> String {
    let words = text.lines().map(|line| line.trim_start().trim_start_matches(['/', '!', '#']).trim());
    words.collect::<Vec<&str>>().join(" ")
}

/// The sections that a joined text cites of a document: those of `NAME, section 4.2`, `NAME, sections 5 to 9` and
/// `NAME, sections 19.1 and 19.2`.
fn cited(joined: &str, name: &str) -> Vec<String> {
    let mut sections = Vec::new();
    for (at, start) in joined.match_indices(&format!("{name}, section")) {
        let rest = joined[at + start.len()..].trim_start_matches('s').trim_start();
        let numbers = rest
            .split(' ')
            .take_while(|word| matches!(*word, "to" | "and") || word.starts_with(|first: char| first.is_ascii_digit()));
        let numbers = numbers.filter(|word| !matches!(*word, "to" | "and"));
        let number = |word: &str| word.trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
        let before = sections.len();
        sections.extend(numbers.map(number));
        if sections.len() == before {
            sections.push(rest.chars().take(20).collect());
        }
    }
    sections
}

#[test]
fn every_cited_section_of_what_is_published_is_there() {
    const DIGEST: &str = "src/sim/contender/PUBLISHED.md";
    let digest = read(DIGEST);
    let numbered = parts(&digest).0.into_iter().filter_map(|line| heading(line.text)?.split(' ').next());
    let sections: BTreeSet<&str> = numbered.map(|number| number.trim_end_matches('.')).collect();
    // Split, so that this file does not contain it.
    let vague = ["of its speci", "fication"].concat();
    let (mut findings, mut citations) = (Vec::new(), 0);
    for file in files(&["*.md", "*.py", "*.rs", "*.toml"]) {
        let text = joined(&read(&file));
        if text.contains(&vague) {
            findings.push(format!("{file}: \"{vague}\" is nothing that a reader can open"));
        }
        // This file shows how citations are read.
        if file == "tests/documents.rs" {
            continue;
        }
        for section in cited(&text, "PUBLISHED.md") {
            citations += 1;
            if !sections.contains(section.as_str()) {
                findings.push(format!("{file}: {DIGEST} has no section {section}"));
            }
        }
    }
    assert!(citations > 40, "sections are cited in another way: {citations} were found");
    check(&findings, "these citations lead nowhere");
}

#[test]
fn citations_are_read_as_they_are_written() {
    let text = joined(
        "//! as said (A.md,\n//! section 4.2).\n    /// A.md, sections 5 to\n    /// 9; A.md, sections 19.1 and 19.2: B.md, section 1\n",
    );
    assert_eq!(cited(&text, "A.md"), ["4.2", "5", "9", "19.1", "19.2"]);
    assert_eq!(cited("A.md, section four", "A.md"), ["four"]);
}

#[test]
fn anchors_and_links_are_read_as_they_are_written() {
    let text = "# A `b[].c_d`: e\n```sh\n# no heading\n```\n## Twice\n## Twice\n#no heading\n";
    assert_eq!(anchors(text), BTreeSet::from(["a-bc_d-e", "twice", "twice-1"].map(str::to_owned)));
    assert_eq!(targets("see [a](b.md#c), [`d`](../e) and `[f](g)`"), ["b.md#c", "../e"]);
    assert_eq!(normal(Path::new("a/../b/./c")), Some(PathBuf::from("b/c")));
    assert_eq!(normal(Path::new("../b")), None);
}
