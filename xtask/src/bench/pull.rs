//! Pulling a big image from a registry on the loopback, by knarr and by Debian's containerd.
//!
//! Each pull begins with an empty store; both registry and daemon are processes of the benchmark's
//! namespaces and end with them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::{Outcome, Row, Site, ms};

const IMAGE: &str = "localhost:5000/big:1";
const RUNS: usize = 3;
/// Layers of 50 MB each, half of which compresses away.
const LAYERS: usize = 4;

/// A daemon of the benchmark.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may be gone already, which is all that is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a daemon and waits for a line on its standard error.
fn daemon(command: &mut Command, ready: &str) -> Outcome<Daemon> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let daemon = Daemon(child);
    let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains(ready));
    std::thread::spawn(move || lines.count());
    found.then_some(daemon).ok_or(format!("{command:?} did not say {ready:?}").into())
}

fn sh(dir: &Path, script: &str) -> Outcome<()> {
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or(format!("{script}: {said}").into())
}

/// Makes the image and pushes it, its layers gzipped.
fn push(site: &Site) -> Outcome<()> {
    let layers: Vec<String> = (0..LAYERS).map(|n| format!("\"layer{n}.tar\"")).collect();
    for n in 0..LAYERS {
        // Random bytes do not compress; they stand for binaries together with what is zero.
        let script = format!(
            "mkdir -p f{n} && for i in 1 2 3 4 5 6 7 8 9 10; do head -c 2500000 /dev/urandom \
             >f{n}/r$i; yes knarr | head -c 2500000 >f{n}/t$i; done; \
             tar --numeric-owner --owner=0 --group=0 -cf layer{n}.tar f{n}; rm -r f{n}"
        );
        sh(&site.dir, &script)?;
    }
    let (rows, names) = (layers.join(","), layers.join(" ").replace('"', ""));
    let script = format!(
        r#"ids=$(for l in {names}; do
          printf ',"sha256:%s"' "$(sha256sum $l | cut -d' ' -f1)"; done)
        printf '{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers",' >config.json
        printf '"diff_ids":[%s]}}}}' "${{ids#,}}" >>config.json
        printf '[{{"Config":"config.json","RepoTags":["big:1"],"Layers":[{rows}]}}]' >manifest.json
        tar -cf big.tar config.json manifest.json {names}
        skopeo --insecure-policy copy --dest-tls-verify=false docker-archive:big.tar \
          docker://{IMAGE}
        rm -f big.tar {names}"#
    );
    sh(&site.dir, &script)
}

/// The benchmark.
pub(super) fn pull(site: &Site) -> Outcome<Vec<Row>> {
    let place = |name: &str| site.dir.join(name).display().to_string();
    let config = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: 'localhost:5000'}}\n",
        place("registry")
    );
    fs::write(site.dir.join("registry.yml"), config)?;
    let mut registry = Command::new("docker-registry");
    let _registry = daemon(registry.args(["serve", &place("registry.yml")]), "listening on")?;
    push(site)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let began = Instant::now();
        site.run(&format!("images pull {IMAGE} @root"))?;
        ours.push(ms(began.elapsed()));
        site.run("images prune @root")?;
        theirs.push(containerd(site)?);
    }
    let ours = Row::new("200 MB image pulled and unpacked, knarr", "ms", ours);
    let theirs = Row::new("200 MB image pulled and unpacked, containerd", "ms", theirs);
    Ok(vec![ours.at_most(theirs.median), theirs])
}

/// One pull by a containerd with nothing in it.
fn containerd(site: &Site) -> Outcome<f64> {
    let dir = site.dir.join("containerd");
    let place = |name: &str| dir.join(name).display().to_string();
    fs::create_dir_all(&dir)?;
    let config = format!(
        "version = 2\nroot = '{}'\nstate = '{}'\n[grpc]\naddress = '{}'\n\
         [plugins.'io.containerd.internal.v1.opt']\npath = '{}'\n",
        place("root"),
        place("state"),
        place("sock"),
        place("opt")
    );
    fs::write(dir.join("config.toml"), config)?;
    let mut command = Command::new("containerd");
    let running = daemon(command.args(["--config", &place("config.toml")]), "successfully booted")?;
    let began = Instant::now();
    let address = place("sock");
    sh(&dir, &format!("ctr --address {address} images pull --plain-http {IMAGE}"))?;
    let took = ms(began.elapsed());
    drop(running);
    fs::remove_dir_all(dir)?;
    Ok(took)
}
