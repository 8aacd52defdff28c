//! `routebalance image`: the module as an OCI image, written without Docker, for whatever fetches modules from a registry.
//!
//! It is the *compat* variant of the Wasm Image Specification (github.com/solo-io/wasm, `spec/spec-compat.md`): the last layer is an
//! `application/vnd.oci.image.layer.v1.tar+gzip` that holds `plugin.wasm`. It can be fetched by
//!
//! - Istio (`pkg/wasm/imagefetcher.go`) and Envoy Gateway (`internal/wasm/imagefetcher.go`): both take the last layer, and from it the
//!   first file of that name. Both compare a `sha256` that the operator gives with the digest of the manifest, not of the module;
//! - a container runtime, for an image volume of Kubernetes: it unpacks layers and compares them with `rootfs.diff_ids`. It could not
//!   unpack the specification's other variant, whose media types are its own.
//!
//! The same module gives the same digests: nothing in the image tells a time, a user or a tag. The compressor decides on the layer's
//! digest, too; `Cargo.lock` pins it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

mod reading;
#[cfg(test)]
mod tests;

pub use reading::read_image;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT_VERSION: &str = "1.0.0";
const INDEX_FILE: &str = "index.json";
const SCHEMA_VERSION: u32 = 2;
const MODULE_FILE: &str = "plugin.wasm";

/// The name of an image in a layout.
const TAG_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// Which variant of the Wasm Image Specification this is.
const VARIANT_ANNOTATION: (&str, &str) = ("module.wasm.image/variant", "compat");

/// Envoy Gateway reads no more of an unpacked layer (`maxWasmSize` in `internal/wasm/httpfetcher.go`).
const UNPACKED_BYTES_MAX: u64 = 256 << 20;
/// What a WebAssembly module begins with. Its version comes next: both fetchers want eight bytes.
const MODULE_MAGIC: &[u8] = b"\0asm";
const MODULE_BYTES_MIN: usize = 8;

/// What the command line says.
#[derive(Args)]
pub struct ImageArgs {
    /// The module, as `cargo filter` builds it
    #[arg(long, value_name = "FILE", default_value = "target/wasm32-wasip1/filter/routebalance.wasm")]
    pub module: PathBuf,
    /// Where to write the image, as an OCI image layout; an image that is there is replaced
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    pub output: PathBuf,
    /// Write the same as one file, too: a tar (oci-archive)
    #[arg(long, value_name = "FILE")]
    pub archive: Option<PathBuf>,
    /// What the image is called in the layout
    #[arg(long, value_name = "NAME", default_value = env!("CARGO_PKG_VERSION"), value_parser = parse_tag)]
    pub tag: String,
    /// Write nothing; check the image in this directory and print its digests
    #[arg(long, value_name = "DIR", conflicts_with_all = ["module", "output", "archive", "tag"])]
    pub check: Option<PathBuf>,
}

/// What registries take for a tag (distribution-spec, "Pulling manifests").
fn parse_tag(tag: &str) -> Result<String, String> {
    let is_of_a_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_right = tag.len() <= 128
        && tag.starts_with(is_of_a_word)
        && tag.chars().all(|c| is_of_a_word(c) || matches!(c, '.' | '-'));
    is_right.then(|| tag.to_owned()).ok_or_else(|| {
        "a tag has 1 to 128 letters, digits, `_`, `.` and `-`, and begins with neither of the last two".to_owned()
    })
}

/// An image of the module, in memory.
#[derive(PartialEq)]
pub struct Image {
    manifest: Blob,
    config: Blob,
    layer: Blob,
    module: Vec<u8>,
}

/// Bytes that are called by their digest.
#[derive(PartialEq)]
struct Blob {
    digest: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: sha256(&bytes), bytes }
    }

    fn of_json(value: &impl Serialize) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn descriptor(&self, media_type: &str) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: self.digest.clone(),
            size: self.bytes.len() as u64,
            annotations: BTreeMap::new(),
        }
    }

    /// Where it lies in a layout.
    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Vec<Descriptor>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct ImageConfig {
    architecture: String,
    os: String,
    rootfs: RootFilesystem,
}

#[derive(Serialize, Deserialize)]
struct RootFilesystem {
    r#type: String,
    diff_ids: Vec<String>,
}

