//! Real containers: what runs in them sees what CRI promises, and nothing is left of them.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::fs;
use std::time::{Duration, Instant};

use knarr_oci::cri::*;
use knarr_oci::spec::NetworkNs;
use knarr_sandbox::{Error, Hierarchies};
use support::{World, can_run, output, probe};

/// A world with one sandbox; the test is skipped without root.
macro_rules! sandbox_or_skip {
    ($world:ident, $sandbox:ident) => {
        if !can_run() {
            return;
        }
        let $world = World::new();
        let $sandbox = $world.sandbox();
    };
}

#[test]
fn a_container_runs_logs_and_ends() {
    sandbox_or_skip!(world, sandbox);
    let commands =
        ["echo", "hello", "err", "oops", "pid", "cat", "/proc/sys/kernel/hostname", "exit", "3"];
    let (status, out) = world.run(&sandbox, &probe(&commands));
    assert_eq!(out, "hello\npid=1\nprobe-host\n");
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    world.finish();
}

#[test]
fn log_lines_name_their_stream_and_partial_lines() {
    sandbox_or_skip!(world, sandbox);
    let id = world.start(&sandbox, &probe(&["err", "oops", "partial", "no newline"]));
    let log = fs::read_to_string(world.exit_of(&id).log_path).unwrap();
    let tails: Vec<&str> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert!(tails.contains(&"stderr F oops"), "{log}");
    assert!(tails.contains(&"stdout P no newline"), "{log}");
    world.finish();
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file() {
    sandbox_or_skip!(world, sandbox);
    let id = world.start(&sandbox, &probe(&["polite", "echo", "up", "pause"]));
    wait_for_output(&world, &id, "up\n");
    let path = world.runtime().container_status(&id).unwrap().log_path;
    let rotated = format!("{path}.1");
    fs::rename(&path, &rotated).unwrap();
    world.runtime().reopen_container_log(&id).unwrap();
    world.runtime().stop_container(&id, Duration::from_secs(10)).unwrap();
    let both = [rotated, path].map(|path| output(&fs::read_to_string(path).unwrap()));
    assert_eq!(both, ["up\n", "bye\n"]);
    world.finish();
}

#[test]
fn a_process_has_the_user_groups_home_and_folder_asked_for() {
    sandbox_or_skip!(world, sandbox);
    let mut config = probe(&["id"]);
    config.working_dir = "/tmp".into();
    let security = &mut config.linux.security_context;
    security.run_as_username = "web".into();
    security.supplemental_groups = vec![4000];
    let (_, out) = world.run(&sandbox, &config);
    assert_eq!(out, "uid=33 gid=34 groups=34,77,4000, home=/srv cwd=/tmp\n");
    world.finish();
}

#[test]
fn a_part_of_a_volume_is_never_a_part_of_the_node() {
    sandbox_or_skip!(world, sandbox);
    let volume = world.dir.path().join("volume");
    fs::create_dir_all(volume.join("part/deep")).unwrap();
    fs::write(volume.join("part/file"), "mine\n").unwrap();
    fs::write(world.dir.path().join("file"), "the node's\n").unwrap();
    let start = |sub_path: &str, commands: &[&str]| {
        let mut config = probe(commands);
        config.mounts = vec![Mount {
            container_path: "/data".into(),
            host_path: volume.to_str().unwrap().into(),
            sub_path: sub_path.into(),
            ..Default::default()
        }];
        config
    };
    let (_, out) = world.run(&sandbox, &start("part", &["cat", "/data/file"]));
    assert_eq!(out, "mine\n");
    let (_, out) = world.run(&sandbox, &start("part/file", &["cat", "/data"]));
    assert_eq!(out, "mine\n");
    // What a container may put there before it starts again.
    let node = world.dir.path().to_str().unwrap().to_owned();
    let swap = |target: &str| {
        fs::remove_file(volume.join("trap")).ok();
        std::os::unix::fs::symlink(target, volume.join("trap")).unwrap();
    };
    for target in [node.as_str(), "/", "..", "part/../..", "/proc/1/root", "trap"] {
        swap(target);
        for sub_path in ["trap", "trap/file"] {
            let config = start(sub_path, &["cat", "/data/file"]);
            let id = world.create(&sandbox, &config);
            let refused = world.runtime().start_container(&id).expect_err(target).to_string();
            assert!(refused.contains("mount") || refused.contains("open"), "{target}: {refused}");
            world.runtime().remove_container(&id).unwrap();
        }
    }
    swap("part/deep/..");
    let (_, out) = world.run(&sandbox, &start("trap", &["cat", "/data/file"]));
    assert_eq!(out, "mine\n", "a link inside the volume is followed");
    world.finish();
}

#[test]
fn capabilities_no_new_privs_and_seccomp_hold() {
    sandbox_or_skip!(world, sandbox);
    let commands = ["status", "unshare", "clone3", "keyctl"];
    let (_, root) = world.run(&sandbox, &probe(&commands));
    for expected in [
        "CapEff:\t00000000a80425fb",
        "CapBnd:\t00000000a80425fb",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "unshare EPERM",
        "clone3 ENOSYS",
        "keyctl EPERM",
    ] {
        assert!(root.contains(expected), "{expected} is not in\n{root}");
    }
    let mut config = probe(&commands);
    let security = &mut config.linux.security_context;
    security.run_as_user = Some(1234);
    security.no_new_privs = true;
    security.capabilities.drop_capabilities = vec!["ALL".into()];
    security.capabilities.add_capabilities = vec!["NET_BIND_SERVICE".into()];
    let (_, user) = world.run(&sandbox, &config);
    for expected in
        ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000400", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(user.contains(expected), "{expected} is not in\n{user}");
    }
    let mut config = probe(&["status", "unshare"]);
    config.linux.security_context.privileged = true;
    let (_, privileged) = world.run(&sandbox, &config);
    assert!(
        privileged.contains("Seccomp:\t0") && privileged.contains("unshare ok"),
        "{privileged}"
    );
    world.finish();
}

