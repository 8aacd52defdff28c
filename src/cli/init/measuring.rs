//! Requests that measure a pool: few, at one of its servers, and none that another one's prefix could serve.

use std::net::SocketAddr;
use std::time::Instant;

use futures::future::join_all;
use rand::RngExt;
use serde_json::{Value, json};

use super::asking::{Asker, Refusal};
use super::fitting::{Measured, TOGETHER, Timings, fit};
use super::grouping::Group;

/// Requests of each length of prompts that are sent one after the other.
const ALONE: usize = 5;
/// Rounds of requests that are sent at once.
const ROUNDS: usize = 2;
/// Tokens of an answer whose time per token counts, and of one whose first token does: the first tokens may have no text.
const OUTPUT_TOKENS: u32 = 32;
const FIRST_TOKENS: u32 = 6;
/// Words of the prompts, about as many tokens. The long one fits into one step of vLLM, in whose time prompts are read at once.
const SHORT_WORDS: usize = 24;
const LONG_WORDS: usize = 1_100;
/// A prompt takes at most this part of the context.
const CONTEXT_PART: usize = 4;

/// Words that are a token each for most models.
const WORDS: [&str; 32] = [
    "river", "stone", "light", "garden", "train", "paper", "north", "music", "window", "silver", "bread", "winter",
    "letter", "house", "green", "market", "ocean", "table", "story", "cloud", "street", "engine", "school", "summer",
    "bridge", "number", "forest", "morning", "doctor", "signal", "island", "copper",
];

/// Which fields a server takes, those it knows better than OpenAI's own first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    /// vLLM's: answers have the length that was asked for.
    IgnoresEnd,
    /// OpenAI's.
    SaysUsage,
    /// Neither; a server may still say usage.
    Plain,
}

const DIALECTS: [Dialect; 3] = [Dialect::IgnoresEnd, Dialect::SaysUsage, Dialect::Plain];

/// Measures the first server of a pool that can be measured; what goes wrong becomes a sentence.
pub(super) async fn measure(asker: &Asker, group: &Group, remarks: &mut Vec<String>) -> Option<Measured> {
    for (address, requests) in &group.servers {
        let measured = match timings(asker, *address, group, remarks).await {
            Ok(timings) => fit(&timings),
            Err(refusal) => Err(refusal.problem),
        };
        match measured {
            Ok(measured) => {
                if let Some(requests) = requests.filter(|requests| *requests >= 1.0) {
                    remarks.push(format!(
                        "{address} had {requests} other requests when it was measured: an idle server is faster than its profile says"
                    ));
                }
                return Some(measured);
            }
            Err(problem) => remarks.push(format!("{address} {problem}")),
        }
    }
    None
}

async fn timings(
    asker: &Asker,
    address: SocketAddr,
    group: &Group,
    remarks: &mut Vec<String>,
) -> Result<Timings, Refusal> {
    let model = group.model.ids.first().map_or("", String::as_str);
    let context = group.model.max_model_len.map_or(usize::MAX, |tokens| tokens as usize);
    let long_words = LONG_WORDS.min(context / CONTEXT_PART).max(SHORT_WORDS);
    let dialect = dialect(asker, address, model).await?;
    let ask = async |words: usize, tokens: u32, start: Instant| {
        asker.chat(address, chat_request(model, &prompt(words), tokens, dialect), start).await
    };
    let mut timings = Timings::default();
    let mut takes_long = true;
    // Turn by turn, so that what slows a server down for a while slows both lengths down.
    for _ in 0..ALONE {
        timings.short.push(ask(SHORT_WORDS, OUTPUT_TOKENS, Instant::now()).await?);
        if !takes_long {
            continue;
        }
        match ask(long_words, FIRST_TOKENS, Instant::now()).await {
            Ok(timing) => timings.long.push(timing),
            Err(refusal) => {
                remarks.push(format!("with a prompt of {long_words} words, {address} {}", refusal.problem));
                takes_long = false;
            }
        }
    }
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let answers = join_all((0..TOGETHER).map(|_| ask(SHORT_WORDS, OUTPUT_TOKENS, start))).await;
        // A server that takes fewer at once says nothing of a batch, and still something of the rest.
        timings.together.push(answers.into_iter().filter_map(Result::ok).collect());
    }
    Ok(timings)
}

/// The first dialect in which the server answers. Its answer is not counted: a server's first one is slow.
async fn dialect(asker: &Asker, address: SocketAddr, model: &str) -> Result<Dialect, Refusal> {
    let mut refused = Refusal { by_validation: false, problem: String::new() };
    for dialect in DIALECTS {
        let body = chat_request(model, &prompt(SHORT_WORDS), OUTPUT_TOKENS, dialect);
        match asker.chat(address, body, Instant::now()).await {
            Ok(_) => return Ok(dialect),
            Err(refusal) if refusal.by_validation => refused = refusal,
            Err(refusal) => return Err(refusal),
        }
    }
    Err(refused)
}

/// A prompt that begins as no other does, so that no cache has any of it.
fn prompt(words: usize) -> String {
    let mut random = rand::rng();
    let number: u64 = random.random();
    let list: Vec<&str> = (0..words).map(|_| WORDS[random.random_range(0..WORDS.len())]).collect();
    format!("{number:016x}: tell a long story in which these words come. {}", list.join(" "))
}

fn chat_request(model: &str, prompt: &str, max_tokens: u32, dialect: Dialect) -> String {
    let mut body = json!({
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": true,
    });
    if dialect != Dialect::Plain {
        body["stream_options"] = json!({"include_usage": true});
    }
    if dialect == Dialect::IgnoresEnd {
        body["ignore_eos"] = Value::Bool(true);
    }
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_prompt_begins_as_another() {
        let prompts: Vec<String> = (0..50).map(|_| prompt(SHORT_WORDS)).collect();
        for (n, one) in prompts.iter().enumerate() {
            assert!(prompts[..n].iter().all(|other| other[..16] != one[..16]), "{one}");
        }
        // As an emulated server counts, the long one is read in one step.
        assert!(prompt(LONG_WORDS).len() / 4 < 2_048, "{}", prompt(LONG_WORDS).len());
    }

    #[test]
    fn dialects_differ_in_fields() {
        for (dialect, fields) in
            [(Dialect::IgnoresEnd, [true, true]), (Dialect::SaysUsage, [true, false]), (Dialect::Plain, [false, false])]
        {
            let body: Value = serde_json::from_str(&chat_request("m", "p", 9, dialect)).unwrap();
            assert_eq!([body.get("stream_options").is_some(), body.get("ignore_eos").is_some()], fields, "{dialect:?}");
            assert_eq!((&body["model"], &body["max_tokens"], &body["stream"]), (&json!("m"), &json!(9), &json!(true)));
        }
    }
}
