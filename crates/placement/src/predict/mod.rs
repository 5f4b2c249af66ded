//! Forecasts: what a workload will want, and how far that may be wrong.

mod methods;
mod smoother;

pub use methods::{Method, Prediction, choose, line, predict};
pub use smoother::Smoother;
