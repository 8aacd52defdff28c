//! Paths of requests, and small bodies that the gateway reads itself.

use routebalance_core::learning::feedback::Feedback;
use routebalance_core::openai::{self, Call, ProbeScan, REPEAT_MAX};
use serde_json::Value;

use crate::choices::Choices;
use crate::novelty::see;

const PATHS: [&[u8]; 12] = [
    b"/v1/chat/completions",
    b"/v1/responses/resp_1?x=/v1/models",
    b"/v1/models/a%2Fb",
    b"/openai/deployments/gpt%204/chat/completions?api-version=1",
    b"/v2/rerank",
    b"/v1/audio/speech",
    b"/quality/v1/messages/count_tokens#x",
    b"//generate_stream",
    b"/v1beta/models/x:generateContent",
    b"%",
    b"/v1/v1/v1",
    b"",
];

/// A path, or a feedback, or a question to the predictor, or a list of endpoints.
pub fn paths(data: &[u8]) {
    let mut choices = Choices::new(data);
    if choices.in_256(80) {
        return small_body(&mut choices);
    }
    if choices.in_256(20) {
        return list(&mut choices);
    }
    let path = String::from_utf8_lossy(&choices.bytes_like(&PATHS)).into_owned();
    let method = choices.pick(&["POST", "GET", "DELETE", "", "post"]);
    let call = openai::call_of(method, &path);
    let own = openai::path_of_call(&path);
    assert!(path.ends_with(own), "{own:?} is no end of {path:?}");
    assert_eq!(openai::path_of_call(own), own, "{path:?}");
    see((method, call.as_ref().map(std::mem::discriminant), openai::generates(&path)));
    match call {
        Some(Call::Generate(api)) => {
            assert_eq!(openai::call_of(method, own), Some(Call::Generate(api)), "{path:?}");
            assert!(!api.generates() || openai::generates(&path), "{path:?} generates");
        }
        Some(Call::Deployment { model, path: to, .. }) => {
            assert!(!model.is_empty() && openai::call_of("POST", &to).is_some(), "{path:?} became {to:?}");
            let is_clean = |path: &str| !path.contains(['\r', '\n', '\0']);
            assert!(is_clean(&to) || !is_clean(&path), "{path:?} became {to:?}");
        }
        Some(Call::Model { name }) => assert!(!name.is_empty()),
        Some(Call::ResponseItem { id }) => assert!(!id.is_empty()),
        Some(Call::Models) | None => {}
    }
}

/// A list as the host hands it over, or as a header has it.
fn list(choices: &mut Choices<'_>) {
    let as_pairs = b"\x02\0\0\0\x0b\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\x0010.0.0.1:80\0\0[::1]:8\0\0";
    let bytes = choices.bytes_like(&[as_pairs, b"10.0.0.1:80, [::1]:8000,"]);
    let listed = routebalance_core::gateway::listed(&bytes);
    // What is no text becomes longer: three bytes for each of its own.
    let size: usize = listed.iter().map(String::len).sum();
    assert!(size <= 3 * bytes.len() && listed.len() <= bytes.len(), "{bytes:?} became {listed:?}");
    see(("list", listed.len().min(9)));
}

fn small_body(choices: &mut Choices<'_>) {
    let body =
        choices.bytes_like(&[br#"{"id":"0123456789abcdef","score":0.5}"#, br#"{"text":"What is 2 + 2?","repeat":3}"#]);
    let value = serde_json::from_slice::<Value>(&body).ok();
    let feedback = Feedback::parse(&body);
    if let Ok(feedback) = &feedback {
        assert!((0.0..=1.0).contains(&feedback.score) && !feedback.id.is_empty());
        let answer: Value = serde_json::from_str(&feedback.accepted("a \"model\"")).expect("JSON");
        assert_eq!(answer["id"], feedback.id.as_str());
    }
    let mut whole = ProbeScan::default();
    whole.push(&body);
    let mut cut = ProbeScan::default();
    choices.pieces(&body).into_iter().for_each(|piece| cut.push(piece));
    let (whole, cut) = (whole.finish(), cut.finish());
    assert_eq!(whole.as_ref().err(), cut.as_ref().err(), "cut in pieces");
    if let (Ok(whole), Ok(cut)) = (&whole, &cut) {
        assert_eq!((whole.repeat, whole.text.chars()), (cut.repeat, cut.text.chars()), "cut in pieces");
        assert!(whole.repeat <= REPEAT_MAX);
    }
    see(("small", value.is_some(), feedback.is_ok(), whole.is_ok()));
}
