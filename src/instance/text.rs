//! What an emulated model reads and says: token estimates, answer lengths, filler words.

use serde_json::Value;

use crate::prompts::PromptSet;
use routebalance_sim::engine::blocks_of;

/// Filler words, each one token of an answer.
const WORDS: [&str; 64] = [
    "the", "router", "answers", "with", "a", "plain", "line", "of", "words", "that", "stand", "for", "tokens", "and",
    "carry", "no", "meaning", "because", "only", "their", "number", "counts", "when", "load", "moves", "between",
    "model", "pools", "each", "step", "gives", "one", "word", "to", "every", "open", "stream", "until", "it", "has",
    "said", "enough", "or", "was", "cut", "short", "by", "its", "client", "then", "memory", "returns", "so", "others",
    "may", "start", "while", "queue", "order", "stays", "fair", "in", "time", "again",
];

/// Characters per token of English text, as OpenAI's help pages give it; the emulated tokenizer.
const CHARACTERS_PER_TOKEN: usize = 4;
/// Tokens that the chat template adds to every message.
const TOKENS_PER_MESSAGE: usize = 3;
/// Median and spread of the answer length of prompts that no prompt set knows.
const OUTPUT_TOKENS_MEDIAN: f64 = 200.0;
const OUTPUT_TOKENS_LOG_SIGMA: f64 = 0.6;

/// What a request gives the model to read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Prompt {
    /// All texts, a line each.
    pub(super) text: String,
    /// The text of the last user message; all of the text where there are no messages.
    pub(super) question: String,
    /// Estimated tokens.
    pub(super) tokens: u32,
}

impl Prompt {
    /// A bare text, without a chat template.
    pub(super) fn plain(text: &str) -> Self {
        Self { text: text.to_owned(), question: text.to_owned(), tokens: estimate(text, 0) }
    }

    /// Token ids: their number is known.
    pub(super) fn ids(ids: &[Value]) -> Self {
        let text = ids.iter().map(Value::to_string).collect::<Vec<_>>().join(" ");
        Self { question: text.clone(), text, tokens: ids.len() as u32 }
    }

    /// Messages of chat, responses or messages, with what comes before them (instructions, an earlier conversation).
    pub(super) fn chat(before: &[&str], messages: &[Value]) -> Self {
        let mut texts: Vec<String> = before.iter().map(|text| (*text).to_owned()).collect();
        let mut question = None;
        for message in messages {
            let text = content_text(message.get("content").unwrap_or(&Value::Null));
            if message["role"] == "user" {
                question = Some(text.clone());
            }
            texts.push(text);
        }
        let messages = texts.len();
        let text = texts.join("\n");
        Self { question: question.unwrap_or_else(|| text.clone()), tokens: estimate(&text, messages), text }
    }

    /// Answer length of a model in tokens: what is recorded for this prompt, else log-normal, the same for the same text.
    pub(super) fn output_tokens(&self, answers: Option<&PromptSet>, model_name: &str, choice: usize) -> u32 {
        let recorded = answers.and_then(|set| {
            set.output_tokens(&self.question, model_name).or_else(|| set.output_tokens(&self.text, model_name))
        });
        recorded.unwrap_or_else(|| {
            let seed = self.seed(choice);
            // Box and Muller 1958, from two halves of the hash.
            let [u, v] = [seed >> 32, seed & 0xffff_ffff].map(|half| (half as f64 + 0.5) / 4_294_967_296.0);
            let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
            (OUTPUT_TOKENS_MEDIAN.ln() + OUTPUT_TOKENS_LOG_SIGMA * normal).exp().round().max(1.0) as u32
        })
    }

    /// Hashes of its blocks of tokens; an adapter has keys and values of its own.
    pub(super) fn blocks(&self, adapter: Option<&str>) -> Vec<u64> {
        let seed = adapter.map_or(0, |adapter| Prompt::plain(adapter).seed(0));
        blocks_of(&self.text, CHARACTERS_PER_TOKEN, seed)
    }

    /// What the answer's words depend on.
    pub(super) fn seed(&self, choice: usize) -> u64 {
        // FNV-1a, finished with SplitMix64's mixer so that near texts get far lengths.
        let hash = self.text.bytes().fold(0xcbf2_9ce4_8422_2325_u64 ^ choice as u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}

/// The `number`th token of an answer: a word, with a space before it unless it is the first.
pub(super) fn token(seed: u64, number: usize, out: &mut String) {
    if number > 0 {
        out.push(' ');
    }
    let index = seed.rotate_left((number % 61) as u32) as usize ^ number.wrapping_mul(7);
    out.push_str(WORDS[index % WORDS.len()]);
}

/// The first `tokens` tokens of an answer.
pub(super) fn answer(seed: u64, tokens: usize) -> String {
    let mut text = String::with_capacity(tokens * 6);
    (0..tokens).for_each(|number| token(seed, number, &mut text));
    text
}

/// The text of a message's content: a string, or parts of which those with text count.
fn content_text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

fn estimate(text: &str, messages: usize) -> u32 {
    (text.chars().count().div_ceil(CHARACTERS_PER_TOKEN) + messages * TOKENS_PER_MESSAGE) as u32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn messages_are_read() {
        for (messages, text, question, tokens) in [
            (json!([{"role": "user", "content": "12345678"}]), "12345678", "12345678", 2 + 3),
            (
                json!([{"role": "system", "content": "123"}, {"role": "user", "content": "4567"}]),
                "123\n4567",
                "4567",
                2 + 6,
            ),
            (
                json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]},
                       {"role": "assistant", "content": null}]),
                "a\nb\n",
                "a\nb",
                1 + 6,
            ),
        ] {
            let prompt = Prompt::chat(&[], messages.as_array().unwrap());
            assert_eq!((prompt.text.as_str(), prompt.question.as_str(), prompt.tokens), (text, question, tokens));
        }
    }

    #[test]
    fn lengths_are_recorded_or_spread_around_the_median() {
        let set = PromptSet::from_jsonl(r#"{"id":"a","dataset":"d","prompt":"Why?","q":{},"len":{"m":7}}"#).unwrap();
        assert_eq!(Prompt::plain("Why?").output_tokens(Some(&set), "m", 0), 7);
        let mut lengths: Vec<u32> =
            (0..2001).map(|n| Prompt::plain(&format!("Question {n}")).output_tokens(Some(&set), "m", 0)).collect();
        lengths.sort_unstable();
        let quantile = |share: f64| f64::from(lengths[(share * 2000.0) as usize]);
        assert!((quantile(0.5) - 200.0).abs() < 15.0, "median {}", quantile(0.5));
        // One standard deviation: 200 * e^0.6 = 364.
        assert!((quantile(0.8413) - 364.0).abs() < 40.0, "84 % {}", quantile(0.8413));
    }

    #[test]
    fn an_answer_is_its_tokens() {
        let mut text = String::new();
        (0..100).for_each(|number| token(42, number, &mut text));
        assert_eq!(text, answer(42, 100));
        assert_eq!(text.split(' ').count(), 100);
        assert_ne!(answer(42, 100), answer(43, 100));
    }
}
