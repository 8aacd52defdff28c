//! Images of a small module: written, read back, damaged in every way that is checked.

use serde_json::{Value, json};

use super::reading::unpack_at_most;
use super::*;

fn fake_module() -> Vec<u8> {
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    module.extend((0..40_000_u32).flat_map(|number| (number / 3).to_le_bytes()));
    module
}

fn fake_image() -> Image {
    Image::pack(fake_module(), Path::new("fake.wasm")).unwrap()
}

/// Where an image was written, and everything that lies there.
fn written(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(path).unwrap());
            }
        }
    }
    files
}

#[test]
fn an_image_is_read_back_byte_for_byte() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("deep/image");
    let image = fake_image();
    image.write_layout("1.2.3", &output).unwrap();
    let read = read_image(&output).unwrap();
    assert!(read == image);
    assert_eq!(read.module(), fake_module());

    let files = written(&output);
    assert_eq!(files.len(), 5, "{:?}", files.keys());
    let of = |name: &str| serde_json::from_slice::<Value>(&files[name]).unwrap();
    assert_eq!(of("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
    let listed = &of("index.json")["manifests"];
    assert_eq!(listed.as_array().unwrap().len(), 1, "crane pushes a layout of one image");
    assert_eq!(listed[0]["digest"], image.manifest_digest());
    assert_eq!(listed[0]["annotations"], json!({"org.opencontainers.image.ref.name": "1.2.3"}));
    let manifest = of(&image.manifest.path());
    assert_eq!(manifest["annotations"], json!({"module.wasm.image/variant": "compat"}));
    assert_eq!(manifest["layers"][0]["digest"], image.layer_digest());
    let config = of(&image.config.path());
    assert_eq!((&config["os"], &config["architecture"]), (&json!("linux"), &json!("amd64")));
}

#[test]
fn the_same_module_gives_the_same_image() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for name in ["one", "two"] {
        fake_image().write_layout("1.2.3", &path(name)).unwrap();
        fake_image().write_archive("1.2.3", &path(&format!("{name}.tar"))).unwrap();
    }
    assert_eq!(written(&path("one")), written(&path("two")));
    assert_eq!(fs::read(path("one.tar")).unwrap(), fs::read(path("two.tar")).unwrap());
    // No time and no name in the gzip; in the tar no time, and nobody's user.
    let layer = fake_image().layer.bytes;
    assert_eq!(layer[..8], *b"\x1f\x8b\x08\0\0\0\0\0");
    let unpacked = unpack_at_most(Path::new("layer"), &layer, UNPACKED_BYTES_MAX).unwrap();
    let mut archive = tar::Archive::new(unpacked.as_slice());
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    let header = entry.header();
    assert_eq!((header.mode().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (0o644, 0, 0));
    assert_eq!((header.mtime().unwrap(), header.username(), header.groupname()), (0, Ok(Some("")), Ok(Some(""))));
    // Whatever the compressor.
    assert_eq!(sha256(&unpacked), "sha256:fce1469e568a65f7b646f8781b815e738d9033be98c0e259c9702f2eace9a10b");
    // The tag is the layout's, not the image's.
    fake_image().write_layout("other", &path("two")).unwrap();
    assert!(read_image(&path("one")).unwrap() == read_image(&path("two")).unwrap());
}

#[test]
fn an_archive_holds_the_layout() {
    let directory = tempfile::tempdir().unwrap();
    let (archive, unpacked) = (directory.path().join("image.tar"), directory.path().join("unpacked"));
    fake_image().write_archive("1.2.3", &archive).unwrap();
    tar::Archive::new(fs::File::open(archive).unwrap()).unpack(&unpacked).unwrap();
    assert!(read_image(&unpacked).unwrap() == fake_image());
    let written_at = directory.path().join("image");
    fake_image().write_layout("1.2.3", &written_at).unwrap();
    assert_eq!(written(&unpacked), written(&written_at));
}

#[test]
fn an_image_replaces_an_image_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("image");
    fs::create_dir(&output).unwrap();
    fake_image().write_layout("1", &output).unwrap();
    let other = Image::pack(b"\0asm\x01\0\0\0other".to_vec(), Path::new("other.wasm")).unwrap();
    other.write_layout("2", &output).unwrap();
    assert!(read_image(&output).unwrap() == other);
    assert_eq!(written(&output).len(), 5, "the first image is gone");

    let notes = directory.path().join("notes");
    fs::create_dir(&notes).unwrap();
    fs::write(notes.join("index.json"), "mine").unwrap();
    let problem = other.write_layout("2", &notes).unwrap_err().to_string();
    assert!(problem.ends_with("notes holds something else than an image: choose another --output"), "{problem}");
    assert_eq!(written(&notes), BTreeMap::from([("index.json".to_owned(), b"mine".to_vec())]));
}

