//! CEL expressions of strangers: compiled within bounds, kept, and only run when their cost on the very values at hand is
//! bounded. Knows nothing of policies, webhooks or schemas; those hand over variables and ask.
//!
//! The interpreter has no budget of its own, so the cost is bounded before a run: every loop counts the largest list or
//! map that its range can name, loops in loops multiply, and calls on text weigh by the longest text (`cost`).

mod cost;
mod functions;
mod values;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::{Context, Env, Program, Value as CelValue};
use parking_lot::Mutex;
use serde_json::Value;

pub(crate) use cost::{members_of, static_cost};
pub(crate) use values::{Typing, escape};

/// Longest expression. Units: bytes.
const MAX_EXPRESSION_BYTES: usize = 8 * 1024;
/// Deepest expression; a chain of `&&` or `||` is balanced by the parser and counts little.
const MAX_DEPTH: usize = 64;
/// Stack of the parser: above what the longest expression can nest. Units: bytes.
const PARSER_STACK_BYTES: usize = 256 * 1024 * 1024;
/// Compiled expressions kept; beyond that all are forgotten and compiled anew.
const MAX_KEPT: usize = 4096;
/// Most that one evaluation may cost. `Source:` Kubernetes' `PerCallLimit`.
const CALL_LIMIT: u64 = 1_000_000;
/// Most that all expressions of one check may cost. `Source:` Kubernetes' `RuntimeCELCostBudget`.
const BUDGET: u64 = 10_000_000;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(functions::environment()));
static KEPT: LazyLock<Mutex<HashMap<String, Compiled>>> = LazyLock::new(Mutex::default);

/// A program, or why there is none.
type Compiled = Result<Arc<Program>, String>;

/// Why an expression gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// It does not compile.
    Compile(String),
    /// This one evaluation would cost too much.
    CallLimit,
    /// All that may be spent on the request is spent.
    Budget,
    /// It failed.
    Evaluation(String),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Compile(text) => write!(f, "compilation failed: {text}"),
            Problem::CallLimit => f.write_str("operation cancelled: actual cost limit exceeded"),
            Problem::Budget => f.write_str(
                "validation failed due to running out of cost budget, no further validation rules will be run",
            ),
            Problem::Evaluation(text) => f.write_str(text),
        }
    }
}

/// Compiles an expression, or says why not.
pub(crate) fn compile(source: &str) -> Compiled {
    if source.len() > MAX_EXPRESSION_BYTES {
        return Err(format!("the expression is longer than {MAX_EXPRESSION_BYTES} bytes"));
    }
    if let Some(known) = KEPT.lock().get(source) {
        return known.clone();
    }
    let compiled = compile_apart(source);
    let mut kept = KEPT.lock();
    if kept.len() >= MAX_KEPT {
        kept.clear();
    }
    kept.insert(source.to_owned(), compiled.clone());
    compiled
}

/// Parser and interpreter recurse over what strangers nest, so the parser gets a stack of its own, and what it makes
/// must be shallow enough for any other.
fn compile_apart(source: &str) -> Compiled {
    let work = || {
        let program = ENVIRONMENT.compile(source).map_err(|error| error.to_string())?;
        if cost::depth(program.expression()) > MAX_DEPTH {
            return Err(format!("the expression is nested deeper than {MAX_DEPTH}"));
        }
        Ok(Arc::new(program))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("expression".into()).stack_size(PARSER_STACK_BYTES);
        let running = thread.spawn_scoped(scope, work).map_err(|error| format!("cannot be compiled now: {error}"))?;
        running.join().unwrap_or_else(|_| Err("the parser broke".to_owned()))
    })
}

/// Whether the expression names this variable.
pub(crate) fn mentions(source: &str, variable: &str) -> bool {
    compile(source).is_ok_and(|program| program.references().has_variable(variable))
}

/// The variables of evaluations, and what may still be spent.
pub(crate) struct Scope {
    context: Context<'static, 'static>,
    sizes: cost::Sizes,
    left: u64,
}

impl Scope {
    /// No variables, a full budget.
    pub(crate) fn new() -> Scope {
        Scope::with_budget(BUDGET)
    }

    /// No variables, and what another scope left.
    pub(crate) fn with_budget(left: u64) -> Scope {
        Scope { context: Context::with_env(ENVIRONMENT.clone()), sizes: cost::Sizes::default(), left }
    }

    /// What may still be spent.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// Binds a variable to plain JSON.
    pub(crate) fn set(&mut self, name: &str, value: &Value) {
        self.sizes.see(name, value);
        self.context.add_variable_from_value(name, values::plain(value));
    }

    /// Binds a variable to a value whose types a schema says.
    pub(crate) fn set_typed(&mut self, name: &str, value: &Value, typing: Typing<'_>) {
        self.sizes.see(name, value);
        self.context.add_variable_from_value(name, values::typed(value, typing));
    }

