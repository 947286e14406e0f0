//! Checks that every hop of `docs/tour.md` still exists. Run as a test.

use std::fs;
use std::path::Path;

/// Hops that are gone: (file, function).
fn missing(root: &Path) -> Vec<String> {
    let tour = fs::read_to_string(root.join("docs/tour.md")).unwrap_or_default();
    let mut file = String::new();
    let mut missing = Vec::new();
    for word in tour.split('`').skip(1).step_by(2) {
        if word.ends_with(".rs") {
            word.clone_into(&mut file);
        } else if !word.contains([' ', '/', '.']) && !file.is_empty() {
            let text = fs::read_to_string(root.join(&file)).unwrap_or_default();
            if !text.contains(&format!("fn {word}(")) && !text.contains(&format!("fn {word}<")) {
                missing.push(format!("{file}: fn {word}"));
            }
        }
    }
    missing
}

#[test]
fn every_hop_of_the_tour_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root");
    let gone = missing(root);
    assert!(gone.is_empty(), "docs/tour.md names what is not there:\n{}", gone.join("\n"));
}