/// A layout on disk whose parts can be changed, one at a time, with digests that fit again.
struct Damaged {
    directory: tempfile::TempDir,
    image: Image,
}

impl Damaged {
    fn new() -> Self {
        let damaged = Self { directory: tempfile::tempdir().unwrap(), image: fake_image() };
        damaged.image.write_layout("1.2.3", damaged.directory.path()).unwrap();
        damaged
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, blob: &Blob) {
        fs::write(self.path(&blob.path()), &blob.bytes).unwrap();
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap();
        change(&mut json);
        fs::write(self.path(name), json.to_string()).unwrap();
    }

    fn change_manifest(&self, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&self.image.manifest.bytes).unwrap();
        change(&mut json);
        let manifest = Blob::new(json.to_string().into_bytes());
        self.put(&manifest);
        self.change("index.json", |index| {
            index["manifests"][0] = serde_json::to_value(manifest.descriptor(MANIFEST_TYPE)).unwrap();
        });
    }

    /// Another layer, whose unpacked digest the config may know.
    fn change_layer(&self, packed: Vec<u8>, diff_id: &str) {
        let layer = Blob::new(packed);
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
        let config = Blob::new(config.to_string().into_bytes());
        self.put(&layer);
        self.put(&config);
        self.change_manifest(|manifest| {
            manifest["layers"] = json!([layer.descriptor(LAYER_TYPE)]);
            manifest["config"] = serde_json::to_value(config.descriptor(CONFIG_TYPE)).unwrap();
        });
    }

    /// A layer with this tar.
    fn change_tar(&self, tar: &[u8]) {
        let mut layer = GzEncoder::new(Vec::new(), Compression::fast());
        layer.write_all(tar).unwrap();
        self.change_layer(layer.finish().unwrap(), &sha256(tar));
    }

    fn change_files(&self, files: &[(&str, &[u8])]) {
        let files: Vec<(String, &[u8])> = files.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        self.change_tar(&tar_of(&files).unwrap());
    }
}

/// A tar whose only entry has a name and a type that its builder would refuse.
fn tar_with(name: &[u8], kind: tar::EntryType) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_cksum();
    let mut tar = tar::Builder::new(Vec::new());
    tar.append(&header, &[][..]).unwrap();
    tar.into_inner().unwrap()
}

/// What is done to a layout, and what must be said of it: the file, as the image calls it, and the rest of the sentence.
type Row = (&'static str, fn(&Damaged), &'static str);

