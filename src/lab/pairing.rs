//! A trace has no text: its requests get prompts whose answers are known, by the length of the prompt.

use std::collections::BTreeMap;

use clap::ValueEnum;

use super::prompts::{LabPrompt, mean_output_tokens};
use super::trace::Recorded;
use routebalance_core::fleet::{Fleet, ModelKind};
use routebalance_core::predictor::Estimate;
use routebalance_core::random::Random;
use routebalance_core::router::Outlook;
use routebalance_sim::workload::Template;

/// Of all prompts, the share that is drawn from: those nearest in length. Fewer would ask the same few again and again where a
/// trace's prompts are longer than most.
const NEAREST_SHARE: f64 = 0.1;
const NEAREST_MIN: usize = 16;
/// A prompt whose own length is so near to the trace's keeps it.
const OWN_LENGTH_WITHIN: f64 = 0.1;

/// How long the answers to a trace's requests are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TraceLengths {
    /// As long as the trace's: every model's answer, and what is expected of it, is longer or shorter by the factor that makes the
    /// mean over the models the trace's output length. The predictor errs by the same ratio as on the prompt itself
    #[default]
    Trace,
    /// As long as the models' answers to the prompt are; the trace only says when requests come and how long their prompts are
    Prompt,
}

/// A trace's requests, paired.
#[derive(Clone, Debug, Default)]
pub(super) struct Paired {
    /// Kinds of requests.
    pub(super) templates: Vec<Template>,
    /// For each template, the index of its prompt.
    pub(super) prompts: Vec<usize>,
    /// For each template, its answers' lengths over those of its prompt.
    pub(super) stretches: Vec<f64>,
    /// For each request, the index of its template.
    pub(super) requests: Vec<usize>,
}

/// Prompts by length.
pub(super) struct Pairing<'a> {
    fleet: &'a Fleet,
    prompts: &'a [LabPrompt],
    by_length: Vec<usize>,
    lengths: TraceLengths,
}

impl<'a> Pairing<'a> {
    pub(super) fn new(fleet: &'a Fleet, prompts: &'a [LabPrompt], lengths: TraceLengths) -> Pairing<'a> {
        let mut by_length: Vec<usize> = (0..prompts.len()).collect();
        by_length.sort_by_key(|i| prompts[*i].template.prompt_tokens);
        Pairing { fleet, prompts, by_length, lengths }
    }

    fn tokens(&self, place: usize) -> u32 {
        self.prompts[self.by_length[place]].template.prompt_tokens
    }

    /// The longest prompt, tokens.
    pub(super) fn longest(&self) -> u32 {
        self.by_length.last().map_or(0, |i| self.prompts[*i].template.prompt_tokens)
    }

    /// Places in `by_length` of the prompts that are nearest to a length.
    fn nearest(&self, tokens: u32) -> std::ops::Range<usize> {
        let all = self.by_length.len();
        let wanted = ((all as f64 * NEAREST_SHARE) as usize).max(NEAREST_MIN).min(all);
        let middle = self.by_length.partition_point(|i| self.prompts[*i].template.prompt_tokens < tokens);
        let (mut begin, mut end) = (middle, middle);
        while end - begin < wanted {
            let below = begin.checked_sub(1).map(|i| tokens.abs_diff(self.tokens(i)));
            let above = (end < all).then(|| tokens.abs_diff(self.tokens(end)));
            match (below, above) {
                (Some(below), Some(above)) if below <= above => begin -= 1,
                (Some(_), None) => begin -= 1,
                _ => end += 1,
            }
        }
        begin..end
    }

    /// Every request with one of the prompts that are nearest in length, drawn.
    pub(super) fn paired(&self, requests: &[Recorded], seed: u64) -> Paired {
        let mut random = Random::for_use(seed, 4);
        let mut paired = Paired::default();
        let mut known: BTreeMap<(usize, u32, u32), usize> = BTreeMap::new();
        for request in requests {
            let nearest = self.nearest(request.prompt_tokens);
            let prompt = self.by_length[nearest.start + random.below(nearest.len())];
            let output_tokens = if self.lengths == TraceLengths::Trace { request.output_tokens } else { 0 };
            let key = (prompt, request.prompt_tokens, output_tokens);
            let template = match known.get(&key).filter(|_| request.blocks.is_empty()) {
                Some(template) => *template,
                None => {
                    let (template, stretch) = self.template(&self.prompts[prompt].template, request);
                    paired.templates.push(template);
                    paired.prompts.push(prompt);
                    paired.stretches.push(stretch);
                    known.insert(key, paired.templates.len() - 1);
                    paired.templates.len() - 1
                }
            };
            paired.requests.push(template);
        }
        paired
    }

    fn template(&self, own: &Template, request: &Recorded) -> (Template, f64) {
        let mut template = own.clone();
        let difference = f64::from(own.prompt_tokens.abs_diff(request.prompt_tokens));
        let is_near = difference <= OWN_LENGTH_WITHIN * f64::from(own.prompt_tokens);
        // Blocks say how long the prompt is that they are of.
        if !is_near || !request.blocks.is_empty() {
            let seen = Template::of_counts(request.prompt_tokens, Vec::new(), Vec::new());
            (template.prompt, template.prompt_tokens) = (seen.prompt, request.prompt_tokens);
        }
        template.blocks = request.blocks.clone();
        if self.lengths == TraceLengths::Prompt {
            return (template, 1.0);
        }
        let stretch = f64::from(request.output_tokens) / mean_output_tokens(self.fleet, own).max(1.0);
        for (tokens, model) in template.output_tokens.iter_mut().zip(&self.fleet.models) {
            if model.kind == ModelKind::Generate {
                *tokens = ((f64::from(*tokens) * stretch).round() as u32).max(1);
            }
        }
        template.outlook = template.outlook.map(|outlook| stretched(&outlook, stretch));
        (template, stretch)
    }
}

