//! The functions that Kubernetes adds to CEL. `Source:` Kubernetes' documentation, "CEL in Kubernetes", tables of
//! libraries.

use std::cmp::Ordering;

use cel::common::functions::Function;
use cel::common::types::{DYN_TYPE, LIST_TYPE, STRING_TYPE};
use cel::common::value::{CowVal, Val};
use cel::{Env, ExecutionError, Value as CelValue};

/// Largest compiled pattern. Units: bytes.
const MAX_PATTERN_BYTES: usize = 256 * 1024;

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// The standard library with Kubernetes' additions.
pub(super) fn environment() -> Env {
    let mut env = Env::stdlib();
    // Names are distinct from the standard ones, so a failure is a mistake in these tables, which the tests find.
    if let Err(error) = declare(&mut env) {
        tracing::error!(%error, "a function of the expression library is declared twice");
    }
    env
}

fn declare(env: &mut Env) -> Result<(), cel::DeclarationError> {
    env.add_extension(cel::extensions::strings)?;
    env.add_extension(cel::extensions::math)?;
    let of_list: [(&str, Function); 4] = [("isSorted", is_sorted), ("sum", sum), ("min", least), ("max", greatest)];
    for (name, function) in of_list {
        env.add_member_overload(name, &format!("k8s_list_{name}"), LIST_TYPE, vec![], function)?;
    }
    let in_list: [(&str, Function); 2] = [("indexOf", index_of), ("lastIndexOf", last_index_of)];
    for (name, function) in in_list {
        env.add_member_overload(name, &format!("k8s_list_{name}"), LIST_TYPE, vec![DYN_TYPE], function)?;
    }
    let of_text: [(&str, Function); 5] =
        [("isURL", is_url), ("isIP", is_ip), ("isCIDR", is_cidr), ("isQuantity", is_quantity), ("quantity", quantity)];
    for (name, function) in of_text {
        env.add_overload(name, &format!("k8s_{name}"), vec![STRING_TYPE], function)?;
    }
    // A quantity is text of its nano-units: equal ones are equal texts, and the members below read it back.
    let of_two_texts: [(&str, Function); 7] = [
        ("find", find),
        ("findAll", find_all),
        ("compareTo", compare),
        ("isGreaterThan", is_greater),
        ("isLessThan", is_less),
        ("add", add),
        ("sub", subtract),
    ];
    for (name, function) in of_two_texts {
        env.add_member_overload(name, &format!("k8s_{name}"), STRING_TYPE, vec![STRING_TYPE], function)?;
    }
    let of_quantity: [(&str, Function); 4] =
        [("sign", sign), ("isInteger", is_integer), ("asInteger", as_integer), ("asApproximateFloat", as_float)];
    for (name, function) in of_quantity {
        env.add_member_overload(name, &format!("k8s_{name}"), STRING_TYPE, vec![], function)?;
    }
    Ok(())
}

fn failed(function: &str, message: &str) -> ExecutionError {
    ExecutionError::function_error(function, message)
}

fn give<'b, 'v>(value: impl Into<CelValue>) -> Answer<'b, 'v> {
    let value: Box<dyn Val> = value.into().try_into()?;
    Ok(CowVal::Owned(value))
}

fn take(args: &[CowVal<'_, '_>], index: usize) -> Result<CelValue, ExecutionError> {
    let value = args.get(index).ok_or_else(|| failed("call", "an argument is missing"))?;
    CelValue::try_from(value.as_ref())
}

fn text(args: &[CowVal<'_, '_>], index: usize) -> Result<String, ExecutionError> {
    match take(args, index)? {
        CelValue::String(text) => Ok(text.to_string()),
        _ => Err(failed("call", "text was expected")),
    }
}

fn list(args: &[CowVal<'_, '_>]) -> Result<Vec<CelValue>, ExecutionError> {
    match take(args, 0)? {
        CelValue::List(items) => Ok(items.to_vec()),
        _ => Err(failed("call", "a list was expected")),
    }
}

fn is_sorted<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let items = list(&args)?;
    give(items.windows(2).all(|pair| pair[0].partial_cmp(&pair[1]).is_some_and(Ordering::is_le)))
}

fn sum<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let items = list(&args)?;
    let start = match items.first() {
        Some(CelValue::Float(_)) => CelValue::Float(0.0),
        Some(CelValue::UInt(_)) => CelValue::UInt(0),
        _ => CelValue::Int(0),
    };
    let total = items.into_iter().try_fold(start, |total, item| match (total, item) {
        (CelValue::Int(a), CelValue::Int(b)) => a.checked_add(b).map(CelValue::Int),
        (CelValue::UInt(a), CelValue::UInt(b)) => a.checked_add(b).map(CelValue::UInt),
        (CelValue::Float(a), CelValue::Float(b)) => Some(CelValue::Float(a + b)),
        _ => None,
    });
    give(total.ok_or_else(|| failed("sum", "the elements are no numbers of one type, or too large"))?)
}

