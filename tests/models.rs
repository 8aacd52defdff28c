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

/// The lab's prompts, and the rows whose truth they repeat.
const LAB: [(&str, [&str; 2]); 2] = [
    ("lab.jsonl.gz", ["crux.jsonl.gz", "math_l5.features.jsonl.gz"]),
    ("lab_mix6.jsonl.gz", ["mix6.jsonl.gz", "mix6_math.features.jsonl.gz"]),
];

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn is_share(value: &f64) -> bool {
    (0.0..=1.0).contains(value)
}

#[test]
fn the_lab_has_every_prompt_once_with_its_truth_and_without_its_text() {
    for (file, sources) in LAB {
        let truth: BTreeMap<String, Value> = sources
            .iter()
            .flat_map(|source| rows(source))
            .map(|row| (row["id"].as_str().unwrap().to_owned(), row))
            .collect();
        let lab = rows(file);
        let ids: BTreeSet<&str> = lab.iter().map(|row| row["id"].as_str().unwrap()).collect();
        assert_eq!((ids.len(), lab.len()), (truth.len(), truth.len()), "{file}");
        for row in &lab {
            let real = &truth[row["id"].as_str().unwrap()];
            assert_eq!(row["dataset"], real["dataset"]);
            for (what, within) in [("q", 5e-5), ("len", 0.5)] {
                let (told, real) = (row[what].as_object().unwrap(), real[what].as_object().unwrap());
                assert_eq!(told.len(), real.len());
                let equal = told
                    .iter()
                    .all(|(model, value)| (value.as_f64().unwrap() - real[model].as_f64().unwrap()).abs() <= within);
                assert!(equal, "{file}: {what} of {}", row["id"]);
            }
            assert!(row.get("prompt").is_none() && row.get("features").is_none(), "{file}: a text");
        }
    }
}

#[test]
fn no_question_of_the_lab_is_in_two_folds() {
    for (file, sources) in LAB {
        let fold: BTreeMap<String, u64> = rows(file)
            .iter()
            .map(|row| (row["id"].as_str().unwrap().to_owned(), row["fold"].as_u64().unwrap()))
            .collect();
        assert_eq!(fold.values().collect::<BTreeSet<_>>(), (0..5).collect::<BTreeSet<_>>().iter().collect(), "{file}");
        let mut folds: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for row in sources.iter().flat_map(|source| rows(source)) {
            let question = row["prompt"].as_str().map_or_else(|| row["group"].as_str().unwrap().to_owned(), normal);
            folds.entry(question).or_default().insert(fold[row["id"].as_str().unwrap()]);
        }
        assert!(folds.values().all(|folds| folds.len() == 1), "{file}");
    }
}

#[test]
fn what_the_labs_contenders_know_is_within_bounds() {
    for (file, _) in LAB {
        for row in rows(file) {
            let models = row["q"].as_object().unwrap().len();
            let ours: Vec<Vec<f64>> = row["ours"].as_array().unwrap().iter().map(numbers).collect();
            assert_eq!(ours.len(), models);
            for estimate in &ours {
                let &[quality, sd, p50, p80, p90] = estimate.as_slice() else { panic!("{file}: {estimate:?}") };
                assert!(is_share(&quality) && (0.0..=0.5).contains(&sd), "{file}: {estimate:?}");
                assert!(1.0 <= p50 && p50 <= p80 && p80 <= p90 && p90 <= 131_072.0, "{file}: {estimate:?}");
            }
            assert!(is_share(&row["familiarity"].as_f64().unwrap()) && row["prompt_tokens"].as_u64().unwrap() > 0);
        }
    }
    let is_one = |values: &[f64]| (values.iter().sum::<f64>() - 1.0).abs() < 1e-3;
    for row in rows("lab.jsonl.gz") {
        let (knn_q, knn_len) = (numbers(&row["knn"]["q"]), numbers(&row["knn"]["len"]));
        assert!(
            knn_q.len() == 4 && knn_q.iter().all(is_share) && knn_len.len() == 4 && knn_len.iter().all(|n| *n >= 1.0)
        );
        let best = numbers(&row["best_route"]);
        assert!(best.len() == 4 && best.iter().all(is_share) && is_one(&best));
        let clusters = row["avengers"].as_array().unwrap();
        let weights: Vec<f64> = clusters.iter().map(|cluster| cluster["weight"].as_f64().unwrap()).collect();
        assert!(clusters.len() == 3 && is_one(&weights));
        for cluster in clusters {
            for what in ["performance", "efficiency"] {
                let values = numbers(&cluster[what]);
                assert!(values.len() == 4 && values.iter().all(is_share));
            }
        }
        assert!(is_share(&row["routellm"].as_f64().unwrap()) && row["q"].get(row["sr"].as_str().unwrap()).is_some());
        assert!(row["prototype"].as_u64().unwrap() < 64);
    }
}

