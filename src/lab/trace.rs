//! Recorded requests: when they came, how long their prompts and answers were, and which prompts begin alike. No text.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::lines;
use routebalance_sim::engine::BLOCK_TOKENS;

/// Prompt tokens per hash of Mooncake's traces (their README: "512 tokens").
const HASH_TOKENS: u32 = 512;
/// A request of more tokens is a mistake.
const TOKENS_MAX: f64 = 10e6;
/// Names of the columns: Azure's and ServeGen's.
const TIMES: [&str; 2] = ["TIMESTAMP", "timestamp_s"];
const PROMPT_TOKENS: [&str; 2] = ["ContextTokens", "input_tokens"];
const OUTPUT_TOKENS: [&str; 2] = ["GeneratedTokens", "output_tokens"];

/// One recorded request.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// When it came, from the first one on.
    pub at: Duration,
    /// Tokens of its prompt, at least 1.
    pub prompt_tokens: u32,
    /// Tokens of its answer, at least 1.
    pub output_tokens: u32,
    /// Hashes of its prompt's whole KV blocks, as the engine's prefix cache takes them; empty if nothing is known of them.
    pub blocks: Arc<[u64]>,
}

/// Reads a trace in order of time: a CSV file with Azure's or ServeGen's columns, or Mooncake's JSON lines; packed or plain.
///
/// # Errors
/// The file, the line and the field that are wrong.
pub fn read(file: &Path) -> Result<Vec<Recorded>> {
    parse(&file.display().to_string(), &lines::text_of(file)?)
}

/// [`read`] of a text with this name.
///
/// # Errors
/// The line and the field that are wrong.
pub fn parse(name: &str, text: &str) -> Result<Vec<Recorded>> {
    let text = text.trim_start_matches('\u{feff}');
    let timed = if text.trim_start().starts_with('{') { from_json(name, text)? } else { from_csv(name, text)? };
    ensure!(!timed.is_empty(), "{name}: has no request");
    let first = timed.iter().map(|(seconds, _)| *seconds).fold(f64::INFINITY, f64::min);
    let placed = timed
        .into_iter()
        .map(|(seconds, recorded)| Ok(Recorded { at: Duration::try_from_secs_f64(seconds - first)?, ..recorded }));
    let mut requests = placed.collect::<Result<Vec<Recorded>>>().with_context(|| format!("{name}: its times"))?;
    requests.sort_by_key(|request| request.at);
    Ok(requests)
}

fn from_csv(name: &str, text: &str) -> Result<Vec<(f64, Recorded)>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().with_context(|| format!("{name}: its header"))?.clone();
    let column = |names: [&'static str; 2]| {
        let found = header.iter().position(|h| names.contains(&h)).map(|i| (i, header.get(i).unwrap_or_default()));
        found.ok_or_else(|| anyhow!("{name}: has no column {} or {}", names[0], names[1]))
    };
    let (time, prompt, output) = (column(TIMES)?, column(PROMPT_TOKENS)?, column(OUTPUT_TOKENS)?);
    let mut requests = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let place = || format!("{name}:{}", i + 2);
        let record = record.with_context(place)?;
        let read = |(i, field): (usize, &str), number: fn(&str) -> Result<f64>| {
            number(record.get(i).unwrap_or_default()).with_context(|| format!("{}: {field}", place()))
        };
        let at = read(time, seconds)?;
        let recorded = Recorded {
            at: Duration::ZERO,
            prompt_tokens: read(prompt, tokens)? as u32,
            output_tokens: read(output, tokens)? as u32,
            blocks: Arc::default(),
        };
        requests.push((at, recorded));
    }
    Ok(requests)
}

/// Seconds since some fixed moment: a number of them, or a date and a time of day.
fn seconds(text: &str) -> Result<f64> {
    if let Ok(number) = text.parse::<f64>() {
        ensure!(number.is_finite(), "{text} is no time");
        return Ok(number);
    }
    let zoned = || -> Option<Timestamp> {
        text.parse().ok().or_else(|| text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp()))
    };
    let Some(at) = zoned() else { bail!("{text:?} is neither a number of seconds nor a date and a time") };
    Ok(at.as_second() as f64 + f64::from(at.subsec_nanosecond()) / 1e9)
}

fn tokens(text: &str) -> Result<f64> {
    checked(text.parse().map_err(|_| anyhow!("{text:?} is no number"))?)
}

/// An empty prompt or answer costs about what one token does.
fn checked(tokens: f64) -> Result<f64> {
    ensure!((0.0..=TOKENS_MAX).contains(&tokens), "must be between 0 and {TOKENS_MAX}, is {tokens}");
    Ok(tokens.round().max(1.0))
}

