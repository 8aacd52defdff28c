//! Why a body is refused.

use std::fmt;

/// Why a body cannot be routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// No body, or white space only.
    Empty,
    /// Not JSON.
    InvalidJson {
        /// The first byte that cannot be part of any JSON, or the body's length if it ends too early.
        offset: u64,
    },
    /// JSON, but no object.
    NotAnObject,
    /// Objects and arrays nested deeper than 512.
    TooDeep,
    /// This field has a type that the API does not know.
    WrongType(&'static str),
    /// This field holds the prompt, and is missing or empty.
    MissingInput(&'static str),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyError::Empty => write!(f, "The request has no body."),
            BodyError::InvalidJson { offset } => {
                write!(f, "The body is not valid JSON: unexpected byte or end at {offset}.")
            }
            BodyError::NotAnObject => write!(f, "The body must be a JSON object."),
            BodyError::TooDeep => write!(f, "The body is nested too deeply."),
            BodyError::WrongType(field) => write!(f, "The field '{field}' has the wrong type."),
            BodyError::MissingInput(field) => write!(f, "The field '{field}' is missing or empty."),
        }
    }
}

impl std::error::Error for BodyError {}
