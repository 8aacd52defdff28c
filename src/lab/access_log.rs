//! The decision lines of the filter's access log as requests to simulate: a fleet's own traffic, without any text.
//!
//! The log knows the model that answered. What the other models would have made of a request is a guess from their priors:
//!
//! - their **output tokens** are to their prior as the chosen model's are to its prior, expected and real ones alike;
//! - their **quality** has odds that are to the prior's odds as those expected of the chosen model are to its prior's;
//! - the real quality of an answer is its feedback's score if there was one, else what was expected of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::lines;
use super::prompts::{LabPrompt, LabPrompts, TOKENS_MAX, answered_tokens, generating, priors};
use routebalance_core::fleet::{Fleet, ModelId, ModelKind};
use routebalance_core::predictor::Estimate;
use routebalance_core::router::{Outlook, Router};
use routebalance_sim::workload::Template;

/// Calls whose answers are text.
const GENERATING_APIS: [&str; 4] = ["chat_completions", "completions", "responses", "messages"];
/// Odds are taken of nothing nearer to 0 or 1.
const CERTAIN: f64 = 0.001;

/// One line, of any request.
#[derive(Deserialize)]
struct Line {
    time: String,
    #[serde(default)]
    request_id: Option<String>,
    #[serde(default)]
    decision: Value,
}

/// What the filter says of a request that it has routed; further fields are left alone.
#[derive(Deserialize)]
struct Routed {
    api: String,
    model: String,
    predicted_quality: f64,
    predicted_quality_sd: f64,
    familiarity: Option<f64>,
    prototype: Option<usize>,
    predicted_output_tokens: f64,
    predicted_output_tokens_p80: f64,
    predicted_output_tokens_p90: f64,
    estimated_prompt_tokens: f64,
    #[serde(default)]
    response: Option<Response>,
}

#[derive(Deserialize)]
struct Response {
    prompt_tokens: Option<f64>,
    completion_tokens: f64,
    complete: bool,
}

/// What the filter says of an accepted feedback.
#[derive(Deserialize)]
struct Scored {
    id: String,
    score: f64,
}

/// Reads a log, packed or plain: the requests in order of time, and when they came, from the first one on.
///
/// # Errors
/// The file, the line and the field that are wrong, or no line is of a request that the fleet could serve.
pub fn read(file: &Path, router: &Router) -> Result<(LabPrompts, Vec<Duration>)> {
    parse(&file.display().to_string(), &lines::text_of(file)?, router)
}

/// [`read`] of a text with this name.
///
/// # Errors
/// As [`read`].
pub fn parse(name: &str, text: &str, router: &Router) -> Result<(LabPrompts, Vec<Duration>)> {
    let fleet = &router.config().fleet;
    let mut scores: BTreeMap<String, f64> = BTreeMap::new();
    let mut routed: Vec<(Timestamp, String, ModelId, Routed)> = Vec::new();
    let (mut others, mut elsewhere, mut not_text, mut foreign) = (0, 0, 0, String::new());
    // Envoy may write its own log to the same file.
    for (place, line) in lines::placed(name, text).filter(|(_, line)| line.starts_with('{')) {
        let line: Line = lines::parsed(line).with_context(|| place.clone())?;
        let outcome = line.decision.get("outcome").and_then(Value::as_str);
        if line.decision.is_null() || outcome.is_some_and(|outcome| outcome != "feedback") {
            others += 1;
            continue;
        }
        if outcome.is_some() {
            let scored: Scored = decision(line.decision).with_context(|| place.clone())?;
            ensure!((0.0..=1.0).contains(&scored.score), "{place}: decision.score: must be between 0 and 1");
            scores.insert(scored.id, scored.score);
            continue;
        }
        let at = line.time.parse().with_context(|| format!("{place}: time: {:?}", line.time))?;
        let request: Routed = decision(line.decision).with_context(|| place.clone())?;
        request.check().with_context(|| place.clone())?;
        let writes = |id: &ModelId| fleet.model(*id).is_some_and(|model| model.kind == ModelKind::Generate);
        match fleet.model_named(&request.model).filter(writes) {
            _ if !GENERATING_APIS.contains(&request.api.as_str()) => not_text += 1,
            Some(model) => routed.push((at, line.request_id.unwrap_or(place), model, request)),
            None => {
                elsewhere += 1;
                foreign = request.model;
            }
        }
    }
    if routed.is_empty() {
        bail!(
            "{name}: no request to simulate: {others} lines are of requests that the filter did not route, {not_text} of \
             requests for no text, {elsewhere} of models that the fleet does not have ({foreign})"
        );
    }
    routed.sort_by_key(|(at, ..)| *at);
    let first = routed[0].0;
    let since_first = |at: Timestamp| Duration::try_from(at.duration_since(first)).unwrap_or_default();
    let times = routed.iter().map(|(at, ..)| since_first(*at)).collect();
    let unfinished = routed.iter().filter(|(.., r)| !r.response.as_ref().is_some_and(|r| r.complete)).count();
    let scored = routed.iter().filter(|(_, id, ..)| scores.contains_key(id)).count();
    let n = routed.len();
    let prompts = routed.into_iter().map(|(_, id, model, request)| {
        let template = request.template(router, model, scores.get(&id).copied());
        LabPrompt { id, template, opinions: None }
    });
    let mut notes = vec![format!(
        "{name}: {n} requests; what other models than the one that answered would have made of them is guessed from the models' \
         priors; quality is the feedback's score for {scored} of them and what was expected for the others"
    )];
    let mut note = |count: usize, what: &str| {
        if count > 0 {
            notes.push(format!("{name}: {count} {what}"));
        }
    };
    note(
        unfinished,
        "of them have no whole answer: it is taken to be as long as expected, or as long as it got if that is longer",
    );
    note(others, "lines are of requests that the filter did not route, refused ones among them: left out");
    note(not_text, "lines are of requests for no text: left out");
    note(elsewhere, &format!("lines are of models that the fleet does not have, {foreign} for one: left out"));
    Ok((LabPrompts { prompts: prompts.collect(), notes }, times))
}

