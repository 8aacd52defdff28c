//! The language that is accepted, where errors are, and that cuts do not matter.

use super::*;

#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// Writes the events down: strings wanted in pieces are `"…"`, whole ones `'…'`, unwanted ones `_`.
struct Log {
    want: Want,
    text: String,
}

impl Sink for Log {
    fn open(&mut self, container: Container, at: u64) {
        self.text.push_str(&format!("{container:?}@{at} "));
    }
    fn close(&mut self, end: u64) {
        self.text.push_str(&format!("close@{end} "));
    }
    fn key(&mut self, name: &str) {
        self.text.push_str(&format!("{name}: "));
    }
    fn string(&mut self) -> Want {
        self.text.push_str(if self.want == Want::Pieces { "\"" } else { "" });
        self.want
    }
    fn text(&mut self, piece: &str) {
        self.text.push_str(piece);
    }
    fn string_end(&mut self, kept: Kept<'_>, span: Range<u64>) {
        match self.want {
            Want::Nothing => self.text.push('_'),
            Want::Whole => self.text.push_str(&format!("'{}{}'", kept.text, if kept.cut { "…" } else { "" })),
            Want::Pieces => self.text.push('"'),
        }
        self.text.push_str(&format!("@{}..{} ", span.start, span.end));
    }
    fn scalar(&mut self, scalar: Scalar<'_>, span: Range<u64>) {
        self.text.push_str(&format!("{scalar:?}@{}..{} ", span.start, span.end));
    }
}

fn events<'a>(pieces: impl Iterator<Item = &'a [u8]>, want: Want) -> Result<String, ScanFailure> {
    let mut log = Log { want, text: String::new() };
    let mut scanner = Scanner::default();
    pieces.for_each(|piece| scanner.push(piece, &mut log));
    scanner.finish(&mut log).map(|()| log.text)
}

/// Scans whole, cut once at every place, and byte by byte.
fn check(json: &[u8], want: Want, expected: Result<&str, ScanFailure>) {
    let name = String::from_utf8_lossy(json);
    let expected = expected.map(str::to_owned);
    assert_eq!(events([json].into_iter(), want), expected, "{name}");
    assert_eq!(events(json.chunks(1), want), expected, "{name}, byte by byte");
    for cut in 0..=json.len() {
        let pieces = [&json[..cut], &json[cut..]];
        assert_eq!(events(pieces.into_iter(), want), expected, "{name}, cut at {cut}");
    }
}

#[test]
fn events_and_spans() {
    check(
        br#" {"a" : [1, -2.5e+3] , "b":{}} "#,
        Want::Nothing,
        Ok(
            "Object@1 a: Array@8 Number(\"1\")@9..10 Number(\"-2.5e+3\")@12..19 close@20 b: Object@27 close@29 close@30 ",
        ),
    );
    check(
        b"[true,false,null,NaN,Infinity,-Infinity]",
        Want::Nothing,
        Ok("Array@0 Bool(true)@1..5 Bool(false)@6..11 Null@12..16 Number(\"NaN\")@17..20 Number(\"Infinity\")@21..29 \
         Number(\"-Infinity\")@30..39 close@40 "),
    );
    check(b"\xEF\xBB\xBF{\"a\":\"b\"}", Want::Nothing, Ok("Object@3 a: _@8..11 close@12 "));
    check(b"0", Want::Nothing, Ok("Number(\"0\")@0..1 "));
    check(b" \"a\" ", Want::Whole, Ok("'a'@1..4 "));
}

