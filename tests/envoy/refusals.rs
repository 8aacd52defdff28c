//! A configuration that is wrong.

use routebalance_cli::check::check;
use serde_json::{Value, json};

use super::setups::replaced;
use crate::harness::Setup;

/// The gateway's own tools would not let it through, so it is made wrong after rendering.
static WRONG: Setup = Setup {
    name: "wrong",
    change: |config| config["models"][1]["quality_prior"] = json!(0.123),
    edit: Some(|yaml| replaced(yaml, r#""quality_prior": 0.123"#, r#""quality_prior": 1.5"#)),
    reports: false,
    ..Setup::PLAIN
};

pub(crate) async fn names_the_field() {
    let problem = format!("{:#}", WRONG.start(true).await.expect_err("Envoy does not start"));
    let mut config: Value = serde_json::from_str(include_str!("../../envoy/routebalance.json")).unwrap();
    config["models"][1]["quality_prior"] = json!(1.5);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("routebalance.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let sentence = format!("{:#}", check(&file).expect_err("check refuses it"));
    assert!(sentence.contains("models[1].quality_prior"), "{sentence}");
    assert!(problem.contains(&sentence), "Envoy says: {problem}\ncheck says: {sentence}");
}
