//! Inputs that are kept: one archive per target, and folders for libFuzzer.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use routebalance_core::hash::fnv1a;

/// The archive of a target.
pub fn archive(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{target}.tar.gz"))
}

/// The inputs of a target's archive; none where there is no archive.
pub fn committed(target: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let path = archive(target);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let file = fs::File::open(&path).with_context(|| path.display().to_string())?;
    let mut archive = tar::Archive::new(GzDecoder::new(file));
    let mut inputs = Vec::new();
    for entry in archive.entries()? {
        let mut input = Vec::new();
        entry?.read_to_end(&mut input)?;
        inputs.push(input);
    }
    Ok(inputs)
}

/// Writes a target's archive: the same inputs give the same bytes.
pub fn commit(target: &str, inputs: &[Vec<u8>]) -> anyhow::Result<()> {
    let mut sorted: Vec<&Vec<u8>> = inputs.iter().collect();
    sorted.sort();
    sorted.dedup();
    let path = archive(target);
    let file = fs::File::create(&path).with_context(|| path.display().to_string())?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::best()));
    for (at, input) in sorted.into_iter().enumerate() {
        let mut header = tar::Header::new_ustar();
        header.set_size(input.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, format!("{at:04}"), input.as_slice())?;
    }
    archive.into_inner()?.finish()?;
    Ok(())
}

/// The inputs of a folder, in the order of their names; none where there is no folder.
pub fn of_folder(folder: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    paths.iter().map(|path| fs::read(path).with_context(|| path.display().to_string())).collect()
}

/// The name of an input's file.
pub fn name_of(input: &[u8]) -> String {
    format!("{:016x}", fnv1a(input))
}

/// Adds an input to a folder.
pub fn keep(folder: &Path, input: &[u8]) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(name_of(input));
    fs::write(&path, input).with_context(|| path.display().to_string())?;
    Ok(path)
}
