//! Plugins are programs: these are shell scripts that write down what they were told.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use knarr_cni::{Cni, Config, Wanted};
use serde_json::{Value, json};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path().join("net.d")).unwrap();
        fs::create_dir(place.path().join("bin")).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn cni(&self, seconds: u64) -> Cni {
        let dirs = ["missing", "bin"].map(|dir| self.path().join(dir));
        Cni::open(Config {
            conf_dir: self.path().join("net.d"),
            bin_dirs: dirs.into(),
            state_dir: self.path().join("state"),
            patience: Duration::from_secs(seconds),
        })
        .unwrap()
    }

    fn configure(&self, file: &str, config: &Value) {
        fs::write(self.path().join("net.d").join(file), config.to_string()).unwrap();
    }

    /// A plugin that logs its call and goes on with `script`.
    fn plugin(&self, name: &str, script: &str) {
        let (dir, path) = (self.path().display(), self.path().join("bin").join(name));
        let text = format!(
            "#!/bin/sh\nenv | grep -v -e ^_= -e ^PWD= -e ^SHLVL= -e ^OLDPWD= | sort >{dir}/env\n\
             input=$(cat)\necho \"$CNI_COMMAND {name} $input\" >>{dir}/log\n{script}\n"
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The calls since the last look: command, plugin, prevResult's marks.
    fn calls(&self) -> Vec<String> {
        let path = self.path().join("log");
        let log = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, "").unwrap();
        log.lines()
            .map(|line| {
                let words: Vec<&str> = line.splitn(3, ' ').collect();
                let input: Value = serde_json::from_str(words[2]).unwrap();
                assert_eq!((&input["name"], &input["type"]), (&json!("net"), &json!(words[1])));
                let previous = input["prevResult"]["mark"].as_str().unwrap_or("nothing");
                format!("{} {} after {previous}", words[0], words[1])
            })
            .collect()
    }

    fn chain(&self, version: &str) {
        let plugins = json!([{"type": "first"}, {"type": "second"}]);
        let list = json!({"cniVersion": version, "name": "net", "plugins": plugins});
        self.configure("10-net.conflist", &list);
    }
}

const OK: &str = r#"echo '{"cniVersion": "1.0.0", "mark": "'${0##*/}'",
 "ips": [{"address": "10.9.0.2/24"}, {"address": "fd09::2/64"}]}'"#;

fn wanted() -> Wanted {
    Wanted {
        sandbox: "box".into(),
        netns: "/proc/self/ns/net".into(),
        interface: "eth0".into(),
        namespace: "ns".into(),
        name: "pod".into(),
        uid: "u-1".into(),
        ..Wanted::default()
    }
}

