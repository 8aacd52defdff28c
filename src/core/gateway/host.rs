//! What shows requests to the gateway and carries out what it says.

use std::time::Duration;

use crate::shared::Board;

/// A set of headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Of the request.
    Request,
    /// Of the response.
    Response,
    /// Of the answer to a call.
    CallResponse,
}

/// A body, as far as it has been buffered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Of the request.
    Request,
    /// Of the response.
    Response,
    /// Of the answer to a call.
    CallResponse,
}

/// The host of one callback: what it shows is of the request whose callback it is, or of the one that was entered.
///
/// Nothing here calls back.
pub trait Host: Board {
    /// The time of this callback, of a clock that nobody sets and that all VMs of the process share.
    fn now(&self) -> Duration;
    /// The time at this moment, to tell how long something has taken. Each reading costs.
    fn clock(&self) -> Duration {
        self.now()
    }
    /// Time since the epoch.
    fn wall_clock(&self) -> Duration;
    /// A header's value; bytes that are not UTF-8 are replaced.
    fn header(&self, map: Map, name: &str) -> Option<String>;
    /// All headers; bytes that are not UTF-8 are replaced.
    fn headers(&self, map: Map) -> Vec<(String, String)>;
    /// The headers whose names are wanted and whose values are text.
    fn text_headers(&self, map: Map, is_wanted: impl Fn(&str) -> bool) -> Vec<(String, String)>;
    /// Sets or removes a header.
    fn set_header(&mut self, map: Map, name: &str, value: Option<&str>);
    /// Part of a body; empty if there is none.
    fn body(&self, body: Body, start: usize, size: usize) -> Vec<u8>;
    /// Replaces so many bytes at the beginning of the request's body; whether it could.
    fn replace_body(&mut self, size: usize, with: &[u8]) -> bool;
    /// A property of the request as text.
    fn property(&self, path: &[&str]) -> Option<String>;
    /// A property of the request as a whole number.
    fn number(&self, path: &[&str]) -> Option<u64>;
    /// A property of the request as a list of texts; one text counts as a list with commas.
    fn list(&self, path: &[&str]) -> Option<Vec<String>>;
    /// A property of the request that is a struct: its fields, a number as its eight bytes, a struct as [`super::pairs`] reads it.
    fn fields(&self, path: &[&str]) -> Option<Vec<(String, Vec<u8>)>>;
    /// Sets filter state of the request.
    fn set_state(&mut self, key: &str, value: &str);
    /// Matches the routes again with the headers and the state as they are now.
    fn clear_route_cache(&mut self);
    /// Answers the request.
    fn respond(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]);
    /// Makes a call; its number, if it could.
    fn call(&mut self, cluster: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Option<u32>;
    /// From now on everything is about this context; false if it is no more.
    fn enter(&mut self, context: u32) -> bool;
    /// The request goes on.
    fn resume(&mut self);
}
