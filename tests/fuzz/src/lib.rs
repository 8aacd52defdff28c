//! Fuzzing: targets that take any bytes, and panic where something does not hold that must.

pub mod callbacks;
pub mod choices;
pub mod corpus;
pub mod material;
pub mod mutate;
pub mod novelty;
pub mod parsers;
pub mod session;

/// Something that takes any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Takes an input, and panics if something does not hold.
    pub run: fn(&[u8]),
    /// Bytes of an input, at most.
    pub longest: usize,
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    Target { name: "callbacks", run: callbacks::callbacks, longest: 512 },
    Target { name: "request", run: parsers::request::request, longest: 4_096 },
    Target { name: "response", run: parsers::response::response, longest: 4_096 },
    Target { name: "stream", run: parsers::response::stream, longest: 4_096 },
    Target { name: "metrics", run: parsers::telemetry::metrics, longest: 2_048 },
    Target { name: "clusters", run: parsers::telemetry::clusters, longest: 2_048 },
    Target { name: "orca", run: parsers::telemetry::orca, longest: 512 },
    Target { name: "records", run: parsers::records::records, longest: 2_048 },
    Target { name: "configuration", run: parsers::configuration::configuration, longest: 512 },
    Target { name: "paths", run: parsers::paths::paths, longest: 512 },
];
