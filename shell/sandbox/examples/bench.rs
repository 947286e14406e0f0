//! Create, start, end and delete of a container, many times, beside `crun` where it is installed.
//!
//! `cargo run --release -p knarr-sandbox --example bench -- <shim> <static program> [count]`; as
//! root. crun refuses hybrid control groups, so it gets a mount namespace without the unified one.
#![allow(clippy::print_stdout)] // its output is its purpose

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use knarr_oci::cri::{
    ContainerConfig, LinuxPodSandboxConfig, NamespaceMode, PodSandboxConfig, SecurityProfile,
};
use knarr_oci::image::ImageConfig;
use knarr_oci::spec::{NetworkNs, Rootfs};
use knarr_sandbox::{Config, CreateContainer, Event, Runtime};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [shim, program, rest @ ..] = args.as_slice() else {
        return Err("usage: bench <shim> <static program> [count]".into());
    };
    let count: usize = rest.first().map_or(Ok(200), |text| text.parse())?;
    let dir = std::env::temp_dir().join(format!("knarr-bench-{}", std::process::id()));
    let layer = dir.join("layer");
    fs::create_dir_all(layer.join("bin"))?;
    fs::copy(program, layer.join("bin/program"))?;
    let measured = ours(&dir, &layer, shim, count).map(|times| show("knarr", times));
    let crun = crun(&dir, &layer, count).map(|times| show("crun", times));
    fs::remove_dir_all(&dir)?;
    crun.unwrap_or_else(|error| println!("crun: {error}"));
    measured
}

fn show(name: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{name}: p50 {:?} p90 {:?} p99 {:?} of {}", at(50), at(90), at(99), times.len());
}

fn ours(dir: &Path, layer: &Path, shim: &str, count: usize) -> Outcome<Vec<Duration>> {
    let state_dir = dir.join("state");
    let shim = vec![fs::canonicalize(shim)?.to_string_lossy().into_owned()];
    let (runtime, events) = Runtime::open(Config { state_dir, shim })?;
    let group = format!("/{}", dir.file_name().unwrap_or_default().to_string_lossy());
    let linux = LinuxPodSandboxConfig { cgroup_parent: group, ..Default::default() };
    let sandbox_config = PodSandboxConfig { linux, ..Default::default() };
    let before = Instant::now();
    let sandbox_id = &runtime.run_pod_sandbox(&sandbox_config, NetworkNs::New)?;
    println!("sandbox: {:?}", before.elapsed());
    let mut config = ContainerConfig { command: vec!["/bin/program".into()], ..Default::default() };
    config.linux.security_context.namespace_options.pid = NamespaceMode::Container;
    config.linux.security_context.seccomp = SecurityProfile::RuntimeDefault;
    let image = ImageConfig::default();
    let mut times = Vec::new();
    for _ in 0..count {
        let before = Instant::now();
        let rootfs = Rootfs { lower: vec![layer.to_string_lossy().into_owned()] };
        let id = runtime.create_container(CreateContainer {
            sandbox_id,
            config: &config,
            image: &image,
            rootfs,
        })?;
        runtime.start_container(&id)?;
        while !matches!(events.recv()?, Event::ContainerExited(status) if status.id == id) {}
        runtime.remove_container(&id)?;
        times.push(before.elapsed());
    }
    runtime.remove_pod_sandbox(sandbox_id)?;
    Ok(times)
}

fn crun(dir: &Path, layer: &Path, count: usize) -> Outcome<Vec<Duration>> {
    let bundle = dir.join("bundle");
    fs::create_dir_all(&bundle)?;
    Command::new("crun").arg("spec").current_dir(&bundle).status()?;
    let text = fs::read_to_string(bundle.join("config.json"))?;
    let mut spec: serde_json::Value = serde_json::from_str(&text)?;
    spec["process"]["args"] = serde_json::json!(["/bin/program"]);
    spec["process"]["terminal"] = false.into();
    spec["root"]["path"] = layer.to_string_lossy().into_owned().into();
    fs::write(bundle.join("config.json"), spec.to_string())?;
    // One shell in a mount namespace of its own; the time of each run is taken inside.
    let script = format!(
        "umount /sys/fs/cgroup/unified 2>/dev/null; cd {}; for n in $(seq {count}); do \
         a=$(date +%s%N); crun run knarr-bench-$n >/dev/null || exit 1; b=$(date +%s%N); \
         echo $((b-a)); done",
        bundle.display()
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script]).stdin(Stdio::null());
    let ran = command.output()?;
    if !ran.status.success() {
        return Err(String::from_utf8_lossy(&ran.stderr).into_owned().into());
    }
    let out = String::from_utf8(ran.stdout)?;
    Ok(out.lines().filter_map(|line| line.parse().ok().map(Duration::from_nanos)).collect())
}