/// The agent does without them, and its shims inherit that.
#[test]
fn a_container_has_the_huge_pages_that_the_node_has() {
    rustix::thread::disable_transparent_huge_pages(true).unwrap();
    sandbox_or_skip!(world, sandbox);
    let (_, status) = world.run(&sandbox, &probe(&["status"]));
    assert!(status.contains("THP_enabled:\t1"), "{status}");
    world.finish();
}

#[test]
fn proc_sys_and_devices_are_fenced() {
    sandbox_or_skip!(world, sandbox);
    let commands = [
        "cat",
        "/proc/interrupts",
        "write",
        "/proc/sys/kernel/panic",
        "1",
        "write",
        "/sys/x",
        "1",
        "device",
        "/tmp/disk",
        "write",
        "/dev/null",
        "x",
        "access",
        "/dev/ptmx",
        "access",
        "/dev/mqueue",
        "access",
        "/dev/shm",
        "access",
        "/proc/self/fd/0",
        "access",
        "/.host",
    ];
    let (_, out) = world.run(&sandbox, &probe(&commands));
    let expected = "/proc/sys/kernel/panic EROFS\n/sys/x EROFS\nmknod ok\nopen EPERM\n\
                    /dev/null write ok\n/dev/ptmx access ok\n/dev/mqueue access ok\n\
                    /dev/shm access ok\n/proc/self/fd/0 access ok\n/.host access ENOENT\n";
    let tidy = out.replace(" write EROFS", " EROFS");
    assert_eq!(tidy, expected);
    world.finish();
}

#[test]
fn mounts_are_bound_read_only_and_never_outside_the_root() {
    sandbox_or_skip!(world, sandbox);
    let volume = world.dir.path().join("volume");
    fs::create_dir_all(&volume).unwrap();
    fs::write(volume.join("file"), "from the host\n").unwrap();
    let mount = |inside: &str, name: &str, readonly| Mount {
        container_path: inside.into(),
        host_path: volume.join(name).to_str().unwrap().into(),
        readonly,
        ..Default::default()
    };
    let mut config = probe(&[
        "cat",
        "/data/file",
        "write",
        "/data/new",
        "x",
        "write",
        "/ro/new",
        "x",
        "cat",
        "/etc/hosts",
        "cat",
        "/etc/trap",
        "write",
        "/tmp/own",
        "x",
    ]);
    // `/escape` is a link of the image to `/../../../../etc`: it must mean the container's /etc.
    config.mounts = vec![
        mount("/data", "", false),
        mount("/ro", "", true),
        mount("/etc/hosts", "file", true),
        mount("/escape/trap", "file", true),
    ];
    let (_, out) = world.run(&sandbox, &config);
    let expected = "from the host\n/data/new write ok\n/ro/new write EROFS\nfrom the host\n\
                    from the host\n/tmp/own write ok\n";
    assert_eq!(out, expected);
    assert!(!std::path::Path::new("/etc/trap").exists());
    assert!(!world.layer().join("tmp/own").exists(), "a layer was written to");
    let mut config = probe(&["write", "/tmp/x", "x"]);
    config.linux.security_context.readonly_rootfs = true;
    assert_eq!(world.run(&sandbox, &config).1, "/tmp/x write EROFS\n");
    world.finish();
}

