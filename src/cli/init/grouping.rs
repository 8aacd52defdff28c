//! Servers to pools: those that serve one model under one name are one.

use std::net::SocketAddr;

use super::listing::ServedModel;
use super::naming::{is_legal, last_part};

/// A server that has answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Server {
    /// Where it is.
    pub(super) address: SocketAddr,
    /// What it serves, never nothing.
    pub(super) models: Vec<ServedModel>,
    /// KV tokens, where its metrics page says so.
    pub(super) kv_tokens: Option<u64>,
    /// Requests that it has now, where its metrics page says so.
    pub(super) requests: Option<f64>,
}

/// The servers of one model under one name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    /// The model, as all of these servers have it: the names that every one of them has, the shortest context of all.
    pub(super) model: ServedModel,
    /// KV tokens of the smallest cache.
    pub(super) kv_tokens: Option<u64>,
    /// The servers; requests that each has now.
    pub(super) servers: Vec<(SocketAddr, Option<f64>)>,
}

/// Pools of the servers' first models, in the order of the servers; what is left out becomes a sentence.
pub(super) fn groups(servers: &[Server], remarks: &mut Vec<String>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut seen = Vec::new();
    for server in servers {
        let address = server.address;
        if seen.contains(&address) {
            remarks.push(format!("{address} is given twice: it counts once"));
            continue;
        }
        seen.push(address);
        let Some(model) = first_model(server, remarks) else { continue };
        match groups.iter_mut().find(|group| model.ids.iter().any(|id| group.model.ids.contains(id))) {
            Some(group) => join(group, server, &model, remarks),
            None => {
                groups.push(Group { model, kv_tokens: server.kv_tokens, servers: vec![(address, server.requests)] })
            }
        }
    }
    groups
}

/// The first model of a server with those of its names that a configuration may hold.
fn first_model(server: &Server, remarks: &mut Vec<String>) -> Option<ServedModel> {
    let address = server.address;
    let legal = |model: &ServedModel| {
        let kept = |names: &[String]| names.iter().filter(|name| is_legal(name)).cloned().collect::<Vec<_>>();
        ServedModel { ids: kept(&model.ids), adapters: kept(&model.adapters), ..model.clone() }
    };
    let mut chosen: Option<ServedModel> = None;
    let mut others = Vec::new();
    for model in &server.models {
        let kept = legal(model);
        for name in model.ids.iter().chain(&model.adapters).filter(|name| !is_legal(name)) {
            remarks.push(format!(
                "{address} serves {name:?}, which is left out: a name has 1 to 128 visible ASCII characters without quotes"
            ));
        }
        match kept.ids.first() {
            Some(first) if chosen.is_some() => others.push(first.clone()),
            Some(_) => chosen = Some(kept),
            None => {}
        }
    }
    if let (Some(model), false) = (&chosen, others.is_empty()) {
        remarks.push(format!(
            "{address} serves several models: the pool is of {}, and {} is left out, since an instance belongs to one pool",
            model.ids.first().map_or("", String::as_str),
            others.join(", ")
        ));
    }
    chosen
}

fn join(group: &mut Group, server: &Server, model: &ServedModel, remarks: &mut Vec<String>) {
    let address = server.address;
    let ours = &mut group.model;
    ours.ids.retain(|id| model.ids.contains(id));
    let id = ours.ids.first().cloned().unwrap_or_default();
    if let (Some(one), Some(other)) = (&ours.root, &model.root)
        && last_part(one) != last_part(other)
    {
        remarks.push(format!(
            "{address} serves {other} as {id}, the others of its pool {one}: they count as one model, so give each a name of its own \
             if they are not"
        ));
    }
    let lost =
        |here: &[String], there: &[String]| here.iter().filter(|a| !there.contains(a)).cloned().collect::<Vec<_>>();
    let missing = [lost(&ours.adapters, &model.adapters), lost(&model.adapters, &ours.adapters)].concat();
    if !missing.is_empty() {
        remarks.push(format!(
            "adapter {} of {id} is left out: not every server of the pool has it ({address} differs from the first)",
            missing.join(", ")
        ));
    }
    ours.adapters.retain(|adapter| model.adapters.contains(adapter));
    for (field, one, other) in [
        ("max_model_len", ours.max_model_len.map(u64::from), model.max_model_len.map(u64::from)),
        ("kv_tokens", group.kv_tokens, server.kv_tokens),
    ] {
        if let (Some(one), Some(other)) = (one, other)
            && one != other
        {
            remarks
                .push(format!("{field} of {id} is {one} elsewhere and {other} at {address}: the smaller one is taken"));
        }
    }
    ours.max_model_len = smaller(ours.max_model_len, model.max_model_len);
    group.kv_tokens = smaller(group.kv_tokens, server.kv_tokens);
    group.servers.push((address, server.requests));
}

