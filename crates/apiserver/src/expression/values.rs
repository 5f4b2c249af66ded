//! JSON as CEL values.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use cel::Value as CelValue;
use serde_json::Value;

/// Words that no member may be called in an expression; they are written `__word__`. `Source:` Kubernetes' CEL
/// documentation, "Escaping".
const RESERVED: [&str; 18] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
];

/// How an expression spells a member's name.
pub(crate) fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    if !name.contains(['.', '-', '/']) && !name.contains("__") {
        return name.to_owned();
    }
    name.replace("__", "__underscores__").replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

/// What a schema says of a value; `Typing(None)` says nothing.
#[derive(Clone, Copy)]
pub(crate) struct Typing<'a>(pub(crate) Option<&'a Value>);

/// Numbers that are whole are `int`, as Kubernetes has them.
pub(super) fn plain(value: &Value) -> CelValue {
    match value {
        Value::Null => CelValue::Null,
        Value::Bool(value) => CelValue::Bool(*value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => CelValue::Int(whole),
            None => CelValue::Float(number.as_f64().unwrap_or(0.0)),
        },
        Value::String(text) => CelValue::from(text.as_str()),
        Value::Array(items) => CelValue::from(items.iter().map(plain).collect::<Vec<_>>()),
        Value::Object(map) => CelValue::from(
            map.iter().map(|(name, value)| (name.clone(), plain(value))).collect::<HashMap<String, CelValue>>(),
        ),
    }
}

/// With the types that a structural schema declares.
pub(super) fn typed(value: &Value, Typing(schema): Typing<'_>) -> CelValue {
    let Some(schema) = schema else { return plain(value) };
    match value {
        Value::Number(number) if schema["type"] == "number" => CelValue::Float(number.as_f64().unwrap_or(0.0)),
        Value::String(text) => formatted(text, schema["format"].as_str().unwrap_or_default()),
        Value::Array(items) => {
            let inner = Typing(schema.get("items"));
            CelValue::from(items.iter().map(|item| typed(item, inner)).collect::<Vec<_>>())
        }
        Value::Object(map) => {
            let properties = schema.get("properties");
            let additional = schema.get("additionalProperties").filter(|inner| inner.is_object());
            let members = map.iter().map(|(name, value)| match properties.and_then(|known| known.get(name)) {
                Some(inner) => (escape(name), typed(value, Typing(Some(inner)))),
                None => (name.clone(), typed(value, Typing(additional))),
            });
            CelValue::from(members.collect::<HashMap<String, CelValue>>())
        }
        other => plain(other),
    }
}

fn formatted(text: &str, format: &str) -> CelValue {
    let expression = match format {
        "byte" => {
            return match base64::engine::general_purpose::STANDARD.decode(text) {
                Ok(bytes) => CelValue::Bytes(Arc::new(bytes)),
                Err(_) => CelValue::from(text),
            };
        }
        "date-time" => "timestamp(text)",
        "date" => "timestamp(text + 'T00:00:00Z')",
        "duration" => "duration(text)",
        _ => return CelValue::from(text),
    };
    // The interpreter's own conversion, so that both sides of a comparison are read alike.
    let mut context = cel::Context::with_env(super::ENVIRONMENT.clone());
    context.add_variable_from_value("text", text);
    let converted = super::compile(expression).ok().and_then(|program| program.execute(&context).ok());
    converted.unwrap_or_else(|| CelValue::from(text))
}
