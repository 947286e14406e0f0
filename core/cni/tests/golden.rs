//! Golden scripts: configurations, Pods and answers in, what is said to plugins out.
//!
//! A block is a line `VERB ARGUMENT` and lines up to an empty line; what comes of it are the lines
//! that open with `=> `. `KNARR_BLESS=1` rewrites them. `decode FILE` reads a configuration
//! and keeps it; `pod` makes what is wanted, `result` keeps a plugin's answer, `tell add|del` shows
//! what each plugin hears, `addresses`, `failure` and `first` show theirs.
#![allow(clippy::unwrap_used)]

use std::{env, fs};

use knarr_cni_protocol::{Attachment, List, Verb, Wanted, addresses, failure, first, result};
use knarr_typed::{Pod, Typed};
use serde_json::Value;

#[derive(Default)]
struct World {
    list: Option<List>,
    wanted: Wanted,
    result: Option<Value>,
}

impl World {
    fn run(&mut self, verb: &str, argument: &str, body: &str) -> Vec<String> {
        let yaml = || serde_saphyr::from_str::<Value>(body).unwrap();
        match verb {
            "decode" => match List::decode(argument, body.as_bytes()) {
                Ok(list) => {
                    let plugins = list.plugins.iter().map(|plugin| plugin.description());
                    let told = [format!("{} {}", list.name, list.version)];
                    let told = told.into_iter().chain(plugins).collect();
                    (self.list, self.result) = (Some(list), None);
                    told
                }
                Err(refused) => vec![refused.to_string()],
            },
            "pod" => {
                let pod = Pod::decode(&serde_json::to_vec(&yaml()).unwrap()).unwrap();
                match Wanted::of(&pod, "box", "/proc/7/ns/net") {
                    Ok(wanted) => {
                        self.wanted = wanted;
                        vec![serde_json::to_string(&self.wanted).unwrap()]
                    }
                    Err(refused) => vec![refused.to_string()],
                }
            }
            "result" => match result(&self.list.as_ref().unwrap().version, body.as_bytes()) {
                Ok(result) => {
                    self.result = Some(result.clone());
                    let given = addresses(&result, "eth0");
                    vec![result.to_string(), format!("{given:?}")]
                }
                Err(refused) => vec![refused.to_string()],
            },
            "tell" => self.tell(if argument == "add" { Verb::Add } else { Verb::Del }),
            "failure" => {
                let (out, err) = body.split_once("---").unwrap();
                vec![failure(out.trim().as_bytes(), err.trim().as_bytes(), "exit status 1")]
            }
            "first" => {
                let names = body.split_whitespace().map(str::to_owned).collect();
                vec![format!("{:?}", first(names))]
            }
            other => panic!("unknown verb {other:?}"),
        }
    }

    fn tell(&self, verb: Verb) -> Vec<String> {
        let list = self.list.clone().unwrap();
        let doing = Attachment {
            list,
            wanted: self.wanted.clone(),
            bin_dirs: vec!["/a".to_owned(), "/b".to_owned()],
            netns_inode: 1,
            result: self.result.clone(),
        };
        let environment = doing.wanted.environment(verb, &doing.bin_dirs).into_iter();
        let environment = environment.map(|(key, value)| format!("{key}={value}"));
        let input = |plugin| String::from_utf8(doing.input(plugin, verb)).unwrap();
        environment.chain(doing.list.plugins.iter().map(input)).collect()
    }
}

#[test]
fn what_is_said_and_understood() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    let script = fs::read_to_string(path).unwrap();
    let mut world = World::default();
    let mut blocks = Vec::new();
    for block in script.trim_end().split("\n\n") {
        let given: Vec<&str> = block.lines().filter(|line| !line.starts_with("=> ")).collect();
        let head = given.iter().find(|line| !line.starts_with('#')).unwrap();
        let body = given.iter().skip_while(|line| *line != head).skip(1).copied();
        let body = body.collect::<Vec<_>>().join("\n");
        let (verb, argument) = head.split_once(' ').unwrap_or((head, ""));
        let told = world.run(verb, argument, &body);
        let told = told.iter().map(|line| format!("=> {line}"));
        let lines: Vec<String> = given.iter().map(|&line| line.to_owned()).chain(told).collect();
        blocks.push(lines.join("\n"));
    }
    let now = blocks.join("\n\n") + "\n";
    if env::var_os("KNARR_BLESS").is_some() {
        fs::write(path, &now).unwrap();
    }
    assert_eq!(fs::read_to_string(path).unwrap(), now);
}
