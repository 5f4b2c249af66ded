//! A snapshot as a JSON document, from whoever asks what the consolidator would do. Nothing in it is trusted: what cannot be is
//! refused, with the name of its owner and its field.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::snapshot::{Forecast, Machine, MachineState, Snapshot, SnapshotError, Workload};
use crate::power::{PowerCurve, PowerError};

/// Deviation of a workload that says nothing of it, as a share of what it is expected to use.
const DEVIATION_SHARE: f64 = 0.2;

/// Why a document is no snapshot.
#[derive(Debug)]
pub enum DocumentError {
    /// It is no JSON, or has not the outer form.
    Form(serde_json::Error),
    /// A row has not the form of a row.
    Row {
        /// Its list and its place there, from 0.
        owner: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A field is not as it must be.
    Field {
        /// Of which machine or workload.
        owner: String,
        /// Which field.
        field: String,
        /// What it must be.
        problem: &'static str,
    },
    /// Power is no curve.
    Power {
        /// Of which machine.
        owner: String,
        /// What is wrong with it.
        source: PowerError,
    },
    /// A number is refused.
    Snapshot {
        /// Of a machine or a workload.
        kind: &'static str,
        /// What is wrong.
        source: SnapshotError,
    },
}

impl fmt::Display for DocumentError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DocumentError::Form(_) => write!(out, "it is no JSON object with `machines` and `workloads`"),
            DocumentError::Row { owner, .. } => write!(out, "{owner} is no JSON object"),
            DocumentError::Field { owner, field, problem } => write!(out, "{owner}: `{field}` {problem}"),
            DocumentError::Power { owner, .. } => write!(out, "{owner}: `powerWatts` is no power curve"),
            DocumentError::Snapshot { kind, .. } => write!(out, "a {kind} is refused"),
        }
    }
}

impl std::error::Error for DocumentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DocumentError::Form(source) | DocumentError::Row { source, .. } => Some(source),
            DocumentError::Field { .. } => None,
            DocumentError::Power { source, .. } => Some(source),
            DocumentError::Snapshot { source, .. } => Some(source),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    #[serde(borrow)]
    machines: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    workloads: Vec<&'a RawValue>,
}

/// Reads a document.
///
/// `Errors:` the first thing that is wrong with it.
pub fn read(text: &[u8]) -> Result<Snapshot, DocumentError> {
    let document: Document<'_> = serde_json::from_slice(text).map_err(DocumentError::Form)?;
    let mut snapshot = Snapshot::default();
    let mut indices = HashMap::new();
    for (place, raw) in document.machines.into_iter().enumerate() {
        let machine = machine(Row::new("machine", place, raw, "name")?)?;
        let (name, owner) = (machine.name.clone(), format!("machine {}", machine.name));
        let refused = |source| DocumentError::Snapshot { kind: "machine", source };
        let index = snapshot.add_machine(machine).map_err(refused)?;
        if indices.insert(name, index).is_some() {
            return Err(field(&owner, "name", "is there twice"));
        }
    }
    let mut ids = HashSet::new();
    for (place, raw) in document.workloads.into_iter().enumerate() {
        let workload = workload(Row::new("workload", place, raw, "id")?, &indices)?;
        if workload.machine.is_some_and(|index| snapshot.machines()[index].state == MachineState::Asleep) {
            return Err(field(&format!("workload {}", workload.id), "machine", "is asleep"));
        }
        if !ids.insert(workload.id.clone()) {
            return Err(field(&format!("workload {}", workload.id), "id", "is there twice"));
        }
        let refused = |source| DocumentError::Snapshot { kind: "workload", source };
        snapshot.add_workload(workload).map_err(refused)?;
    }
    Ok(snapshot)
}

fn machine(mut row: Row) -> Result<Machine, DocumentError> {
    let cpu = row.required_number("cpu")?;
    let memory = row.required_number("memory")?;
    let state = match row.text("state")?.as_deref() {
        None | Some("" | "on") => MachineState::On,
        Some("draining") => MachineState::Draining,
        Some("asleep") => MachineState::Asleep,
        Some("failed") => MachineState::Failed,
        Some(_) => return Err(row.refuse("state", "must be on, draining, asleep or failed")),
    };
    let watts = match row.take("powerWatts") {
        Some(Value::Array(points)) => points.iter().map(Value::as_f64).collect(),
        _ => None,
    };
    let Some(watts) = watts else { return Err(row.refuse("powerWatts", "must be a list of numbers")) };
    let power = PowerCurve::new(watts).map_err(|source| DocumentError::Power { owner: row.owner.clone(), source })?;
    let machine = Machine {
        capacity: [cpu, memory, row.number("disk")?.unwrap_or(0.0), row.number("network")?.unwrap_or(0.0)],
        core_cpu: row.number("coreCpu")?.unwrap_or(cpu),
        power,
        sleep_watts: row.number("sleepWatts")?.unwrap_or(0.0),
        wake_seconds: row.number("wakeSeconds")?.unwrap_or(0.0),
        state,
        labels: row.labels("labels")?,
        is_protected: row.flag("protected")?.unwrap_or(false),
        name: row.name.clone(),
    };
    row.end()?;
    Ok(machine)
}

