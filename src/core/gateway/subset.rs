//! The only endpoints that may serve a request, where a gateway says so to its endpoint picker (Gateway API Inference Extension, endpoint
//! picker protocol 1.0.0: metadata `envoy.lb.subset_hint`). Who cannot write metadata may write a header, if the policy trusts it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::values::listed;
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
