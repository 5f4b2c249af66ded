//! An upper bound of what an expression costs on given values, from its syntax alone.

use std::collections::HashMap;

use cel::common::ast::{EntryExpr, Expr, operators};
use cel::{IdedExpr, Value as CelValue};
use serde_json::Value;

/// Text of this length costs one step more for each call that reads it. Units: bytes.
const BYTES_PER_STEP: u64 = 10;
/// Functions whose result can be longer than all they were given.
const GROWING: [&str; 3] = ["replace", "join", "format"];

/// How large the values of an evaluation are, by the name of the member that holds them.
#[derive(Debug, Default)]
pub(super) struct Sizes {
    by_name: HashMap<String, u64>,
    largest: u64,
    longest_text: u64,
}

impl Sizes {
    /// Takes a variable into account.
    pub(super) fn see(&mut self, name: &str, value: &Value) {
        match value {
            Value::Array(items) => {
                self.note(name, items.len());
                // An element of a list is reached under a loop's own name, so its size counts for every name.
                items.iter().for_each(|item| self.see("", item));
            }
            Value::Object(map) => {
                self.note(name, map.len());
                map.iter().for_each(|(name, value)| self.see(name, value));
            }
            Value::String(text) => self.longest_text = self.longest_text.max(wide(text.len())),
            _ => {}
        }
    }

    fn note(&mut self, name: &str, size: usize) {
        let size = wide(size);
        self.largest = self.largest.max(size);
        let known = self.by_name.entry(super::escape(name)).or_default();
        *known = (*known).max(size);
    }

    /// Takes the result of another expression into account.
    pub(super) fn see_result(&mut self, name: &str, value: &CelValue) {
        match value {
            CelValue::List(items) => {
                self.note(name, items.len());
                items.iter().for_each(|item| self.see_result("", item));
            }
            CelValue::Map(map) => {
                self.note(name, map.map.len());
                map.map.iter().for_each(|(key, value)| self.see_result(&key.to_string(), value));
            }
            CelValue::String(text) => self.longest_text = self.longest_text.max(wide(text.len())),
            _ => {}
        }
    }

    /// The largest that the range of a loop can be. Only the name of a member says something: a plain name may be a
    /// loop's own variable, and what an expression computes may be as large as all its parts.
    fn of(&self, range: &IdedExpr, shape: Shape) -> u64 {
        let named = match &range.expr {
            Expr::Select(select) if !select.test && !shape.has_maps => self.by_name.get(&select.field).copied(),
            Expr::List(list) => Some(wide(list.elements.len())),
            Expr::Map(map) => Some(wide(map.entries.len())),
            Expr::Ident(_) => Some(self.largest),
            _ => None,
        };
        named.unwrap_or_else(|| self.largest.max(shape.text).saturating_mul(shape.sums)).max(1)
    }
}

/// What an expression has that makes values larger than they came.
#[derive(Clone, Copy)]
struct Shape {
    has_maps: bool,
    sums: u64,
    text: u64,
}