fn workload(mut row: Row, machines: &HashMap<String, usize>) -> Result<Workload, DocumentError> {
    let cpu = row.required_number("cpu")?;
    let memory = row.required_number("memory")?;
    let machine = match row.text("machine")? {
        None => None,
        Some(name) => match machines.get(&name) {
            Some(index) => Some(*index),
            None => return Err(row.refuse("machine", "names no machine of this document")),
        },
    };
    let mean = row.number("expectedCpu")?.unwrap_or(cpu);
    let workload = Workload {
        machine,
        uses: [cpu, memory, row.number("disk")?.unwrap_or(0.0), row.number("network")?.unwrap_or(0.0)],
        forecast: Forecast { mean, deviation: row.number("deviation")?.unwrap_or(DEVIATION_SHARE * mean) },
        memory_min: row.number("leastMemory")?.unwrap_or(memory),
        is_movable: row.flag("movable")?.unwrap_or(true),
        move_seconds: row.number("moveSeconds")?.unwrap_or(0.0),
        selector: row.labels("selector")?,
        apart: row.groups("apart")?,
        id: row.name.clone(),
    };
    row.end()?;
    Ok(workload)
}

fn field(owner: &str, field: &str, problem: &'static str) -> DocumentError {
    DocumentError::Field { owner: owner.to_owned(), field: field.to_owned(), problem }
}

/// The fields of one row that have not been read yet.
struct Row {
    owner: String,
    name: String,
    fields: HashMap<String, Value>,
}

impl Row {
    fn new(kind: &str, place: usize, raw: &RawValue, name_field: &str) -> Result<Row, DocumentError> {
        let owner = format!("{kind} {place}");
        let parsed: Result<Fields, _> = serde_json::from_str(raw.get());
        let Fields { fields, twice } = match parsed {
            Ok(fields) => fields,
            Err(source) => return Err(DocumentError::Row { owner, source }),
        };
        let mut row = Row { owner, name: String::new(), fields };
        match row.text(name_field)? {
            // Names are shown on terminals, which obey control characters.
            Some(name) if name.chars().any(char::is_control) => {
                return Err(row.refuse(name_field, "has control characters"));
            }
            Some(name) if !name.is_empty() => row.name = name,
            _ => return Err(row.refuse(name_field, "is missing")),
        }
        row.owner = format!("{kind} {}", row.name);
        twice.map_or(Ok(()), |name| Err(row.refuse(&name, "is there twice")))?;
        Ok(row)
    }

    fn refuse(&self, name: &str, problem: &'static str) -> DocumentError {
        field(&self.owner, name, problem)
    }

    /// A field that is there and not null.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    fn number(&mut self, name: &str) -> Result<Option<f64>, DocumentError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.refuse(name, "must be a number"))
    }

    fn required_number(&mut self, name: &str) -> Result<f64, DocumentError> {
        self.number(name)?.ok_or_else(|| self.refuse(name, "is missing"))
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, DocumentError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(name, "must be a text")),
        }
    }

    fn flag(&mut self, name: &str) -> Result<Option<bool>, DocumentError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(self.refuse(name, "must be true or false")),
        }
    }

    fn labels(&mut self, name: &str) -> Result<BTreeMap<String, String>, DocumentError> {
        let Some(value) = self.take(name) else { return Ok(BTreeMap::new()) };
        serde_json::from_value(value).map_err(|_| self.refuse(name, "must be an object of texts"))
    }

    fn groups(&mut self, name: &str) -> Result<Vec<u32>, DocumentError> {
        let Some(value) = self.take(name) else { return Ok(Vec::new()) };
        serde_json::from_value(value)
            .map_err(|_| self.refuse(name, "must be a list of whole numbers from 0 to 2^32 - 1"))
    }

    /// What was not read is not known.
    fn end(self) -> Result<(), DocumentError> {
        let first = self.fields.keys().min();
        first.map_or(Ok(()), |name| Err(self.refuse(name, "is no field that is known here")))
    }
}