const DAMAGES: &[Row] = &[
    ("no layout", |it| fs::remove_file(it.path("oci-layout")).unwrap(), "oci-layout is missing"),
    (
        "a layout to come",
        |it| it.change("oci-layout", |layout| layout["imageLayoutVersion"] = "2.0.0".into()),
        "oci-layout is of version \"2.0.0\", and should be of \"1.0.0\"",
    ),
    ("no index", |it| fs::remove_file(it.path("index.json")).unwrap(), "index.json is missing"),
    ("no JSON", |it| fs::write(it.path("index.json"), "{").unwrap(), "index.json is wrong: EOF while parsing"),
    (
        "an endless index",
        |it| fs::write(it.path("index.json"), vec![b' '; 5 << 20]).unwrap(),
        "index.json is longer than 4194304 bytes",
    ),
    (
        "an index of a type of its own",
        |it| it.change("index.json", |index| index["mediaType"] = MANIFEST_TYPE.into()),
        "index.json has the media type \"application/vnd.oci.image.manifest.v1+json\", and should have \
         \"application/vnd.oci.image.index.v1+json\"",
    ),
    (
        "an old schema",
        |it| it.change("index.json", |index| index["schemaVersion"] = 1.into()),
        "index.json is of schema 1, and should be of 2",
    ),
    (
        "no image",
        |it| it.change("index.json", |index| index["manifests"] = json!([])),
        "index.json names 0 manifests, and should name one",
    ),
    (
        "an index in the index",
        |it| it.change("index.json", |index| index["manifests"][0]["mediaType"] = INDEX_TYPE.into()),
        "index.json says that MANIFEST has the media type \"application/vnd.oci.image.index.v1+json\", and it should have \
         \"application/vnd.oci.image.manifest.v1+json\"",
    ),
    (
        "a digest that leads elsewhere",
        |it| it.change("index.json", |index| index["manifests"][0]["digest"] = "sha256:../../../secret".into()),
        "index.json names \"sha256:../../../secret\", which is no sha256",
    ),
    (
        "a manifest that was changed",
        |it| {
            let manifest = String::from_utf8(it.image.manifest.bytes.clone()).unwrap();
            fs::write(it.path(&it.image.manifest.path()), manifest.replace("compat", "compot")).unwrap();
        },
        "MANIFEST was changed: its digest is sha256:",
    ),
    (
        "a Docker manifest",
        |it| {
            it.change_manifest(|json| json["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json".into())
        },
        " has the media type \"application/vnd.docker.distribution.manifest.v2+json\", and should have \
         \"application/vnd.oci.image.manifest.v1+json\"",
    ),
    (
        "the other variant's config",
        |it| {
            it.change_manifest(|json| json["config"]["mediaType"] = "application/vnd.module.wasm.config.v1+json".into())
        },
        " says that CONFIG has the media type \"application/vnd.module.wasm.config.v1+json\", and it should have \
         \"application/vnd.oci.image.config.v1+json\"",
    ),
    (
        "the other variant's layer",
        |it| {
            let other = "application/vnd.module.wasm.content.layer.v1+wasm";
            it.change_manifest(|json| json["layers"][0]["mediaType"] = other.into());
        },
        " says that LAYER has the media type \"application/vnd.module.wasm.content.layer.v1+wasm\", and it should have \
         \"application/vnd.oci.image.layer.v1.tar+gzip\"",
    ),
    (
        "two layers",
        |it| {
            it.change_manifest(|json| {
                let layer = json["layers"][0].clone();
                json["layers"].as_array_mut().unwrap().push(layer);
            });
        },
        " names 2 layers, and should name one",
    ),
    ("a layer that is missing", |it| fs::remove_file(it.path(&it.image.layer.path())).unwrap(), "LAYER is missing"),
    (
        "a layer that was changed",
        |it| {
            let mut layer = it.image.layer.bytes.clone();
            *layer.last_mut().unwrap() ^= 1;
            fs::write(it.path(&it.image.layer.path()), layer).unwrap();
        },
        "LAYER was changed: its digest is sha256:",
    ),
    (
        "a layer that was cut",
        |it| {
            let layer = &it.image.layer.bytes;
            fs::write(it.path(&it.image.layer.path()), &layer[..100]).unwrap();
        },
        "LAYER has 100 bytes, and ",
    ),
    ("a config that is missing", |it| fs::remove_file(it.path(&it.image.config.path())).unwrap(), "CONFIG is missing"),
    (
        "a config of another layer",
        |it| it.change_layer(it.image.layer.bytes.clone(), "sha256:0123"),
        " says that the layer unpacks to [\"sha256:0123\"], and it unpacks to sha256:",
    ),
    ("no gzip", |it| it.change_layer(b"no gzip".to_vec(), "sha256:0123"), " cannot be unpacked: "),
    ("no tar", |it| it.change_tar(&[b'x'; 1024]), " holds no tar that can be read"),
    (
        "a tar that was cut",
        |it| it.change_tar(&tar_of(&[("plugin.wasm".to_owned(), fake_module())]).unwrap()[..2000]),
        " holds no tar that can be read",
    ),
    ("an empty tar", |it| it.change_files(&[]), " holds no plugin.wasm"),
    (
        "a layer without the module",
        |it| it.change_files(&[("filter.wasm", b"\0asm\x01\0\0\0")]),
        " holds \"filter.wasm\", and should hold the file plugin.wasm alone",
    ),
    (
        "the module in a folder",
        |it| it.change_files(&[("lib/plugin.wasm", b"\0asm\x01\0\0\0")]),
        " holds \"lib/plugin.wasm\", and should hold the file plugin.wasm alone",
    ),
    (
        "a companion",
        |it| it.change_files(&[("plugin.wasm", b"\0asm\x01\0\0\0"), ("passwd", b"")]),
        " holds \"passwd\", and should hold the file plugin.wasm alone",
    ),
    (
        "the module twice",
        |it| it.change_files(&[("plugin.wasm", b"\0asm\x01\0\0\0"), ("plugin.wasm", b"")]),
        " holds plugin.wasm twice",
    ),
    (
        "a path out of the image",
        |it| it.change_tar(&tar_with(b"../plugin.wasm", tar::EntryType::Regular)),
        " holds the path \"../plugin.wasm\", which leads out of the image",
    ),
    (
        "a path from the root",
        |it| it.change_tar(&tar_with(b"/plugin.wasm", tar::EntryType::Regular)),
        " holds the path \"/plugin.wasm\", which leads out of the image",
    ),
    (
        "a link",
        |it| it.change_tar(&tar_with(b"plugin.wasm", tar::EntryType::Symlink)),
        " holds \"plugin.wasm\", and should hold the file plugin.wasm alone",
    ),
    (
        "another plugin",
        |it| it.change_files(&[("plugin.wasm", b"\x7fELF....")]),
        " is no WebAssembly module: its first bytes are others",
    ),
];

#[test]
fn each_kind_of_damage_is_named() {
    for (name, damage, expected) in DAMAGES {
        let damaged = Damaged::new();
        damage(&damaged);
        let problem = read_image(damaged.directory.path()).err().unwrap_or_else(|| panic!("{name} is taken"));
        let mut problem = format!("{problem:#}").replace(damaged.directory.path().to_str().unwrap(), "");
        let image = &damaged.image;
        for (word, blob) in [("MANIFEST", &image.manifest), ("CONFIG", &image.config), ("LAYER", &image.layer)] {
            problem = problem.replace(&format!("/{}", blob.path()), word).replace(&blob.digest, word);
        }
        let rest = if expected.starts_with(' ') {
            // A blob that the damage has made.
            let start = problem.trim_start_matches("plugin.wasm in ").trim_start_matches("MANIFEST");
            let rest = start.strip_prefix("/blobs/sha256/").map_or(start, |path| path.trim_start_matches(|c| c != ' '));
            assert!(rest.len() < problem.len(), "{name}: which file: {problem}");
            rest
        } else {
            problem.trim_start_matches('/')
        };
        assert!(rest.starts_with(expected), "{name}: {problem}");
        assert!(!problem.contains('\n'), "{name}: one sentence: {problem}");
    }
}

#[test]
fn a_name_with_a_dot_before_it_is_no_other_name() {
    let damaged = Damaged::new();
    let module = tar_of(&[("plugin.wasm".to_owned(), fake_module())]).unwrap();
    let mut header = tar::Header::from_byte_slice(&module[..512]).clone();
    header.as_mut_bytes()[..13].copy_from_slice(b"./plugin.wasm");
    header.set_cksum();
    damaged.change_tar(&[&header.as_bytes()[..], &module[512..]].concat());
    assert_eq!(read_image(damaged.directory.path()).unwrap().module(), fake_module());
}

#[test]
fn a_layer_is_unpacked_up_to_a_limit() {
    let layer = fake_image().layer.bytes;
    let whole = unpack_at_most(Path::new("layer"), &layer, UNPACKED_BYTES_MAX).unwrap();
    let length = whole.len() as u64;
    assert_eq!(unpack_at_most(Path::new("layer"), &layer, length).unwrap(), whole);
    let problem = unpack_at_most(Path::new("layer"), &layer, length - 1).unwrap_err();
    assert_eq!(format!("{problem:#}"), format!("layer unpacks to more than {} bytes", length - 1));
}

#[test]
fn what_cannot_be_packed_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("text.wasm"), "(module)").unwrap();
    fs::write(path("short.wasm"), "\0asm").unwrap();
    fs::create_dir(path("folder.wasm")).unwrap();
    let rows = [
        ("absent.wasm", "absent.wasm is not there: run `cargo filter`, which builds it"),
        ("text.wasm", "text.wasm is no WebAssembly module: its first bytes are others"),
        ("short.wasm", "short.wasm is no WebAssembly module: its first bytes are others"),
        ("folder.wasm", "folder.wasm cannot be read: Is a directory"),
    ];
    for (name, expected) in rows {
        let args = ImageArgs {
            module: path(name),
            output: path("image"),
            archive: None,
            tag: "1.2.3".to_owned(),
            check: None,
        };
        let problem = format!("{:#}", run(&args).unwrap_err());
        assert!(problem.contains(expected), "{name}: {problem}");
        assert!(!path("image").exists(), "{name}");
    }
}

#[test]
fn a_tag_is_what_registries_take() {
    for (tag, is_right) in [
        ("0.1.0", true),
        (env!("CARGO_PKG_VERSION"), true),
        ("_a-B.9", true),
        ("", false),
        (".1", false),
        ("-1", false),
        ("1+build", false),
        ("name:1", false),
        ("a/b", false),
        (&"a".repeat(128), true),
        (&"a".repeat(129), false),
    ] {
        assert_eq!(parse_tag(tag).is_ok(), is_right, "{tag}");
    }
}
