//! Prompts with what every model of a fleet made of them, and what was expected before.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::json;

use super::lines;
use super::opinions::Opinions;
use routebalance_core::fleet::{Fleet, ModelId, ModelKind};
use routebalance_core::openai::{Api, Prompt, RequestScan};
use routebalance_core::router::{Outlook, Router};
use routebalance_sim::workload::Template;

/// An answer of more tokens is a mistake, as for `models/train.py`.
pub(super) const TOKENS_MAX: f64 = 10e6;

/// A prompt with known answers. Lists are in the order of the fleet's models.
#[derive(Clone, Debug)]
pub struct LabPrompt {
    /// Its name in its set.
    pub id: String,
    /// What the gateway reads, what is expected by our predictor, and the truth.
    pub template: Template,
    /// What other contenders' learned parts say of it, if anybody asked them.
    pub opinions: Option<Arc<Opinions>>,
}

/// A set of prompts.
#[derive(Clone, Debug, Default)]
pub struct LabPrompts {
    /// The prompts; at least one.
    pub prompts: Vec<LabPrompt>,
    /// What a person should know of them, a sentence each.
    pub notes: Vec<String>,
}

/// Mean output tokens of a fleet's generating models.
pub(super) fn mean_output_tokens(fleet: &Fleet, template: &Template) -> f64 {
    let generating = generating(fleet);
    generating.iter().map(|m| f64::from(template.output_tokens[m.index()])).sum::<f64>()
        / generating.len().max(1) as f64
}

/// The models that write text.
pub fn generating(fleet: &Fleet) -> Vec<ModelId> {
    fleet.models_by_id().filter(|(_, model)| model.kind == ModelKind::Generate).map(|(id, _)| id).collect()
}

/// Values by name in the order of the fleet's models, and 0 where a model writes no text; the first generating model without one.
pub fn in_fleet_order(fleet: &Fleet, values: &BTreeMap<String, f64>) -> Result<Vec<f64>, String> {
    let value = |model: &routebalance_core::fleet::Model| match (values.get(&model.name), model.kind) {
        (_, ModelKind::Embed) => Ok(0.0),
        (Some(value), ModelKind::Generate) => Ok(*value),
        (None, ModelKind::Generate) => Err(model.name.clone()),
    };
    fleet.models.iter().map(value).collect()
}

pub(super) fn within(field: &str, values: &BTreeMap<String, f64>, max: f64) -> Result<()> {
    for (model, value) in values {
        ensure!((0.0..=max).contains(value), "{field}.{model}: must be between 0 and {max}, is {value}");
    }
    Ok(())
}

/// One line of a file of prompts; other fields are left alone.
#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    split: Option<String>,
    #[serde(default)]
    prompt: Option<String>,
    #[serde(default)]
    prompt_tokens: Option<f64>,
    q: BTreeMap<String, f64>,
    len: BTreeMap<String, f64>,
}

/// Reads prompts as `models/train.py` does, one JSON object a line, packed or plain: `prompt` (or only `prompt_tokens`), `q` and
/// `len` by model. What is expected is what the router's own predictor says of the text, and the models' priors without one.
///
/// # Errors
/// The file, the line and the field that are wrong, or a generating model of the fleet that no row has.
pub fn read(file: &Path, router: &Router) -> Result<LabPrompts> {
    parse(&file.display().to_string(), &lines::text_of(file)?, router)
}

