//! The prompts that plans are made for: what is expected of every model's answer, and what it really was.
//!
//! Half of them make profiles and plans, the other half checks plans, so that no plan is checked with what it was made of.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::lines;
use routebalance_core::hash::fnv1a;
use routebalance_core::predictor::Estimate;
use routebalance_core::random::Random;
use routebalance_core::router::Outlook;
#[cfg(test)]
use routebalance_plan::scores::Scores;
use routebalance_sim::workload::Template;

/// Made by `models/lab.py`; `models/README.md` says from what.
#[cfg(test)]
const MIX6: &[u8] = include_bytes!("../../../models/data/lab_mix6.jsonl.gz");
/// What the shipped prompts are called in sentences.
#[cfg(test)]
const MIX6_NAME: &str = "models/data/lab_mix6.jsonl.gz";
/// An answer or a prompt of more tokens is a mistake.
const TOKENS_MAX: f64 = 10e6;

/// What a prompt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Profiles and plans are made of it.
    Planning,
    /// Plans are checked with it.
    Checking,
}

impl Half {
    /// The half that a prompt belongs to, by a hash of its name (FNV-1a).
    pub fn from_id(id: &str) -> Half {
        // Names differ in their last digits, which one hash does not spread over all of its bits.
        if Random::new(fnv1a(id.as_bytes())).bits().is_multiple_of(2) { Half::Planning } else { Half::Checking }
    }
}

/// A prompt. Lists are in the order of the models it was read for.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplePrompt {
    /// Its name.
    pub id: String,
    /// Its tokens.
    pub prompt_tokens: u32,
    /// What is expected of every model's answer, by a predictor that has not seen the prompt.
    pub expected: Vec<Estimate>,
    /// Tokens of the answers, at least 1.
    pub output_tokens: Vec<u32>,
    /// Scores of the answers, 0 to 1.
    pub quality: Vec<f64>,
}

/// Prompts for some models.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The models' names.
    pub models: Vec<String>,
    /// The prompts, at least one.
    pub prompts: Vec<SamplePrompt>,
}

/// A line. `ours` is in the order of the models in `q`: quality, its deviation, and the 50th, 80th and 90th percentile of tokens.
#[derive(Deserialize)]
struct Row {
    id: String,
    prompt_tokens: f64,
    #[serde(deserialize_with = "crate::builtin::in_order")]
    q: Vec<(String, f64)>,
    len: BTreeMap<String, f64>,
    ours: Vec<[f64; 5]>,
}

impl Sample {
    /// The shipped prompts of one half, for these models.
    ///
    /// # Errors
    /// Nobody asked one of the models these prompts.
    #[cfg(test)]
    pub fn shipped(models: &[String], half: Half) -> Result<Sample> {
        Sample::parse(MIX6_NAME, &lines::unpacked(MIX6)?, models, half)
    }

    /// Prompts of a file, packed or plain, one JSON object a line with the fields of the shipped ones: `id`, `prompt_tokens`, `q` and
    /// `len` by model, and `ours`, a list of estimates in the order of `q`.
    ///
    /// # Errors
    /// The file, the line and the field that are wrong; or no prompt of this half is there.
    pub fn read(file: &Path, models: &[String], half: Half) -> Result<Sample> {
        Sample::parse(&file.display().to_string(), &lines::text_of(file)?, models, half)
    }

    fn parse(name: &str, text: &str, models: &[String], half: Half) -> Result<Sample> {
        let mut prompts = Vec::new();
        for (place, line) in lines::placed(name, text) {
            let row: Row = lines::parsed(line).with_context(|| place.clone())?;
            if Half::from_id(&row.id) == half {
                prompts.push(row.into_prompt(models).with_context(|| place)?);
            }
        }
        ensure!(!prompts.is_empty(), "{name}: has no prompt of the half for {half:?}");
        Ok(Sample { models: models.to_vec(), prompts })
    }

    /// Expected scores, one row per prompt.
    #[cfg(test)]
    pub fn scores(&self) -> Option<Scores> {
        let rows = self.prompts.iter().flat_map(|p| p.expected.iter().map(|e| e.quality)).collect();
        Scores::new(self.models.len(), rows)
    }

    /// What clients send who ask for at most so many tokens.
    pub fn templates(&self, max_tokens: Option<u32>) -> Arc<[Template]> {
        let template = |prompt: &SamplePrompt| {
            let estimates = prompt.expected.iter().map(|estimate| (*estimate, true)).collect();
            let outlook = Outlook { estimates, familiarity: Some(1.0), prototype: None };
            let mut template =
                Template::of_counts(prompt.prompt_tokens, prompt.output_tokens.clone(), prompt.quality.clone());
            template.prompt.max_tokens = max_tokens;
            Template { outlook: Some(outlook), ..template }
        };
        self.prompts.iter().map(template).collect()
    }
}

