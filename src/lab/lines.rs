//! Files of lines as the lab reads them: packed or plain, with errors that name the line and the field.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use serde::de::DeserializeOwned;

/// Every file of gzip begins so.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The text of a file, unpacked if it is gzip, whatever its name.
///
/// # Errors
/// It cannot be read, or is no UTF-8.
pub fn text_of(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    unpacked(&bytes).with_context(|| format!("{} cannot be read", file.display()))
}

/// The text of these bytes, unpacked if they are gzip.
///
/// # Errors
/// They cannot be unpacked, or are no UTF-8.
pub fn unpacked(bytes: &[u8]) -> Result<String> {
    if !bytes.starts_with(&GZIP_MAGIC) {
        return Ok(std::str::from_utf8(bytes)?.to_owned());
    }
    let mut text = String::new();
    MultiGzDecoder::new(bytes).read_to_string(&mut text)?;
    Ok(text)
}

/// Lines that are not blank, with where they stand: `FILE:NUMBER`.
pub fn placed<'a>(name: &str, text: &'a str) -> impl Iterator<Item = (String, &'a str)> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(move |(i, line)| (format!("{name}:{}", i + 1), line))
}

/// A line of JSON.
///
/// # Errors
/// The field that is wrong, and what is wrong with it.
pub fn parsed<T: DeserializeOwned>(line: &str) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_str(line);
    serde_path_to_error::deserialize(&mut reader).map_err(|problem| {
        let field = problem.path().to_string();
        // The line number of the file is said elsewhere; that of the line is always 1.
        let text = problem.inner().to_string().replace(" at line 1 column ", " at column ");
        let has_field = field != "." && problem.inner().is_data();
        if has_field { anyhow::anyhow!("{field}: {text}") } else { anyhow::anyhow!("{text}") }
    })
}
