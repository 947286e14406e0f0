//! Default rules: the small language of `data/defaults.txt`, parsed once, applied to trees.
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::{Map, Value};

use crate::table::{Presence, Schema, Shape, Text, TypeId};

mod computed;

const DEFAULTS: &str = include_str!("../data/defaults.txt");

/// The rules of every type that has some.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    by_type: BTreeMap<TypeId, Vec<Rule>>,
    /// By type: whether defaulting it can change anything, itself or something inside.
    reach: Vec<bool>,
}

#[derive(Clone, Debug)]
enum Rule {
    Call(fn(&mut Map<String, Value>)),
    Assign(Assign),
    /// A `default=` of the type table.
    Field(Text, Value, Zero),
}

#[derive(Clone, Debug)]
struct Assign {
    target: Path,
    how: How,
    conditions: Vec<Condition>,
    zero: Zero,
}

#[derive(Clone, Debug)]
enum How {
    Set(Source),
    Force(Source),
    Fill(Path),
    Delete,
}

#[derive(Clone, Debug)]
enum Source {
    Json(Value),
    Copy(Path),
}

/// Whether a zero value counts as nothing: so it is where Go has no pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zero {
    IsNothing,
    IsValue,
}

#[derive(Clone, Debug)]
struct Path {
    /// Starts at the element that the target has reached.
    relative: bool,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Key(&'static str),
    Each,
}

#[derive(Clone, Debug)]
struct Condition {
    path: Path,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Set,
    Unset,
    Is(Value),
    IsNot(Value),
    In(Vec<Value>),
}

impl Rules {
    /// Parses the built-in rules; `schema` holds the types they name.
    pub(crate) fn builtin(schema: &Schema) -> Rules {
        let mut by_type: BTreeMap<TypeId, Vec<Rule>> = BTreeMap::new();
        let mut package = "";
        let mut id = TypeId(0);
        for line in DEFAULTS.lines() {
            if let Some(name) = line.strip_prefix("package ") {
                package = name;
            } else if let Some(name) = line.strip_prefix("type ") {
                let name = format!("{package}.{name}");
                id = schema.type_id(&name).expect("defaults name types of the table");
            } else if let Some(rule) = line.strip_prefix(' ') {
                by_type.entry(id).or_default().push(parse_rule(rule, schema, id));
            }
        }
        for id in schema.type_ids() {
            let fields = field_rules(schema, id);
            if !fields.is_empty() {
                by_type.entry(id).or_default().extend(fields);
            }
        }
        let reach = reach(schema, &by_type);
        Rules { by_type, reach }
    }

    /// The defaults of a type declared at run time, the newest one.
    pub(crate) fn declare(&mut self, id: TypeId, defaults: Vec<(Text, Value)>) {
        let rule = |(name, value)| Rule::Field(name, value, Zero::IsValue);
        self.by_type.insert(id, defaults.into_iter().map(rule).collect());
        self.reach.resize(id.0 as usize + 1, true);
    }

    /// Whether defaulting this type can change anything.
    pub(crate) fn reaches(&self, id: TypeId) -> bool {
        self.reach.get(id.0 as usize).copied().unwrap_or(false)
    }