    /// Binds a variable to an optional value.
    pub(crate) fn set_optional(&mut self, name: &str, value: Option<(&Value, Typing<'_>)>) {
        if let Some((value, _)) = value {
            self.sizes.see(name, value);
        }
        let inner = value.map(|(value, typing)| values::typed(value, typing));
        let source = if inner.is_some() { "optional.of(inner__)" } else { "optional.none()" };
        self.context.add_variable_from_value("inner__", inner.unwrap_or(CelValue::Null));
        if let Ok(optional) = compile(source).and_then(|p| p.execute(&self.context).map_err(|e| e.to_string())) {
            self.context.add_variable_from_value(name, optional);
        }
    }

    /// Binds the members of a map that grows by results of other expressions.
    pub(crate) fn set_results(&mut self, name: &str, results: &HashMap<String, CelValue>) {
        results.iter().for_each(|(name, value)| self.sizes.see_result(name, value));
        self.context.add_variable_from_value(name, results.clone());
    }

    /// Evaluates.
    pub(crate) fn run(&mut self, source: &str) -> Result<CelValue, Problem> {
        let program = compile(source).map_err(Problem::Compile)?;
        let cost = cost::bound(program.expression(), &self.sizes, source.len());
        if cost > CALL_LIMIT {
            return Err(Problem::CallLimit);
        }
        self.left = self.left.checked_sub(cost).ok_or(Problem::Budget)?;
        program.execute(&self.context).map_err(|error| Problem::Evaluation(error.to_string()))
    }

    /// Evaluates to a yes or no.
    pub(crate) fn holds(&mut self, source: &str) -> Result<bool, Problem> {
        match self.run(source)? {
            CelValue::Bool(value) => Ok(value),
            other => Err(Problem::Evaluation(format!("expression '{source}' answers no boolean but {other:?}"))),
        }
    }

    /// Evaluates to text; anything else, or nothing, is `None`.
    pub(crate) fn text(&mut self, source: &str) -> Option<String> {
        match self.run(source) {
            Ok(CelValue::String(text)) if !text.trim().is_empty() => Some(text.to_string()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(source: &str, value: &Value) -> Result<bool, Problem> {
        let mut scope = Scope::new();
        scope.set("self", value);
        scope.holds(source)
    }

    #[test]
    fn the_functions_of_kubernetes_are_there() {
        let value = json!({"a": "x-y", "list": [1, 2, 3], "when": "2026-01-01T00:00:00Z"});
        for source in [
            "self.a.split('-').size() == 2",
            "self.a.lowerAscii().contains('x')",
            "self.list.isSorted() && self.list.sum() == 6",
            "self.list.min() == 1 && self.list.max() == 3 && self.list.indexOf(2) == 1",
            "'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll('[0-9]+').size() == 2",
            "isURL('https://a.b/c') && !isURL('a b')",
            "duration('90m') > duration('1h')",
            "timestamp(self.when) < timestamp('2027-01-01T00:00:00Z')",
            "self.?none.orValue(7) == 7",
            "isIP('10.0.0.1') && !isIP('10.0.0') && isCIDR('10.0.0.0/8')",
            "isQuantity('1Gi') && !isQuantity('x')",
            "quantity('1Gi').isGreaterThan(quantity('1000Mi')) && quantity('1').compareTo(quantity('1000m')) == 0",
        ] {
            assert_eq!(check(source, &value), Ok(true), "{source}");
        }
    }

    #[test]
    fn loops_in_loops_over_large_lists_are_not_run() {
        let list: Vec<u32> = (0..1000).collect();
        let value = json!({"list": list, "short": [1, 2]});
        assert_eq!(check("self.list.all(a, a >= 0)", &value), Ok(true));
        assert_eq!(check("self.short.all(a, self.short.all(b, self.short.all(c, a + b + c > 0)))", &value), Ok(true));
        let deep = "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))";
        assert_eq!(check(deep, &value), Err(Problem::CallLimit));
        // The same loops under another name: what a range is called does not hide its size.
        for hidden in [
            "[self.list][0].all(a, [self.list][0].all(b, [self.list][0].all(c, a + b + c >= 0)))",
            "[self.list].all(short, short.all(a, short.all(b, short.all(c, a + b + c >= 0))))",
            "{'short': self.list}.short.all(a, {'short': self.list}.short.all(b, {'short': self.list}.short.all(c, true)))",
        ] {
            assert_eq!(check(hidden, &value), Err(Problem::CallLimit), "{hidden}");
        }
    }

    #[test]
    fn a_request_has_one_budget_for_all_its_rules() {
        let list: Vec<u32> = (0..1000).collect();
        let mut scope = Scope::new();
        scope.set("self", &json!({"list": list}));
        let rule = "self.list.all(a, a >= 0 && a >= 0 && a >= 0 && a >= 0)";
        let outcome = (0..10_000).find_map(|_| scope.holds(rule).err());
        assert_eq!(outcome, Some(Problem::Budget));
    }

    #[test]
    fn what_does_not_compile_is_named() {
        assert!(matches!(check("self.", &json!({})), Err(Problem::Compile(_))));
        assert!(matches!(check(&"(".repeat(5000), &json!({})), Err(Problem::Compile(_))));
        assert!(matches!(check(&format!("1{}", " + 1".repeat(4000)), &json!({})), Err(Problem::Compile(_))));
    }

    #[test]
    fn nesting_breaks_no_stack() {
        for (open, close) in
            [("(", ")"), ("[", "]"), ("!", ""), ("-", ""), ("{1:", "}"), ("size(", ")"), ("a ? ", " : 1")]
        {
            for depth in [10, 50, 100, 500, 900] {
                let source = format!("{}1{}", open.repeat(depth), close.repeat(depth));
                // Whatever it answers, it answers.
                let _ = check(&source, &json!({}));
            }
        }
        let long = format!("true{}", " && self.a == 1".repeat(400));
        assert_eq!(check(&long, &json!({"a": 1})), Ok(true));
        let sum = format!("1{} > 0", " + 1".repeat(50));
        assert_eq!(check(&sum, &json!({})), Ok(true));
    }
}
