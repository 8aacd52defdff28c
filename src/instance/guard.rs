//! What stands before the API where it is somebody else's: keys, another path than `/v1`, a limit of requests.
//!
//! A guarded vLLM has keys (`--api-key`). A provider has all three.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{bail, ensure};
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{HeaderMap, Method, Response, StatusCode};
use tokio::time::Instant;

use super::InstanceOptions;
use super::request::{Shape, quote};
use super::serve::json;

/// Where vLLM has its API, and where routes are looked up.
const V1: &str = "/v1";
/// What vLLM guards besides (its `GUARDED_PREFIX`), whether or not anything is there.
const GUARDED_BESIDES: [&str; 2] = ["/v2", "/inference"];
/// What is of the server and not of the API: these stay open, and where they are.
const OWN_PATHS: [&str; 6] = ["/health", "/load", "/metrics", "/ping", "/tokenize", "/version"];

/// The path below which the API answers; without a `/` at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BasePath(String);

impl Default for BasePath {
    fn default() -> Self {
        Self(V1.to_owned())
    }
}

impl fmt::Display for BasePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BasePath {
    type Err = anyhow::Error;

    /// `/v1`, `/api/paas/v4`, `/` for an API at the root. One `/` at the end counts for nothing, as in the URLs that providers name.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let is_of_a_path = |c: char| c.is_ascii_graphic() && !matches!(c, '?' | '#' | '%');
        if !text.starts_with('/') || text.contains("//") || !text.chars().all(is_of_a_path) {
            bail!("base path `{text}`: give a path such as /api/paas/v4, without host, query and escapes");
        }
        Ok(Self(text.strip_suffix('/').unwrap_or(text).to_owned()))
    }
}

impl BasePath {
    fn is_v1(&self) -> bool {
        self.0 == V1
    }

    /// Where vLLM has what is asked for at this path; none where nothing is.
    pub(super) fn in_v1<'a>(&self, path: &'a str) -> Option<Cow<'a, str>> {
        if self.is_v1() || OWN_PATHS.contains(&path) {
            return Some(path.into());
        }
        let rest = path.strip_prefix(self.0.as_str()).filter(|rest| rest.starts_with('/'))?;
        Some(format!("{V1}{rest}").into())
    }

    /// Whether keys are asked for at this path. As in vLLM a prefix is a prefix: `/v1x` is guarded, too.
    fn is_guarded(&self, path: &str) -> bool {
        let mut prefixes = GUARDED_BESIDES.into_iter().chain([self.0.as_str()]);
        !OWN_PATHS.contains(&path) && prefixes.any(|prefix| path.starts_with(prefix))
    }
}

/// So many requests in a window, which begins with the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests that are served in a window; with 0, none ever is.
    pub requests: u32,
    /// How long a window lasts.
    pub window: Duration,
}

impl FromStr for RateLimit {
    type Err = anyhow::Error;

    /// `COUNT/SECONDS`: `20/1`, `5/0.25`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let limit = text.split_once('/').and_then(|(requests, seconds)| {
            let window = Duration::try_from_secs_f64(seconds.parse().ok()?).ok()?;
            Some(Self { requests: requests.parse().ok()?, window })
        });
        match limit {
            Some(limit) if !limit.window.is_zero() => Ok(limit),
            _ => bail!("rate limit `{text}`: give COUNT/SECONDS with more than 0 seconds, such as 20/1 or 5/0.25"),
        }
    }
}

/// Refused by the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    limit: RateLimit,
    /// Until the window ends.
    rest: Duration,
}

impl Limited {
    /// `Retry-After`: whole seconds, never too few.
    fn retry_after_seconds(&self) -> u64 {
        (self.rest.as_secs() + u64::from(self.rest.subsec_nanos() > 0)).max(1)
    }

    /// The answer, in OpenAI's words and shape, which other providers have too, or in Anthropic's shape.
    pub(super) fn response(&self, model: &str, shape: Shape) -> Response<Body> {
        let RateLimit { requests, window } = self.limit;
        let message = quote(&format!(
            "Rate limit reached for {model} on requests per {window:?}: Limit {requests}, Used {requests}, Requested 1. \
             Please try again in {}ms.",
            self.rest.as_millis()
        ));
        let body = match shape {
            Shape::OpenAi => {
                format!(
                    r#"{{"error":{{"message":{message},"type":"requests","param":null,"code":"rate_limit_exceeded"}}}}"#
                )
            }
            Shape::Anthropic => {
                format!(r#"{{"type":"error","error":{{"type":"rate_limit_error","message":{message}}}}}"#)
            }
        };
        let mut response = json(StatusCode::TOO_MANY_REQUESTS, body);
        response.headers_mut().insert(RETRY_AFTER, self.retry_after_seconds().into());
        response
    }
}

/// What an instance asks for before it serves.
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) base_path: BasePath,
    keys: Vec<String>,
    limit: Option<RateLimit>,
    /// When the window under way began, and how many requests it has served.
    window: Mutex<Option<(Instant, u32)>>,
}

impl Guard {
    pub(super) fn new(options: &InstanceOptions) -> anyhow::Result<Self> {
        for key in &options.api_keys {
            ensure!(!key.is_empty(), "an API key is empty: give one, or none to let everybody in");
            // Nothing else can stand in a header's value unchanged.
            ensure!(key.chars().all(|c| c.is_ascii_graphic()), "an API key has a character that is not visible ASCII");
        }
        Ok(Self {
            base_path: options.base_path.clone(),
            keys: options.api_keys.clone(),
            limit: options.rate_limit,
            window: Mutex::default(),
        })
    }