/// [`read`] of a text with this name.
///
/// # Errors
/// As [`read`].
pub fn parse(name: &str, text: &str, router: &Router) -> Result<LabPrompts> {
    let fleet = &router.config().fleet;
    let mut set = LabPrompts::default();
    let (mut rows, mut known, mut incomplete, mut without_text) = (0, 0, 0, 0);
    let mut missing = String::new();
    for (place, line) in lines::placed(name, text) {
        rows += 1;
        let row: Row = lines::parsed(line).with_context(|| place.clone())?;
        within("q", &row.q, 1.0).and(within("len", &row.len, TOKENS_MAX)).with_context(|| place.clone())?;
        if row.split.as_deref().is_some_and(|split| split == "train" || split == "val") {
            known += 1;
            continue;
        }
        let (quality, output_tokens) = match (in_fleet_order(fleet, &row.q), in_fleet_order(fleet, &row.len)) {
            (Ok(quality), Ok(tokens)) => (quality, tokens),
            (Err(model), _) | (_, Err(model)) => {
                incomplete += 1;
                missing = model;
                continue;
            }
        };
        without_text += usize::from(row.prompt.is_none());
        let (prompt, prompt_tokens) = gateway_view(&row).with_context(|| place.clone())?;
        let outlook = match row.prompt {
            Some(_) => router.outlook(&prompt, &generating(fleet)),
            None => priors(router, &prompt),
        };
        let template = Template {
            outlook: Some(outlook),
            ..Template::from_prompt(prompt, prompt_tokens, answered_tokens(fleet, &output_tokens), quality)
        };
        set.prompts.push(LabPrompt { id: row.id.unwrap_or(place), template, opinions: None });
    }
    ensure!(rows > 0, "{name}: has no row");
    let left_out = |count: usize, why: String| (count > 0).then(|| format!("{name}: {count} of {rows} rows {why}"));
    set.notes.extend(left_out(
        known,
        "are in split train or val: left out, since the shipped predictor may have been trained on them".to_owned(),
    ));
    set.notes.extend(left_out(
        incomplete,
        format!("lack q or len of a generating model of the fleet, {missing} for one: left out"),
    ));
    set.notes
        .extend(left_out(without_text, "have no text: what is expected of them are the models' priors".to_owned()));
    if set.prompts.is_empty() {
        bail!("no row is left: {}", set.notes.join("; "));
    }
    Ok(set)
}

/// What the gateway reads of a row, and the tokens that its prompt really has.
fn gateway_view(row: &Row) -> Result<(Prompt, u32)> {
    let given = row.prompt_tokens.map(|tokens| {
        ensure!((0.0..=TOKENS_MAX).contains(&tokens), "prompt_tokens: must be between 0 and {TOKENS_MAX}, is {tokens}");
        Ok((tokens.round() as u32).max(1))
    });
    match (&row.prompt, given.transpose()?) {
        (Some(text), tokens) => {
            let mut scan = RequestScan::new(Api::ChatCompletions);
            scan.push(json!({ "messages": [{ "role": "user", "content": text }] }).to_string().as_bytes());
            let prompt = scan.finish().map_err(|problem| anyhow::anyhow!("prompt: {problem}"))?;
            let estimated = prompt.text.estimated_tokens().clamp(1, TOKENS_MAX as u64) as u32;
            Ok((prompt, tokens.unwrap_or(estimated)))
        }
        (None, Some(tokens)) => Ok((Template::of_counts(tokens, Vec::new(), Vec::new()).prompt, tokens)),
        (None, None) => bail!("prompt: is missing, and so is prompt_tokens"),
    }
}

/// What is expected of any prompt.
pub(super) fn priors(router: &Router, prompt: &Prompt) -> Outlook {
    // No model may answer, so that nothing is predicted.
    router.outlook(prompt, &[])
}

