//! What an interrupted run has left: finished cells, found again by everything that determines them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cell::Cell;

/// A finished cell in the file, one a line.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    cell: Option<Cell>,
}

/// Finished cells of a result that is not whole yet, beside it as `FILE.partial`.
///
/// A cell's key is a hash of its plan and of everything that it is made of: the configuration, the inputs and the program itself. So a
/// cell of another build, or of a file that has changed since, is never found.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    file: File,
    known: BTreeMap<String, Option<Cell>>,
    of_all: Vec<u8>,
}

/// Hash of bytes.
fn hash(bytes: &[u8]) -> Vec<u8> {
    Sha256::digest(bytes).to_vec()
}

impl Partial {
    /// Opens what is there for a result, or begins it. `inputs` are the files that cells are made of.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(result: &Path, inputs: &[&Path]) -> Result<Partial> {
        let program = std::env::current_exe().context("the program does not know its own file")?;
        let mut of_all = Sha256::new();
        for file in std::iter::once(program.as_path()).chain(inputs.iter().copied()) {
            let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            of_all.update(hash(&bytes));
        }
        Partial::open_hashed(result, of_all.finalize().to_vec())
    }

    /// [`Partial::open`] where the hash of all inputs is known.
    fn open_hashed(result: &Path, of_all: Vec<u8>) -> Result<Partial> {
        let mut path = result.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let text = match std::fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(_) => String::new(),
        };
        // The last line may be torn.
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let known = lines.map(|line| (line.key, line.cell)).collect();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        let mut partial = Partial { path, file, known, of_all };
        if !text.is_empty() && !text.ends_with('\n') {
            partial.file.write_all(b"\n")?;
        }
        Ok(partial)
    }

    /// The key of a plan.
    pub fn key(&self, plan: &str) -> String {
        let mut all = self.of_all.clone();
        all.extend(plan.as_bytes());
        hash(&all).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A finished cell, if it is there; a plan may have come to none.
    pub fn found(&self, key: &str) -> Option<&Option<Cell>> {
        self.known.get(key)
    }

    /// Keeps a cell.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&mut self, key: String, cell: Option<Cell>) -> Result<()> {
        let line = serde_json::to_string(&Line { key: key.clone(), cell: cell.clone() })? + "\n";
        let written = self.file.write_all(line.as_bytes());
        written.with_context(|| format!("{} cannot be written", self.path.display()))?;
        self.known.insert(key, cell);
        Ok(())
    }

    /// The result is whole.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("{} cannot be removed", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_cells_are_found_again_and_stale_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let result = dir.path().join("r.json");
        let mut first = Partial::open_hashed(&result, vec![1]).unwrap();
        let key = first.key("a");
        first.keep(key.clone(), None).unwrap();
        drop(first);
        let again = Partial::open_hashed(&result, vec![1]).unwrap();
        assert!(again.found(&again.key("a")).is_some() && again.found(&again.key("b")).is_none());
        let of_other_inputs = Partial::open_hashed(&result, vec![2]).unwrap();
        assert!(of_other_inputs.found(&of_other_inputs.key("a")).is_none());
        again.remove().unwrap();
        assert!(Partial::open_hashed(&result, vec![1]).unwrap().found(&key).is_none());
    }

    #[test]
    fn a_torn_line_is_no_cell_and_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let result = dir.path().join("r.json");
        std::fs::write(dir.path().join("r.json.partial"), "{\"key\":\"00\",\"cell\":null}\n{\"key\":\"01\",\"ce")
            .unwrap();
        let mut partial = Partial::open_hashed(&result, vec![1]).unwrap();
        assert!(partial.found("00").is_some() && partial.found("01").is_none());
        partial.keep("02".to_owned(), None).unwrap();
        let again = Partial::open_hashed(&result, vec![1]).unwrap();
        assert!(["00", "02"].iter().all(|key| again.found(key).is_some()));
    }
}
