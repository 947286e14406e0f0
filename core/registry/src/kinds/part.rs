//! A place in an object: its value and its path, so that a rule says in one word what is wrong.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use knarr_api::{Cause, names};
use serde_json::Value;

static NOTHING: Value = Value::Null;

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct Part<'v> {
    pub(super) value: &'v Value,
    path: String,
}

impl<'v> Part<'v> {
    /// The whole object.
    pub(super) fn root(value: &'v Value) -> Self {
        Self { value, path: String::new() }
    }

    /// A field; null where there is none.
    pub(super) fn get(&self, name: &str) -> Part<'v> {
        let dot = if self.path.is_empty() { "" } else { "." };
        let value = self.value.get(name).unwrap_or(&NOTHING);
        Part { value, path: format!("{}{dot}{name}", self.path) }
    }

    /// The same value, as standing at another place: where upstream says that it does.
    pub(super) fn shown_at(&self, path: String) -> Part<'v> {
        Part { value: self.value, path }
    }

    /// An entry of a map, its key in brackets.
    pub(super) fn key(&self, key: &str) -> Part<'v> {
        let value = self.value.get(key).unwrap_or(&NOTHING);
        Part { value, path: format!("{}[{key}]", self.path) }
    }

    /// The elements of a list.
    pub(super) fn items(&self) -> impl Iterator<Item = Part<'v>> {
        let path = self.path.clone();
        let items = self.value.as_array().into_iter().flatten().enumerate();
        items.map(move |(at, value)| Part { value, path: format!("{path}[{at}]") })
    }

    /// The entries of a map.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'v str, Part<'v>)> {
        let this = self.clone();
        let keys = self.value.as_object().into_iter().flat_map(serde_json::Map::keys);
        keys.map(move |key| (key.as_str(), this.key(key)))
    }

    pub(super) fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    pub(super) fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    /// Whether a pointer would be set.
    pub(super) fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Whether Go's `len` of it is zero.
    pub(super) fn is_empty(&self) -> bool {
        match self.value {
            Value::Array(items) => items.is_empty(),
            Value::Object(entries) => entries.is_empty(),
            other => other.as_str().is_none_or(str::is_empty),
        }
    }

    pub(super) fn required(&self, detail: &str, out: &mut Vec<Cause>) {
        out.push(Cause::required(&*self.path, detail));
    }

    pub(super) fn invalid(&self, detail: &str, out: &mut Vec<Cause>) {
        out.push(Cause::invalid(&*self.path, self.value, detail));
    }

    /// Invalid, with something else than the value shown.
    pub(super) fn invalid_as(&self, shown: &Value, detail: &str, out: &mut Vec<Cause>) {
        out.push(Cause::invalid(&*self.path, shown, detail));
    }

    pub(super) fn forbidden(&self, detail: &str, out: &mut Vec<Cause>) {
        out.push(Cause::forbidden(&*self.path, detail));
    }

    pub(super) fn duplicate(&self, shown: &Value, out: &mut Vec<Cause>) {
        out.push(Cause::duplicate(&*self.path, shown));
    }

    pub(super) fn not_found(&self, out: &mut Vec<Cause>) {
        out.push(Cause::not_found(&*self.path, self.value));
    }

    pub(super) fn too_long(&self, max: usize, out: &mut Vec<Cause>) {
        out.push(Cause::too_long(&*self.path, max));
    }

    pub(super) fn too_many(&self, count: usize, max: usize, out: &mut Vec<Cause>) {
        out.push(Cause::too_many(&*self.path, count, max));
    }

    pub(super) fn not_supported(&self, allowed: &[&str], out: &mut Vec<Cause>) {
        let shown = if self.is_set() { self.value.clone() } else { "".into() };
        out.push(Cause::not_supported(&*self.path, &shown, allowed));
    }

    /// Follows a rule for texts.
    pub(super) fn follows(&self, rule: fn(&str) -> names::Verdict, out: &mut Vec<Cause>) {
        if let Err(why) = rule(self.text()) {
            let shown = if self.is_set() { self.value } else { &Value::from("") };
            self.invalid_as(shown, &why, out);
        }
    }

    /// Follows a rule, if it is not empty.
    pub(super) fn if_set_follows(&self, rule: fn(&str) -> names::Verdict, out: &mut Vec<Cause>) {
        if !self.is_empty() {
            self.follows(rule, out);
        }
    }

    /// Is there, and follows a rule.
    pub(super) fn must_follow(&self, rule: fn(&str) -> names::Verdict, out: &mut Vec<Cause>) {
        match self.is_empty() {
            true => self.required("", out),
            false => self.follows(rule, out),
        }
    }

    /// Is there; true if so.
    pub(super) fn must_be(&self, out: &mut Vec<Cause>) -> bool {
        if self.is_empty() {
            self.required("", out);
        }
        !self.is_empty()
    }

    /// Is one of some words; an empty one is required.
    pub(super) fn one_of(&self, allowed: &[&str], out: &mut Vec<Cause>) {
        match self.text() {
            "" => self.required("", out),
            word if allowed.contains(&word) => {}
            _ => self.not_supported(allowed, out),
        }
    }

    /// Is no negative number; null is zero.
    pub(super) fn nonnegative(&self, out: &mut Vec<Cause>) {
        if self.int().is_some_and(|value| value < 0) {
            self.invalid("must be greater than or equal to 0", out);
        }
    }

    /// Lies in a range, both ends included.
    pub(super) fn within(&self, low: i64, high: i64, out: &mut Vec<Cause>) {
        let value = self.int().unwrap_or_default();
        if !(low..=high).contains(&value) {
            let why = format!("must be between {low} and {high}, inclusive");
            self.invalid_as(&value.into(), &why, out);
        }
    }

    /// Is as it was.
    pub(super) fn immutable(&self, live: &Value, out: &mut Vec<Cause>) {
        if self.value != live {
            self.invalid("field is immutable", out);
        }
    }

    /// Labels, as a map that selects or is selected by.
    pub(super) fn labels(&self, out: &mut Vec<Cause>) {
        for (key, value) in self.entries() {
            if let Err(why) = names::qualified_name(key) {
                self.invalid_as(&key.into(), &why, out);
            }
            if let Err(why) = names::label_value(value.text()) {
                self.invalid_as(value.value, &why, out);
            }
        }
    }

    /// A LabelSelector.
    pub(super) fn label_selector(&self, out: &mut Vec<Cause>) {
        self.get("matchLabels").labels(out);
        for term in self.get("matchExpressions").items() {
            let values = term.get("values");
            match term.get("operator").text() {
                "In" | "NotIn" if values.is_empty() => {
                    values.required("must be specified when `operator` is 'In' or 'NotIn'", out);
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    values.forbidden(why, out);
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                _ => term.get("operator").invalid("not a valid selector operator", out),
            }
            term.get("key").follows(names::qualified_name, out);
            values.items().for_each(|value| value.follows(names::label_value, out));
        }
    }

    /// Its own path, for a message.
    pub(super) fn path(&self) -> String {
        self.path.to_string()
    }

    /// The texts of a list.
    pub(super) fn texts(&self) -> Vec<String> {
        self.items().map(|item| item.text().to_owned()).collect()
    }
}