impl Row {
    fn into_prompt(self, models: &[String]) -> Result<SamplePrompt> {
        ensure!(self.ours.len() == self.q.len(), "ours: must be as long as q");
        ensure!(
            (0.0..=TOKENS_MAX).contains(&self.prompt_tokens),
            "prompt_tokens: must be between 0 and {TOKENS_MAX}, is {}",
            self.prompt_tokens
        );
        let mut prompt = SamplePrompt {
            id: self.id,
            prompt_tokens: (self.prompt_tokens.round() as u32).max(1),
            expected: Vec::new(),
            output_tokens: Vec::new(),
            quality: Vec::new(),
        };
        for model in models {
            let asked = || {
                let names: Vec<&str> = self.q.iter().map(|(name, _)| name.as_str()).collect();
                format!("nobody asked {model} this prompt, but {}", names.join(", "))
            };
            let place = self.q.iter().position(|(name, _)| name == model).with_context(asked)?;
            let (quality, tokens) = (self.q[place].1, *self.len.get(model).with_context(asked)?);
            let [expected, quality_sd, output_tokens, output_tokens_p80, output_tokens_p90] = self.ours[place];
            for (field, value, max) in [("q", quality, 1.0), ("len", tokens, TOKENS_MAX), ("ours", expected, 1.0)] {
                ensure!((0.0..=max).contains(&value), "{field} of {model}: must be between 0 and {max}, is {value}");
            }
            let output_tokens = output_tokens.max(1.0);
            prompt.expected.push(Estimate {
                quality: expected,
                quality_sd,
                output_tokens,
                output_tokens_p80: output_tokens_p80.max(output_tokens),
                output_tokens_p90: output_tokens_p90.max(output_tokens_p80).max(output_tokens),
            });
            prompt.output_tokens.push((tokens.round() as u32).max(1));
            prompt.quality.push(quality);
        }
        Ok(prompt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(models: &[&str]) -> Vec<String> {
        models.iter().map(|m| (*m).to_owned()).collect()
    }

    #[test]
    fn halves_are_halves_and_have_nothing_in_common() {
        let models = names(&["Yi-1.5-34B-Chat", "Qwen2.5-Coder-7B-Instruct"]);
        let planning = Sample::shipped(&models, Half::Planning).unwrap();
        let checking = Sample::shipped(&models, Half::Checking).unwrap();
        let (a, b) = (planning.prompts.len(), checking.prompts.len());
        assert_eq!(a + b, 7_317);
        assert!(a.abs_diff(b) < 300, "{a} {b}");
        let mean = |s: &Sample| s.prompts.iter().map(|p| p.expected[0].quality).sum::<f64>() / s.prompts.len() as f64;
        assert!((mean(&planning) - mean(&checking)).abs() < 0.02, "{} {}", mean(&planning), mean(&checking));
        let first = planning.prompts.iter().chain(&checking.prompts).find(|p| p.id == "GSM8k/0").unwrap();
        assert_eq!(
            (first.prompt_tokens, &first.output_tokens[..], &first.quality[..]),
            (65, &[129, 346][..], &[1.0; 2][..])
        );
        assert_eq!((first.expected[0].quality, first.expected[1].output_tokens_p90), (0.8744, 414.6));
        assert_eq!(planning.scores().map(|s| (s.models(), s.prompts())), Some((2, a)));
        let template = &planning.templates(Some(32))[0];
        assert_eq!((template.prompt.max_tokens, template.output_tokens.len()), (Some(32), 2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let good = r#"{"id":"a","prompt_tokens":3,"q":{"x":1,"y":0},"len":{"x":5,"y":0},"ours":[[0.5,0,4,5,6],[0.2,0,0,1,2]]}"#;
        let half = Half::from_id("a");
        let parse = |text: &str, model: &str| Sample::parse("p", text, &names(&[model]), half);
        let sample = parse(good, "y").unwrap();
        assert_eq!((sample.prompts[0].output_tokens[0], sample.prompts[0].expected[0].output_tokens), (1, 1.0));
        let rows = [
            (good.to_owned(), "z", "p:1: nobody asked z this prompt, but x, y"),
            (good.replace(r#""x":1"#, r#""x":7"#), "x", "p:1: q of x: must be between 0 and 1, is 7"),
            (good.replace("[0.5", "[-1"), "x", "p:1: ours of x: must be between 0 and 1, is -1"),
            (good.replace(",[0.2,0,0,1,2]", ""), "x", "p:1: ours: must be as long as q"),
            (good.replace("\"prompt_tokens\":3", "\"prompt_tokens\":-3"), "x", "p:1: prompt_tokens: must be between"),
            (String::new(), "x", "p: has no prompt of the half"),
        ];
        for (text, model, expected) in rows {
            let problem = format!("{:#}", parse(&text, model).unwrap_err());
            assert!(problem.starts_with(expected), "{problem}\nexpected: {expected}");
        }
    }
}
