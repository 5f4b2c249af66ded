//! Quantities in JSON.

pub use api::quantity::format;

/// The quantity of a JSON value, which may be a number, in nano-units.
pub fn of_value(value: &serde_json::Value) -> Option<i128> {
    match value {
        serde_json::Value::String(text) => api::quantity::nano(text),
        serde_json::Value::Number(number) => api::quantity::nano(&number.to_string()),
        _ => None,
    }
}