/// An empty answer costs about what one token does; a model that writes no text has no tokens.
pub fn answered_tokens(fleet: &Fleet, tokens: &[f64]) -> Vec<u32> {
    let answered = |(model, tokens): (&routebalance_core::fleet::Model, &f64)| match model.kind {
        ModelKind::Generate => (tokens.round() as u32).max(1),
        ModelKind::Embed => 0,
    };
    fleet.models.iter().zip(tokens).map(answered).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use routebalance_core::config::Config;
    use routebalance_core::predictor::Predictor;

    pub(crate) fn router() -> Router {
        let config = Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap();
        Router::new(config, Predictor::load().ok())
    }

    fn row(rest: &str) -> String {
        let by_model = |values: [f64; 4]| {
            let names = ["3B", "7B", "32B", "72B"].map(|size| format!("Qwen2.5-{size}-Instruct"));
            json!(names.into_iter().zip(values).collect::<BTreeMap<_, _>>())
        };
        format!("{{\"q\":{},\"len\":{},{rest}}}", by_model([0.0, 0.5, 1.0, 1.0]), by_model([9.0, 0.0, 11.4, 12.0]))
    }

    #[test]
    fn rows_become_templates() {
        let text =
            [row(r#""prompt":"Why is the sky blue?","x":[1]"#), String::new(), row(r#""prompt_tokens":77,"id":"b""#)];
        let set = parse("p.jsonl", &text.join("\n"), &router()).unwrap();
        let [first, second] = set.prompts.as_slice() else { panic!("{} rows", set.prompts.len()) };
        assert_eq!((first.id.as_str(), second.id.as_str()), ("p.jsonl:1", "b"));
        assert_eq!(first.template.output_tokens, [9, 1, 11, 12, 0]);
        assert_eq!(first.template.quality, [0.0, 0.5, 1.0, 1.0, 0.0]);
        assert_eq!((first.template.prompt_tokens, second.template.prompt_tokens), (6, 77));
        let outlook = |p: &LabPrompt| p.template.outlook.clone().unwrap();
        assert!(outlook(first).familiarity.is_some() && outlook(first).estimates[0].1, "predicted from the text");
        assert!(outlook(second).familiarity.is_none() && !outlook(second).estimates[0].1, "priors");
        assert_eq!(set.notes, ["p.jsonl: 1 of 2 rows have no text: what is expected of them are the models' priors"]);
    }

    #[test]
    fn what_is_left_out_is_said() {
        let few = r#"{"prompt":"a","q":{"other":1},"len":{"other":1}}"#.to_owned();
        let text = [row(r#""prompt":"a","split":"train""#), row(r#""prompt":"b","split":"test""#), few];
        let set = parse("p", &text.join("\n"), &router()).unwrap();
        assert_eq!(set.prompts.len(), 1);
        let [split, models] = set.notes.as_slice() else { panic!("{:?}", set.notes) };
        assert!(split.starts_with("p: 1 of 3 rows are in split train or val: left out"), "{split}");
        assert!(
            models.starts_with("p: 1 of 3 rows lack q or len of a generating model of the fleet, Qwen2.5-3B"),
            "{models}"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = row(r#""prompt":"a""#);
        let rows = [
            ("{}".to_owned(), "p:2: missing field `q`"),
            (good.replace("0.5", "3"), "p:2: q.Qwen2.5-7B-Instruct: must be between 0 and 1, is 3"),
            (good.replace("11.4", "-1"), "p:2: len.Qwen2.5-32B-Instruct: must be between 0 and 10000000, is -1"),
            (good.replace("11.4", "\"x\""), "p:2: len.Qwen2.5-32B-Instruct: invalid type: string \"x\""),
            (row(r#""z":1"#), "p:2: prompt: is missing, and so is prompt_tokens"),
            (row(r#""prompt_tokens":-1"#), "p:2: prompt_tokens: must be between"),
            ("{".to_owned(), "p:2: EOF while parsing"),
        ];
        for (line, expected) in rows {
            let problem = format!("{:#}", parse("p", &format!("{good}\n{line}"), &router()).unwrap_err());
            assert!(problem.starts_with(expected), "{problem}\nexpected: {expected}");
        }
        let all_known = parse("p", &row(r#""prompt":"a","split":"val""#), &router()).unwrap_err().to_string();
        assert!(all_known.starts_with("no row is left: p: 1 of 1 rows are in split"), "{all_known}");
        assert_eq!(parse("p", "\n", &router()).unwrap_err().to_string(), "p: has no row");
    }
}