fn decision<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value)
        .map_err(|e| anyhow::anyhow!("decision.{}: {}", e.path().to_string().trim_start_matches('.'), e.inner()))
}

impl Routed {
    fn check(&self) -> Result<()> {
        let answer = self.response.as_ref();
        let rows = [
            ("predicted_quality", self.predicted_quality, 1.0),
            ("predicted_quality_sd", self.predicted_quality_sd, 1.0),
            ("familiarity", self.familiarity.unwrap_or_default(), 1.0),
            ("predicted_output_tokens", self.predicted_output_tokens, TOKENS_MAX),
            ("predicted_output_tokens_p80", self.predicted_output_tokens_p80, TOKENS_MAX),
            ("predicted_output_tokens_p90", self.predicted_output_tokens_p90, TOKENS_MAX),
            ("estimated_prompt_tokens", self.estimated_prompt_tokens, TOKENS_MAX),
            ("response.prompt_tokens", answer.and_then(|r| r.prompt_tokens).unwrap_or_default(), TOKENS_MAX),
            ("response.completion_tokens", answer.map_or(0.0, |r| r.completion_tokens), TOKENS_MAX),
        ];
        for (field, value, max) in rows {
            ensure!((0.0..=max).contains(&value), "decision.{field}: must be between 0 and {max}, is {value}");
        }
        Ok(())
    }

    fn template(&self, router: &Router, chosen: ModelId, score: Option<f64>) -> Template {
        let fleet = &router.config().fleet;
        let seen_tokens = (self.estimated_prompt_tokens.round() as u32).max(1);
        let mut blank = Template::of_counts(seen_tokens, Vec::new(), Vec::new());
        // Percentiles are equal where the client's limit cuts all of them.
        if self.predicted_output_tokens == self.predicted_output_tokens_p90 {
            blank.prompt.max_tokens = Some((self.predicted_output_tokens.round() as u32).max(1));
        }
        let prior = priors(router, &blank.prompt);
        let own = Estimate {
            quality: self.predicted_quality,
            quality_sd: self.predicted_quality_sd,
            output_tokens: self.predicted_output_tokens.max(1.0),
            output_tokens_p80: self.predicted_output_tokens_p80.max(self.predicted_output_tokens).max(1.0),
            output_tokens_p90: self.predicted_output_tokens_p90.max(self.predicted_output_tokens_p80).max(1.0),
        };
        let expected = others(fleet, &prior, chosen, &own);
        let answered = self.response.as_ref().map_or(0.0, |r| r.completion_tokens);
        let is_whole = self.response.as_ref().is_some_and(|r| r.complete);
        let real_tokens = if is_whole { answered } else { answered.max(own.output_tokens) };
        let real = others(fleet, &prior, chosen, &Estimate { output_tokens: real_tokens.max(1.0), ..own });
        let tokens: Vec<f64> = real.iter().map(|(e, _)| e.output_tokens).collect();
        let mut quality: Vec<f64> = expected.iter().map(|(e, _)| e.quality).collect();
        if let Some(score) = score {
            quality[chosen.index()] = score;
        }
        let prompt_tokens = self.response.as_ref().and_then(|r| r.prompt_tokens).map(|tokens| tokens.round() as u32);
        Template {
            outlook: Some(Outlook { estimates: expected, familiarity: self.familiarity, prototype: self.prototype }),
            ..Template::from_prompt(
                blank.prompt,
                prompt_tokens.unwrap_or(seen_tokens).max(1),
                answered_tokens(fleet, &tokens),
                quality,
            )
        }
    }
}

/// What is to be expected of every model, given what is of one.
fn others(fleet: &Fleet, prior: &Outlook, chosen: ModelId, own: &Estimate) -> Vec<(Estimate, bool)> {
    let mut estimates = prior.estimates.clone();
    let base = prior.estimates[chosen.index()].0;
    let tokens = own.output_tokens / base.output_tokens.max(1.0);
    let odds_ratio = odds(own.quality) / odds(base.quality);
    for model in generating(fleet) {
        let (estimate, predicted) = &mut estimates[model.index()];
        let output_tokens = (estimate.output_tokens * tokens).max(1.0);
        let odds = odds(estimate.quality) * odds_ratio;
        *estimate = Estimate {
            quality: odds / (1.0 + odds),
            quality_sd: own.quality_sd,
            output_tokens,
            output_tokens_p80: output_tokens * own.output_tokens_p80 / own.output_tokens,
            output_tokens_p90: output_tokens * own.output_tokens_p90 / own.output_tokens,
        };
        if model == chosen {
            *estimate = *own;
        }
        *predicted = true;
    }
    estimates
}

