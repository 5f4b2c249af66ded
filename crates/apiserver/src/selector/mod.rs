//! Label and field selectors in their text forms, and `metav1.LabelSelector`.

pub mod field;
pub mod label;

pub use field::FieldSelector;
pub use label::LabelSelector;