/// The fields of an object, and one that is there twice.
struct Fields {
    fields: HashMap<String, Value>,
    twice: Option<String>,
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut all = Fields { fields: HashMap::new(), twice: None };
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if all.fields.insert(name.clone(), value).is_some() {
                        all.twice = Some(name);
                    }
                }
                Ok(all)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    /// The whole chain, as the command line prints it.
    fn refusal(text: &str) -> String {
        let Err(error) = read(text.as_bytes()) else { return "taken".into() };
        let mut words = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            words = format!("{words}: {cause}");
            source = cause.source();
        }
        words
    }

    fn check(machine: &str, workload: &str, expected: &str) {
        let machines = format!(r#"{{"name": "m", "cpu": 4, "memory": 8, "powerWatts": [90, 130]{machine}}}"#);
        let workloads = if workload.is_empty() {
            String::new()
        } else {
            format!(r#"{{"id": "w", "machine": "m", "cpu": 1, "memory": 1{workload}}}"#)
        };
        assert_eq!(refusal(&format!(r#"{{"machines": [{machines}], "workloads": [{workloads}]}}"#)), expected);
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        check("", "", "taken");
        check(r#", "coreCpu": 2, "labels": {"zone": "a"}, "state": "draining", "protected": true"#, "", "taken");
        check("", r#", "apart": [1], "selector": {"zone": "a"}, "movable": false, "deviation": null"#, "taken");
        check(r#", "disk": -1"#, "", "a machine is refused: m: disk is -1; it must be a number from 0 to 1e15");
        check(
            r#", "network": 1e16"#,
            "",
            "a machine is refused: m: network is 10000000000000000; it must be a number from 0 to 1e15",
        );
        check(r#", "coreCpu": 0"#, "", "a machine is refused: m: it has no core speed at all");
        check(r#", "coreCpu": 1e-300"#, "", "a machine is refused: m: it has no core speed at all");
        check(r#", "disk": "1""#, "", "machine m: `disk` must be a number");
        check(r#", "name": "n""#, "", "machine n: `name` is there twice");
        check(r#", "state": "gone""#, "", "machine m: `state` must be on, draining, asleep or failed");
        check(r#", "state": "asleep""#, r#", "disk": 0"#, "workload w: `machine` is asleep");
        check(r#"}, {"name": "\u001b[31m", "cpu": 1"#, "", "machine 1: `name` has control characters");
        check(r#", "colour": 1"#, "", "machine m: `colour` is no field that is known here");
        check(r#", "labels": {"zone": 1}"#, "", "machine m: `labels` must be an object of texts");
        check(
            r#"}, {"name": "m", "cpu": 4, "memory": 8, "powerWatts": [1, 2]"#,
            "",
            "machine m: `name` is there twice",
        );
        check(
            r#"}, {"name": "n", "cpu": 0, "memory": 8, "powerWatts": [1, 2]"#,
            "",
            "a machine is refused: n: it has no cpu at all",
        );
        check(r#"}, {"name": "n", "cpu": 4, "powerWatts": [1, 2]"#, "", "machine n: `memory` is missing");
        check(
            r#"}, {"name": "n", "cpu": 4, "memory": 8, "powerWatts": [1]"#,
            "",
            "machine n: `powerWatts` is no power curve: a power curve needs at least two points, not 1",
        );
        check(
            r#"}, {"name": "n", "cpu": 4, "memory": 8, "powerWatts": [1, 1e300]"#,
            "",
            "machine n: `powerWatts` is no power curve: point 1 of the power curve is negative, too large or no number",
        );
        check(r#"}, {"name": "n", "cpu": 4, "memory": 8"#, "", "machine n: `powerWatts` must be a list of numbers");
        check(r#"}, {"cpu": 4"#, "", "machine 1: `name` is missing");
        check(
            "",
            r#", "leastMemory": -0.5"#,
            "a workload is refused: w: least memory is -0.5; it must be a number from 0 to 1e15",
        );
        check("", r#", "machine": "x""#, "workload w: `machine` is there twice");
        check(
            "",
            r#"}, {"id": "v", "machine": "x", "cpu": 1, "memory": 1"#,
            "workload v: `machine` names no machine of this document",
        );
        check("", r#"}, {"id": "w", "cpu": 1, "memory": 1"#, "workload w: `id` is there twice");
        check("", r#", "apart": [-1]"#, "workload w: `apart` must be a list of whole numbers from 0 to 2^32 - 1");
        check(
            "",
            "}, 7, {",
            "workload 1 is no JSON object: invalid type: integer `7`, expected an object at line 1 column 1",
        );
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        let form = "it is no JSON object with `machines` and `workloads`: ";
        assert_eq!(refusal("NaN"), format!("{form}expected value at line 1 column 1"));
        assert_eq!(refusal(r#"{"machines": [{"cpu": NaN}]}"#), format!("{form}expected value at line 1 column 23"));
        assert_eq!(refusal("{}"), format!("{form}missing field `machines` at line 1 column 2"));
        let far = r#"{"machines": [{"name": "m", "cpu": 1e999}]}"#;
        assert!(refusal(far).contains("out of range"), "{}", refusal(far));
    }

    proptest::proptest! {
        #[test]
        fn no_bad_number_is_taken_in(
            value in proptest::prop_oneof![-1e300f64..-1e-300, 1.1e15f64..1e300],
            field in proptest::sample::select(vec!["cpu", "memory", "disk", "network", "coreCpu", "sleepWatts", "wakeSeconds", "expectedCpu", "deviation", "leastMemory", "moveSeconds"]),
            on_machine in proptest::bool::ANY,
        ) {
            let (mut machine, mut workload) = (
                serde_json::json!({"name": "m", "cpu": 4, "memory": 8, "powerWatts": [90, 130]}),
                serde_json::json!({"id": "w", "machine": "m", "cpu": 1, "memory": 1}),
            );
            let row = if on_machine { &mut machine } else { &mut workload };
            row[field] = serde_json::Value::from(value);
            let refused = refusal(&serde_json::json!({"machines": [machine], "workloads": [workload]}).to_string());
            proptest::prop_assert!(refused != "taken" && (refused.contains(" m") || refused.contains(" w")), "{refused}");
        }
    }
}