fn odds(probability: f64) -> f64 {
    let p = probability.clamp(CERTAIN, 1.0 - CERTAIN);
    p / (1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::super::prompts::tests::router;
    use super::*;

    const LOG: &str = include_str!("../../tests/fixtures/access-log/access.log");

    #[test]
    fn a_recorded_log_is_read() {
        let (set, times) = parse("log", LOG, &router()).unwrap();
        assert_eq!((set.prompts.len(), times.len()), (17, 17));
        assert!(times.is_sorted() && times[0].is_zero());
        assert_eq!(times[1], Duration::from_millis(134));
        let notes = set.notes.join("\n");
        for expected in [
            "log: 17 requests; what other models",
            "score for 1 of them",
            "log: 1 of them have no whole answer",
            "log: 1 lines are of requests that the filter did not route",
            "log: 2 lines are of requests for no text",
        ] {
            assert!(notes.contains(expected), "{expected}\n{notes}");
        }
        let last = &set.prompts[16];
        assert_eq!(last.id, "412042c7-b246-441c-be1e-550e7bcb4d36");
        let Template { prompt_tokens, output_tokens, quality, outlook, .. } = &last.template;
        assert_eq!((*prompt_tokens, last.template.prompt.token_ids, output_tokens[1]), (126, 113, 66));
        // Priors of 330, 290, 250 and 250 tokens; the second model answered.
        assert_eq!(output_tokens[..], [75, 66, 57, 57, 0]);
        let outlook = outlook.as_ref().unwrap();
        let expected: Vec<f64> = outlook.estimates[..4].iter().map(|(e, _)| e.quality).collect();
        assert_eq!((expected[1], quality[1]), (0.6268282484482077, 0.25), "expected, and the feedback's score");
        assert!(expected.is_sorted() && quality[3] == expected[3] && expected[3] < 0.78, "{expected:?}");
        assert!((outlook.estimates[0].0.output_tokens - 140.0 * 330.0 / 290.0).abs() < 1e-9);
        assert_eq!((outlook.prototype, outlook.estimates[1].0.output_tokens_p90), (Some(3), 212.0));
        let unfinished = &set.prompts[15].template;
        assert_eq!((unfinished.output_tokens[1], unfinished.prompt.max_tokens), (20, Some(20)), "as long as expected");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let line = LOG.lines().next().unwrap();
        let rows = [
            (line.replace("\"api\":\"chat_completions\",", ""), "log:1: decision.: missing field `api`"),
            (
                line.replace("0.5200011273950351", "2"),
                "log:1: decision.predicted_quality: must be between 0 and 1, is 2",
            ),
            (
                line.replace("\"completion_tokens\":40", "\"completion_tokens\":\"x\""),
                "log:1: decision.response.completion_tokens: invalid",
            ),
            (line.replace("2026-11-22T12", "yesterday"), "log:1: time: \"yesterday"),
            (line.replace("Qwen2.5-7B-Instruct", "gone"), "log: no request to simulate: 0 lines are"),
            ("{".to_owned(), "log:1: EOF"),
            (String::new(), "log: no request to simulate"),
        ];
        for (text, expected) in rows {
            let problem = format!("{:#}", parse("log", &text, &router()).unwrap_err());
            assert!(problem.starts_with(expected), "{problem}\nexpected: {expected}");
        }
    }

    /// The gateway writes what is read.
    #[test]
    fn the_filter_writes_these_fields() {
        let filter =
            [include_str!("../core/gateway/access_log.rs"), include_str!("../core/router/decision.rs")].concat();
        let reader = include_str!("access_log.rs");
        let fields = |from: &str, to: &str| {
            let part = reader.split_once(from).unwrap().1.split_once(to).unwrap().0;
            let names = part.lines().filter_map(|line| line.trim().split_once(": ").map(|(name, _)| name.to_owned()));
            names.filter(|name| !name.contains('/') && *name != "response").collect::<Vec<String>>()
        };
        let read = [fields("struct Routed {", "\n}"), fields("struct Response {", "\n}")].concat();
        assert_eq!(read.len(), 13, "{read:?}");
        for field in read {
            let written = [format!("    {field}: "), format!("    pub {field}: "), format!("rename = \"{field}\"")];
            assert!(written.iter().any(|name| filter.contains(name)), "{field}");
        }
        for field in ["Outcome::Feedback.name()", "\"outcome\": outcome", "\"id\": id", "\"score\": score"] {
            assert!(filter.contains(field), "{field}");
        }
        for api in GENERATING_APIS {
            assert!(filter.contains(&format!("=> \"{api}\"")), "{api}");
        }
    }
}