/// What is expected where answers are longer by this factor.
pub(super) fn stretched(outlook: &Outlook, factor: f64) -> Outlook {
    let tokens = |tokens: f64| (tokens * factor).max(1.0);
    let estimate = |(e, predicted): &(Estimate, bool)| {
        let longer = Estimate {
            output_tokens: tokens(e.output_tokens),
            output_tokens_p80: tokens(e.output_tokens_p80),
            output_tokens_p90: tokens(e.output_tokens_p90),
            ..*e
        };
        (longer, *predicted)
    };
    Outlook { estimates: outlook.estimates.iter().map(estimate).collect(), ..outlook.clone() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::builtin;
    use super::super::prompts::tests::router;
    use super::*;

    fn request(prompt_tokens: u32, output_tokens: u32, blocks: &[u64]) -> Recorded {
        Recorded { at: Duration::ZERO, prompt_tokens, output_tokens, blocks: Arc::from(blocks) }
    }

    #[test]
    fn prompts_are_near_in_length_and_varied() {
        let router = router();
        let set = builtin::prompts(&router).unwrap();
        let pairing = Pairing::new(&router.config().fleet, &set.prompts, TraceLengths::Prompt);
        let mut own: Vec<u32> = set.prompts.iter().map(|p| p.template.prompt_tokens).collect();
        own.sort_unstable();
        for tokens in [1, 60, 102, 250, 943, 60_000] {
            let paired = pairing.paired(&vec![request(tokens, 5, &[]); 2_000], 1);
            let mut distances: Vec<u32> = own.iter().map(|t| t.abs_diff(tokens)).collect();
            distances.sort_unstable();
            let used: std::collections::BTreeSet<usize> = paired.prompts.iter().copied().collect();
            assert!(used.len() > 140 && used.len() <= 152, "{tokens}: {} prompts", used.len());
            let distance = |i: &usize| set.prompts[*i].template.prompt_tokens.abs_diff(tokens);
            assert!(used.iter().map(distance).max() <= Some(distances[151]), "{tokens}: as near as the 152 nearest");
            let others = pairing.paired(&vec![request(tokens, 5, &[]); 2_000], 2);
            assert_ne!(paired.prompts, others.prompts, "{tokens}: a seed says which");
            for (template, prompt) in paired.templates.iter().zip(&paired.prompts) {
                let own = &set.prompts[*prompt].template;
                let ratio = f64::from(template.prompt_tokens) / f64::from(own.prompt_tokens);
                assert!((0.9..=1.1).contains(&ratio) || template.prompt_tokens == tokens);
                assert_eq!((&template.output_tokens, &template.quality), (&own.output_tokens, &own.quality));
            }
        }
    }

    #[test]
    fn answers_are_as_long_as_the_traces() {
        let router = router();
        let fleet = &router.config().fleet;
        let set = builtin::prompts(&router).unwrap();
        let pairing = Pairing::new(fleet, &set.prompts, TraceLengths::Trace);
        let requests: Vec<Recorded> = (1..500).map(|i| request(100, 3 * i, &[])).collect();
        let paired = pairing.paired(&requests, 1);
        for (request, template) in requests.iter().zip(&paired.requests) {
            let template_of = &paired.templates[*template];
            let mean = mean_output_tokens(fleet, template_of);
            assert!((mean - f64::from(request.output_tokens)).abs() <= 1.0, "{mean} for {}", request.output_tokens);
            let (own, stretch) = (&set.prompts[paired.prompts[*template]].template, paired.stretches[*template]);
            let expected = |t: &Template| t.outlook.as_ref().unwrap().estimates[0].0.output_tokens_p90;
            assert!((expected(template_of) - (expected(own) * stretch).max(1.0)).abs() < 1e-9);
            assert_eq!(template_of.output_tokens[4], 0, "an embedding has no tokens");
        }
    }

    #[test]
    fn requests_of_one_kind_share_a_template_and_those_with_blocks_do_not() {
        let router = router();
        let set = builtin::prompts(&router).unwrap();
        let pairing = Pairing::new(&router.config().fleet, &set.prompts[..1], TraceLengths::Trace);
        let requests = [request(9, 5, &[]), request(9, 5, &[]), request(100, 5, &[3, 4]), request(100, 5, &[3, 5])];
        let paired = pairing.paired(&requests, 1);
        assert_eq!(paired.requests, [0, 0, 1, 2]);
        assert_eq!(paired.templates[2].blocks[..], [3, 5]);
        assert_eq!(
            paired.templates[1].prompt_tokens, 100,
            "not the prompt's own 120, which is not what the blocks are of"
        );
    }
}