fn from_json(name: &str, text: &str) -> Result<Vec<(f64, Recorded)>> {
    #[derive(Deserialize)]
    struct Line {
        /// Milliseconds.
        timestamp: f64,
        input_length: f64,
        output_length: f64,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let request = |(place, line): (String, &str)| {
        let line: Line = lines::parsed(line).with_context(|| place.clone())?;
        let length = |field, value| checked(value).with_context(|| format!("{place}: {field}"));
        let prompt_tokens = length("input_length", line.input_length)? as u32;
        let recorded = Recorded {
            at: Duration::ZERO,
            prompt_tokens,
            output_tokens: length("output_length", line.output_length)? as u32,
            blocks: blocks(&line.hash_ids, prompt_tokens).into(),
        };
        Ok((line.timestamp / 1e3, recorded))
    };
    lines::placed(name, text).map(request).collect()
}

/// Hashes of the engine's blocks: each of a trace's hashes stands for everything up to its own end, so that its parts are told
/// apart by where they are in it. The last hash may stand for a part of a block.
fn blocks(hash_ids: &[u64], prompt_tokens: u32) -> Vec<u64> {
    let parts = u64::from(HASH_TOKENS / BLOCK_TOKENS);
    let whole = (prompt_tokens / BLOCK_TOKENS) as usize;
    let of_hash = |id: u64| (0..parts).map(move |part| id.wrapping_mul(parts).wrapping_add(part));
    hash_ids.iter().copied().flat_map(of_hash).take(whole).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(at_ms: u64, prompt_tokens: u32, output_tokens: u32) -> Recorded {
        Recorded { at: Duration::from_millis(at_ms), prompt_tokens, output_tokens, blocks: Arc::default() }
    }

    #[test]
    fn every_form_is_read() {
        let rows = [
            (
                "Azure",
                "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9305900,396,0\n",
            ),
            ("ServeGen", "timestamp_s,input_tokens,output_tokens\n4.5,396,1\n0.25,374,44"),
            (
                "a CSV file of somebody",
                "user, output_tokens ,TIMESTAMP,input_tokens\r\na,44,2023-11-16T18:15:46Z,374\r\nb,1,2023-11-16T18:15:50.25Z,396\r\n",
            ),
            (
                "Mooncake",
                "{\"timestamp\":10,\"input_length\":374,\"output_length\":44}\n\n{\"timestamp\":4260,\"input_length\":396,\"output_length\":1,\"x\":2}",
            ),
        ];
        for (name, text) in rows {
            assert_eq!(parse(name, text).unwrap(), [recorded(0, 374, 44), recorded(4_250, 396, 1)], "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let azure = |row: &str| format!("TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n{row}\n");
        let json = |row: &str| format!("{{\"timestamp\":0,\"input_length\":1,\"output_length\":1}}\n{row}\n");
        let rows = [
            (azure("x,2,3"), "t:3: TIMESTAMP: \"x\" is neither a number of seconds nor a date and a time"),
            (azure("1,-2,3"), "t:3: ContextTokens: must be between 0 and 10000000, is -2"),
            (azure("1,2,"), "t:3: GeneratedTokens: \"\" is no number"),
            (azure("1,2"), "t:3: CSV error"),
            (azure("inf,2,3"), "t:3: TIMESTAMP: inf is no time"),
            ("a,b\n1,2\n".to_owned(), "t: has no column TIMESTAMP or timestamp_s"),
            ("timestamp_s,input_tokens,output_tokens\n".to_owned(), "t: has no request"),
            (String::new(), "t: has no column"),
            (json("{\"timestamp\":0,\"input_length\":1}"), "t:2: missing field `output_length`"),
            (json("{\"timestamp\":0,\"input_length\":\"1\",\"output_length\":1}"), "t:2: input_length: invalid type"),
            (json("{\"timestamp\":0,\"input_length\":1e9,\"output_length\":1}"), "t:2: input_length: must be between"),
        ];
        for (text, expected) in rows {
            let problem = format!("{:#}", parse("t", &text).unwrap_err());
            assert!(problem.starts_with(expected), "{problem}\nexpected: {expected}");
        }
    }

    #[test]
    fn equal_beginnings_have_equal_blocks() {
        let text = "{\"timestamp\":0,\"input_length\":1000,\"output_length\":1,\"hash_ids\":[7,8]}\n\
                    {\"timestamp\":1,\"input_length\":600,\"output_length\":1,\"hash_ids\":[7,9]}\n";
        let requests = parse("t", text).unwrap();
        let [first, second] = [&requests[0].blocks, &requests[1].blocks];
        assert_eq!((first.len(), second.len()), (62, 37), "whole blocks of 16 tokens");
        assert_eq!(first[..32], second[..32]);
        assert!(first[32..].iter().all(|block| !second.contains(block)));
    }

    #[test]
    fn the_traces_at_hand_are_whole() {
        let directory = crate::package_root().join("models/data/traces");
        let rows = [
            ("AzureLLMInferenceTrace_conv_2023.csv.gz", 19_366, 3_501.7),
            ("servegen_m-mid_1h_10rps.csv.gz", 35_943, 3_600.0),
            ("mooncake_synthetic_trace.jsonl.gz", 3_993, 1_022.0),
        ];
        for (file, requests, seconds) in rows {
            let trace = read(&directory.join(file)).unwrap();
            assert_eq!(trace.len(), requests, "{file}");
            assert!(trace.is_sorted_by_key(|request| request.at), "{file}");
            let span = trace.last().unwrap().at.as_secs_f64();
            assert!((span - seconds).abs() < 0.1, "{file}: {span} s");
            assert_eq!(trace.iter().any(|request| !request.blocks.is_empty()), file.starts_with("mooncake"), "{file}");
        }
    }
}
