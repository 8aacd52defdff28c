//! Prompts with what every model really answered: its quality and its length.

use std::collections::BTreeMap;

use anyhow::Context;
use serde::Deserialize;

/// One prompt, as in the file's lines.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct PromptRow {
    /// Unique in the set.
    pub id: String,
    /// Where the prompt comes from.
    pub dataset: String,
    /// The text that is sent as the user's message.
    pub prompt: String,
    /// Answer quality in [0, 1] by model name.
    pub q: BTreeMap<String, f64>,
    /// Output tokens by model name.
    pub len: BTreeMap<String, f64>,
}

/// Prompts by text.
#[derive(Clone, Debug, Default)]
pub struct PromptSet {
    rows: Vec<PromptRow>,
    by_text: BTreeMap<String, usize>,
}

impl PromptSet {
    /// Reads one JSON object per line; blank lines are skipped. Of prompts with the same text the first one counts.
    ///
    /// # Errors
    /// A line that is not a row, by its number.
    pub fn from_jsonl(text: &str) -> anyhow::Result<Self> {
        let mut set = Self::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let row: PromptRow =
                serde_json::from_str(line).with_context(|| format!("prompt set, line {}", number + 1))?;
            set.by_text.entry(row.prompt.trim().to_owned()).or_insert(set.rows.len());
            set.rows.push(row);
        }
        Ok(set)
    }

    /// The rows in the order of the file.
    pub fn rows(&self) -> &[PromptRow] {
        &self.rows
    }

    /// The row of a prompt text; white space around it does not count.
    pub fn row(&self, text: &str) -> Option<&PromptRow> {
        self.by_text.get(text.trim()).map(|&index| &self.rows[index])
    }

    /// Tokens that a model (by its name in the fleet) answered with.
    pub fn output_tokens(&self, text: &str, model: &str) -> Option<u32> {
        self.row(text)?.len.get(model).map(|tokens| (tokens.round() as u32).max(1))
    }

    /// Quality of a model's answer (by its name in the fleet) in [0, 1].
    pub fn quality(&self, text: &str, model: &str) -> Option<f64> {
        self.row(text)?.q.get(model).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = r#"{"id":"a","dataset":"d","prompt":"Why?\n","q":{"m":0.5},"len":{"m":7}}

{"id":"b","dataset":"d","prompt":"Why?","q":{"m":1},"len":{"m":8.0,"n":0}}"#;

    #[test]
    fn rows_are_found_by_text() {
        let set = PromptSet::from_jsonl(LINES).unwrap();
        assert_eq!(set.rows().len(), 2);
        for (text, model, tokens, quality) in [
            ("Why?", "m", Some(7), Some(0.5)),
            (" Why?", "m", Some(7), Some(0.5)),
            ("Why?", "n", None, None),
            ("?", "m", None, None),
        ] {
            assert_eq!((set.output_tokens(text, model), set.quality(text, model)), (tokens, quality), "{text} {model}");
        }
    }

    #[test]
    fn a_broken_line_is_named() {
        let error = PromptSet::from_jsonl(&format!("{LINES}\n{{}}")).unwrap_err();
        assert!(format!("{error:#}").starts_with("prompt set, line 4: missing field `id`"), "{error:#}");
    }
}
