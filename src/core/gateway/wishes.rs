//! What a request's route wants of the decision, and what the request itself may: the policy, and weights in the place of the policy's.
//!
//! A route says it in its metadata, `routebalance: {policy: NAME, weights: {quality: .., latency: .., cost: ..}}`; its virtual host may say
//! what the route leaves out, and the configuration knows rendered routes by their names. A request says it in headers, where its route's
//! policy trusts them, and the limits of that policy stay whatever other policy the request names.

use super::deciding::RequestHeaders;
use super::values::pairs;
use super::{Gateway, Host};
use crate::fleet::{Constraints, PolicyId, Weights};
use crate::names;
use crate::router::{Refusal, RefusalReason};
use crate::worker::Counter;

/// Where a route's metadata is.
const ROUTE_METADATA: [&str; 4] = ["xds", "route_metadata", "filter_metadata", names::METADATA_NAMESPACE];
/// Where a virtual host's metadata is.
const HOST_METADATA: [&str; 4] = ["xds", "virtual_host_metadata", "filter_metadata", names::METADATA_NAMESPACE];
/// Most sentences about routes that the log gets from one VM.
const SENTENCES_MAX: usize = 64;

/// What a route wants.
#[derive(Debug, Default)]
pub(super) struct RouteWishes {
    pub(super) policy: PolicyId,
    /// Weights in the place of the policy's.
    pub(super) weights: Option<Weights>,
    /// What of the metadata cannot be understood.
    unread: Option<String>,
}

/// What a request wants in the end.
pub(super) struct Wishes {
    pub(super) policy: PolicyId,
    pub(super) weights: Option<Weights>,
    /// What it insists on; `None` for what the policy says.
    pub(super) constraints: Option<Constraints>,
}

/// What metadata says, as far as it can be understood.
#[derive(Default)]
struct Metadata {
    policy: Option<PolicyId>,
    weights: Option<Weights>,
    unread: Option<String>,
}

impl Gateway {
    /// Whether the request's route, or its virtual host, is marked as ours.
    pub(super) fn is_marked(&self, host: &impl Host) -> bool {
        [ROUTE_METADATA, HOST_METADATA].iter().any(|place| {
            host.fields(place).is_some_and(|fields| fields.iter().any(|(name, _)| name == names::METADATA_POLICY))
        })
    }

    /// The policy of the request's route: its metadata, its virtual host's, its name, or the default.
    pub(super) fn policy(&self, host: &impl Host) -> PolicyId {
        self.route_wishes(host).policy
    }

    /// What the request's route wants.
    pub(super) fn route_wishes(&self, host: &impl Host) -> RouteWishes {
        let config = self.worker.router.config();
        let route = self.metadata(host, &ROUTE_METADATA);
        // A route that names its policy has said all.
        let of_host = if route.policy.is_none() { self.metadata(host, &HOST_METADATA) } else { Metadata::default() };
        let by_name = || host.property(&["xds", "route_name"]).and_then(|name| config.policy_of_route(&name));
        let policy = route.policy.or(of_host.policy).or_else(by_name).unwrap_or(config.default_policy);
        let weights = route.weights.or(of_host.weights);
        RouteWishes { policy, weights, unread: route.unread.or(of_host.unread) }
    }

    fn metadata(&self, host: &impl Host, place: &[&str]) -> Metadata {
        let mut metadata = Metadata::default();
        for (name, value) in host.fields(place).unwrap_or_default() {
            let shown =
                || String::from_utf8_lossy(&value).chars().filter(|c| !c.is_control()).take(64).collect::<String>();
            if name == names::METADATA_POLICY {
                let text = std::str::from_utf8(&value).ok();
                metadata.policy = text.and_then(|name| self.worker.router.config().policy_named(name));
                if metadata.policy.is_none() {
                    metadata.unread = Some(format!("no policy is named {:?}", shown()));
                }
            } else if name == names::METADATA_WEIGHTS {
                metadata.weights = weights(&value);
                if metadata.weights.is_none() {
                    let form = "three numbers of at least 0, `quality`, `latency` and `cost`, of which one is above 0";
                    metadata.unread = Some(format!("`weights` must be {form}"));
                }
            }
        }
        metadata
    }

    /// Counts metadata that cannot be understood, and says so once for each route.
    pub(super) fn note_unread(&mut self, host: &impl Host, wishes: &mut RouteWishes) {
        let Some(problem) = wishes.unread.take() else { return };
        self.worker.statistics.count(Counter::RouteMetadataUnread);
        let route: String = host.property(&["xds", "route_name"]).unwrap_or_default().chars().take(128).collect();
        let sentence =
            format!("metadata `routebalance` of route {route:?}: {problem}; the route has its policy without it");
        if self.unread_routes.len() < SENTENCES_MAX && self.unread_routes.insert(sentence.clone()) {
            self.worker.statistics.warn(&sentence);
        }
    }

