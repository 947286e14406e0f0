//! References, users, logs, limits and specifications: what goes in and what comes out.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use knarr_oci::cri::*;
use knarr_oci::generate::{ContainerRequest, container_spec, sandbox_spec};
use knarr_oci::image::ImageConfig;
use knarr_oci::log::{LogStream, MAX_LINE, rfc3339_nanos};
use knarr_oci::reference::Reference;
use knarr_oci::spec::{NetworkNs, Rootfs, UserSpec};
use knarr_oci::{cgroup, signal, user};

/// Compares with a file, or writes it when `KNARR_BLESS` is set.
fn golden(name: &str, actual: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("KNARR_BLESS").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap_or_default(), actual, "{path}");
}

#[test]
fn references() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let texts = [
        "nginx",
        "nginx:1.27",
        "library/nginx",
        "a/b/c:x",
        "docker.io/nginx",
        "index.docker.io/x",
        "localhost/x",
        "localhost:5000/x:y",
        "quay.io/a_b/c-d--e:V1",
        "[::1]:5000/x",
        "Host/x",
        "nginx@",
        "nginx:",
        ":x",
        "",
        "Nginx",
        "a//b",
        "a/b/",
        "-a",
        "a..b",
        "a___b",
        "x:-t",
        "http://x/y",
        "ex.com:port/y",
        "a b",
    ];
    let with_digest =
        [format!("nginx@{digest}"), format!("r.io:1/n:t@{digest}"), "n@md5:00".into()];
    let all = texts.iter().map(|text| (*text).to_string()).chain(with_digest);
    let shown = |text: String| match Reference::parse(&text) {
        Ok(reference) => format!("{text:?} = {reference}\n"),
        Err(error) => format!("{text:?} ! {error}\n"),
    };
    golden("references.txt", &all.map(shown).collect::<String>());
}

#[test]
fn users() {
    let passwd = "root:x:0:0::/root:\nweb:x:33:34::/srv:\nbroken\n9:x:12:12::/nine:\n";
    let group = "root:x:0:\nweb:x:34:\nextra:x:77:web,root\n";
    let mut out = String::new();
    for policy in [SupplementalGroupsPolicy::Merge, SupplementalGroupsPolicy::Strict] {
        for name in
            ["", "0", "root", "web", "33", "web:extra", "33:9", "99", "9", "gone", "web:gone"]
        {
            let spec = UserSpec { user: name.into(), additional_gids: vec![5], groups: policy };
            let answer = user::resolve(&spec, passwd, group);
            out += &format!("{policy:?} {name:?}: {answer:?}\n");
        }
    }
    golden("users.txt", &out);
}

#[test]
fn log_lines() {
    let mut stream = LogStream::new("stdout");
    let mut out = Vec::new();
    stream.feed(b"one\ntw", "T", &mut out);
    stream.feed(b"o\n\n", "T", &mut out);
    stream.feed("x".repeat(MAX_LINE).as_bytes(), "T", &mut out);
    stream.feed(b"\n", "T", &mut out);
    stream.feed("y".repeat(MAX_LINE + 1).as_bytes(), "T", &mut out);
    stream.finish("T", &mut out);
    let text = String::from_utf8(out).unwrap();
    let short = text.replace(&"x".repeat(MAX_LINE), "X*").replace(&"y".repeat(MAX_LINE), "Y*");
    let expected =
        "T stdout F one\nT stdout F two\nT stdout F \nT stdout F X*\nT stdout P Y*\nT stdout P y\n";
    assert_eq!(short, expected);
}

#[test]
fn times() {
    for (nanos, text) in [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (1_709_210_096_789_000_001, "2024-02-29T12:34:56.789000001Z"),
        (4_102_444_799_999_999_999, "2099-12-31T23:59:59.999999999Z"),
    ] {
        assert_eq!(rfc3339_nanos(nanos), text);
    }
}

#[test]
fn signals() {
    let names =
        ["SIGTERM", "term", "9", "SIGQUIT", "RTMIN+3", "SIGRTMAX-1", "0", "65", "NONE", "RTMIN+40"];
    let numbers =
        [Some(15), Some(15), Some(9), Some(3), Some(37), Some(63), None, None, None, None];
    assert_eq!(names.map(signal::number), numbers);
}