async fn connect(cni: &Cni) -> Result<String, String> {
    let list = cni.network().map_err(|error| error.to_string())?.expect("a configuration");
    let given = cni.connect(list, wanted()).await.map_err(|error| error.to_string())?;
    Ok(given.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
}

async fn undo(cni: &Cni) -> Result<(), String> {
    cni.disconnect("box").await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn plugins_are_called_in_order_and_undone_backwards_by_whoever_comes_next() {
    let place = Place::new();
    place.chain("1.0.0");
    place.plugin("first", OK);
    place.plugin("second", OK);
    assert_eq!(connect(&place.cni(60)).await.unwrap(), "10.9.0.2 fd09::2");
    assert_eq!(place.calls(), ["ADD first after nothing", "ADD second after first"]);

    // Another agent, and another configuration: what was done is undone by what it was done with.
    fs::remove_file(place.path().join("net.d/10-net.conflist")).unwrap();
    let cni = place.cni(60);
    assert_eq!(cni.addresses("box").len(), 2);
    assert!(cni.network().unwrap().is_none());
    undo(&cni).await.unwrap();
    assert_eq!(place.calls(), ["DEL second after second", "DEL first after second"]);
    undo(&cni).await.unwrap();
    assert_eq!((place.calls(), cni.sandboxes()), (vec![], vec![]));
    assert_eq!(fs::read_dir(place.path().join("state")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_failed_plugin_ends_the_chain_and_all_are_undone() {
    let place = Place::new();
    place.chain("0.4.0");
    place.plugin("first", OK);
    place.plugin("second", r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":7,"msg":"m"}'; exit 1; }"#);
    let cni = place.cni(60);
    let why = connect(&cni).await.unwrap_err();
    assert_eq!(why, r#"plugin type="second" failed (add): m"#);
    assert_eq!(cni.unfinished(), ["box"]);
    place.calls();
    undo(&place.cni(60)).await.unwrap();
    assert_eq!(place.calls(), ["DEL second after nothing", "DEL first after nothing"]);

    // One that cannot be undone stays known.
    place.plugin("first", "[ $CNI_COMMAND = ADD ] && echo no >&2; exit 3");
    let why = connect(&cni).await.unwrap_err();
    assert_eq!(why, r#"plugin type="first" failed (add): netplugin failed: "no\n""#);
    let why = undo(&cni).await.unwrap_err();
    let said = "netplugin failed with no error message: exit status: 3";
    assert_eq!(why, format!(r#"plugin type="first" failed (delete): {said}"#));
    assert_eq!(cni.sandboxes(), ["box"]);
    fs::remove_file(place.path().join("bin/first")).unwrap();
    let why = undo(&cni).await.unwrap_err();
    assert!(why.contains(r#"failed (delete): failed to find plugin "first" in path ["#), "{why}");
}

#[tokio::test]
async fn a_plugin_has_an_environment_of_its_own() {
    let place = Place::new();
    place.chain("0.3.1");
    place.plugin("first", OK);
    place.plugin("second", OK);
    let cni = place.cni(60);
    connect(&cni).await.unwrap();
    let bin = place.path().display().to_string();
    let told = fs::read_to_string(place.path().join("env")).unwrap().replace(&bin, "DIR");
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod;\
                K8S_POD_INFRA_CONTAINER_ID=box;K8S_POD_UID=u-1";
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let want = format!(
        "CNI_ARGS={args}\nCNI_COMMAND=ADD\nCNI_CONTAINERID=box\nCNI_IFNAME=eth0\n\
         CNI_NETNS=/proc/self/ns/net\nCNI_PATH=DIR/missing:DIR/bin\nPATH={path}\n"
    );
    assert_eq!(told, want);
    place.calls();
    // Before 0.4.0 nobody is told the result; a path that names another namespace is not given.
    let record = place.path().join("state/box.json");
    let text = fs::read_to_string(&record).unwrap();
    let mut known: Value = serde_json::from_str(&text).unwrap();
    known["netns_inode"] = 1.into();
    fs::write(&record, known.to_string()).unwrap();
    undo(&place.cni(60)).await.unwrap();
    assert_eq!(place.calls(), ["DEL second after nothing", "DEL first after nothing"]);
    let told = fs::read_to_string(place.path().join("env")).unwrap();
    assert!(told.contains("\nCNI_NETNS=\n"), "{told}");
}

#[tokio::test]
async fn a_plugin_that_does_not_end_or_says_too_much_is_killed_with_all_it_started() {
    let place = Place::new();
    let pid = place.path().join("pid");
    place.chain("1.0.0");
    place.plugin("first", &format!("sleep 1000 & echo $! >{}; wait", pid.display()));
    let began = Instant::now();
    let why = connect(&place.cni(1)).await.unwrap_err();
    assert_eq!(why, r#"plugin type="first" failed (add): it did not end within 1 s"#);
    assert!(began.elapsed() < Duration::from_secs(30));
    let pid = fs::read_to_string(pid).unwrap();
    let stat = format!("/proc/{}/stat", pid.trim());
    let lives = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
    let end = Instant::now() + Duration::from_secs(10);
    while lives() {
        assert!(Instant::now() < end, "what the plugin started lives on");
        std::thread::yield_now();
    }

    place.plugin("first", "yes");
    let why = connect(&place.cni(60)).await.unwrap_err();
    assert_eq!(why, r#"plugin type="first" failed (add): it says more than 1048576 bytes"#);
}

#[tokio::test]
async fn what_is_no_result_is_no_connection() {
    let place = Place::new();
    place.chain("1.0.0");
    place.plugin("second", "echo '{}'");
    place.plugin("first", "true");
    let why = connect(&place.cni(60)).await.unwrap_err();
    assert!(why.starts_with(r#"plugin type="first" failed (add): the plugin's result"#), "{why}");
    place.plugin("first", OK);
    let why = connect(&place.cni(60)).await.unwrap_err();
    assert_eq!(why, r#"the network "net" gave the Pod no address"#);
    place.configure("00-first.conf", &json!({"cniVersion": "9", "name": "net", "type": "first"}));
    let why = connect(&place.cni(60)).await.unwrap_err();
    assert!(why.starts_with("failed to load CNI config list file /"), "{why}");
    assert!(why.contains("00-first.conf: cniVersion \"9\" is not one of"), "{why}");
}
