//! An answer on its way: as server-sent events, one per HTTP chunk, or collected into one body.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use futures::stream;

use super::Fault;
use super::driver::Generation;
use super::request::ApiError;
use super::text;
use routebalance_sim::engine::FinishReason;

/// How one API writes an answer as events.
pub(super) trait Format: Send + 'static {
    /// Events before the engine has said anything.
    fn open(&mut self, _events: &mut Vec<String>) {}
    /// Events of a piece: a token's text, the end of a choice, or both.
    fn piece(&mut self, choice: usize, token: Option<&str>, finish: Option<FinishReason>, events: &mut Vec<String>);
    /// Events after the last piece; so many tokens of the prompt were cached.
    fn close(&mut self, cached_tokens: u32, events: &mut Vec<String>);
    /// Events when the engine dies; `None` when the real server cuts the connection.
    fn fail(&self, error: &ApiError) -> Option<Vec<String>>;
}

/// Counts a request for `/load` while it lives.
#[derive(Debug)]
pub(super) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request's sequences with what they will say.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) generation: Generation,
    /// What the words of each choice depend on.
    pub(super) seeds: Vec<u64>,
    pub(super) _in_flight: InFlight,
}

/// A finished choice.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) text: String,
    pub(super) tokens: u32,
    pub(super) finish: FinishReason,
}

impl Answer {
    /// Waits for all choices, and says how many tokens of the prompt were cached.
    pub(super) async fn collect(mut self) -> (Vec<Choice>, u32) {
        let mut choices =
            vec![Choice { text: String::new(), tokens: 0, finish: FinishReason::Length }; self.seeds.len()];
        while let Some(piece) = self.generation.next().await {
            let choice = &mut choices[piece.choice];
            choice.tokens += u32::from(piece.token);
            if let Some(finish) = piece.finish {
                choice.finish = finish;
                choice.text = text::answer(self.seeds[piece.choice], choice.tokens as usize);
            }
        }
        (choices, self.generation.cached_tokens)
    }

    /// The body of a streamed answer. `cut` tells the connection to break off inside the next chunk it writes.
    pub(super) fn events<F: Format>(self, mut format: F, fault: Fault, cut: Arc<AtomicBool>) -> Body {
        let mut pending = Vec::new();
        format.open(&mut pending);
        let state = Streaming {
            tokens: vec![0; self.seeds.len()],
            answer: self,
            format,
            pending: pending.into(),
            next: Vec::new(),
            sent: 0,
            fault,
            cut,
            closed: false,
        };
        Body::from_stream(stream::unfold(state, |mut state| async move {
            let event = state.next_event().await?;
            Some((Ok::<_, io::Error>(Bytes::from(event)), state))
        }))
    }
}

struct Streaming<F> {
    answer: Answer,
    format: F,
    tokens: Vec<usize>,
    pending: VecDeque<String>,
    /// Scratch for the events of one piece.
    next: Vec<String>,
    sent: u32,
    fault: Fault,
    cut: Arc<AtomicBool>,
    closed: bool,
}

impl<F: Format> Streaming<F> {
    async fn next_event(&mut self) -> Option<String> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(self.through_fault(event));
            }
            if self.closed {
                return None;
            }
            match self.answer.generation.next().await {
                Some(piece) => {
                    let mut word = String::new();
                    if piece.token {
                        text::token(self.answer.seeds[piece.choice], self.tokens[piece.choice], &mut word);
                        self.tokens[piece.choice] += 1;
                    }
                    self.format.piece(piece.choice, piece.token.then_some(word.as_str()), piece.finish, &mut self.next);
                }
                None => {
                    self.closed = true;
                    self.format.close(self.answer.generation.cached_tokens, &mut self.next);
                }
            }
            self.pending.extend(self.next.drain(..));
        }
    }

    /// The event, or what the fault makes of it.
    fn through_fault(&mut self, event: String) -> String {
        let sent = self.sent;
        self.sent += 1;
        match self.fault {
            Fault::Reset { after_events } if sent >= after_events => {
                self.cut.store(true, Ordering::Relaxed);
                event
            }
            Fault::StreamError { after_events } if sent == after_events => {
                self.closed = true;
                match self.format.fail(&ApiError::engine_dead()) {
                    Some(events) => {
                        self.pending = events.into();
                        self.pending.pop_front().unwrap_or(event)
                    }
                    None => {
                        self.cut.store(true, Ordering::Relaxed);
                        event
                    }
                }
            }
            _ => event,
        }
    }
}