#[test]
fn limits() {
    let limits = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 96 << 20,
        cpuset_cpus: "0-1".into(),
        pids_limit: 100,
        unified: [("memory.oom.group".into(), "1".into())].into(),
        ..Default::default()
    };
    let open = LinuxContainerResources {
        cpu_quota: -1,
        memory_limit_in_bytes: -1,
        memory_swap_limit_in_bytes: -1,
        pids_limit: -1,
        ..Default::default()
    };
    let mut out = String::new();
    for limits in [&limits, &open, &Default::default()] {
        for (version, rows) in [(1, cgroup::v1(limits)), (2, cgroup::v2(limits))] {
            for row in rows {
                let mark = if row.optional { "?" } else { "" };
                out += &format!("v{version} {}{mark} = {}\n", row.file, row.value);
            }
        }
        out += "--\n";
    }
    golden("limits.txt", &out);
}

fn full_config() -> ContainerConfig {
    let mut config = ContainerConfig {
        args: vec!["-g".into()],
        envs: vec![KeyValue { key: "A".into(), value: "mine".into() }],
        log_path: "c/0.log".into(),
        mounts: ["/data/sub", "/data", "/dev/shm"]
            .map(|path| Mount {
                container_path: path.into(),
                host_path: "/host".into(),
                readonly: path == "/data",
                ..Default::default()
            })
            .into(),
        ..Default::default()
    };
    let security = &mut config.linux.security_context;
    security.run_as_user = Some(1000);
    security.run_as_group = Some(2000);
    security.namespace_options.pid = NamespaceMode::Container;
    security.capabilities.drop_capabilities = vec!["ALL".into()];
    security.capabilities.add_capabilities = vec!["NET_BIND_SERVICE".into()];
    security.masked_paths = vec!["/proc/kcore".into()];
    config
}

#[test]
fn specifications() {
    let mut sandbox = PodSandboxConfig {
        hostname: "pod".into(),
        log_directory: "/var/log/pods/x/".into(),
        ..Default::default()
    };
    sandbox.linux.cgroup_parent = "/kubepods/podX/".into();
    sandbox.linux.sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
    let mut image = ImageConfig::default();
    image.config.entrypoint = vec!["/nginx".into()];
    image.config.cmd = vec!["ignored".into()];
    image.config.env = vec!["A=image".into(), "PATH=/bin".into()];
    image.config.stop_signal = "SIGQUIT".into();
    let config = full_config();
    let rootfs = Rootfs { lower: vec!["/l/2".into(), "/l/1".into()] };
    let request = ContainerRequest {
        id: "c1",
        sandbox: &sandbox,
        config: &config,
        image: &image,
        rootfs,
        shm: "/state/shm",
    };
    let container = container_spec(&request).unwrap();
    let of_pod = sandbox_spec(&sandbox, "s1", NetworkNs::New).unwrap();
    golden("spec.txt", &format!("{of_pod:#?}\n{container:#?}\n"));
}

#[test]
fn requests_that_make_no_sense() {
    let sandbox = PodSandboxConfig::default();
    let image = ImageConfig::default();
    let command = ContainerConfig { command: vec!["/x".into()], ..Default::default() };
    let change = |f: fn(&mut ContainerConfig)| {
        let mut config = command.clone();
        f(&mut config);
        config
    };
    let security = |f: fn(&mut LinuxContainerSecurityContext)| {
        let mut config = command.clone();
        f(&mut config.linux.security_context);
        config
    };
    let cases = [
        change(|c| c.command.clear()),
        change(|c| c.working_dir = "tmp".into()),
        change(|c| c.stop_signal = "SIGNONE".into()),
        change(|c| c.mounts = vec![Mount { container_path: "a".into(), ..Default::default() }]),
        security(|s| s.run_as_group = Some(1)),
        security(|s| s.run_as_user = Some(-1)),
        security(|s| s.capabilities.add_capabilities = vec!["FLY".into()]),
        security(|s| s.seccomp = SecurityProfile::Localhost("{".into())),
    ];
    let mut out = String::new();
    for config in &cases {
        let rootfs = Rootfs::default();
        let request = ContainerRequest {
            id: "c",
            sandbox: &sandbox,
            config,
            image: &image,
            rootfs,
            shm: "/shm",
        };
        out += &format!("{}\n", container_spec(&request).unwrap_err());
    }
    golden("refusals.txt", &out);
}
