//! Archives, honest and hostile: what the store keeps of them.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use knarr_images::{Error, Limits, Store};
use sha2::{Digest, Sha256};

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An entry of a layer: type, name, contents or target.
type Row<'a> = (tar::EntryType, &'a str, &'a str);

const FILE: tar::EntryType = tar::EntryType::Regular;
const DIR: tar::EntryType = tar::EntryType::Directory;
const LINK: tar::EntryType = tar::EntryType::Symlink;
const HARD: tar::EntryType = tar::EntryType::Link;

/// A tar of rows; names go in as they are, however bad.
fn tar_of(rows: &[Row<'_>]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (kind, name, text) in rows {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        let data = if matches!(*kind, LINK | HARD) { "" } else { text };
        if data.is_empty() && !text.is_empty() {
            header.as_gnu_mut().unwrap().linkname[..text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(data.len() as u64);
        header.set_mode(if *kind == DIR { 0o755 } else { 0o644 });
        header.set_mtime(1_000_000);
        header.set_uid(7);
        header.set_gid(8);
        header.set_device_major(1).unwrap();
        header.set_device_minor(1).unwrap();
        header.set_cksum();
        out.append(&header, data.as_bytes()).unwrap();
    }
    out.into_inner().unwrap()
}

fn files(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        out.append_data(&mut header, name, *bytes).unwrap();
    }
    out.into_inner().unwrap()
}

fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|l| format!("\"sha256:{}\"", sha(l))).collect();
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!(
        r#"{{"architecture":"{arch}","os":"linux","config":{{"User":"web","Cmd":["/x"],"Env":null}},
        "rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diff_ids.join(",")
    )
    .into_bytes()
}

/// An archive as `docker save` writes it.
fn docker(name: &str, layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config_of(layers);
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest =
        serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    let manifest = manifest.to_string();
    let mut all: Vec<(&str, &[u8])> =
        vec![("config.json", &config), ("manifest.json", manifest.as_bytes())];
    all.extend(names.iter().zip(layers).map(|(name, layer)| (name.as_str(), layer.as_slice())));
    files(&all)
}

/// An OCI layout in a tar; the layer blobs are given as stored, beside the layers.
fn oci(name: &str, layers: &[Vec<u8>], stored: &[Vec<u8>]) -> Vec<u8> {
    let config = config_of(layers);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", sha(bytes));
    let describe = |bytes: &[u8]| {
        let digest = format!("sha256:{}", sha(bytes));
        serde_json::json!({"mediaType": "x", "digest": digest, "size": bytes.len()})
    };
    let layers: Vec<_> = stored.iter().map(|bytes| describe(bytes)).collect();
    let manifest =
        serde_json::json!({"schemaVersion": 2, "config": describe(&config), "layers": layers});
    let manifest = manifest.to_string().into_bytes();
    let mut entry = describe(&manifest);
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut named: Vec<(String, &[u8])> =
        vec![("oci-layout".into(), b"{}"), (blob(&config), &config), (blob(&manifest), &manifest)];
    named.extend(stored.iter().map(|bytes| (blob(bytes), bytes.as_slice())));
    named.push(("index.json".into(), index.as_bytes()));
    files(&named.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect::<Vec<_>>())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

struct World {
    dir: tempfile::TempDir,
    store: Store,
}

fn world() -> Option<World> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("outside"), "untouched").unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    Some(World { dir, store })
}

impl World {
    fn top_layer(&self, name: &str) -> PathBuf {
        PathBuf::from(&self.store.unpacked(name).unwrap().rootfs.lower[0])
    }

    /// Every file of the store but the lock, relative.
    fn contents(&self) -> Vec<String> {
        fn walk(dir: &Path, into: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                into.push(entry.path().to_string_lossy().into_owned());
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), into);
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.dir.path().join("store"), &mut all);
        all.retain(|path| !path.ends_with("/lock"));
        all.sort();
        all
    }
}