/// A prompt among its own neighbours would outweigh all others and return its own scores.
#[test]
fn no_neighbour_of_the_lab_is_the_prompt_itself() {
    let lab = rows("lab.jsonl.gz");
    let models: Vec<String> = report("lab_report.json")["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model.as_str().unwrap().to_owned())
        .collect();
    let knows = |row: &&Value| {
        let own = models.iter().map(|model| row["q"][model].as_f64().unwrap());
        numbers(&row["knn"]["q"]).iter().zip(own).all(|(estimate, own)| (estimate - own).abs() < 1e-3)
    };
    let count = lab.iter().filter(knows).count();
    assert!(count * 50 < lab.len(), "{count} of {}", lab.len());
}

#[test]
fn the_card_says_what_the_lab_measured() {
    let card = fs::read_to_string(models().join("README.md")).unwrap();
    let report = report("lab_report.json");
    assert_eq!(report["rows"], rows("lab.jsonl.gz").len());
    let number = |value: &Value| value.as_f64().unwrap();
    let point = |point: &Value| {
        let setting = point["setting"].as_str().unwrap();
        let setting = if setting.is_empty() { String::new() } else { format!(" ({setting})") };
        format!("{:.3} at {:.4}{setting}", number(&point["quality"]), number(&point["usd_per_1000"]))
    };
    for (name, measured) in report["estimates"].as_object().unwrap() {
        let values = [("auc", "auc"), ("r2 quality", "r2_quality"), ("r2 ln", "r2_ln_len"), ("mae ln", "mae_ln_len")]
            .map(|(title, key)| format!("{title} {:.3}", number(&measured[key])));
        let line = format!("- {name}: {}\n", values.join(", "));
        assert!(card.contains(&line), "the card lacks {line}");
    }
    let best = &report["best_route"];
    let line = format!(
        "- best-route: names the best model of {:.3} (always the most frequent: {:.3}; published: 0.392)\n",
        number(&best["accuracy"]),
        number(&best["accuracy_of_most_frequent"])
    );
    assert!(card.contains(&line), "the card lacks {line}");
    for (name, contender) in report["contenders"].as_object().unwrap() {
        let settings = contender["settings"].as_array().unwrap();
        let (first, last) = (settings.first().unwrap(), settings.last().unwrap());
        let ends = if settings.len() > 1 { [point(first), point(last)] } else { [String::new(), String::new()] };
        // The first of equals, as the command prints it.
        let best =
            settings.iter().rev().max_by(|a, b| number(&a["quality"]).total_cmp(&number(&b["quality"]))).unwrap();
        let row = format!(
            "| {name} | {} | {} | {} | {:+.3} ± {:.3} | {:.3} | {:.3} |",
            ends[0],
            ends[1],
            point(best),
            number(&best["gain"]),
            number(&best["gain_se"]),
            number(&best["best_model"]),
            number(&contender["gap_closed"])
        );
        assert!(card.contains(&row), "the card lacks {row}");
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
