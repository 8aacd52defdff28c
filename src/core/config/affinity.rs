//! Affinity: what instances have kept of earlier requests.

use std::time::Duration;

use serde::Deserialize;

use super::numbers::Number;
use super::{ConfigError, check_number, error};
use crate::affinity::Affinity;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAffinity {
    pub(super) prefix: bool,
    pub(super) session_header: Option<String>,
    pub(super) adapter_load_ms: Number,
}

impl Default for RawAffinity {
    fn default() -> Self {
        // The adapter of a 7B model has some 100 MB, which come from a disk at about 1 GB per second.
        RawAffinity { prefix: true, session_header: Some("x-session-id".to_owned()), adapter_load_ms: Number(100.0) }
    }
}

pub(super) fn check(raw: RawAffinity) -> Result<Affinity, ConfigError> {
    if let Some(name) = &raw.session_header {
        // The characters of a header's name (RFC 9110, section 5.6.2) that Envoy writes in lower case.
        let is_name =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || name.len() > 128 || !name.bytes().all(is_name) {
            return Err(error("affinity.session_header", "must be a header's name in lower case, or null"));
        }
    }
    let adapter_load_ms = check_number("affinity.adapter_load_ms".to_owned(), raw.adapter_load_ms, 0.0, 600_000.0)?;
    Ok(Affinity {
        prefix: raw.prefix,
        session_header: raw.session_header,
        adapter_load: Duration::from_secs_f64(adapter_load_ms / 1e3),
    })
}
