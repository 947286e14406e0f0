//! Label and field selectors, as they stand in queries and in objects.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use serde_json::Value;

use crate::names;

/// A selector that does not parse; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectorError(pub String);

impl core::error::Error for SelectorError {}

impl fmt::Display for SelectorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        let bound = || self.values.first().and_then(|v| v.parse::<i64>().ok());
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match self.operator {
            Operator::In => value.is_some_and(listed),
            Operator::NotIn => !value.is_some_and(listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => number().zip(bound()).is_some_and(|(n, b)| n > b),
            Operator::LessThan => number().zip(bound()).is_some_and(|(n, b)| n < b),
        }
    }
}

/// A conjunction of requirements on labels; the empty one matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

impl LabelSelector {
    /// Parses the query form: `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// When the text is no selector, or a key or value breaks the rules for labels.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        for part in split_requirements(text) {
            requirements.push(parse_requirement(part)?);
        }
        Ok(Self(requirements))
    }

    /// The object form (metav1.LabelSelector): `matchLabels` and `matchExpressions`. An absent
    /// selector (`null`) matches nothing and gives `None`; an empty one matches everything.
    pub fn from_object(selector: &Value) -> Option<Self> {
        let selector = selector.as_object()?;
        let mut requirements = Vec::new();
        for (key, value) in
            selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten()
        {
            requirements.push(Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: [value.as_str()?.to_owned()].into(),
            });
        }
        let expressions = selector.get("matchExpressions").and_then(Value::as_array);
        for expression in expressions.into_iter().flatten() {
            requirements.push(expression_of(expression)?);
        }
        Some(Self(requirements))
    }

    /// A selector that wants exactly these labels (the map form of Services and old controllers).
    pub fn from_map(labels: &Value) -> Self {
        let pairs = labels.as_object().into_iter().flatten();
        let wanted = pairs.filter_map(|(key, value)| {
            let values = [value.as_str()?.to_owned()].into();
            Some(Requirement { key: key.clone(), operator: Operator::In, values })
        });
        Self(wanted.collect())
    }

    /// Whether the selector has no requirement.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object with these labels is selected; `labels` looks one up.
    pub fn matches_with<'a>(&self, labels: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels(&requirement.key)))
    }

    /// Whether an object with these labels (a JSON object, or null) is selected.
    pub fn matches(&self, labels: &Value) -> bool {
        self.matches_with(|key| labels.get(key).and_then(Value::as_str))
    }

    /// Whether a plain map of labels is selected.
    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }
}

/// One entry of `matchExpressions` (also of node selectors, which add Gt and Lt).
fn expression_of(expression: &Value) -> Option<Requirement> {
    let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
    let operator = match expression.get("operator")?.as_str()? {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => Operator::GreaterThan,
        "Lt" => Operator::LessThan,
        _ => return None,
    };
    Some(Requirement {
        key: expression.get("key")?.as_str()?.to_owned(),
        operator,
        values: values.filter_map(Value::as_str).map(str::to_owned).collect(),
    })
}