#[test]
fn programs_that_cannot_start_are_explained() {
    sandbox_or_skip!(world, sandbox);
    for (command, expected) in [
        ("nothing", r#"exec: "nothing": executable file not found in $PATH"#),
        ("/nothing", r#"exec: "/nothing": stat /nothing: no such file or directory"#),
        ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
        ("/etc", r#"exec: "/etc": is a directory"#),
    ] {
        let config = ContainerConfig { command: vec![command.into()], args: vec![], ..probe(&[]) };
        let id = world.create(&sandbox, &config);
        match world.runtime().start_container(&id) {
            Err(Error::Start(text)) => assert_eq!(text, expected),
            other => panic!("{other:?}"),
        }
        let status = world.exit_of(&id);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert_eq!(status.message, expected);
    }
    let mut config = probe(&["id"]);
    config.linux.security_context.run_as_username = "nobody-here".into();
    let id = world.create(&sandbox, &config);
    let error = world.runtime().start_container(&id).unwrap_err().to_string();
    assert_eq!(error, "unable to find user nobody-here: no matching entries in passwd file");
    world.finish();
}

#[test]
fn stopping_asks_first_and_kills_at_the_deadline() {
    sandbox_or_skip!(world, sandbox);
    let polite = world.start(&sandbox, &probe(&["polite", "echo", "up", "pause"]));
    wait_for_output(&world, &polite, "up\n");
    world.runtime().stop_container(&polite, Duration::from_secs(10)).unwrap();
    assert_eq!(world.runtime().container_status(&polite).unwrap().exit_code, 7);
    let deaf = world.start(&sandbox, &probe(&["deaf", "orphans", "echo", "up", "pause"]));
    wait_for_output(&world, &deaf, "up\n");
    let before = Instant::now();
    world.runtime().stop_container(&deaf, Duration::from_millis(300)).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(300));
    let status = world.exit_of(&deaf);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    let group = format!("{}/{deaf}", world.group());
    assert_eq!(Hierarchies::detect().unwrap().processes(&group), Vec::<i32>::new());
    world.finish();
}

/// Waits by way of the log file's own growth, told by inotify.
fn wait_for_output(world: &World, id: &str, wanted: &str) {
    use rustix::fs::inotify;
    let path = world.runtime().container_status(id).unwrap().log_path;
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, path.as_str(), inotify::WatchFlags::MODIFY).unwrap();
    while output(&fs::read_to_string(&path).unwrap()) != wanted {
        rustix::io::read(&watch, &mut [0u8; 4096][..]).unwrap();
    }
}

#[test]
fn memory_beyond_the_limit_is_an_oom_kill() {
    sandbox_or_skip!(world, sandbox);
    let mut config = probe(&["eat", "64"]);
    config.linux.resources.memory_limit_in_bytes = 16 << 20;
    config.linux.resources.memory_swap_limit_in_bytes = 16 << 20;
    config.linux.resources.pids_limit = 50;
    config.linux.resources.cpu_shares = 512;
    config.linux.resources.cpu_quota = 50_000;
    config.linux.resources.cpu_period = 100_000;
    let (status, _) = world.run(&sandbox, &config);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    world.finish();
}

#[test]
fn exec_runs_inside_and_is_killed_in_time() {
    sandbox_or_skip!(world, sandbox);
    let id = world.start(&sandbox, &probe(&["polite", "pause"]));
    let exec = |commands: &[&str], timeout| {
        let command: Vec<String> =
            ["probe"].iter().chain(commands).map(|part| (*part).into()).collect();
        world.runtime().exec_sync(&id, &command, timeout)
    };
    let done = exec(&["echo", "in", "err", "no", "status", "exit", "5"], Duration::ZERO).unwrap();
    let out = String::from_utf8(done.stdout).unwrap();
    assert!(out.starts_with("in\n") && out.contains("Seccomp:\t2"), "{out}");
    assert!(out.contains("CapEff:\t00000000a80425fb"), "{out}");
    assert_eq!((done.stderr.as_slice(), done.exit_code), (b"no\n".as_slice(), 5));
    let late = exec(&["orphans", "pause"], Duration::from_millis(100));
    assert!(matches!(late, Err(Error::Timeout)), "{late:?}");
    let missing = world.runtime().exec_sync(&id, &["gone".into()], Duration::ZERO).unwrap_err();
    assert_eq!(missing.to_string(), r#"exec: "gone": executable file not found in $PATH"#);
    world.finish();
}

#[test]
fn a_terminal_is_one() {
    sandbox_or_skip!(world, sandbox);
    let config = ContainerConfig { tty: true, ..probe(&["tty"]) };
    assert_eq!(world.run(&sandbox, &config).1.trim_end(), "tty=1");
    world.finish();
}

#[test]
fn processes_are_shared_when_asked() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let mut config = world.sandbox_config();
    config.linux.security_context.namespace_options.pid = NamespaceMode::Pod;
    let sandbox = world.runtime().run_pod_sandbox(&config, NetworkNs::New).unwrap();
    let mut config = probe(&["pid", "kill", "1", "orphans"]);
    config.linux.security_context.namespace_options.pid = NamespaceMode::Pod;
    let (status, out) = world.run(&sandbox, &config);
    assert_eq!(status.exit_code, 0);
    assert!(!out.contains("pid=1\n"), "{out}");
    world.finish();
}

#[test]
fn limits_change_while_it_runs() {
    sandbox_or_skip!(world, sandbox);
    let mut config = probe(&["polite", "pause"]);
    config.linux.resources.memory_limit_in_bytes = 64 << 20;
    let id = world.start(&sandbox, &config);
    let change = LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    world.runtime().update_container_resources(&id, &change).unwrap();
    let hierarchies = Hierarchies::detect().unwrap();
    let (root, file) = match hierarchies.is_unified() {
        true => ("/sys/fs/cgroup", "memory.max"),
        false => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    };
    let text = fs::read_to_string(format!("{root}{}/{id}/{file}", world.group())).unwrap();
    assert_eq!(text.trim(), (32u64 << 20).to_string());
    world.finish();
}