impl Image {
    /// Packs a module. `file` is where it was read, for the sentence that says what is wrong.
    ///
    /// # Errors
    /// One sentence: it is no module, or too long to be fetched.
    pub fn pack(module: Vec<u8>, file: &Path) -> Result<Self> {
        check_module(&module, &file.display().to_string())?;
        let tar = tar_of(&[(MODULE_FILE.to_owned(), &module)])?;
        ensure!(
            tar.len() as u64 <= UNPACKED_BYTES_MAX,
            "{} has {} bytes, and Envoy Gateway reads at most {UNPACKED_BYTES_MAX}",
            file.display(),
            module.len()
        );
        // Without a name and a time, as the encoder writes it by itself.
        let mut layer = GzEncoder::new(Vec::new(), Compression::best());
        layer.write_all(&tar)?;
        let layer = Blob::new(layer.finish()?);
        let config = Blob::of_json(&ImageConfig {
            // A module runs on every processor, and a config must name one. Fetchers of modules do not look at it. containerd unpacks
            // an image of its own platform while it pulls it, and another one when it mounts it; runtimes may refuse another os.
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            rootfs: RootFilesystem { r#type: "layers".to_owned(), diff_ids: vec![sha256(&tar)] },
        })?;
        let (name, variant) = VARIANT_ANNOTATION;
        let manifest = Blob::of_json(&Manifest {
            schema_version: SCHEMA_VERSION,
            media_type: Some(MANIFEST_TYPE.to_owned()),
            config: config.descriptor(CONFIG_TYPE),
            layers: vec![layer.descriptor(LAYER_TYPE)],
            annotations: BTreeMap::from([(name.to_owned(), variant.to_owned())]),
        })?;
        Ok(Self { manifest, config, layer, module })
    }

    /// What the image is called by in a registry, whatever its tags.
    pub fn manifest_digest(&self) -> &str {
        &self.manifest.digest
    }

    /// The digest of its only layer, as it is packed.
    pub fn layer_digest(&self) -> &str {
        &self.layer.digest
    }

    /// The module.
    pub fn module(&self) -> &[u8] {
        &self.module
    }

    /// The files of a layout that holds the image alone. The index comes last: what it names is there before it.
    fn files(&self, tag: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut manifest = self.manifest.descriptor(MANIFEST_TYPE);
        manifest.annotations.insert(TAG_ANNOTATION.to_owned(), tag.to_owned());
        let index = Index {
            schema_version: SCHEMA_VERSION,
            media_type: Some(INDEX_TYPE.to_owned()),
            manifests: vec![manifest],
        };
        let layout = Layout { image_layout_version: LAYOUT_VERSION.to_owned() };
        let mut files = vec![(LAYOUT_FILE.to_owned(), serde_json::to_vec(&layout)?)];
        files.extend([&self.layer, &self.config, &self.manifest].map(|blob| (blob.path(), blob.bytes.clone())));
        files.push((INDEX_FILE.to_owned(), serde_json::to_vec(&index)?));
        Ok(files)
    }

    /// Writes the image as a layout, in the place of one that is there.
    ///
    /// # Errors
    /// One sentence: what cannot be written, or that the directory holds something else.
    pub fn write_layout(&self, tag: &str, directory: &Path) -> Result<()> {
        clear(directory)?;
        for (name, bytes) in self.files(tag)? {
            let file = directory.join(name);
            let parent = file.parent().unwrap_or(directory);
            fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
            fs::write(&file, bytes).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        Ok(())
    }

    /// Writes the image as a layout in a tar.
    ///
    /// # Errors
    /// One sentence: the file cannot be written.
    pub fn write_archive(&self, tag: &str, file: &Path) -> Result<()> {
        let files = self.files(tag)?;
        let files: Vec<(String, &[u8])> = files.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())).collect();
        fs::write(file, tar_of(&files)?).with_context(|| format!("{} cannot be written", file.display()))
    }
}

fn check_module(module: &[u8], place: &str) -> Result<()> {
    ensure!(
        module.starts_with(MODULE_MAGIC) && module.len() >= MODULE_BYTES_MIN,
        "{place} is no WebAssembly module: its first bytes are others"
    );
    Ok(())
}

/// A tar in which all files are root's and from 1970, so that the same files give the same bytes.
fn tar_of(files: &[(String, impl AsRef<[u8]>)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let bytes = bytes.as_ref();
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes)?;
    }
    Ok(tar.into_inner()?)
}

/// Removes the image that a directory holds. Of another directory nothing is removed.
fn clear(directory: &Path) -> Result<()> {
    let is_empty = match fs::read_dir(directory) {
        Ok(mut entries) => entries.next().is_none(),
        Err(problem) if problem.kind() == ErrorKind::NotFound => true,
        Err(problem) => return Err(problem).with_context(|| format!("{} cannot be read", directory.display())),
    };
    if is_empty {
        return Ok(());
    }
    ensure!(
        directory.join(LAYOUT_FILE).is_file(),
        "{} holds something else than an image: choose another --output",
        directory.display()
    );
    // The index goes first: none ever names what is not there.
    let (index, blobs) = (directory.join(INDEX_FILE), directory.join("blobs"));
    absent(fs::remove_file(&index)).with_context(|| format!("{} cannot be removed", index.display()))?;
    absent(fs::remove_dir_all(&blobs)).with_context(|| format!("{} cannot be removed", blobs.display()))
}

/// What was not there is removed, too.
fn absent(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|problem| if problem.kind() == ErrorKind::NotFound { Ok(()) } else { Err(problem) })
}

/// Writes an image, or checks one, and says its digests.
///
/// # Errors
/// One sentence that names the file.
pub fn run(args: &ImageArgs) -> Result<()> {
    if let Some(directory) = &args.check {
        let image = read_image(directory)?;
        println!("manifest {}", image.manifest_digest());
        println!("layer    {}", image.layer_digest());
        println!("module   {}", sha256(image.module()));
        return Ok(());
    }
    let image = Image::pack(read_module(&args.module)?, &args.module)?;
    image.write_layout(&args.tag, &args.output)?;
    if let Some(archive) = &args.archive {
        image.write_archive(&args.tag, archive)?;
    }
    let (output, tag) = (args.output.display(), &args.tag);
    println!("{output}: {}", image.manifest_digest());
    println!("to push it: skopeo copy oci:{output}:{tag} docker://REGISTRY/routebalance:{tag}");
    Ok(())
}

fn read_module(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).map_err(|problem| match problem.kind() {
        ErrorKind::NotFound => anyhow::anyhow!("{} is not there: run `cargo filter`, which builds it", file.display()),
        _ => anyhow::Error::new(problem).context(format!("{} cannot be read", file.display())),
    })
}
