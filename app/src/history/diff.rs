//! What changed between two trees, a line a field.

use serde_json::Value;

/// The fields that differ: `path: old -> new`, with nothing where there was or is none.
pub(super) fn fields(old: &Value, new: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", Some(old), Some(new), &mut lines);
    lines
}

fn compare(path: &str, old: Option<&Value>, new: Option<&Value>, lines: &mut Vec<String>) {
    match (old, new) {
        (old, new) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                compare(&step(path, key), old.get(key), new.get(key), lines);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for at in 0..old.len().max(new.len()) {
                compare(&format!("{path}[{at}]"), old.get(at), new.get(at), lines);
            }
        }
        (old, new) => {
            let shown =
                |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
            lines.push(format!("{path}: {} -> {}", shown(old), shown(new)));
        }
    }
}

/// A key with dots stands in brackets.
fn step(path: &str, key: &str) -> String {
    match (path, key.contains(['.', '/', '['])) {
        (_, true) => format!("{path}[{key:?}]"),
        ("", false) => key.to_owned(),
        (path, false) => format!("{path}.{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_says_what_a_field_was_and_is() {
        let old = json!({"a": 1, "b": {"c": [1, 2], "x.y": "z"}, "same": {"d": null}});
        let new = json!({"a": "1", "b": {"c": [1], "e": {}}, "same": {"d": null}});
        let expected = [
            "a: 1 -> \"1\"",
            "b.c[1]: 2 -> nothing",
            "b[\"x.y\"]: \"z\" -> nothing",
            "b.e: nothing -> {}",
        ];
        assert_eq!(fields(&old, &new), expected);
        assert!(fields(&new, &new).is_empty());
    }
}
