//! What becomes of requests that are not read, or not whole: no limit is lost on them.

use super::{Refusal, RefusalReason, Router};
use crate::fleet::{Constraints, PolicyId};

/// How a body comes to the filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    /// As it was sent, to be read.
    Never,
    /// Envoy has unpacked it.
    Unpacked,
    /// As it was sent, in an encoding that is not read here.
    Unreadable,
    /// Envoy has unpacked a part of several encodings, and nobody can read it any more.
    Broken,
}

/// How a body comes whose encoding was `said` by the client (empty where that is not known) and is `left` now.
pub fn packed(said: &str, left: &str) -> Packed {
    let is_plain = |encoding: &str| {
        encoding.split(',').map(str::trim).all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"))
    };
    let codings = said.split(',').filter(|coding| !is_plain(coding)).count();
    match (is_plain(said), is_plain(left)) {
        // Envoy takes them off in the wrong order.
        (false, true) if codings > 1 => Packed::Broken,
        (true, true) => Packed::Never,
        (false, true) => Packed::Unpacked,
        (false, false) if said != left => Packed::Broken,
        (_, false) => Packed::Unreadable,
    }
}

impl Router {
    /// Whether a request that is not read is refused, because limits would be lost: those of its policy, or of its own headers.
    pub fn refuses_unread(&self, policy: PolicyId, constraints: Option<&Constraints>) -> bool {
        let policy = self.config.policy(policy);
        policy.is_some_and(|policy| policy.refuses_unread(constraints.unwrap_or(&policy.constraints)))
    }

    /// The same for a request whose headers have these `values`. Those that cannot be understood may have meant a limit.
    pub fn loses_limits(&self, policy: PolicyId, values: impl FnMut(&str) -> Vec<String>) -> bool {
        match self.header_constraints(policy, values) {
            Ok(constraints) => self.refuses_unread(policy, constraints.as_ref()),
            Err(_) => true,
        }
    }

    /// The answer to a body that is too large to be read whole, if its beginning does not do; by the route's policy and the one that the request
    /// names.
    pub fn too_large(
        &self,
        (route_policy, policy): (PolicyId, PolicyId),
        constraints: Option<&Constraints>,
        names_model: bool,
        packed: Packed,
    ) -> Option<Refusal> {
        let limit = self.config.max_buffered_bytes;
        let message = if packed == Packed::Unpacked {
            // Envoy ends a body that unpacks to too much where it likes to.
            format!("The request body unpacks to more than {limit} bytes.")
        } else if self.refuses_unread(route_policy, constraints) || self.refuses_unread(policy, constraints) {
            format!("The request body is larger than {limit} bytes, and the policy of its route has limits.")
        } else if names_model {
            return None;
        } else {
            format!("The request body is larger than {limit} bytes, and `model` is not near its start.")
        };
        Some(Refusal::new(413, RefusalReason::TooLarge, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn encodings() {
        for (said, left, expected) in [
            ("", "", Packed::Never),
            ("", "Identity", Packed::Never),
            ("identity, IDENTITY", "identity, IDENTITY", Packed::Never),
            ("gzip", "", Packed::Unpacked),
            ("GZIP, identity", "identity", Packed::Unpacked),
            ("x", "x", Packed::Unreadable),
            // An Envoy that does not say what the client has said.
            ("", "gzip", Packed::Unreadable),
            ("gzip, br", "", Packed::Broken),
            ("gzip, br", "br", Packed::Broken),
            ("gzip, gzip", "gzip", Packed::Broken),
        ] {
            assert_eq!(packed(said, left), expected, "{said} {left}");
        }
    }
}
