//! Reads an image back and believes nothing: every digest, size, media type and path is checked.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use serde::de::DeserializeOwned;

use super::{
    Blob, CONFIG_TYPE, Descriptor, INDEX_FILE, INDEX_TYPE, Image, ImageConfig, Index, LAYER_TYPE, LAYOUT_FILE,
    LAYOUT_VERSION, Layout, MANIFEST_TYPE, MODULE_FILE, Manifest, SCHEMA_VERSION, UNPACKED_BYTES_MAX, check_module,
    sha256,
};

/// Registries take manifests of at least this length, and need not take longer ones (distribution-spec, "Pushing manifests").
const JSON_BYTES_MAX: u64 = 4 << 20;

/// Reads the only image of a layout.
///
/// # Errors
/// One sentence that names the file and what is wrong with it.
pub fn read_image(directory: &Path) -> Result<Image> {
    let file = directory.join(LAYOUT_FILE);
    let layout: Layout = parse(&file, &read(&file, JSON_BYTES_MAX)?)?;
    ensure!(
        layout.image_layout_version == LAYOUT_VERSION,
        "{} is of version {:?}, and should be of {LAYOUT_VERSION:?}",
        file.display(),
        layout.image_layout_version
    );
    let file = directory.join(INDEX_FILE);
    let index: Index = parse(&file, &read(&file, JSON_BYTES_MAX)?)?;
    check_head(&file, index.schema_version, index.media_type.as_deref(), INDEX_TYPE)?;
    let (_, manifest) = read_blob(directory, &file, only(&file, "manifest", &index.manifests)?, MANIFEST_TYPE)?;
    let file = directory.join(manifest.path());
    let parsed: Manifest = parse(&file, &manifest.bytes)?;
    check_head(&file, parsed.schema_version, parsed.media_type.as_deref(), MANIFEST_TYPE)?;
    let (config_file, config) = read_blob(directory, &file, &parsed.config, CONFIG_TYPE)?;
    let (layer_file, layer) = read_blob(directory, &file, only(&file, "layer", &parsed.layers)?, LAYER_TYPE)?;
    let tar = unpack_at_most(&layer_file, &layer.bytes, UNPACKED_BYTES_MAX)?;
    let rootfs = parse::<ImageConfig>(&config_file, &config.bytes)?.rootfs;
    ensure!(
        rootfs.diff_ids == [sha256(&tar)],
        "{} says that the layer unpacks to {:?}, and it unpacks to {}",
        config_file.display(),
        rootfs.diff_ids,
        sha256(&tar)
    );
    let module = module_in(&layer_file, &tar)?;
    check_module(&module, &format!("{MODULE_FILE} in {}", layer_file.display()))?;
    Ok(Image { manifest, config, layer, module })
}

fn parse<T: DeserializeOwned>(file: &Path, json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).with_context(|| format!("{} is wrong", file.display()))
}

fn read(file: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let opened = File::open(file).map_err(|problem| match problem.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("{} is missing", file.display()),
        _ => anyhow::Error::new(problem).context(format!("{} cannot be read", file.display())),
    })?;
    let mut bytes = Vec::new();
    let read = opened.take(bytes_max + 1).read_to_end(&mut bytes);
    let read = read.with_context(|| format!("{} cannot be read", file.display()))?;
    ensure!(read as u64 <= bytes_max, "{} is longer than {bytes_max} bytes", file.display());
    Ok(bytes)
}

fn check_head(file: &Path, version: u32, found: Option<&str>, expected: &str) -> Result<()> {
    ensure!(version == SCHEMA_VERSION, "{} is of schema {version}, and should be of {SCHEMA_VERSION}", file.display());
    // Whoever leaves it out is not wrong.
    ensure!(
        found.is_none_or(|found| found == expected),
        "{} has the media type {:?}, and should have {expected:?}",
        file.display(),
        found.unwrap_or_default()
    );
    Ok(())
}

fn only<'a>(file: &Path, what: &str, descriptors: &'a [Descriptor]) -> Result<&'a Descriptor> {
    match descriptors {
        [descriptor] => Ok(descriptor),
        _ => bail!("{} names {} {what}s, and should name one", file.display(), descriptors.len()),
    }
}

/// Reads what a descriptor in `by` names, and says where it lies.
fn read_blob(directory: &Path, by: &Path, descriptor: &Descriptor, media_type: &str) -> Result<(PathBuf, Blob)> {
    let Descriptor { digest, size, media_type: found, .. } = descriptor;
    // It becomes a path.
    let hex = digest.strip_prefix("sha256:").unwrap_or_default();
    let is_hex = hex.len() == 64 && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    ensure!(is_hex, "{} names {digest:?}, which is no sha256", by.display());
    ensure!(
        found == media_type,
        "{} says that {digest} has the media type {found:?}, and it should have {media_type:?}",
        by.display()
    );
    let file = directory.join("blobs/sha256").join(hex);
    let blob = Blob::new(read(&file, if media_type == LAYER_TYPE { UNPACKED_BYTES_MAX } else { JSON_BYTES_MAX })?);
    ensure!(
        blob.bytes.len() as u64 == *size,
        "{} has {} bytes, and {} says that it has {size}",
        file.display(),
        blob.bytes.len(),
        by.display()
    );
    ensure!(blob.digest == *digest, "{} was changed: its digest is {}", file.display(), blob.digest);
    Ok((file, blob))
}

/// Unpacks a layer of at most this many bytes.
pub(super) fn unpack_at_most(file: &Path, packed: &[u8], bytes_max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = MultiGzDecoder::new(packed).take(bytes_max + 1).read_to_end(&mut bytes);
    let read = read.with_context(|| format!("{} cannot be unpacked", file.display()))?;
    ensure!(read as u64 <= bytes_max, "{} unpacks to more than {bytes_max} bytes", file.display());
    Ok(bytes)
}

/// The only file of a layer. Another one may lie anywhere on the machine that unpacks it.
fn module_in(file: &Path, tar: &[u8]) -> Result<Vec<u8>> {
    // Why, the tar's reader would say in bytes of the file.
    let no_tar = || format!("{} holds no tar that can be read", file.display());
    let mut module = None;
    for entry in tar::Archive::new(tar).entries().ok().with_context(no_tar)? {
        let mut entry = entry.ok().with_context(no_tar)?;
        let path = entry.path().ok().with_context(no_tar)?.into_owned();
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        ensure!(is_inside, "{} holds the path {path:?}, which leads out of the image", file.display());
        // A leading `./` is no other name.
        let name: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
        ensure!(
            name == Path::new(MODULE_FILE) && entry.header().entry_type().is_file(),
            "{} holds {path:?}, and should hold the file {MODULE_FILE} alone",
            file.display()
        );
        ensure!(module.is_none(), "{} holds {MODULE_FILE} twice", file.display());
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).ok().with_context(no_tar)?;
        module = Some(bytes);
    }
    module.with_context(|| format!("{} holds no {MODULE_FILE}", file.display()))
}