    /// Whether a request may pass, as vLLM's middleware decides: by the first `Authorization`, the scheme in whatever case.
    pub(super) fn lets_in(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        if self.keys.is_empty() || method == Method::OPTIONS || !self.base_path.is_guarded(path) {
            return true;
        }
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        given.and_then(|value| value.split_once(' ')).is_some_and(|(scheme, given)| {
            scheme.eq_ignore_ascii_case("bearer") && self.keys.iter().any(|key| key == given)
        })
    }

    /// Counts a request that asks for work.
    pub(super) fn admit(&self) -> Result<(), Limited> {
        let Some(limit) = self.limit else { return Ok(()) };
        let now = Instant::now();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, served) = match *window {
            Some((began, served)) if now.duration_since(began) < limit.window => (began, served),
            _ => (now, 0),
        };
        let is_served = served < limit.requests;
        *window = Some((began, served + u32::from(is_served)));
        if is_served {
            return Ok(());
        }
        Err(Limited { limit, rest: limit.window.saturating_sub(now.duration_since(began)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_paths_are_read() {
        for (text, found) in [
            ("/v1", Some("/v1")),
            ("/api/paas/v4", Some("/api/paas/v4")),
            ("/openai/v1/", Some("/openai/v1")),
            ("/", Some("")),
            ("", None),
            ("v1", None),
            ("https://api.provider.test/v1", None),
            ("/v1?x=1", None),
            ("/v1#x", None),
            ("/v 1", None),
            ("/v%31", None),
            ("/a//b", None),
            ("//", None),
            ("/ü", None),
        ] {
            let read = text.parse::<BasePath>();
            assert_eq!(read.as_ref().ok().map(|path| path.0.as_str()), found, "{text}");
            if let Err(problem) = read {
                assert!(problem.to_string().starts_with(&format!("base path `{text}`: give")), "{problem}");
            }
        }
    }

    #[test]
    fn the_api_is_below_its_base_path_alone() {
        const CHAT: &str = "/v1/chat/completions";
        for (base, path, found, guarded) in [
            ("/v1", CHAT, Some(CHAT), true),
            ("/v1", "/v1", Some("/v1"), true),
            ("/v1", "/v1x", Some("/v1x"), true),
            ("/v1", "/v2/x", Some("/v2/x"), true),
            ("/v1", "/inference/v1/generate", Some("/inference/v1/generate"), true),
            ("/v1", "/metrics", Some("/metrics"), false),
            ("/v1", "/metrics/v1", Some("/metrics/v1"), false),
            ("/v1", "/V1/models", Some("/V1/models"), false),
            ("/api/paas/v4", "/api/paas/v4/chat/completions", Some(CHAT), true),
            ("/api/paas/v4", "/api/paas/v4", None, true),
            ("/api/paas/v4", "/api/paas/v4x/chat/completions", None, true),
            ("/api/paas/v4", CHAT, None, false),
            ("/api/paas/v4", "/chat/completions", None, false),
            ("/api/paas/v4", "/health", Some("/health"), false),
            ("/v1/openai", "/v1/openai/chat/completions", Some(CHAT), true),
            ("/v1/openai", CHAT, None, false),
            ("/", "/chat/completions", Some(CHAT), true),
            ("/", CHAT, Some("/v1/v1/chat/completions"), true),
            ("/", "/health", Some("/health"), false),
            ("/", "*", None, true),
        ] {
            let base: BasePath = base.parse().unwrap();
            assert_eq!(base.in_v1(path).as_deref(), found, "{base}: {path}");
            assert_eq!(base.is_guarded(path), guarded, "{base}: {path}");
        }
    }

    #[test]
    fn rate_limits_are_read() {
        let limit = |requests, ms| Some(RateLimit { requests, window: Duration::from_millis(ms) });
        for (text, found) in [
            ("20/1", limit(20, 1000)),
            ("5/0.25", limit(5, 250)),
            ("0/60", limit(0, 60_000)),
            ("60", None),
            ("60/", None),
            ("/60", None),
            ("-1/60", None),
            ("1.5/60", None),
            ("5/0", None),
            ("5/-1", None),
            ("5/NaN", None),
            ("5/inf", None),
            ("5/1e30", None),
            ("5/1e-30", None),
            ("5/1/1", None),
            ("5/1s", None),
        ] {
            let read = text.parse::<RateLimit>();
            assert_eq!(read.as_ref().ok().copied(), found, "{text}");
            if let Err(problem) = read {
                assert!(
                    problem.to_string().starts_with(&format!("rate limit `{text}`: give COUNT/SECONDS")),
                    "{problem}"
                );
            }
        }
    }

    #[test]
    fn a_client_that_waits_as_long_as_it_is_told_comes_late_enough() {
        let limit = RateLimit { requests: 1, window: Duration::from_secs(60) };
        for (rest_ms, seconds) in
            [(0, 1), (1, 1), (999, 1), (1000, 1), (1001, 2), (20_000, 20), (u64::MAX, u64::MAX / 1000 + 1)]
        {
            assert_eq!(
                Limited { limit, rest: Duration::from_millis(rest_ms) }.retry_after_seconds(),
                seconds,
                "{rest_ms}"
            );
        }
    }
}
