//! Reads the descriptions of one type out of its generated source; used by build.rs.
//!
//! The implementation of `JsonSchema` in each file has them word for word, with the type's name in
//! OpenAPI and the fields' names in JSON; doc comments have neither. It is read as text: where
//! something stands is told by its indentation, as the generator writes it.

/// Begins a type.
pub(crate) const TYPE: char = '\u{1d}';
/// Begins a field.
pub(crate) const FIELD: char = '\u{1e}';
/// Stands between a name and its description.
pub(crate) const TEXT: char = '\u{1f}';

/// One type as it is packed: its name and description, then those of its fields. `None` where
/// the source describes no type.
pub(crate) fn record(source: &str) -> Option<String> {
    let mut lines = source.lines().skip_while(|line| !line.contains("fn schema_name()")).skip(1);
    let mut out = format!("{TYPE}{}{TEXT}", literal(lines.next()?.trim_start())?.0);
    let mut field = None;
    for line in lines {
        let code = line.trim_start();
        match (line.len() - code.len(), description(code)) {
            (12, Some(text)) => out.push_str(&text),
            (16, _) => field = literal(code).map(|(name, _)| name),
            (20, Some(text)) => {
                let Some(name) = field.take() else { continue };
                out.extend([FIELD.to_string(), name, TEXT.to_string(), text]);
            }
            _ => {}
        }
    }
    Some(out)
}

/// What follows a key `description`, of a schema's own or of one that is referred to.
fn description(code: &str) -> Option<String> {
    let direct = code.strip_prefix("\"description\": ");
    let text = direct.or_else(|| Some(code.split_once(".insert(\"description\".into(), ")?.1))?;
    literal(text).map(|(text, _)| text)
}

/// The string literal that `code` begins with, and what is behind it.
fn literal(code: &str) -> Option<(String, &str)> {
    let mut rest = code.strip_prefix('"')?.chars();
    let mut text = String::new();
    loop {
        match rest.next()? {
            '"' => return Some((text, rest.as_str())),
            '\\' => text.push(match rest.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                other => other,
            }),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::record;

    const SOURCE: &str = r#"
/// Prose \[escaped\] for rustdoc.
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "io.k8s.T".into()
    }
        crate::schemars::json_schema!({
            "description": "A \"T\"\nwith \\d",
            "properties": {
                "hostIP": {
                    "description": "An address.",
                    "items": ({
                        let schema = x.insert("description".into(), "of an item".into());
                },
                "bare": {
                    "type": "string",
                },
                "spec": ({
                    let mut schema_obj = __gen.subschema_for::<crate::Spec>();
                    schema_obj.insert("description".into(), "What is \"wanted\".".into());
"#;

    #[test]
    fn a_type_and_its_fields_are_read() {
        let expected = "\u{1d}io.k8s.T\u{1f}A \"T\"\nwith \\d\u{1e}hostIP\u{1f}An address.\
                        \u{1e}spec\u{1f}What is \"wanted\".";
        assert_eq!(record(SOURCE).as_deref(), Some(expected));
        assert_eq!(record("pub mod v1;\n"), None);
    }
}