#[test]
fn docker_and_oci_archives_of_one_image_are_one_image() {
    let Some(world) = world() else { return };
    let layers = vec![
        tar_of(&[(DIR, "etc/", ""), (FILE, "etc/a", "one"), (FILE, "gone", "x")]),
        tar_of(&[(FILE, "etc/b", "two"), (FILE, ".wh.gone", ""), (HARD, "etc/c", "etc/b")]),
    ];
    let first = world.store.import(gzip(&docker("nginx", &layers)).as_slice(), None).unwrap();
    let stored = vec![gzip(&layers[0]), zstd::encode_all(layers[1].as_slice(), 1).unwrap()];
    let second = world.store.import(oci("other/web:1", &layers, &stored).as_slice(), None).unwrap();
    assert_eq!(first[0].id, second[0].id);
    assert_eq!(second[0].repo_tags, ["docker.io/library/nginx:latest", "docker.io/other/web:1"]);
    assert_eq!((second[0].username.as_str(), second[0].size), ("web", 7));
    let lower = world.store.unpacked("docker.io/library/nginx").unwrap().rootfs.lower;
    assert_eq!(lower.len(), 2);
    let (top, bottom) = (Path::new(&lower[0]), Path::new(&lower[1]));
    assert_eq!(fs::read_to_string(bottom.join("etc/a")).unwrap(), "one");
    let meta = fs::metadata(top.join("etc/b")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.nlink()), (7, 8, 1_000_000, 2));
    let whiteout = fs::symlink_metadata(top.join("gone")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    world.store.remove("nginx", &BTreeSet::new()).unwrap();
    assert!(world.store.status("nginx").unwrap().is_none());
    assert!(world.store.status("other/web:1").unwrap().is_some());
    let in_use: BTreeSet<String> = [lower[1].clone()].into();
    world.store.remove(&first[0].id, &in_use).unwrap();
    assert!(world.store.list().unwrap().is_empty());
    assert!(bottom.exists() && !top.exists(), "only the layer in use stays");
    world.store.remove("nginx", &BTreeSet::new()).unwrap();
    assert!(!bottom.exists());
}