fn extreme(args: &[CowVal<'_, '_>], name: &str, wanted: Ordering) -> Result<CelValue, ExecutionError> {
    let best =
        list(args)?.into_iter().reduce(|best, item| if item.partial_cmp(&best) == Some(wanted) { item } else { best });
    best.ok_or_else(|| failed(name, &format!("{name} called on empty list")))
}

fn least<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(extreme(&args, "min", Ordering::Less)?)
}

fn greatest<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(extreme(&args, "max", Ordering::Greater)?)
}

fn place(at: Option<usize>) -> i64 {
    at.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1)
}

fn index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let wanted = take(&args, 1)?;
    give(place(list(&args)?.iter().position(|item| *item == wanted)))
}

fn last_index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let wanted = take(&args, 1)?;
    give(place(list(&args)?.iter().rposition(|item| *item == wanted)))
}

fn pattern(source: &str) -> Result<regex::Regex, ExecutionError> {
    let built = regex::RegexBuilder::new(source).size_limit(MAX_PATTERN_BYTES).build();
    built.map_err(|error| failed("find", &format!("'{source}' not a valid regex: {error}")))
}

fn find<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let text_in = text(&args, 0)?;
    give(pattern(&text(&args, 1)?)?.find(&text_in).map(|found| found.as_str()).unwrap_or_default())
}

fn find_all<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let text_in = text(&args, 0)?;
    let found = pattern(&text(&args, 1)?)?;
    give(found.find_iter(&text_in).map(|found| CelValue::from(found.as_str())).collect::<Vec<_>>())
}

/// An absolute URL or an absolute path, as Go's `url.ParseRequestURI` takes them.
fn is_url<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let url = text(&args, 0)?;
    let scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
    };
    let clean = !url.contains(|c: char| c.is_whitespace() || c.is_control());
    let absolute =
        url.starts_with('/') || url.split_once("://").is_some_and(|(name, rest)| scheme(name) && !rest.is_empty());
    give(clean && absolute)
}

fn is_ip<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(text(&args, 0)?.parse::<std::net::IpAddr>().is_ok())
}

fn is_cidr<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let cidr = text(&args, 0)?;
    let fits = cidr.split_once('/').is_some_and(|(address, bits)| {
        let most = match address.parse::<std::net::IpAddr>() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        bits.parse::<u8>().is_ok_and(|bits| bits <= most)
    });
    give(fits)
}

/// Text of nano-units is told from a user's text by this mark.
const QUANTITY_MARK: char = '\u{1}';

fn nano(args: &[CowVal<'_, '_>], index: usize) -> Result<i128, ExecutionError> {
    let marked = text(args, index)?;
    let digits = marked.strip_prefix(QUANTITY_MARK).and_then(|digits| digits.parse().ok());
    digits.ok_or_else(|| failed("quantity", "no such overload: a quantity was expected"))
}

fn marked<'b, 'v>(nano: Option<i128>) -> Answer<'b, 'v> {
    let nano = nano.ok_or_else(|| failed("quantity", "the quantity is too large"))?;
    give(format!("{QUANTITY_MARK}{nano}"))
}

fn is_quantity<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(api::quantity::nano(&text(&args, 0)?).is_some())
}

fn quantity<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let given = text(&args, 0)?;
    match api::quantity::nano(&given) {
        Some(nano) => marked(Some(nano)),
        None => Err(failed("quantity", &format!("quantities must match the regular expression: {given:?}"))),
    }
}

fn compare<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(i64::from(nano(&args, 0)?.cmp(&nano(&args, 1)?) as i8))
}

fn is_greater<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(nano(&args, 0)? > nano(&args, 1)?)
}

fn is_less<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(nano(&args, 0)? < nano(&args, 1)?)
}

fn add<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    marked(nano(&args, 0)?.checked_add(nano(&args, 1)?))
}

fn subtract<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    marked(nano(&args, 0)?.checked_sub(nano(&args, 1)?))
}

fn sign<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(i64::try_from(nano(&args, 0)?.signum()).unwrap_or(0))
}

fn is_integer<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(nano(&args, 0)? % NANO == 0)
}

fn as_integer<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    let nano = nano(&args, 0)?;
    let whole = (nano % NANO == 0).then(|| i64::try_from(nano / NANO).ok()).flatten();
    give(whole.ok_or_else(|| failed("asInteger", "cannot convert value to integer"))?)
}

#[allow(clippy::cast_precision_loss)] // Its name says that it is approximate.
fn as_float<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Answer<'b, 'v> {
    give(nano(&args, 0)? as f64 / NANO as f64)
}

/// Nano-units of one unit.
const NANO: i128 = 1_000_000_000;
