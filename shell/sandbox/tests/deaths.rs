//! Agents and shims that die: what runs goes on or ends as promised, and nothing is left behind.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::fs;
use std::time::Duration;

use knarr_oci::cri::*;
use knarr_oci::spec::NetworkNs;
use knarr_sandbox::{Error, Event, cleanup};
use support::{World, can_run, probe};

#[test]
fn a_new_agent_adopts_what_runs_and_hears_what_ended() {
    if !can_run() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.sandbox();
    let lasting = world.start(&sandbox, &probe(&["polite", "echo", "up", "pause"]));
    let fleeting = world.start(&sandbox, &probe(&["polite", "pause"]));
    let waiting = world.create(&sandbox, &probe(&["exit", "4"]));
    let pid = world.runtime().container_status(&fleeting).unwrap().pid;
    let handle = pidfd(pid);
    world.close();
    // Its end happens while no agent is there; the shim has written it down when it has reaped it.
    rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL).unwrap();
    wait_for_file(&world, &sandbox, &fleeting, "exit.json");
    world.open();
    let status = world.exit_of(&fleeting);
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    assert_eq!(world.runtime().container_status(&lasting).unwrap().state, ContainerState::Running);
    let state = world.runtime().pod_sandbox_status(&sandbox).unwrap().state;
    assert_eq!(state, PodSandboxState::Ready);
    world.runtime().start_container(&waiting).unwrap();
    assert_eq!(world.exit_of(&waiting).exit_code, 4);
    let done = world.runtime().exec_sync(
        &lasting,
        &["probe".into(), "echo".into(), "still".into()],
        Duration::ZERO,
    );
    assert_eq!(done.unwrap().stdout, b"still\n");
    world.finish();
}

fn pidfd(pid: i32) -> std::os::fd::OwnedFd {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap()
}

fn wait_for_file(world: &World, sandbox: &str, container: &str, name: &str) {
    use rustix::fs::inotify;
    let dir = world.state_dir().join("sandboxes").join(sandbox).join("containers").join(container);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, &dir, inotify::WatchFlags::MOVED_TO).unwrap();
    while !dir.join(name).exists() {
        rustix::io::read(&watch, &mut [0u8; 4096][..]).unwrap();
    }
}

#[test]
fn a_killed_shim_takes_its_containers_along() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let sandbox = world.sandbox();
    let mut shared = probe(&["deaf", "orphans", "pause"]);
    shared.linux.security_context.namespace_options.pid = NamespaceMode::Node;
    let one = world.start(&sandbox, &probe(&["deaf", "orphans", "pause"]));
    let two = world.start(&sandbox, &shared);
    let shim = pidfd(world.shim_of(&sandbox));
    rustix::process::pidfd_send_signal(&shim, rustix::process::Signal::KILL).unwrap();
    let mut ended = Vec::new();
    loop {
        match world.event() {
            Event::ContainerExited(status) => {
                assert_eq!(
                    (status.exit_code, status.reason.as_str()),
                    (137, "ContainerStatusUnknown")
                );
                ended.push(status.id);
            }
            Event::SandboxNotReady(id) => {
                assert_eq!(id, sandbox);
                break;
            }
        }
    }
    ended.sort();
    let mut expected = vec![one, two];
    expected.sort();
    assert_eq!(ended, expected);
    assert_eq!(world.processes(), Vec::<String>::new());
    let again = world.runtime().create_container(knarr_sandbox::CreateContainer {
        sandbox_id: &sandbox,
        config: &probe(&["pid"]),
        image: &Default::default(),
        rootfs: Default::default(),
    });
    assert!(matches!(again, Err(Error::Invalid(_))));
    world.finish();
}

/// Waits for the end of a process, with patience but not for ever.
fn has_ended(process: &std::os::fd::OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&patience)).unwrap() == 1
}

#[test]
fn a_shim_that_died_unseen_is_found_dead() {
    if !can_run() {
        return;
    }
    let mut world = World::new();
    let sandbox = world.sandbox();
    let mut config = probe(&["pause"]);
    config.linux.security_context.run_as_user = Some(33);
    let id = world.start(&sandbox, &config);
    let container = pidfd(world.runtime().container_status(&id).unwrap().pid);
    let shim = pidfd(world.shim_of(&sandbox));
    world.close();
    rustix::process::pidfd_send_signal(&shim, rustix::process::Signal::KILL).unwrap();
    assert!(has_ended(&shim) && has_ended(&container), "the container outlives its shim");
    world.open();
    assert_eq!(world.exit_of(&id).exit_code, 137);
    let state = world.runtime().pod_sandbox_status(&sandbox).unwrap().state;
    assert_eq!(state, PodSandboxState::NotReady);
    world.finish();
}

#[test]
fn cleanup_removes_a_whole_instance() {
    if !can_run() {
        return;
    }
    let mut world = World::new();
    for _ in 0..2 {
        let sandbox = world.sandbox();
        world.start(&sandbox, &probe(&["deaf", "orphans", "pause"]));
    }
    // As a crash in the middle of a start leaves them: a folder alone, and a record alone.
    let sandboxes = world.state_dir().join("sandboxes");
    fs::create_dir_all(sandboxes.join("unborn")).unwrap();
    world.close();
    let name = fs::read_dir(&sandboxes)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .find(|p| p.join("sandbox.json").exists());
    fs::create_dir_all(sandboxes.join("halfway")).unwrap();
    fs::copy(name.unwrap().join("sandbox.json"), sandboxes.join("halfway/sandbox.json")).unwrap();
    cleanup(&world.state_dir()).unwrap();
    world.assert_clean();
    assert!(!world.state_dir().exists());
}

#[test]
fn a_sandbox_that_cannot_be_made_leaves_nothing() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let path = NetworkNs::Path("/nowhere/netns".into());
    let error = world.runtime().run_pod_sandbox(&world.sandbox_config(), path).unwrap_err();
    assert!(error.to_string().contains("/nowhere/netns"), "{error}");
    world.finish();
}

#[test]
fn a_group_outside_the_pods_is_refused() {
    if !can_run() {
        return;
    }
    let world = World::new();
    for group in ["", "/", "kubepods", "/a/../b"] {
        let mut config = world.sandbox_config();
        config.linux.cgroup_parent = group.into();
        let refused = world.runtime().run_pod_sandbox(&config, NetworkNs::New);
        assert!(matches!(refused, Err(Error::Invalid(_))), "{group}");
    }
    world.finish();
}
