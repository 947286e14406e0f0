//! A rolling update under load: a client that never retries loses nothing.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use knarr_e2e::{Machine, alone};

mod manifests;
use manifests::{READY_3, nginx};

const CLIENTS: usize = 8;
const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";

fn ask(address: &str, path: &str) -> Result<(), String> {
    let told = |what: &str, error: std::io::Error| format!("{what}: {error}");
    let to = address.parse().unwrap();
    let patience = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&to, patience).map_err(|e| told("connect", e))?;
    stream.set_read_timeout(Some(patience)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").map_err(|error| told("write", error))?;
    let mut page = String::new();
    stream.read_to_string(&mut page).map_err(|error| told("read", error))?;
    if page.contains(" on ") { Ok(()) } else { Err(format!("an answer of {page:?}")) }
}

/// Clients that ask at their times, whatever happened before.
struct Load {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    lost: Arc<Mutex<Vec<String>>>,
    clients: Vec<thread::JoinHandle<()>>,
}

impl Load {
    /// Asks so often a second, all clients together.
    fn new(address: &str, path: &'static str, rate: usize) -> Self {
        let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let lost = Arc::<Mutex<Vec<String>>>::default();
        let every = Duration::from_micros((1_000_000 * CLIENTS / rate) as u64);
        let client = |_| {
            let (stop, asked, lost) = (stop.clone(), asked.clone(), lost.clone());
            let address = address.to_owned();
            thread::spawn(move || {
                let mut next = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if let Err(why) = ask(&address, path) {
                        lost.lock().unwrap().push(why);
                    }
                    next += every;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { stop, asked, lost, clients }
    }

    /// How many requests there were, and what was lost of them.
    fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().for_each(|client| client.join().unwrap());
        (self.asked.load(Ordering::Relaxed), self.lost.lock().unwrap().clone())
    }
}

fn roll(machine: &Machine, what: &str) {
    machine.kubectl(what);
    machine.kubectl("rollout status deployment/web --timeout=60s");
}

/// Rolls the Deployment `web` behind a Service three times while clients ask.
fn roll_under_load(machine: &Machine, path: &'static str, rate: usize) {
    machine.apply(SERVICE);
    machine.wait("deployment/web", READY_3);
    let address = format!("{}:80", machine.value("service/web", ".spec.clusterIP"));
    let began = Instant::now();
    while ask(&address, path).is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "the Service never answered");
    }
    let load = Load::new(&address, path, rate);
    roll(machine, "rollout restart deployment/web");
    roll(machine, "set env deployment/web COLOUR=red");
    roll(machine, "rollout undo deployment/web");
    // Those of the last rollout that are on their way out are part of it.
    while machine.values("pods -l app=web", ".items[*].metadata.name").len() > 3 {
        assert!(began.elapsed() < Duration::from_secs(120), "old Pods never went");
    }
    let (asked, lost) = load.end();
    assert!(asked > rate, "{asked} requests are no load");
    assert!(lost.is_empty(), "{} of {asked} lost: {lost:?}", lost.len());
}

#[test]
fn a_rolling_update_under_load_loses_no_request() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("nginx");
        // Without a probe a Pod counts as ready before its program listens.
        let ready = "ports:\n        - containerPort: 80\n        readinessProbe: \
                     {tcpSocket: {port: 80}, periodSeconds: 1}\n";
        let ports = "ports:\n        - containerPort: 80\n";
        machine.apply(&nginx(3).replace(ports, ready));
        roll_under_load(machine, "/", 200);
    });
}

/// A server that dies at the signal with all it was answering: nobody may be waiting then.
const SLOW: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data:
  page: |
    #!/bin/sh
    sleep 0.1
    printf 'Content-Type: text/plain\\r\\n\\r\\nslow on %s' $(hostname)
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: busybox:1
        imagePullPolicy: Never
        command: [sh, -c, 'trap \"kill -9 -1\" TERM; httpd -f -p 80 -h /www & wait']
        readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}
        volumeMounts: [{name: page, mountPath: /www/cgi-bin}]
      volumes: [{name: page, configMap: {name: page, defaultMode: 0755}}]
";

#[test]
fn what_is_being_answered_when_a_pod_goes_is_answered() {
    alone(|machine| {
        let _up = machine.up();
        machine.import("busybox");
        machine.apply(SLOW);
        roll_under_load(machine, "/cgi-bin/page", 40);
    });
}