    /// What the request wants, whose route wants this.
    ///
    /// # Errors
    /// 400 where a trusted header cannot be understood, or comes twice.
    pub(super) fn wishes(
        &self,
        host: &mut impl Host,
        headers: &mut RequestHeaders,
        route: &RouteWishes,
    ) -> Result<Wishes, Refusal> {
        let router = &self.worker.router;
        let RouteWishes { policy, weights, .. } = *route;
        let Some(own) = router.config().policy(policy).filter(|policy| policy.trust_request_headers) else {
            return Ok(Wishes { policy, weights, constraints: None });
        };
        let mut once = |name: &'static str| match <[String; 1]>::try_from(headers.take(host, name)) {
            Ok([value]) => Ok(Some(value)),
            Err(none) if none.is_empty() => Ok(None),
            Err(_) => Err(refusal(format!("The header `{name}` must be sent once."))),
        };
        let wanted = once(names::POLICY_REQUEST_HEADER)?;
        let named = |name: String| {
            let shown: String = name.chars().take(64).collect();
            let header = names::POLICY_REQUEST_HEADER;
            let problem = || refusal(format!("The header `{header}` must name a policy, and `{shown}` is none."));
            router.config().policy_named(name.trim()).ok_or_else(problem)
        };
        let other = wanted.map(named).transpose()?.filter(|other| *other != policy);
        let header = names::WEIGHTS_REQUEST_HEADER;
        let form = || {
            refusal(format!("The header `{header}` must be weights of quality, latency and cost, as `0.8/0.1/0.1`."))
        };
        let own_weights = once(header)?.map(|text| Weights::from_text(&text).ok_or_else(form)).transpose()?;
        let limits = match other.and_then(|other| router.config().policy(other)) {
            Some(other) => other.constraints.within(&own.constraints),
            None => own.constraints,
        };
        let constraints = router.constraints_of(&limits, |name| headers.take(host, name))?;
        // Weights of the route belong to the route's policy.
        let weights = own_weights.or(weights.filter(|_| other.is_none()));
        Ok(Wishes { policy: other.unwrap_or(policy), weights, constraints })
    }
}

fn refusal(message: String) -> Refusal {
    Refusal::new(400, RefusalReason::Header, message)
}

/// Weights as metadata has them: a struct of numbers, or of texts with numbers, or the text of the header.
fn weights(value: &[u8]) -> Option<Weights> {
    let Some(fields) = pairs(value) else { return Weights::from_text(std::str::from_utf8(value).ok()?) };
    let number = |name: &str| {
        let (_, value) = fields.iter().find(|(field, _)| field == name)?;
        let text = || std::str::from_utf8(value).ok()?.trim().parse().ok();
        let number: Option<f64> = <[u8; 8]>::try_from(value.as_slice()).ok().map(f64::from_le_bytes);
        // Eight bytes may be a text, and texts are no sensible numbers otherwise.
        text().or(number)
    };
    let weights = Weights::normalised([number("quality")?, number("latency")?, number("cost")?])?;
    (fields.len() == 3).then_some(weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// A struct as the host gives it.
    fn as_host(fields: &[(&str, &[u8])]) -> Vec<u8> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let mut bytes = u32::try_from(fields.len()).unwrap().to_le_bytes().to_vec();
        fields.iter().for_each(|(name, value)| bytes.extend([length(name.as_bytes()), length(value)].concat()));
        fields.iter().for_each(|(name, value)| bytes.extend([name.as_bytes(), &[0], value, &[0]].concat()));
        bytes
    }

    #[test]
    fn weights_come_as_numbers_or_as_texts() {
        let number = f64::to_le_bytes;
        let some = |quality, latency, cost| Some(Weights { quality, latency, cost });
        type Field<'a> = (&'a str, &'a [u8]);
        let (half, one, two) = (number(0.5), number(1.0), number(2.0));
        let rows: [(&str, [Field<'_>; 3], Option<Weights>); 7] = [
            ("numbers", [("quality", &two), ("latency", &one), ("cost", &one)], some(0.5, 0.25, 0.25)),
            ("in any order", [("cost", &half), ("quality", &half), ("latency", &one)], some(0.25, 0.5, 0.25)),
            ("texts", [("quality", b"1"), ("latency", b" 0 "), ("cost", b"1e0")], some(0.5, 0.0, 0.5)),
            (
                "a text of eight bytes",
                [("quality", b"0.250000"), ("latency", b"0.250000"), ("cost", b"0.500000")],
                some(0.25, 0.25, 0.5),
            ),
            ("a word", [("quality", b"high"), ("latency", &one), ("cost", &one)], None),
            ("another name", [("quality", &one), ("latency", &one), ("price", &one)], None),
            ("nothing but zeros", [("quality", b"0"), ("latency", b"0"), ("cost", b"0")], None),
        ];
        for (name, fields, expected) in rows {
            assert_eq!(weights(&as_host(&fields)), expected, "{name}");
        }
        for (text, expected) in [
            ("1/0/1", some(0.5, 0.0, 0.5)),
            ("1/0", None),
            ("1/0/1/0", None),
            ("-1/1/1", None),
            ("inf/1/1", None),
            ("", None),
        ] {
            assert_eq!(weights(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(weights(&as_host(&[("quality", &one), ("latency", &one)])), None, "two of three");
    }
}
