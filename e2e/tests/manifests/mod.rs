//! What the tests apply.
#![allow(dead_code, reason = "each test file uses some of it")]

/// Three replicas are ready.
pub const READY_3: &str = "jsonpath={.status.readyReplicas}=3";

/// A Deployment `web` of nginx.
pub fn nginx(replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {{app: web}}
spec:
  replicas: {replicas}
  selector:
    matchLabels: {{app: web}}
  template:
    metadata:
      labels: {{app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: nginx
        image: nginx:1
        imagePullPolicy: Never
        ports:
        - containerPort: 80
"
    )
}

/// A Pod that runs one line of shell.
pub fn busybox(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:1
    imagePullPolicy: Never
    command: [sh, -c, \"{script}\"]
"
    )
}
