//! What a rolling update promises at every single write, over many sizes and bounds.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../reconcile/tests/sim/mod.rs"]
mod sim;

use knarr_api::{ObjectKey, Resource};
use knarr_reconcile::Config;
use serde_json::{Value, json};
use sim::Sim;

const PODS: Resource = Resource::new("v1", "pods");

fn deployment(replicas: i64, surge: &Value, unavailable: &Value, image: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "a"},
        "spec": {"replicas": replicas, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]}}}})
}

fn cluster() -> Sim {
    let config = Config { kinds: sim::kinds(), ..Config::default() };
    let mut rows = knarr_controllers::all(&config);
    rows.retain(|row| ["deployment-controller", "replicaset-controller"].contains(&row.name));
    Sim::new(rows)
}

/// Pods that count: (all that are not on their way out, those that serve).
fn pods(sim: &Sim) -> (i64, i64) {
    let alive: Vec<Value> = sim.all("pods");
    let alive = alive.iter().filter(|pod| pod["metadata"].get("deletionTimestamp").is_none());
    let serving = alive.clone().filter(|pod| pod["status"]["phase"] == "Running").count();
    (alive.count() as i64, serving as i64)
}

/// Rolls from one image to the next while one Pod at a time gets ready; gives the fewest that ever
/// served and the most that ever were.
fn roll(sim: &mut Sim, next: Value) -> (i64, i64) {
    let (mut fewest, mut most) = (i64::MAX, 0);
    sim.put(next);
    for _ in 0..400 {
        while sim.step().is_some() {
            let (all, serving) = pods(sim);
            (fewest, most) = (fewest.min(serving), most.max(all));
        }
        let before = sim.revision;
        sim.nodes_work(1);
        if sim.revision == before {
            return (fewest, most);
        }
    }
    panic!("it never ends:\n{}", sim.log);
}

#[test]
fn a_rolling_update_keeps_within_its_bounds() {
    let cases = [
        (1, json!("25%"), json!("25%"), 1, 0),
        (4, json!(1), json!(0), 1, 0),
        (4, json!(0), json!(1), 0, 1),
        (10, json!("25%"), json!("25%"), 3, 2),
        (10, json!(3), json!(2), 3, 2),
        (3, json!("0%"), json!("1%"), 0, 1),
        (5, json!("100%"), json!(0), 5, 0),
    ];
    for (replicas, surge, unavailable, may_surge, may_lack) in cases {
        let mut sim = cluster();
        sim.put(deployment(replicas, &surge, &unavailable, "1"));
        sim.settle();
        sim.nodes_work(usize::MAX);
        sim.settle();
        assert_eq!(pods(&sim), (replicas, replicas));
        let (fewest, most) = roll(&mut sim, deployment(replicas, &surge, &unavailable, "2"));
        assert!(fewest >= replicas - may_lack, "{replicas} {surge} {unavailable}: {fewest} served");
        assert!(
            most <= replicas + may_surge,
            "{replicas} {surge} {unavailable}: {most} were there"
        );
        assert_eq!(pods(&sim), (replicas, replicas));
        let images = sim.all("pods");
        assert!(images.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "2"));
        let key = ObjectKey::new("a", "web");
        let live = sim.get(Resource::new("apps/v1", "deployments"), &key).unwrap();
        assert_eq!(live["status"]["updatedReplicas"], replicas);
        let conditions = live["status"]["conditions"].as_array().unwrap();
        assert!(conditions.iter().any(|c| c["reason"] == "NewReplicaSetAvailable"));
    }
}

/// A template that changes back and forth before anything is done ends with what was asked last.
#[test]
fn a_roll_over_ends_with_the_last_template() {
    let mut sim = cluster();
    for image in ["1", "2", "3", "2"] {
        sim.put(deployment(6, &json!(2), &json!(1), image));
        for _ in 0..5 {
            sim.step();
        }
        sim.nodes_work(2);
    }
    for _ in 0..60 {
        sim.settle();
        sim.nodes_work(1);
    }
    sim.settle();
    assert_eq!(pods(&sim), (6, 6));
    assert!(sim.all("pods").iter().all(|pod| pod["spec"]["containers"][0]["image"] == "2"));
}

/// Recreate never runs old and new Pods at the same time.
#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut sim = cluster();
    let with = |image: &str| {
        let mut tree = deployment(3, &json!(0), &json!(0), image);
        tree["spec"]["strategy"] = json!({"type": "Recreate"});
        tree
    };
    sim.put(with("1"));
    sim.settle();
    sim.nodes_work(9);
    sim.put(with("2"));
    sim.settle();
    let old = sim.all("pods");
    assert!(old.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "1"));
    assert_eq!(pods(&sim), (0, 0));
    for pod in old {
        assert_eq!(sim.all("replicasets").len(), 1);
        sim.remove(PODS, &sim::key_of(&pod));
        sim.settle();
    }
    sim.nodes_work(9);
    sim.settle();
    assert_eq!(pods(&sim), (3, 3));
}
