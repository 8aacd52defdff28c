//! What to replace in a body, so that it asks for what was decided.

use std::ops::Range;

use super::{Api, Prompt};

/// Replaces a range of the body's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What to take out; empty to insert only.
    pub replace: Range<u64>,
    /// What to put there.
    pub with: String,
}

/// A body with patches, which come in its order; `None` where they are not its own.
pub fn patched(patches: &[Patch], body: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::with_capacity(body.len());
    let mut done = 0;
    for Patch { replace, with } in patches {
        let (start, end) = (usize::try_from(replace.start).ok()?, usize::try_from(replace.end).ok()?);
        whole.extend_from_slice(body.get(done..start)?);
        whole.extend_from_slice(with.as_bytes());
        done = body.get(start..end).map(|_| end)?;
    }
    whole.extend_from_slice(body.get(done..)?);
    Some(whole)
}

/// The length that patches make of a body of this length.
pub fn patched_length(patches: &[Patch], length: u64) -> u64 {
    patches.iter().fold(length, |length, Patch { replace, with }| {
        length.saturating_add(with.len() as u64).saturating_sub(replace.end.saturating_sub(replace.start))
    })
}

/// Patches of a body that others have been applied to, so that it says what these ask for: `done` and `wanted` are both patches of the
/// body as it was, in its order. Where `wanted` leaves alone what `done` has changed, the change stays.
fn after(done: &[Patch], wanted: &[Patch]) -> Vec<Patch> {
    let moved = |at: u64, before: &dyn Fn(&Patch) -> bool| {
        done.iter().filter(|patch| before(patch)).fold(at, |at, patch| patched_length(std::slice::from_ref(patch), at))
    };
    let place = |patch: &Patch| {
        let start = moved(patch.replace.start, &|other| other.replace.start < patch.replace.start);
        let same = done.iter().find(|other| other.replace == patch.replace);
        let taken = patch.replace.end.saturating_sub(patch.replace.start);
        let taken = same.map_or(taken, |same| same.with.len() as u64);
        Patch { replace: start..start.saturating_add(taken), with: patch.with.clone() }
    };
    wanted.iter().map(place).collect()
}

/// What of a body may be rewritten, and where it stands.
#[derive(Clone, Debug, Default)]
pub struct PatchPlaces {
    body_model: Option<String>,
    is_form: bool,
    model_span: Option<Range<u64>>,
    insert_at: Option<u64>,
    empty_object: bool,
    max_tokens: Option<u32>,
    limit_spans: [Option<Range<u64>>; 2],
}

impl Prompt {
    /// What of its body may be rewritten.
    pub fn patch_places(&self) -> PatchPlaces {
        PatchPlaces {
            body_model: self.body_model.clone(),
            is_form: self.is_form,
            model_span: self.model_span.clone(),
            insert_at: self.insert_at,
            empty_object: self.empty_object,
            max_tokens: self.max_tokens,
            limit_spans: self.limit_spans.clone(),
        }
    }
}

impl PatchPlaces {
    /// The patches, in the body's order, that make it name the model `served` and limit its answer to so many tokens. None
    /// where it does so already, or where no object has begun.
    pub fn patches(&self, api: Api, served: &str, max_tokens: Option<u32>) -> Vec<Patch> {
        self.patches_from(self.body_model.as_deref(), api, served, max_tokens)
    }

    /// The same for a body that `done` has been applied to.
    pub fn patches_after(&self, done: &[Patch], api: Api, served: &str, max_tokens: Option<u32>) -> Vec<Patch> {
        let mut wanted = self.patches_from(None, api, served, max_tokens);
        // A limit that was written for another model is taken back.
        let is_left = |patch: &&Patch| !wanted.iter().any(|other| other.replace == patch.replace);
        let taken_back = |patch: &Patch| {
            let is_limit = self.limit_spans.iter().flatten().any(|span| *span == patch.replace);
            let asked = self.max_tokens.map_or("null".to_owned(), |limit| limit.to_string());
            Patch { replace: patch.replace.clone(), with: if is_limit { asked } else { String::new() } }
        };
        let left: Vec<Patch> = done.iter().filter(is_left).map(taken_back).collect();
        wanted.extend(left);
        wanted.sort_by_key(|patch| patch.replace.start);
        after(done, &wanted)
    }

    /// The patches for a body that names the model `named`.
    fn patches_from(&self, named: Option<&str>, api: Api, served: &str, max_tokens: Option<u32>) -> Vec<Patch> {
        let mut patches = Vec::new();
        let mut fields = Vec::new();
        let written =
            || if self.is_form { served.to_owned() } else { serde_json::to_string(served).unwrap_or_default() };
        let model = (named != Some(served)).then(written);
        match (model, &self.model_span) {
            (Some(with), Some(span)) => patches.push(Patch { replace: span.clone(), with }),
            (Some(with), None) => fields.push(format!("\"model\":{with}")),
            (None, _) => {}
        }
        let limits = max_tokens.map(|limit| (limit, self.limit_spans.iter().flatten()));
        if let Some((limit, spans)) = limits {
            let before = patches.len();
            patches.extend(spans.map(|span| Patch { replace: span.clone(), with: limit.to_string() }));
            if patches.len() == before {
                fields.push(format!("\"{}\":{limit}", limit_field(api)));
            }
        }
        if let Some(at) = self.insert_at.filter(|_| !fields.is_empty()) {
            let comma = if self.empty_object { "" } else { "," };
            patches.push(Patch { replace: at..at, with: fields.join(",") + comma });
        }
        patches.sort_by_key(|patch| patch.replace.start);
        patches
    }
}

/// The field that limits generated tokens in every server of this API.
fn limit_field(api: Api) -> &'static str {
    match api {
        Api::Responses => "max_output_tokens",
        _ => "max_tokens",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn text(random: &mut Random, most: usize) -> String {
        (0..random.below(most)).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
    }

    /// Patches of the same places, as they are for two models: each may leave some places alone.
    #[test]
    fn a_patched_body_is_patched_again_as_if_it_had_not_been() {
        for seed in 0..1_000 {
            let mut random = Random::new(seed);
            let body = text(&mut random, 200);
            let (mut places, mut at) = (Vec::new(), 0);
            while let Some(start) = Some(at + random.below(20)).filter(|start| *start < body.len()) {
                let end = (start + random.below(10)).min(body.len());
                places.push(start as u64..end as u64);
                at = end + 1;
            }
            let mut of = |places: &[Range<u64>]| -> Vec<Patch> {
                places.iter().map(|place| Patch { replace: place.clone(), with: text(&mut random, 12) }).collect()
            };
            let (done, wanted) = (of(&places), of(&places));
            let once = patched(&done, body.as_bytes()).unwrap();
            let directly = patched(&wanted, body.as_bytes());
            assert_eq!(patched(&after(&done, &wanted), &once), directly, "{seed}");
            // What the first ones have left alone.
            let some: Vec<Patch> = done.iter().filter(|_| random.below(2) == 0).cloned().collect();
            let once = patched(&some, body.as_bytes()).unwrap();
            assert_eq!(patched(&after(&some, &wanted), &once), directly, "{seed}");
        }
    }
}