fn wide(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

/// The bound on these values. `source_bytes` stands for the literals.
pub(super) fn bound(expression: &IdedExpr, sizes: &Sizes, source_bytes: usize) -> u64 {
    let text = sizes.longest_text.max(wide(source_bytes));
    let mut shape = Shape { has_maps: false, sums: 1, text };
    visit(expression, &mut |part| match part {
        Expr::Map(_) | Expr::Struct(_) => shape.has_maps = true,
        Expr::Call(call) if call.func_name == operators::ADD => shape.sums += 1,
        _ => {}
    });
    Walk { range: &|range| sizes.of(range, shape), text }.cost(expression)
}

/// The bound on the largest values that a schema admits; `range` says how large a loop's range can be.
pub(crate) fn static_cost(source: &str, range: &dyn Fn(&str) -> u64) -> u64 {
    let Ok(program) = super::compile(source) else { return 0 };
    let named = |expression: &IdedExpr| match &expression.expr {
        Expr::Select(select) if !select.test => range(&select.field),
        Expr::Ident(name) => range(name),
        Expr::List(list) => wide(list.elements.len()),
        Expr::Map(map) => wide(map.entries.len()),
        _ => range(""),
    };
    Walk { range: &named, text: 0 }.cost(program.expression())
}

/// How deep an expression nests.
pub(super) fn depth(expression: &IdedExpr) -> usize {
    let mut inner = 0;
    children(&expression.expr, &mut |part| inner = inner.max(depth(part)));
    inner + 1
}

/// The members that an expression reads of a variable directly.
pub(crate) fn members_of(source: &str, variable: &str) -> Vec<String> {
    let Ok(program) = super::compile(source) else { return Vec::new() };
    let mut found = Vec::new();
    visit(program.expression(), &mut |part| {
        if let Expr::Select(select) = part
            && select.operand.expr == Expr::Ident(variable.to_owned())
        {
            found.push(select.field.clone());
        }
    });
    found
}

/// Shows every part of an expression.
fn visit(expression: &IdedExpr, see: &mut dyn FnMut(&Expr)) {
    see(&expression.expr);
    children(&expression.expr, &mut |part| visit(part, see));
}

/// The parts that an expression is made of directly.
fn children(expression: &Expr, see: &mut dyn FnMut(&IdedExpr)) {
    match expression {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => {}
        Expr::Select(select) => see(&select.operand),
        Expr::Call(call) => call.target.iter().map(|target| &**target).chain(&call.args).for_each(see),
        Expr::List(list) => list.elements.iter().for_each(see),
        Expr::Map(map) => map.entries.iter().for_each(|entry| entry_parts(&entry.expr, see)),
        Expr::Struct(one) => one.entries.iter().for_each(|entry| entry_parts(&entry.expr, see)),
        Expr::Comprehension(all) => {
            [&all.iter_range, &all.accu_init, &all.loop_cond, &all.loop_step, &all.result].into_iter().for_each(see);
        }
    }
}

fn entry_parts(entry: &EntryExpr, see: &mut dyn FnMut(&IdedExpr)) {
    match entry {
        EntryExpr::StructField(field) => see(&field.value),
        EntryExpr::MapEntry(entry) => {
            see(&entry.key);
            see(&entry.value);
        }
    }
}

struct Walk<'a> {
    range: &'a dyn Fn(&IdedExpr) -> u64,
    text: u64,
}

impl Walk<'_> {
    fn cost(&self, expression: &IdedExpr) -> u64 {
        match &expression.expr {
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => 1,
            Expr::Select(select) => self.cost(&select.operand).saturating_add(1),
            Expr::Call(call) => {
                let parts = call.target.iter().map(|target| self.cost(target));
                let parts = parts.chain(call.args.iter().map(|argument| self.cost(argument)));
                let inner = parts.fold(0, u64::saturating_add);
                inner.saturating_add(self.weight(&call.func_name))
            }
            Expr::List(list) => list.elements.iter().map(|item| self.cost(item)).fold(1, u64::saturating_add),
            Expr::Map(map) => self.entries(map.entries.iter().map(|entry| &entry.expr)),
            Expr::Struct(one) => self.entries(one.entries.iter().map(|entry| &entry.expr)),
            Expr::Comprehension(all) => {
                let round = self.cost(&all.loop_cond).saturating_add(self.cost(&all.loop_step));
                let once = [&all.iter_range, &all.accu_init, &all.result].map(|part| self.cost(part));
                let rounds = (self.range)(&all.iter_range).saturating_mul(round);
                once.into_iter().fold(rounds, u64::saturating_add)
            }
        }
    }

    fn entries<'e>(&self, entries: impl Iterator<Item = &'e EntryExpr>) -> u64 {
        entries
            .map(|entry| match entry {
                EntryExpr::StructField(field) => self.cost(&field.value),
                EntryExpr::MapEntry(entry) => self.cost(&entry.key).saturating_add(self.cost(&entry.value)),
            })
            .fold(1, u64::saturating_add)
    }

    /// Operators are spelled with underscores or signs; what has a plain name may read text.
    fn weight(&self, function: &str) -> u64 {
        let reading = self.text / BYTES_PER_STEP;
        if GROWING.contains(&function) {
            reading.saturating_mul(reading).saturating_add(1)
        } else if function.starts_with(|c: char| c.is_ascii_alphabetic()) && function != "size" {
            reading.saturating_add(1)
        } else {
            1
        }
    }
}
