//! Golden scripts: what each controller does about what.

#[path = "../../reconcile/tests/sim/mod.rs"]
mod sim;

use knarr_reconcile::Controller;

fn named(name: &str) -> Vec<Controller> {
    let mut all = knarr_controllers::all(&knarr_reconcile::Config {
        kinds: sim::kinds(),
        ..Default::default()
    });
    all.retain(|row| row.name == name || name == "all");
    assert!(!all.is_empty(), "no controller {name}");
    all
}

#[test]
fn scripts() {
    sim::play_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"), named);
}
