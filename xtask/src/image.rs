//! Container images for tests and first steps, made of files that Debian's packages installed:
//! nobody needs a registry. The same files give the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::flag;

/// One image: its word on the command line, its usual name, its files and its config.
struct Recipe {
    word: &'static str,
    name: &'static str,
    files: fn() -> Result<Tree, String>,
    config: fn() -> Value,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        word: "nginx",
        name: "docker.io/library/nginx:1",
        files: nginx,
        config: || {
            json!({
                "Entrypoint": ["/usr/sbin/nginx"],
                "Env": [PATH],
                "ExposedPorts": {"80/tcp": {}},
                "StopSignal": "SIGQUIT",
            })
        },
    },
    Recipe {
        word: "busybox",
        name: "docker.io/library/busybox:1",
        files: busybox,
        config: || json!({"Cmd": ["sh"], "Env": [PATH]}),
    },
    Recipe {
        word: "redis",
        name: "docker.io/library/redis:7",
        files: redis,
        config: || {
            json!({
                "Entrypoint": ["/usr/bin/redis-server"],
                "Env": [PATH],
                "ExposedPorts": {"6379/tcp": {}},
                "Volumes": {"/data": {}},
                "WorkingDir": "/data",
            })
        },
    },
];

const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nwww-data:x:33:33:www-data:/:/bin/false\n\
                      nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Every request is answered with the host's name: it tells which Pod answered.
const NGINX_CONF: &str = "\
user www-data;
daemon off;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 256; }
http {
  access_log /dev/stdout;
  default_type text/plain;
  server {
    listen 80;
    location / { return 200 \"nginx on $hostname\\n\"; }
  }
}
";

/// Runs the chore: `--out FILE [--name NAME] WORD`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let known = || RECIPES.iter().map(|recipe| recipe.word).collect::<Vec<_>>().join(", ");
    let recipe = RECIPES.iter().find(|recipe| args.last().is_some_and(|arg| arg == recipe.word));
    let recipe = recipe.ok_or_else(|| format!("name the image at the end, one of: {}", known()))?;
    let out = Path::new(flag(args, "--out")?);
    let name = flag(args, "--name").unwrap_or(recipe.name);
    let archive = archive(&(recipe.files)()?, (recipe.config)(), name);
    let written = archive.and_then(|archive| write_whole(out, &archive));
    written.map_err(|error| format!("cannot write {}: {error}", out.display()))
}

/// Writes beside `path` and renames, so that a reader sees all of it or nothing.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&beside, bytes)?;
    fs::rename(&beside, path)
}

/// What lies at a path of an image.
enum Entry {
    Dir(u32),
    File(u32, Vec<u8>),
    Link(String),
}

/// Paths without a leading slash, sorted: a folder comes before what is in it.
#[derive(Default)]
struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// The folders and files that every image has.
    fn base() -> Self {
        let mut tree = Self::default();
        ["dev", "proc", "sys", "run", "var/log"].iter().for_each(|dir| tree.dir(dir, 0o755));
        tree.dir("tmp", 0o1777);
        tree.file("etc/passwd", 0o644, PASSWD.into());
        tree.file("etc/group", 0o644, GROUP.into());
        tree
    }

    fn dir(&mut self, path: &str, mode: u32) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::Dir(mode));
    }

    fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::File(mode, bytes));
    }

    fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.0.insert(path.to_owned(), Entry::Link(target.to_owned()));
    }

    fn parents(&mut self, path: &str) {
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert(Entry::Dir(0o755));
        }
    }

    /// Takes over a program of this machine under the same path.
    fn program(&mut self, path: &str) -> Result<(), String> {
        let bytes = fs::read(path)
            .map_err(|error| format!("cannot read {path} (scripts/setup installs it): {error}"))?;
        self.file(path.trim_start_matches('/'), 0o755, bytes);
        Ok(())
    }
}

fn nginx() -> Result<Tree, String> {
    const BINARY: &str = "/usr/sbin/nginx";
    let mut tree = Tree::base();
    tree.program(BINARY)?;
    for library in libraries(&output(Command::new("ldd").arg(BINARY))?) {
        tree.program(&library)?;
    }
    tree.file("etc/nginx/nginx.conf", 0o644, NGINX_CONF.into());
    tree.dir("var/lib/nginx", 0o755);
    tree.dir("var/log/nginx", 0o755);
    Ok(tree)
}

