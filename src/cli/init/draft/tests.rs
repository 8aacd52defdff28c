use serde_json::json;

use super::*;
use crate::init::listing::ServedModel;
use routebalance_core::config::Config;

/// A group with these names, adapters and the last numbers of its addresses.
fn group(ids: &[&str], root: Option<&str>, adapters: &[&str], servers: &[u8]) -> Group {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Group {
        model: ServedModel {
            ids: owned(ids),
            root: root.map(str::to_owned),
            max_model_len: Some(4_096),
            adapters: owned(adapters),
        },
        kv_tokens: Some(50_000),
        servers: servers.iter().map(|last| (SocketAddr::from(([10, 0, 0, *last], 8000)), None)).collect(),
    }
}

/// The file, which is a configuration, and the sentences.
fn written(groups: &[Group]) -> (Value, Vec<String>) {
    let mut remarks = Vec::new();
    let draft = Draft::new(groups, &Knowledge::read().unwrap(), &mut remarks).unwrap();
    let json = draft.json().unwrap();
    Config::parse(json.as_bytes()).unwrap_or_else(|problem| panic!("{problem}\n{json}"));
    (serde_json::from_str(&json).unwrap(), remarks)
}

#[test]
fn a_pool_is_written_as_its_servers_have_it() {
    let groups = [
        group(&["Qwen/Qwen2.5-7B-Instruct"], Some("Qwen/Qwen2.5-7B-Instruct"), &["sql"], &[1, 2]),
        group(&["hub/other-3b"], None, &[], &[3]),
    ];
    let (file, remarks) = written(&groups);
    assert_eq!(
        file["models"][0],
        json!({
            "name": "Qwen2.5-7B-Instruct", "usd_per_million_input_tokens": 0.07, "usd_per_million_output_tokens": 0.07,
            "quality_prior": 0.52, "output_tokens_prior": 290, "adapters": ["sql"],
        })
    );
    let pool = &file["pools"][0];
    assert_eq!(pool["limits"], json!({"kv_tokens": 50_000, "max_model_len": 4_096}));
    assert_eq!(pool["instances"], json!(["10.0.0.1:8000", "10.0.0.2:8000"]));
    assert_eq!((&pool["name"], &pool["cluster"]), (&json!("qwen2.5-7b-instruct"), &json!("pool-qwen2.5-7b-instruct")));
    assert_eq!(
        (&pool["profile"]["tpot_ms"], &pool["served_model"]),
        (&json!(19.6), &json!("Qwen/Qwen2.5-7B-Instruct"))
    );
    assert!(
        pool["profile"]["source"].as_str().unwrap().contains("models of about 7B; `routebalance init --measure`"),
        "{pool}"
    );
    assert_eq!(file["default_policy"], "balanced");
    assert_eq!(file["envoy"], json!({"default_pool": "qwen2.5-7b-instruct"}));
    let routes: Vec<(&str, &str)> = file["routes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|route| (route["prefix"].as_str().unwrap(), route["policy"].as_str().unwrap()))
        .collect();
    assert_eq!(routes, [("/quality/", "quality"), ("/cost/", "cost"), ("/", "balanced")]);
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    assert!(remarks[0].contains("other-3b") && remarks[0].contains("edit models[1]"), "{remarks:?}");
    assert_eq!(written(&groups).0, file);
}

#[test]
fn names_are_kept_apart() {
    for (groups, models, pools, sentences) in [
        // The same last part of two names; a name that means a choice.
        (
            vec![
                group(&["a/m"], None, &[], &[1]),
                group(&["b/m"], Some("hub/n"), &[], &[2]),
                group(&["c/m"], None, &[], &[3]),
            ],
            vec!["m", "n", "m-2"],
            vec!["m", "n", "m-2"],
            vec!["model m:", "model n:", "model m-2:"],
        ),
        (vec![group(&["auto"], None, &[], &[1])], vec!["auto-2"], vec!["auto-2"], vec!["model auto-2:"]),
        // One model under two names: two pools of it, with the adapters that both have.
        (
            vec![
                group(&["fast"], Some("Qwen/Qwen2.5-3B-Instruct"), &["sql", "x"], &[1]),
                group(&["slow"], Some("/mnt/Qwen2.5-3B-Instruct"), &["sql"], &[2]),
            ],
            vec!["Qwen2.5-3B-Instruct"],
            vec!["qwen2.5-3b-instruct", "qwen2.5-3b-instruct-2"],
            vec!["adapter x of Qwen2.5-3B-Instruct is left out: not every pool"],
        ),
        // An adapter's name that is a model's, what a server calls its model, or another model's adapter.
        (
            vec![
                group(
                    &["Qwen/Qwen2.5-3B-Instruct"],
                    None,
                    &["Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "sql"],
                    &[1],
                ),
                group(&["Qwen/Qwen2.5-7B-Instruct"], None, &["sql", "auto"], &[2]),
            ],
            vec!["Qwen2.5-3B-Instruct", "Qwen2.5-7B-Instruct"],
            vec!["qwen2.5-3b-instruct", "qwen2.5-7b-instruct"],
            vec!["adapter Qwen/", "adapter Qwen2.5-7B", "adapter auto", "adapter sql of Qwen2.5-7B-Instruct"],
        ),
    ] {
        let (file, remarks) = written(&groups);
        let names = |list: &str| -> Vec<String> {
            file[list].as_array().unwrap().iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(
            (names("models"), names("pools")),
            (models.iter().map(|m| (*m).to_owned()).collect(), pools.iter().map(|p| (*p).to_owned()).collect())
        );
        assert_eq!(remarks.len(), sentences.len(), "{remarks:?}");
        assert!(remarks.iter().zip(sentences).all(|(remark, part)| remark.contains(part)), "{remarks:?}");
    }
}

#[test]
fn a_model_for_embeddings_is_one() {
    let (file, _) = written(&[group(&["BAAI/bge-small-en-v1.5"], None, &[], &[1])]);
    assert_eq!(
        file["models"][0],
        json!({"name": "bge-small-en-v1.5", "kind": "embed", "usd_per_million_input_tokens": 0.01})
    );
    assert!(file.get("envoy").is_none());
}

#[test]
fn what_was_measured_takes_the_place_of_guesses() {
    let groups = [group(&["m-7b"], None, &[], &[1])];
    for (growth, prefill, source) in [
        (Some(0.0512), Some((4_018.7, 30.04)), "measured by `routebalance init --measure`"),
        (None, None, "; guessed: tpot_growth_per_running, prefill_tokens_per_second, overhead_ms"),
    ] {
        let mut remarks = Vec::new();
        let mut draft = Draft::new(&groups, &Knowledge::read().unwrap(), &mut remarks).unwrap();
        remarks.clear();
        draft.pools[0].measured(&Measured { tpot_ms: 21.237, tpot_growth_per_running: growth, prefill }, &mut remarks);
        let profile = &draft.pools[0].profile;
        let expected = if prefill.is_some() { (21.2, 0.0512, 4_020.0, 30.0) } else { (21.2, 0.015, 7_650.0, 20.0) };
        let found =
            (profile.tpot_ms, profile.tpot_growth_per_running, profile.prefill_tokens_per_second, profile.overhead_ms);
        assert_eq!(found, expected);
        assert!(profile.source.ends_with(source), "{}", profile.source);
        assert_eq!(remarks.len(), usize::from(prefill.is_none()), "{remarks:?}");
    }
}

#[test]
fn numbers_have_three_digits() {
    for (value, expected) in [
        (0.0, 0.0),
        (f64::NAN, 0.0),
        (0.012_345, 0.012_3),
        (1.0, 1.0),
        (19.649, 19.6),
        (123.456, 123.0),
        (7_654.3, 7_650.0),
        (999.9, 1_000.0),
    ] {
        assert_eq!(rounded(value), expected, "{value}");
    }
}
