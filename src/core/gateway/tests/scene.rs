//! Requests and answers of the unit tests, on the host in memory.

use crate::gateway::memory::{Exchange, MemoryHost, header_of, owned};

/// The host of one gateway.
pub(super) type Scene = MemoryHost;

impl Scene {
    /// A request has come.
    pub(super) fn request(&mut self, id: u32, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let length = body.len().to_string();
        let all = [(":method", "POST"), (":path", path), ("content-length", &length), ("x-request-id", "r-1")];
        let request = owned(&[&all[..], headers].concat());
        self.exchanges.insert(id, Exchange { request, body: body.to_vec(), attempts: 1, ..Exchange::default() });
        self.current = id;
    }

    /// Its instance answers.
    pub(super) fn respond_from(&mut self, id: u32, address: &str, status: &str, content_type: &str, body: &[u8]) {
        let exchange = self.exchanges.get_mut(&id).unwrap();
        exchange.response = owned(&[(":status", status), ("content-type", content_type)]);
        exchange.response_body = body.to_vec();
        exchange.properties.insert("upstream.address".to_owned(), address.to_owned());
        exchange.properties.insert("response.code_details".to_owned(), "via_upstream".to_owned());
        self.current = id;
    }

    pub(super) fn exchange(&self, id: u32) -> &Exchange {
        &self.exchanges[&id]
    }

    pub(super) fn request_header(&self, id: u32, name: &str) -> Option<&str> {
        header_of(&self.exchange(id).request, name)
    }
}