fn smaller<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(ids: &[&str], root: &str, len: u32, adapters: &[&str]) -> ServedModel {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        ServedModel {
            ids: owned(ids),
            root: Some(root.to_owned()),
            max_model_len: Some(len),
            adapters: owned(adapters),
        }
    }

    fn server(last: u8, models: Vec<ServedModel>, kv_tokens: Option<u64>) -> Server {
        Server { address: SocketAddr::from(([10, 0, 0, last], 8000)), models, kv_tokens, requests: None }
    }

    /// What each group has: names, adapters, the last numbers of its addresses, context, KV.
    type Shown = (String, String, Vec<u8>, Option<u32>, Option<u64>);

    fn shown(group: &Group) -> Shown {
        let last = |address: &SocketAddr| match address.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        let ServedModel { ids, adapters, max_model_len, .. } = &group.model;
        let servers = group.servers.iter().map(|(address, _)| last(address)).collect();
        (ids.join(" "), adapters.join(" "), servers, *max_model_len, group.kv_tokens)
    }

    #[test]
    fn servers_of_one_model_are_one_pool() {
        let row = |ids: &str, adapters: &str, servers: &[u8], len, kv| {
            (ids.to_owned(), adapters.to_owned(), servers.to_vec(), Some(len), kv)
        };
        let small = |adapters: &[&str]| model(&["org/small"], "org/small", 8, adapters);
        for (servers, expected, sentences) in [
            (
                vec![
                    server(1, vec![small(&[])], Some(5)),
                    server(2, vec![model(&["big"], "big", 9, &[])], None),
                    server(3, vec![small(&[])], None),
                ],
                vec![row("org/small", "", &[1, 3], 8, Some(5)), row("big", "", &[2], 9, None)],
                vec![],
            ),
            // Only the names that every server has; smaller limits; adapters that all have.
            (
                vec![
                    server(1, vec![model(&["a", "b"], "r", 8, &["sql", "x"])], Some(7)),
                    server(2, vec![model(&["b", "c"], "r", 6, &["sql"])], Some(5)),
                ],
                vec![row("b", "sql", &[1, 2], 6, Some(5))],
                vec![
                    "adapter x of b",
                    "max_model_len of b is 8 elsewhere and 6 at",
                    "kv_tokens of b is 7 elsewhere and 5",
                ],
            ),
            // The same weights under names that differ are pools of their own; the same name for two models is said.
            (
                vec![
                    server(1, vec![model(&["a"], "r", 8, &[])], None),
                    server(2, vec![model(&["b"], "r", 8, &[])], None),
                ],
                vec![row("a", "", &[1], 8, None), row("b", "", &[2], 8, None)],
                vec![],
            ),
            (
                vec![
                    server(1, vec![model(&["llm"], "hub/one", 8, &[])], None),
                    server(2, vec![model(&["llm"], "/mnt/two", 8, &[])], None),
                    server(3, vec![model(&["llm"], "/mnt/one", 8, &[])], None),
                ],
                vec![row("llm", "", &[1, 2, 3], 8, None)],
                vec!["10.0.0.2:8000 serves /mnt/two as llm, the others of its pool hub/one"],
            ),
            (
                vec![server(1, vec![small(&[])], None), server(1, vec![small(&[])], None)],
                vec![row("org/small", "", &[1], 8, None)],
                vec!["10.0.0.1:8000 is given twice"],
            ),
            (
                vec![server(1, vec![small(&[]), model(&["m2"], "m2", 8, &[]), model(&["m3"], "m3", 8, &[])], None)],
                vec![row("org/small", "", &[1], 8, None)],
                vec!["the pool is of org/small, and m2, m3 is left out"],
            ),
            (
                vec![server(1, vec![model(&["my model"], "r", 8, &[]), model(&["b"], "s", 8, &["a b", "sql"])], None)],
                vec![row("b", "sql", &[1], 8, None)],
                vec!["\"my model\", which is left out", "\"a b\", which is left out"],
            ),
            (vec![server(1, vec![model(&["ü"], "r", 8, &[])], None)], vec![], vec!["\"ü\", which is left out"]),
        ] {
            let mut remarks = Vec::new();
            let groups: Vec<Shown> = groups(&servers, &mut remarks).iter().map(shown).collect();
            assert_eq!(groups, expected, "{servers:?}");
            assert_eq!(remarks.len(), sentences.len(), "{remarks:?}");
            for (remark, part) in remarks.iter().zip(sentences) {
                assert!(remark.contains(part), "{remark}: {part}");
            }
        }
    }
}
