//! Golden scripts: which Pod goes where, and what is said of one that goes nowhere.

#[path = "../../reconcile/tests/sim/mod.rs"]
mod sim;

#[test]
fn scripts() {
    sim::play_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts"), |_| {
        vec![knarr_scheduler::controller()]
    });
}
