#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::openai::{Api, Prompt, RequestScan};

fn fleet() -> Fleet {
    Config::parse(include_bytes!("../../envoy/routebalance.json")).unwrap().fleet
}

fn prompt_of(api: Api, body: &str, cut: usize) -> Prompt {
    let mut scan = RequestScan::new(api);
    body.as_bytes().chunks(cut).for_each(|piece| scan.push(piece));
    scan.finish().unwrap()
}

fn text(seed: usize, chars: usize) -> String {
    (0..)
        .map(|i| format!("w{} ", (i * 7 + seed) * 31 % 1_009))
        .flat_map(|w| w.chars().collect::<Vec<_>>())
        .take(chars)
        .collect()
}

/// A message as clients write it, its role first.
fn message(role: &str, text: &str) -> String {
    format!(r#"{{"role":"{role}","content":{}}}"#, serde_json::Value::from(text))
}

fn chat(system: &str, user: &str) -> String {
    format!(r#"{{"model":"auto","messages":[{},{}]}}"#, message("system", system), message("user", user))
}

fn keys(body: &str) -> Keys {
    Keys::new(Some(&prompt_of(Api::ChatCompletions, body, 64).prefix), 0, None, None)
}

/// Bytes of the beginning that both have in common, by their hashes.
fn shared_share(a: &Keys, b: &Keys) -> f64 {
    let both = a.prefix.iter().zip(&b.prefix).take_while(|(a, b)| a.0 == b.0);
    both.last().map_or(0.0, |(a, _)| a.1)
}

#[test]
fn hashes_do_not_depend_on_how_the_body_is_cut() {
    let body = chat(&text(1, 3_000), "A \"question\"\nwith an é and a 😀?");
    let whole = Keys::new(Some(&prompt_of(Api::ChatCompletions, &body, body.len()).prefix), 0, None, None);
    assert!(whole.prefix.len() > 8);
    for cut in [1, 2, 3, 7, 8, 9, 255, 256, 257, 1_000] {
        let keys = Keys::new(Some(&prompt_of(Api::ChatCompletions, &body, cut).prefix), 0, None, None);
        assert_eq!(keys, whole, "{cut}");
    }
}

#[test]
fn equal_beginnings_share_and_others_do_not() {
    let system = text(1, 6_000);
    let base = keys(&chat(&system, &text(2, 3_000)));
    let tools = |name: &str, user: &str| {
        let body = chat(&system, user);
        format!(r#"{{"tools":[{{"name":"{name}"}}],{}"#, &body[1..])
    };
    let three = |role: &str| {
        let [system, second, last] =
            [("system", &*system), (role, &*text(2, 3_000)), ("user", "And?")].map(|(r, t)| message(r, t));
        format!(r#"{{"messages":[{system},{second},{last}]}}"#)
    };
    // (name, other body, least and most share of `base` that is shared)
    let rows = [
        ("the same", chat(&system, &text(2, 3_000)), 0.8, 1.0),
        ("the same system prompt", chat(&system, &text(3, 3_000)), 0.53, 0.67),
        ("another system prompt", chat(&text(9, 6_000), &text(2, 3_000)), 0.0, 0.0),
        ("the next turn", three("user"), 0.8, 1.0),
        ("another role", three("assistant"), 0.53, 0.67),
        ("with tools", tools("f", &text(2, 3_000)), 0.0, 0.0),
        ("cut in two messages", chat(&system[..3_000], &system[3_000..]), 0.25, 0.34),
    ];
    for (name, body, least, most) in rows {
        let share = shared_share(&base, &keys(&body));
        assert!((least..=most).contains(&share), "{name}: {share}");
    }
    assert_eq!(
        shared_share(&keys(&tools("f", "x")), &keys(&tools("g", "x"))),
        shared_share(&keys(&tools("f", "x")), &keys(&tools("f", "y")))
    );
    let prefix = prompt_of(Api::ChatCompletions, &chat(&system, "x"), 64).prefix;
    for other in [Keys::new(Some(&prefix), 1, None, None), Keys::new(Some(&prefix), 0, None, Some("adapter"))] {
        assert_eq!(shared_share(&Keys::new(Some(&prefix), 0, None, None), &other), 0.0);
    }
}

#[test]
fn a_match_is_at_most_a_sixth_too_short_and_bounded() {
    for chars in [0, 100, 255, 300, 1_000, 10_000, 50_000, 150_000, 1_000_000] {
        let prefix = prompt_of(Api::ChatCompletions, &chat(&text(1, chars), ""), 4_096).prefix;
        let keys = Keys::new(Some(&prefix), 0, None, None);
        assert!(keys.prefix.len() <= BLOCKS_MAX);
        let share = keys.prefix.last().map_or(0.0, |(_, share)| *share);
        // Below it, blocks of 256 bytes are coarser; above it, the last block ends.
        assert!(!(1_500..=150_000).contains(&chars) || share > 5.0 / 6.0 - 0.02, "{chars}: {share}");
        assert_eq!(share > 0.0, chars >= 255, "{chars}: {share}");
    }
}

#[test]
fn images_and_token_ids_are_part_of_the_prefix() {
    let image = |url: &str| {
        let content = serde_json::json!([{"type": "text", "text": text(1, 300)}, {"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text(2, 900)}]);
        keys(&serde_json::json!({"messages": [{"role": "user", "content": content}]}).to_string())
    };
    let share = shared_share(&image("data:a"), &image("data:longer"));
    assert!(share > 0.0 && share < 0.3, "{share}");
    let ids = |from: usize| {
        let ids: Vec<usize> = (0..400).chain(from..from + 400).collect();
        let body = serde_json::json!({ "prompt": ids }).to_string();
        Keys::new(Some(&prompt_of(Api::Completions, &body, 100).prefix), 0, None, None)
    };
    let share = shared_share(&ids(1_000), &ids(2_000));
    assert!(share > 0.3 && share < 0.5, "{share}");
}

fn cached(memory: &Memory, keys: &Keys, tokens: f64, at: u64) -> Vec<(usize, u64)> {
    let recall = memory.recall(keys, tokens, Duration::from_secs(at));
    let tokens = |i| recall.held().cached_tokens(i, tokens) as u64;
    (0..13).map(|i| (i, tokens(i))).filter(|(_, tokens)| *tokens > 0).collect()
}

#[test]
fn memory_finds_the_longest_match_of_each_instance() {
    let fleet = fleet();
    let mut memory = Memory::new(&fleet);
    let system = text(1, 6_000);
    let (first, second, other) =
        (keys(&chat(&system, &text(2, 6_000))), keys(&chat(&system, &text(3, 6_000))), keys(&chat("", &text(4, 900))));
    let now = Duration::from_secs(1);
    assert_eq!(cached(&memory, &first, 3_000.0, 1), []);
    memory.place(&first.placement(2, 3_000, 0, 100, now));
    memory.place(&second.placement(5, 3_000, 0, 100, now));
    let found = cached(&memory, &first, 3_000.0, 1);
    assert!(matches!(found[..], [(2, 2_500..=3_000), (5, 1_200..=1_520)]), "{found:?}");
    assert_eq!(cached(&memory, &other, 300.0, 1), []);
    assert_eq!(cached(&memory, &first, 3_000.0, 700), [], "too long ago");
    memory.follow(&fleet, &[2]);
    let found = cached(&memory, &first, 3_000.0, 1);
    assert!(matches!(found[..], [(5, _)]), "another instance is in its place: {found:?}");
    memory.place(&other.placement(99, 300, 0, 10, now));
    assert_eq!(cached(&memory, &other, 300.0, 1), [], "no such instance");
}

#[test]
fn what_the_kv_cache_had_to_drop_is_not_found() {
    let fleet = fleet();
    let kv_tokens = fleet.pool_of(0).unwrap().1.limits.kv_tokens;
    let mut memory = Memory::new(&fleet);
    let first = keys(&chat(&text(1, 3_000), "x"));
    let now = Duration::from_secs(1);
    memory.place(&first.placement(0, 800, 0, 100, now));
    let mut filled = 0;
    for i in 2.. {
        assert_eq!(cached(&memory, &first, 800.0, 1).is_empty(), filled >= kv_tokens, "{filled} of {kv_tokens}");
        if filled >= kv_tokens {
            break;
        }
        memory.place(&keys(&chat(&text(i, 3_000), "y")).placement(0, 9_000, 0, 1_000, now));
        filled += 10_000;
    }
    // What hits the cache takes no room.
    memory.place(&first.placement(0, 800, 0, 100, now));
    for _ in 0..1_000 {
        memory.place(&first.placement(0, 90_000, 90_000, 0, now));
    }
    assert!(!cached(&memory, &first, 800.0, 1).is_empty());
}

#[test]
fn memory_is_bounded_and_what_is_used_stays() {
    let mut memory = Memory::new(&fleet());
    let hot = keys(&chat(&text(0, 3_000), "x"));
    let now = Duration::from_secs(1);
    for i in 0..20_000_u64 {
        let prefix = (0..8).map(|block| (i * 8 + block, 0.1)).collect();
        memory.place(&Keys { prefix, ..Keys::default() }.placement(1, 1, 0, 0, now));
        if i % 500 == 0 {
            memory.place(&hot.placement(1, 1, 0, 0, now));
        }
    }
    assert!(memory.len() <= KEPT + 100, "{}", memory.len());
    assert!(!cached(&memory, &hot, 800.0, 1).is_empty());
}

#[test]
fn sessions_and_adapters_are_remembered() {
    let mut memory = Memory::new(&fleet());
    let now = Duration::from_secs(1);
    let session = |name, kind| Keys::new(None, kind, Some(name), None);
    memory.place(&session("a", 0).placement(3, 400, 0, 100, now));
    assert_eq!(cached(&memory, &session("a", 0), 2_000.0, 1), [(3, 500)]);
    assert_eq!(cached(&memory, &session("a", 0), 300.0, 1), [(3, 299)], "the last token is always prefilled");
    assert_eq!(cached(&memory, &session("b", 0), 2_000.0, 1), []);
    assert_eq!(cached(&memory, &session("a", 1), 2_000.0, 1), [], "another API");
    assert_eq!(session("", 0), Keys::default(), "a session without a name is none");
    memory.place(&session("a", 0).answered(3, 900, now).unwrap());
    assert_eq!(cached(&memory, &session("a", 0), 2_000.0, 1), [(3, 900)]);
    assert_eq!(Keys::default().answered(3, 900, now), None);

    let adapter = |name: &str| Keys::new(None, 0, None, Some(name));
    memory.place(&adapter("x").placement(4, 10, 0, 10, now));
    memory.place(&Keys::of_adapter("z").placement(5, 0, 0, 0, now));
    let has = |name: &str, i| memory.recall(&adapter(name), 10.0, now).held().has_adapter(i);
    assert!(has("x", 4) && !has("x", 5) && !has("y", 4));
    assert!(has("z", 5) && !has("z", 4), "reported, never sent");
}