/// Splits at commas that are not inside parentheses.
fn split_requirements(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0_i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn parse_requirement(part: &str) -> Result<Requirement, SelectorError> {
    let bad = |what: &str| SelectorError(format!("unable to parse requirement: {what}"));
    let (key, operator, values) = if let Some(key) = part.strip_prefix('!') {
        (key, Operator::DoesNotExist, Vec::new())
    } else if let Some((key, value)) = part.split_once("!=") {
        (key, Operator::NotIn, [value.trim().to_owned()].into())
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Operator::In, [value.trim().to_owned()].into())
    } else if let Some((key, value)) = part.split_once('>') {
        (key, Operator::GreaterThan, [value.trim().to_owned()].into())
    } else if let Some((key, value)) = part.split_once('<') {
        (key, Operator::LessThan, [value.trim().to_owned()].into())
    } else if let Some((head, values)) = part.split_once('(') {
        let values =
            values.strip_suffix(')').ok_or_else(|| bad("found '', expected: ',', or ')'"))?;
        let (key, word) = head.trim().rsplit_once(char::is_whitespace).unwrap_or((head, ""));
        let operator = match word {
            "in" => Operator::In,
            "notin" => Operator::NotIn,
            other => return Err(bad(&format!("found '{other}', expected: in, notin"))),
        };
        (key, operator, values.split(',').map(|value| value.trim().to_owned()).collect())
    } else {
        (part, Operator::Exists, Vec::new())
    };
    let key = key.trim().to_string();
    names::qualified_name(&key)
        .map_err(|why| bad(&format!("<nil>: Invalid value: {key:?}: {why}")))?;
    if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
        let number = values.iter().all(|value| value.parse::<i64>().is_ok());
        let why = "for 'Gt', 'Lt' operators, the value must be an integer";
        return if number { Ok(Requirement { key, operator, values }) } else { Err(bad(why)) };
    }
    for value in &values {
        names::label_value(value)
            .map_err(|why| bad(&format!("values[0][{key}]: Invalid value: {value:?}: {why}")))?;
    }
    Ok(Requirement { key, operator, values })
}

/// A conjunction of `path=value` and `path!=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: String,
    wanted: bool,
    value: String,
}

impl FieldSelector {
    /// Parses the query form.
    ///
    /// # Errors
    /// When a term has no operator.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (path, value, wanted) = if let Some((path, value)) = part.split_once("!=") {
                (path, value, false)
            } else if let Some((path, value)) =
                part.split_once("==").or_else(|| part.split_once('='))
            {
                (path, value, true)
            } else {
                let text = format!("invalid selector: '{text}'; can't understand '{part}'");
                return Err(SelectorError(text));
            };
            terms.push(FieldTerm { path: path.to_owned(), wanted, value: value.to_owned() });
        }
        Ok(Self(terms))
    }

    /// The paths it names.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|term| term.path.as_str())
    }

    /// The value that `path` must have, when there is exactly one.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|term| term.wanted && term.path == path).map(|term| term.value.as_str())
    }

    /// Whether the selector has no term.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object is selected; absent fields compare as the empty string.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|term| (field_text(object, &term.path) == term.value) == term.wanted)
    }
}

/// The value at a dotted path as text; absent is empty, false for booleans that are absent.
fn field_text(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |at, step| at.get(step));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(source)) if path == "source" => {
            source.get("component").and_then(Value::as_str).unwrap_or_default().to_owned()
        }
        Some(Value::Null) | None => match path {
            "spec.unschedulable" | "spec.hostNetwork" => "false".to_owned(),
            "status.replicas" | "status.successful" => "0".to_owned(),
            _ => String::new(),
        },
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn label_selectors_select() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app!=web", false),
            ("app in (web, api)", true),
            ("app notin (web)", false),
            ("missing notin (x)", true),
            ("app", true),
            ("!app", false),
            ("!missing", true),
            ("n>4", true),
            ("n<5", false),
            ("app in (web),tier=back", false),
        ];
        for (text, expected) in cases {
            let selector = LabelSelector::parse(text).expect(text);
            assert_eq!(selector.matches(&labels), expected, "{text}");
        }
        for bad in ["a=b c", "app in web", "-x", "a in (", "n>x"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn object_selectors_select() {
        let selector = json!({"matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "Exists"}]});
        let selector = LabelSelector::from_object(&selector).expect("a selector");
        assert!(selector.matches(&json!({"app": "web", "tier": "x"})));
        assert!(!selector.matches(&json!({"app": "web"})));
        assert_eq!(LabelSelector::from_object(&Value::Null), None);
    }

    #[test]
    fn field_selectors_select() {
        let pod = json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Running"}});
        for (text, expected) in [
            ("spec.nodeName=n1", true),
            ("status.phase!=Running", false),
            ("spec.hostNetwork=false", true),
            ("status.podIP=", true),
            ("", true),
        ] {
            assert_eq!(FieldSelector::parse(text).expect(text).matches(&pod), expected, "{text}");
        }
        assert!(FieldSelector::parse("foo").is_err());
    }
}