fn redis() -> Result<Tree, String> {
    let mut tree = Tree::base();
    for binary in ["/usr/bin/redis-server", "/usr/bin/redis-cli"] {
        tree.program(binary)?;
        for library in libraries(&output(Command::new("ldd").arg(binary))?) {
            tree.program(&library)?;
        }
    }
    tree.dir("data", 0o777);
    Ok(tree)
}

fn busybox() -> Result<Tree, String> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|at| Path::new(at).exists());
    let binary = found.ok_or("there is no busybox; scripts/setup installs it")?;
    let mut tree = Tree::base();
    let bytes = fs::read(binary).map_err(|error| format!("cannot read {binary}: {error}"))?;
    tree.file("bin/busybox", 0o755, bytes);
    for applet in output(Command::new(binary).arg("--list"))?.lines() {
        if applet != "busybox" {
            tree.link(&format!("bin/{applet}"), "busybox");
        }
    }
    Ok(tree)
}

/// The absolute paths in what `ldd` prints, the dynamic linker among them.
fn libraries(ldd: &str) -> Vec<String> {
    let words = ldd.lines().filter_map(|line| line.split(" (").next());
    let paths = words.filter_map(|line| line.split_whitespace().last());
    paths.filter(|path| path.starts_with('/')).map(str::to_owned).collect()
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An OCI image layout in a tar: one image of one layer.
fn archive(tree: &Tree, config: Value, name: &str) -> io::Result<Vec<u8>> {
    let plain = layer(tree)?;
    let mut zip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    zip.write_all(&plain)?;
    let zipped = zip.finish()?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha(&plain))]},
    });
    let mut layout = Tree::default();
    let media = |what: &str| format!("application/vnd.oci.image.{what}");
    let mut blob = |what: &str, bytes: Vec<u8>| {
        let (digest, size) = (sha(&bytes), bytes.len());
        layout.file(&format!("blobs/sha256/{digest}"), 0o644, bytes);
        json!({"mediaType": media(what), "digest": format!("sha256:{digest}"), "size": size})
    };
    let config = blob("config.v1+json", config.to_string().into());
    let layer = blob("layer.v1.tar+gzip", zipped);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media("manifest.v1+json"),
        "config": config,
        "layers": [layer],
    });
    let mut manifest = blob("manifest.v1+json", manifest.to_string().into());
    manifest["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name,
    });
    let index = json!({
        "schemaVersion": 2, "mediaType": media("index.v1+json"), "manifests": [manifest],
    });
    layout.file("index.json", 0o644, index.to_string().into());
    layout.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    self::layer(&layout)
}

/// The tree as a tar, owned by root, without times.
fn layer(tree: &Tree) -> io::Result<Vec<u8>> {
    let mut out = tar::Builder::new(Vec::new());
    for (path, entry) in &tree.0 {
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        match entry {
            Entry::Dir(mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                out.append_data(&mut header, format!("{path}/"), io::empty())?;
            }
            Entry::File(mode, bytes) => {
                header.set_mode(*mode);
                header.set_size(bytes.len() as u64);
                out.append_data(&mut header, path, bytes.as_slice())?;
            }
            Entry::Link(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                out.append_link(&mut header, path, target)?;
            }
        }
    }
    out.into_inner()
}

fn sha(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_the_libraries_and_the_linker() {
        let ldd = "\tlinux-vdso.so.1 (0x7f)\n\tlibz.so.1 => /lib/x/libz.so.1 (0x7f)\n\
                   \tlibmissing.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(libraries(ldd), ["/lib/x/libz.so.1", "/lib64/ld-linux-x86-64.so.2"]);
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        let make = || archive(&Tree::base(), json!({}), "a/b:1").expect("a Vec takes all");
        assert_eq!(sha(&make()), sha(&make()));
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let mut tree = Tree::default();
        tree.file("a/b/c", 0o644, Vec::new());
        tree.dir("a-b", 0o755);
        let bytes = layer(&tree).expect("a Vec takes all");
        let mut read = tar::Archive::new(bytes.as_slice());
        let names = read.entries().expect("a tar").map(|entry| {
            entry.and_then(|entry| Ok(entry.path()?.display().to_string())).expect("an entry")
        });
        assert_eq!(names.collect::<Vec<_>>(), ["a/", "a-b/", "a/b/", "a/b/c"]);
    }
}