#[test]
fn opaque_folders_and_replaced_names_are_overlay_s() {
    let Some(world) = world() else { return };
    let layer = tar_of(&[
        (DIR, "d/", ""),
        (FILE, "d/.wh..wh..opq", ""),
        (FILE, ".wh.e", ""),
        (DIR, "e/", ""),
        (FILE, "f", "file"),
        (LINK, "f", "elsewhere"),
        (tar::EntryType::Block, "disk", ""),
    ]);
    world.store.import(docker("a", &[layer]).as_slice(), None).unwrap();
    let top = world.top_layer("a");
    for name in ["d", "e"] {
        let mut value = [0u8; 8];
        let path = top.join(name);
        let got = rustix::fs::lgetxattr(&path, "trusted.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(&value[..got], b"y");
    }
    assert_eq!(fs::read_link(top.join("f")).unwrap(), Path::new("elsewhere"));
    assert!(fs::symlink_metadata(top.join("disk")).is_err(), "a device node was made");
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let Some(world) = world() else { return };
    let before = world.contents();
    let cases: [(&str, &[Row<'_>]); 7] = [
        ("a name with ..", &[(FILE, "../outside", "x")]),
        ("a name with .. inside", &[(FILE, "a/../../outside", "x")]),
        ("an absolute name", &[(FILE, "/tmp/outside", "x")]),
        ("a hard link with ..", &[(HARD, "x", "../../../../outside")]),
        ("a hard link to nothing", &[(HARD, "x", "nothing")]),
        ("a root that is a file", &[(FILE, "./", "x")]),
        ("a whiteout of ..", &[(FILE, ".wh...", "")]),
    ];
    for (what, rows) in cases {
        let good = tar_of(&[(FILE, "fine", "x")]);
        let archive = docker("evil", &[good, tar_of(rows)]);
        let refused = world.store.import(archive.as_slice(), None);
        assert!(matches!(refused, Err(Error::Archive(_))), "{what}: {refused:?}");
        assert_eq!(world.contents(), before, "{what} left something");
    }
    assert_eq!(fs::read_to_string(world.dir.path().join("outside")).unwrap(), "untouched");
}

#[test]
fn links_of_a_layer_lead_nowhere_else() {
    let Some(world) = world() else { return };
    let outside = world.dir.path().join("outside");
    let dir = world.dir.path().to_str().unwrap();
    let layer = tar_of(&[
        (LINK, "abs", dir),
        (LINK, "up", "../../../../../../.."),
        (FILE, "up/outside", "evil"),
        (LINK, "file", outside.to_str().unwrap()),
        (FILE, "file", "evil"),
        (HARD, "hard", "abs"),
    ]);
    world.store.import(docker("a", &[layer]).as_slice(), None).unwrap();
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(world.top_layer("a").join("outside")).unwrap(), "evil");
    // A folder of the same name as on the node is meant within the layer, and is not there.
    let through = tar_of(&[(LINK, "abs", dir), (FILE, "abs/outside", "evil")]);
    let refused = world.store.import(docker("b", &[through]).as_slice(), None);
    assert!(refused.is_err());
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
}

#[test]
fn wrong_digests_sizes_and_platforms_are_refused() {
    let Some(world) = world() else { return };
    let before = world.contents();
    let (layer, other) = (tar_of(&[(FILE, "a", "one")]), tar_of(&[(FILE, "a", "two")]));
    let honest = docker("a", std::slice::from_ref(&layer));
    let tampered = {
        let config = config_of(std::slice::from_ref(&layer));
        let manifest = br#"[{"Config":"c","RepoTags":["a"],"Layers":["l"]}]"#;
        files(&[("c", &config), ("l", &other), ("manifest.json", manifest)])
    };
    let mut bytes = oci("a", std::slice::from_ref(&layer), std::slice::from_ref(&layer));
    let at = bytes.windows(3).position(|window| window == b"one").unwrap();
    bytes[at] = b'0';
    let mut renamed = oci("a", std::slice::from_ref(&layer), std::slice::from_ref(&layer));
    let at = renamed.windows(5).position(|window| window == b"\"web\"").unwrap();
    renamed[at + 1] = b'W';
    let foreign = String::from_utf8(config_of(std::slice::from_ref(&layer))).unwrap();
    let foreign = foreign.replace("amd64", "s390x").replace("arm64", "s390x").into_bytes();
    let manifest = br#"[{"Config":"c","RepoTags":["a"],"Layers":["l"]}]"#;
    let foreign = files(&[("c", &foreign), ("l", &layer), ("manifest.json", manifest)]);
    let cut = &honest[..honest.len() / 2];
    for (what, archive) in [
        ("another layer", tampered.as_slice()),
        ("a flipped byte", bytes.as_slice()),
        ("another user in the configuration", renamed.as_slice()),
        ("another machine's", foreign.as_slice()),
        ("half of it", cut),
        ("nothing", b"".as_slice()),
        ("no tar", [7u8; 2048].as_slice()),
    ] {
        let refused = world.store.import(archive, None);
        assert!(matches!(refused, Err(Error::Archive(_))), "{what}: {refused:?}");
        assert_eq!(world.contents(), before, "{what} left something");
    }
    let small = Store::open(world.dir.path().join("store")).unwrap();
    for limits in [Limits { bytes: 100, entries: 100 }, Limits { bytes: 1 << 20, entries: 2 }] {
        let refused = Store::open(world.dir.path().join("store")).unwrap().with_limits(limits);
        assert!(matches!(refused.import(honest.as_slice(), None), Err(Error::Archive(_))));
        assert_eq!(world.contents(), before);
    }
    assert_eq!(small.import(honest.as_slice(), None).unwrap().len(), 1);
}

#[test]
fn what_an_interrupted_import_left_is_removed_by_the_next_change() {
    let Some(world) = world() else { return };
    let left = world.dir.path().join("store/tmp/work/image0/abc/fs");
    fs::create_dir_all(&left).unwrap();
    let orphan = world.dir.path().join("store/layers/abc/fs");
    fs::create_dir_all(&orphan).unwrap();
    let layer = tar_of(&[(FILE, "a", "one")]);
    world.store.import(docker("a", &[layer]).as_slice(), None).unwrap();
    assert!(!left.exists());
    world.store.remove("unknown", &BTreeSet::new()).unwrap();
    assert!(!orphan.exists() && world.store.status("a").unwrap().is_some());
}
