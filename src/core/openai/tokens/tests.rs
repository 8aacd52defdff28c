//! Estimates of texts whose true count is known.

use super::*;
use crate::random::Random;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// 20 texts per script, which the factors were not fitted on: the texts in `fit.txt` are others.
const CHECK: &str = include_str!("../../../../tests/fixtures/texts/check.txt");

/// Scripts and their texts.
fn texts(file: &str) -> Vec<(&str, Vec<String>)> {
    let mut scripts: Vec<(&str, Vec<String>)> = Vec::new();
    for line in file.lines() {
        match line.strip_prefix("# ") {
            Some(script) if script.bytes().all(|b| b.is_ascii_lowercase()) => scripts.push((script, Vec::new())),
            _ => scripts.last_mut().unwrap().1.push(line.replace("\\n", "\n").replace("\\t", "\t")),
        }
    }
    scripts
}

/// The estimate, and the text cut so that the pieces have these numbers of characters in turn.
fn estimate(text: &str, sizes: &[usize]) -> u64 {
    let mut tally = TokenTally::default();
    let characters: Vec<char> = text.chars().collect();
    let mut rest = characters.as_slice();
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        tally.push(0, &piece.iter().collect::<String>());
        rest = after;
    }
    tally.tokens()
}

/// Means over 20 texts of a script: of the relative errors, which is what a sum of many answers is off by, and of their sizes,
/// which is what one answer is off by.
#[cfg(not(target_family = "wasm"))]
#[test]
fn estimates_are_near_the_truth_in_every_script() {
    let o200k = tiktoken_rs::o200k_base().unwrap();
    let scripts = texts(CHECK);
    assert_eq!(scripts.len(), 12);
    for (script, texts) in scripts {
        assert_eq!(texts.len(), 20, "{script}");
        let errors = texts.iter().map(|text| {
            let truth = o200k.encode_ordinary(text).len() as f64;
            estimate(text, &[7]) as f64 / truth - 1.0
        });
        let mean = errors.clone().sum::<f64>() / 20.0;
        let mean_size = errors.clone().map(f64::abs).sum::<f64>() / 20.0;
        println!("{script:<11} {mean:+.3} {mean_size:.3}");
        assert!(mean.abs() <= 0.15 && mean_size <= 0.15, "{script}: {mean:+.3}, {mean_size:.3}");
    }
}

#[test]
fn nothing_is_no_token_and_anything_is_one() {
    let rows = [
        ("", 0),
        (" ", 1),
        ("\n", 1),
        ("a", 1),
        ("the", 1),
        ("the cat", 2),
        ("\u{200D}", 1),
        ("\u{FFFD}", 1),
        ("\u{10FFFF}", 1),
        ("camelCase", 2),
    ];
    for (text, expected) in rows {
        assert_eq!(estimate(text, &[1]), expected, "{text:?}");
    }
}

/// 1,000 texts of parts of all scripts.
#[test]
fn cuts_do_not_matter() {
    let scripts = texts(CHECK);
    let mut seed = 7_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    for _ in 0..1_000 {
        let mut text = String::new();
        for _ in 0..4 {
            let (_, texts) = &scripts[random(scripts.len())];
            let (from, length) = (random(80), random(60));
            text.extend(texts[random(texts.len())].chars().skip(from).take(length));
        }
        let whole = estimate(&text, &[usize::MAX]);
        let sizes = [1 + random(9), 1 + random(30), 1 + random(3)];
        assert_eq!(estimate(&text, &sizes), whole, "{text:?}");
    }
}

#[test]
fn texts_that_grow_in_turns_are_told_apart() {
    let scripts = texts(CHECK);
    let (one, other) = (&scripts[0].1[0], &scripts[0].1[1]);
    let mut turns = TokenTally::default();
    for (a, b) in one.chars().zip(other.chars()) {
        turns.push(0, a.encode_utf8(&mut [0; 4]));
        turns.push(1, b.encode_utf8(&mut [0; 4]));
    }
    let mut in_order = TokenTally::default();
    let length = one.chars().count().min(other.chars().count());
    in_order.push(0, &one.chars().take(length).collect::<String>());
    in_order.push(1, &other.chars().take(length).collect::<String>());
    assert_eq!(turns, in_order);
}

#[test]
fn words_of_small_letters_cost_what_their_letters_cost() {
    let mut random = Random::new(7);
    const PIECES: [&str; 14] =
        ["a", "word", "Internationalisation", "X", "é", "ß", "漢", "の", " ", "1", "\n", ".", "zz", "ж"];
    for _ in 0..500 {
        let text: String = (0..random.below(60)).map(|_| PIECES[random.below(PIECES.len())]).collect();
        let mut tally = TokenTally::default();
        tally.push(0, &text);
        let mut lane = Lane::default();
        let each = text.chars().flat_map(|c| lane.next(c)).flatten().map(millis).sum::<u64>();
        assert_eq!(tally.millis, each, "{text:?}");
    }
    // The run of a word longer than a counter is told no better.
    let mut tally = TokenTally::default();
    tally.push(0, &"a".repeat(1_000));
    let mut lane = Lane::default();
    let each = (0..1_000).flat_map(|_| lane.next('a')).flatten().map(millis).sum::<u64>();
    assert_eq!(tally.millis, each);
}
