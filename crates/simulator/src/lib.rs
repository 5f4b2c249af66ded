//! The simulator: replays a trace of demand on the machines of the published consolidation experiment, under the policies of
//! the literature and under ours. Pure: the trace comes in as text, the result goes out as numbers.

pub mod baseline;
pub mod metrics;
pub mod nuee;
pub mod policy;
pub mod report;
pub mod run;
pub mod setting;
pub mod trace;
pub mod world;