#[test]
fn strings() {
    let rows: &[(&[u8], &str)] = &[
        (b"", ""),
        (b"plain text of more than eight bytes", "plain text of more than eight bytes"),
        (br#"\"\\\/\b\f\n\r\t"#, "\"\\/\u{8}\u{c}\n\r\t"),
        (br"\u0041\u00e9\u20AC", "Aé€"),
        (br"\ud83d\ude00", "😀"),
        ("é€😀\u{7F}".as_bytes(), "é€😀\u{7F}"),
        // Lone surrogates, which Python accepts.
        (br"\ud83d", "\u{FFFD}"),
        (br"\ude00", "\u{FFFD}"),
        (br"\ud83dx", "\u{FFFD}x"),
        (br"\ud83d\n", "\u{FFFD}\n"),
        (br"\ud83d\ud83d\ude00", "\u{FFFD}😀"),
        (br"\ud83d\u0041", "\u{FFFD}A"),
        // Malformed UTF-8: one replacement for each sequence that breaks off, as `String::from_utf8_lossy` does it.
        (b"a\xFFb", "a\u{FFFD}b"),
        (b"\xE2\x82", "\u{FFFD}"),
        (b"\xE2\x82x", "\u{FFFD}x"),
        (b"\xE2\x82\\n", "\u{FFFD}\n"),
        (b"\xE2\x82\\u00e9", "\u{FFFD}é"),
        (b"\xF0\x9F\x98\xE2\x82\xAC", "\u{FFFD}€"),
        (b"\xF0\x9F\xC3\xA9", "\u{FFFD}é"),
        (b"\xED\xA0\xBD", "\u{FFFD}\u{FFFD}\u{FFFD}"),
        (b"\x80\xBF\xC0\xAF", "\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}"),
    ];
    for (string, expected) in rows {
        let json = [b"[\"", *string, b"\"]"].concat();
        let end = json.len() - 1;
        check(&json, Want::Pieces, Ok(&format!("Array@0 \"{expected}\"@1..{end} close@{} ", end + 1)));
        check(&json, Want::Whole, Ok(&format!("Array@0 '{expected}'@1..{end} close@{} ", end + 1)));
        check(&json, Want::Nothing, Ok(&format!("Array@0 _@1..{end} close@{} ", end + 1)));
        let json = [b"{\"", *string, b"\":0}"].concat();
        let end = json.len() - 1;
        check(
            &json,
            Want::Nothing,
            Ok(&format!("Object@0 {expected}: Number(\"0\")@{}..{end} close@{} ", end - 1, end + 1)),
        );
    }
}

#[test]
fn long_tokens_are_cut() {
    let long = "x".repeat(TOKEN_BYTES_MAX);
    for (string, expected) in [(long.clone(), long.clone()), (long.clone() + "y", long.clone() + "…")] {
        let json = format!("\"{string}\"");
        assert_eq!(events(json.as_bytes().chunks(7), Want::Whole), Ok(format!("'{expected}'@0..{} ", json.len())));
    }
}

/// Bodies that Python's `json.loads` refuses, and the offset of the first byte that cannot be.
#[test]
fn syntax_errors() {
    let rows: &[(&[u8], u64)] = &[
        (b"", 0),
        (b"  ", 2),
        (br#"{"model":"tiny-b","messages":[}"#, 30),
        (b"{", 1),
        (b"{}}", 2),
        (b"{} x", 3),
        (b"[1,]", 3),
        (b"[,1]", 1),
        (b"[1 2]", 3),
        (b"[1}", 2),
        (b"{\"a\"}", 4),
        (b"{\"a\":}", 5),
        (b"{\"a\":1,}", 7),
        (b"{\"a\":1]", 6),
        (b"{\"a\" 1}", 5),
        (b"{a:1}", 1),
        (b"{'a':1}", 1),
        (b"{1:1}", 1),
        (b"[01]", 2),
        (b"[-]", 2),
        (b"[+1]", 1),
        (b"[.5]", 1),
        (b"[1.]", 3),
        (b"[1.e3]", 3),
        (b"[1e]", 3),
        (b"[1e+]", 4),
        (b"[0x1]", 2),
        (b"[1_000]", 2),
        (b"[-Inf]", 5),
        (b"[nul]", 4),
        (b"[True]", 1),
        (b"[tru", 4),
        (b"[truee]", 5),
        (b"[nan]", 2),
        (b"\"a", 2),
        (b"\"a\nb\"", 2),
        (b"\"a\0b\"", 2),
        (b"\"\\x\"", 2),
        (b"\"\\u12G4\"", 5),
        (b"\"\\u 123\"", 3),
        (b"-", 1),
        (b"\xEF\xBB{}", 2),
        (b"\xEF\xBB\xBF\xEF\xBB\xBF{}", 3),
        (b"{\0}", 1),
        (b"{\"a\":1}\0", 7),
        (b"// comment\n{}", 0),
        (b"\xFF", 0),
        (b"{\x0C}", 1),
    ];
    for (json, offset) in rows {
        check(json, Want::Pieces, Err(ScanFailure::Syntax { offset: *offset }));
    }
}

#[test]
fn depth_is_bounded() {
    let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
    let pieces = |json: &str| events([json.as_bytes()].into_iter(), Want::Nothing).map(|_| ());
    assert_eq!(pieces(&nested(DEPTH_MAX)), Ok(()));
    assert_eq!(pieces(&nested(DEPTH_MAX + 1)), Err(ScanFailure::TooDeep));
    assert_eq!(pieces(&"[".repeat(1_000_000)), Err(ScanFailure::TooDeep));
    // Every level remembers whether it is an object.
    let mixed = ["{\"a\":[".repeat(DEPTH_MAX / 2), "]}".repeat(DEPTH_MAX / 2)].concat();
    assert_eq!(pieces(&mixed), Ok(()));
    assert_eq!(pieces(&mixed.replace("[]", "[}")), Err(ScanFailure::Syntax { offset: 6 * DEPTH_MAX as u64 / 2 }));
}

/// Random JSON-like bytes: what serde_json accepts is accepted, cuts do not matter, and everything ends without a panic.
#[test]
fn any_bytes_are_survived() {
    let words: &[&[u8]] = &[
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\"",
        b"\"a\"",
        b"\\",
        b"\\n",
        b"\\u",
        b"d83d",
        b"\\ude00",
        b"1",
        b"-",
        b".5",
        b"e",
        b"true",
        b"null",
        b"NaN",
        b" ",
        b"\n",
        b"\xE2\x82",
        b"\xAC",
        b"\xFF",
        b"\0",
        b"x",
        b"\xEF\xBB\xBF",
    ];
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let mut accepted = 0;
    for _ in 0..20_000 {
        let length = random(9);
        let json: Vec<u8> = (0..length).flat_map(|_| words[random(words.len())].to_vec()).collect();
        let whole = events([json.as_slice()].into_iter(), Want::Pieces);
        assert_eq!(events(json.chunks(1), Want::Pieces), whole, "{}", String::from_utf8_lossy(&json));
        if serde_json::from_slice::<serde_json::Value>(&json).is_ok() {
            accepted += 1;
            assert!(whole.is_ok(), "{}", String::from_utf8_lossy(&json));
        }
    }
    assert!(accepted > 100, "the generator is too wild: {accepted}");
}
