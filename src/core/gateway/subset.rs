//! The only endpoints that may serve a request, where a gateway says so to its endpoint picker (Gateway API Inference Extension, endpoint
//! picker protocol 1.0.0: metadata `envoy.lb.subset_hint`). Who cannot write metadata may write a header, if the policy trusts it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::{Gateway, Host, Map};
use crate::fleet::{InstanceId, PolicyId};
use crate::names;
use crate::router::{Refusal, RefusalReason};

impl Gateway {
    /// The instances that a request is limited to, in their order; `None` where nobody limits it. The header is removed.
    ///
    /// # Errors
    /// 400 where the list cannot be understood.
    pub(super) fn subset(&self, host: &mut impl Host, policy: PolicyId) -> Result<Option<Vec<InstanceId>>, Refusal> {
        let header = host.header(Map::Request, names::SUBSET_HEADER);
        if header.is_some() {
            host.set_header(Map::Request, names::SUBSET_HEADER, None);
        }
        let is_trusted = self.worker.router.config().policy(policy).is_some_and(|policy| policy.trust_request_headers);
        let by_header = header.filter(|_| is_trusted).map(|text| listed(text.as_bytes()));
        let by_metadata = host.list(&["metadata", "filter_metadata", names::SUBSET_METADATA, names::SUBSET_HEADER]);
        let lists = [by_metadata, by_header].into_iter().flatten().map(|list| self.instances_of(&list));
        let mut subset: Option<Vec<InstanceId>> = None;
        for list in lists {
            let mut list = list?;
            // Both count.
            list.retain(|instance| subset.as_ref().is_none_or(|subset| subset.contains(instance)));
            subset = Some(list);
        }
        Ok(subset)
    }

    /// The fleet's instances among endpoints, in their order. Endpoints of nobody here cannot serve.
    fn instances_of(&self, endpoints: &[String]) -> Result<Vec<InstanceId>, Refusal> {
        let mut allowed = BTreeSet::new();
        for endpoint in endpoints {
            let address: SocketAddr = endpoint.parse().map_err(|_| {
                let mut shown: String = endpoint.chars().take(64).collect();
                shown.retain(|c| !c.is_control());
                let message = format!("`{}` must be a list of `ip:port`, and `{shown}` is none.", names::SUBSET_HEADER);
                Refusal::new(400, RefusalReason::Header, message)
            })?;
            allowed.insert(address.to_string());
        }
        let all = self.worker.router.config().fleet.instances_by_id();
        Ok(all.filter(|(_, instance)| allowed.contains(&instance.address)).map(|(id, _)| id).collect())
    }
}

/// The texts of a list as the host gives it: in the form in which proxy-wasm hands lists over (the number of pairs, their lengths, and
/// each key and value with a zero byte; a list has keys alone), or one text with commas.
pub fn listed(bytes: &[u8]) -> Vec<String> {
    pairs(bytes).unwrap_or_else(|| {
        let text = String::from_utf8_lossy(bytes);
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    })
}

fn pairs(bytes: &[u8]) -> Option<Vec<String>> {
    let (count, mut rest) = number(bytes)?;
    let mut keys = Vec::new();
    let mut lengths = Vec::new();
    // Each pair has eight bytes of lengths: a count that does not fit ends here.
    for _ in 0..count {
        let (key, after) = number(rest)?;
        let (value, after) = number(after)?;
        lengths.push((key, value));
        rest = after;
    }
    for (key, value) in lengths {
        keys.push(String::from_utf8(text(&mut rest, key)?.to_vec()).ok()?);
        text(&mut rest, value)?;
    }
    rest.is_empty().then_some(keys)
}

fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*number)).ok()?, rest))
}

/// A text of this length, and its zero byte.
fn text<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (found, after) = rest.split_at_checked(length)?;
    let (zero, after) = after.split_first()?;
    *rest = after;
    (*zero == 0).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn as_host(list: &[&str]) -> Vec<u8> {
        let mut bytes = u32::try_from(list.len()).unwrap().to_le_bytes().to_vec();
        for key in list {
            bytes.extend(u32::try_from(key.len()).unwrap().to_le_bytes());
            bytes.extend(0_u32.to_le_bytes());
        }
        for key in list {
            bytes.extend(key.as_bytes());
            bytes.extend([0, 0]);
        }
        bytes
    }

    #[test]
    fn lists_come_in_the_hosts_form_or_as_one_text() {
        for list in [vec![], vec!["10.0.0.1:80"], vec!["10.0.0.1:80", "[::1]:8000", ""]] {
            assert_eq!(listed(&as_host(&list)), list, "{list:?}");
        }
        assert_eq!(listed(b" 10.0.0.1:80, [::1]:8000 ,,"), ["10.0.0.1:80", "[::1]:8000"]);
        assert_eq!(listed(b""), Vec::<String>::new());
        // Neither: it is shown to whoever has written it.
        let mut cut = as_host(&["10.0.0.1:80"]);
        cut.pop();
        assert_eq!(listed(&cut).len(), 1);
        assert_eq!(listed(&[255; 12]).len(), 1);
    }
}
