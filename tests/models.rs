//! What is committed of the predictors: nothing held out was trained on, no text that may not be published is here, and the model
//! card says what the reports say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde_json::Value;

/// The shipped predictors: report, and the rows that they were trained on.
const SHIPPED: [(&str, [&str; 2]); 2] = [
    ("report.json", ["crux.jsonl.gz", "math_l5.features.jsonl.gz"]),
    ("mix6/report.json", ["mix6.jsonl.gz", "mix6_math.features.jsonl.gz"]),
];

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

fn rows(file: &str) -> Vec<Value> {
    let bytes = fs::read(models().join("data").join(file)).unwrap();
    let mut text = String::new();
    if file.ends_with(".gz") {
        GzDecoder::new(bytes.as_slice()).read_to_string(&mut text).unwrap();
    } else {
        text = String::from_utf8(bytes).unwrap();
    }
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn report(file: &str) -> Value {
    serde_json::from_slice(&fs::read(models().join(file)).unwrap()).unwrap()
}

/// A prompt in lower case with single spaces: what makes two rows the same question.
fn normal(prompt: &str) -> String {
    prompt.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn no_held_out_prompt_was_trained_on() {
    let demo: BTreeSet<String> =
        rows("demo_prompts.jsonl").iter().map(|row| normal(row["prompt"].as_str().unwrap())).collect();
    assert!(demo.len() >= 150, "the demo has its prompts");
    for (_, files) in SHIPPED {
        let mut by_split: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in files.iter().flat_map(|file| rows(file)) {
            // Rows without a text carry its fingerprint.
            let key = row["prompt"].as_str().map_or_else(|| row["group"].as_str().unwrap().to_owned(), normal);
            by_split.entry(row["split"].as_str().unwrap().to_owned()).or_default().insert(key);
        }
        let train = &by_split["train"];
        assert!(train.len() > 1_000 && by_split["test"].len() > 200);
        assert!(train.is_disjoint(&by_split["test"]) && train.is_disjoint(&by_split["val"]), "{files:?}");
        assert!(train.is_disjoint(&demo), "{files:?}");
    }
}

#[test]
fn each_predictor_was_trained_on_its_rows_of_split_train() {
    for (file, files) in SHIPPED {
        let mut counted: BTreeMap<String, u64> = BTreeMap::new();
        for row in files.iter().flat_map(|file| rows(file)) {
            if row["split"] == "train" {
                *counted.entry(row["dataset"].as_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        let report = report(file);
        let told = report["rows"].as_object().unwrap().iter();
        let told: BTreeMap<String, u64> =
            told.map(|(name, splits)| (name.clone(), splits["train"].as_u64().unwrap())).collect();
        assert_eq!(told, counted, "{file}");
        // The ONNX file says itself what it was trained on.
        let onnx = fs::read(models().join(file).with_file_name("predictor.onnx")).unwrap();
        let trained_on = serde_json::to_string(&counted).unwrap().replace(":", ": ").replace(",", ", ");
        let found = onnx.windows(trained_on.len()).any(|bytes| bytes == trained_on.as_bytes());
        assert!(found, "{file}: no {trained_on} in the metadata");
    }
}

#[test]
fn maths_is_here_as_features_only() {
    for file in ["math_l5.features.jsonl.gz", "mix6_math.features.jsonl.gz"] {
        for row in rows(file) {
            let fields: Vec<&str> = row.as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(fields, ["dataset", "features", "group", "id", "len", "q", "split"], "{file}");
            let slots: Vec<u64> =
                row["features"]["slots"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
            assert!(slots.is_sorted(), "{file}: the order of words is not told");
        }
    }
}

#[test]
fn a_predictor_has_at_most_256_kib() {
    for (file, _) in SHIPPED {
        let bytes = fs::metadata(models().join(file).with_file_name("predictor.onnx")).unwrap().len();
        assert!(bytes <= 256 << 10, "{file}: {bytes} bytes");
    }
}

#[test]
fn the_card_says_what_the_reports_say() {
    const COLUMNS: [&str; 8] =
        ["auc", "auc_within", "r2_quality", "r2_ln_len", "mae_ln_len", "gap_closed", "max_gain", "cost_at_best"];
    let card = fs::read_to_string(models().join("README.md")).unwrap();
    let cell = |value: &Value| {
        let Some(mean) = value["mean"].as_f64() else { return "-".to_owned() };
        let (sd, splits) = (value["sd"].as_f64().unwrap(), value["splits"].as_u64().unwrap());
        let some = if splits < 5 { format!(" ({splits})") } else { String::new() };
        format!("{mean:.3} ± {sd:.3}{some}")
    };
    for (file, _) in SHIPPED {
        let report = report(file);
        for (head, title) in [("head", "**ours**"), ("minilm_knn10", "the paper's: MiniLM, k = 10"), ("prior", "prior")]
        {
            let values = &report["splits"]["all"][head];
            let cells: Vec<String> = COLUMNS.iter().map(|column| cell(&values[*column])).collect();
            let row = format!("| {title} | {} |", cells.join(" | "));
            assert!(card.contains(&row), "{file}: the card lacks {row}");
        }
        for task in report["held_out_task"].as_array().unwrap() {
            let number = |name: &str| format!("{:.3}", task[name].as_f64().unwrap());
            let start = ["familiarity", "bias", "bias_prior"].map(number).join(" | ");
            let row = format!("| {} | {} | {start} |", task["dataset"].as_str().unwrap(), task["rows"]);
            assert!(card.contains(&row), "{file}: the card lacks {row}");
        }
    }
}