    /// Applies the rules of one type, not those of nested ones.
    pub(crate) fn apply(&self, id: TypeId, object: &mut Map<String, Value>) {
        for rule in self.by_type.get(&id).into_iter().flatten() {
            match rule {
                Rule::Call(function) => function(object),
                Rule::Assign(assign) => assign.apply(object),
                Rule::Field(name, value, zero) if is_nothing(object.get(&**name), *zero) => {
                    object.insert(name.clone().into_owned(), value.clone());
                }
                Rule::Field(..) => {}
            }
        }
    }
}

fn reach(schema: &Schema, by_type: &BTreeMap<TypeId, Vec<Rule>>) -> Vec<bool> {
    let mut reach: Vec<bool> = schema.type_ids().map(|id| by_type.contains_key(&id)).collect();
    loop {
        let mut changed = false;
        for id in schema.type_ids().filter(|id| !by_type.contains_key(id)) {
            let def = schema.get(id);
            let hit = def.fields.iter().any(|field| {
                field.go() == Some(RESOURCE_LIST)
                    || inner_type(&field.shape).is_some_and(|inner| reach[inner.0 as usize])
            });
            changed |= hit && !core::mem::replace(&mut reach[id.0 as usize], hit);
        }
        if !changed {
            return reach;
        }
    }
}

/// Go's type whose quantities are rounded up to thousandths when defaulted.
pub(crate) const RESOURCE_LIST: &str = "v1.ResourceList";

/// The type at the bottom of lists and maps.
pub(crate) fn inner_type(shape: &Shape) -> Option<TypeId> {
    match shape {
        Shape::Ref(id) => Some(*id),
        Shape::List(inner) | Shape::Map(inner) => inner_type(inner),
        _ => None,
    }
}

fn field_rules(schema: &Schema, id: TypeId) -> Vec<Rule> {
    let rule = |field: &crate::Field| {
        let value = json(field.extra.as_ref()?.default.as_deref()?);
        let zero = zero_of(field.presence);
        let useless = zero == Zero::IsNothing && is_nothing(Some(&value), zero);
        (!useless).then_some(Rule::Field(field.name.clone(), value, zero))
    };
    schema.get(id).fields.iter().filter_map(rule).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("defaults hold JSON")
}

fn zero_of(presence: Presence) -> Zero {
    match presence {
        Presence::Pointer | Presence::Nullable => Zero::IsValue,
        _ => Zero::IsNothing,
    }
}

fn parse_rule(line: &'static str, schema: &Schema, id: TypeId) -> Rule {
    if let Some(name) = line.strip_prefix("call ") {
        return Rule::Call(computed::function(name).expect("defaults call known functions"));
    }
    let (action, conditions) = line.split_once(" if ").unwrap_or((line, ""));
    let conditions = conditions.split(" and ").filter(|c| !c.is_empty());
    let (target, how) = if let Some(target) = action.strip_suffix(" delete") {
        (target, How::Delete)
    } else if let Some((target, source)) = action.split_once(" := ") {
        (target, How::Force(parse_source(source)))
    } else if let Some((target, source)) = action.split_once(" += ") {
        (target, How::Fill(parse_path(source.trim_start_matches('@'))))
    } else {
        let (target, source) = action.split_once(" = ").expect("a rule has an operator");
        (target, How::Set(parse_source(source)))
    };
    let target = parse_path(target);
    let zero = schema.zero_at(id, &target);
    let conditions = conditions.map(parse_condition).collect();
    Rule::Assign(Assign { target, how, conditions, zero })
}

fn parse_source(text: &'static str) -> Source {
    match text.strip_prefix('@') {
        Some(path) => Source::Copy(parse_path(path)),
        None => Source::Json(json(text)),
    }
}

fn parse_condition(text: &'static str) -> Condition {
    let (path, test) = text.split_once(' ').expect("a condition has a test");
    let test = match test.split_once(' ') {
        None if test == "set" => Test::Set,
        Some(("==", value)) => Test::Is(json(value)),
        Some(("!=", value)) => Test::IsNot(json(value)),
        Some(("in", values)) => Test::In(serde_json::from_str(values).expect("in takes a list")),
        _ => Test::Unset,
    };
    Condition { path: parse_path(path), test }
}

fn parse_path(text: &'static str) -> Path {
    let (relative, text) = text.strip_prefix('.').map_or((false, text), |rest| (true, rest));
    let (plain, quoted) = text.split_once(".\"").unwrap_or((text, ""));
    let mut steps = Vec::new();
    for step in plain.split('.') {
        steps.push(Step::Key(step.trim_end_matches("[]")));
        if step.ends_with("[]") {
            steps.push(Step::Each);
        }
    }
    if !quoted.is_empty() {
        steps.push(Step::Key(quoted.trim_end_matches('"')));
    }
    Path { relative, steps }
}

impl Schema {
    /// Whether zero is nothing at the end of a path; panics on a path that the table lacks.
    fn zero_at(&self, id: TypeId, path: &Path) -> Zero {
        let mut shape = Shape::Ref(id);
        let mut zero = Zero::IsValue;
        for step in &path.steps {
            shape = match (step, shape) {
                (Step::Key(key), Shape::Ref(id)) => {
                    let field = self.get(id).field(key).expect("defaults name known fields");
                    zero = zero_of(field.presence);
                    field.shape.clone()
                }
                (Step::Key(_), Shape::Map(inner)) | (Step::Each, Shape::List(inner)) => *inner,
                _ => panic!("a step of a default path does not fit its type"),
            };
        }
        zero
    }
}

impl Assign {
    fn apply(&self, object: &mut Map<String, Value>) {
        let (each, rest) = match self.target.steps.iter().rposition(|s| matches!(s, Step::Each)) {
            Some(at) => self.target.steps.split_at(at + 1),
            None => (&[][..], &self.target.steps[..]),
        };
        if each.is_empty() {
            if self.conditions.iter().all(|c| c.holds(object, object)) {
                let source = self.source(object, object);
                self.write(rest, object, source);
            }
            return;
        }
        if !self.conditions.iter().filter(|c| !c.path.relative).all(|c| c.holds(object, object)) {
            return;
        }
        for_each(each, object, &mut |element| {
            let relative = self.conditions.iter().filter(|c| c.path.relative);
            if relative.clone().all(|c| c.holds(element, element)) {
                let source = self.source(element, element);
                self.write(rest, element, source);
            }
        });
    }

    fn source(&self, root: &Map<String, Value>, element: &Map<String, Value>) -> Option<Value> {
        match &self.how {
            How::Set(Source::Json(value)) | How::Force(Source::Json(value)) => Some(value.clone()),
            How::Set(Source::Copy(path)) | How::Force(Source::Copy(path)) | How::Fill(path) => {
                path.get(root, element).cloned()
            }
            How::Delete => Some(Value::Null),
        }
    }

    fn write(&self, steps: &[Step], object: &mut Map<String, Value>, source: Option<Value>) {
        let Some(source) = source else { return };
        let Some((parent, key)) = parent(steps, object) else { return };
        match (&self.how, source) {
            (How::Delete, _) => {
                parent.remove(key);
            }
            (How::Force(_), value) => {
                parent.insert(key.into(), value);
            }
            (How::Set(_), value) if is_nothing(parent.get(key), self.zero) => {
                parent.insert(key.into(), value);
            }
            (How::Fill(_), Value::Object(source)) => fill(parent, key, source),
            _ => {}
        }
    }
}

fn fill(parent: &mut Map<String, Value>, key: &str, source: Map<String, Value>) {
    let target = parent.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(target) = target {
        source.into_iter().for_each(|(key, value)| {
            target.entry(key).or_insert(value);
        });
    }
}

/// The object that holds the last step, made if missing, and that step's key.
fn parent<'a, 'p>(
    steps: &'p [Step],
    object: &'a mut Map<String, Value>,
) -> Option<(&'a mut Map<String, Value>, &'p str)> {
    let (last, steps) = steps.split_last()?;
    let mut at = object;
    for step in steps {
        let Step::Key(key) = step else { return None };
        let next = at.entry(*key).or_insert(Value::Null);
        if next.is_null() {
            *next = Value::Object(Map::new());
        }
        at = next.as_object_mut()?;
    }
    match last {
        Step::Key(key) => Some((at, key)),
        Step::Each => None,
    }
}

/// Calls `f` on every object that the path reaches; it ends in `Each`.
fn for_each(
    steps: &[Step],
    object: &mut Map<String, Value>,
    f: &mut dyn FnMut(&mut Map<String, Value>),
) {
    let Some((Step::Key(key), rest)) = steps.split_first() else { return };
    let Some(value) = object.get_mut(*key) else { return };
    match (rest, value) {
        ([Step::Each], Value::Array(items)) => {
            items.iter_mut().filter_map(Value::as_object_mut).for_each(f);
        }
        ([Step::Each, rest @ ..], Value::Array(items)) => {
            items.iter_mut().filter_map(Value::as_object_mut).for_each(|i| for_each(rest, i, f));
        }
        (rest, Value::Object(inner)) => for_each(rest, inner, f),
        _ => {}
    }
}

impl Path {
    fn get<'a>(
        &self,
        root: &'a Map<String, Value>,
        element: &'a Map<String, Value>,
    ) -> Option<&'a Value> {
        let mut keys = self.steps.iter().filter_map(|step| match step {
            Step::Key(key) => Some(*key),
            Step::Each => None,
        });
        let first = keys.next()?;
        let start = if self.relative { element } else { root };
        let value = keys.try_fold(start.get(first)?, |value, key| value.get(key))?;
        (!value.is_null()).then_some(value)
    }
}

impl Condition {
    fn holds(&self, root: &Map<String, Value>, element: &Map<String, Value>) -> bool {
        let value = self.path.get(root, element);
        let is_set = value.is_some_and(|v| *v != "" && v.as_array().is_none_or(|a| !a.is_empty()));
        match &self.test {
            Test::Set => is_set,
            Test::Unset => !is_set,
            Test::Is(wanted) => value == Some(wanted),
            Test::IsNot(unwanted) => value != Some(unwanted),
            Test::In(wanted) => value.is_some_and(|v| wanted.contains(v)),
        }
    }
}

fn is_nothing(value: Option<&Value>, zero: Zero) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(_) if zero == Zero::IsValue => false,
        Some(Value::Bool(value)) => !value,
        Some(Value::Number(value)) => value.as_f64() == Some(0.0),
        Some(Value::String(value)) => value.is_empty(),
        Some(Value::Array(value)) => value.is_empty(),
        Some(Value::Object(value)) => value.is_empty(),
    }
}
