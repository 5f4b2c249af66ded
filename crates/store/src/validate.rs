//! The bounds that every engine holds requests against, so that all of them refuse the same things.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::types::{MAX_KEY_BYTES, MAX_TRANSACTION_OPERATIONS, MAX_VALUE_BYTES, Operation, Transaction};

/// Longest time a lease may have, etcd's own bound. Units: seconds.
pub(crate) const MAX_LEASE_SECONDS: u64 = 9_000_000_000;

/// Checks bounds, and that no branch names a key twice.
pub(crate) fn transaction(transaction: &Transaction) -> Result<()> {
    let steps = [transaction.compare.len(), transaction.then.len(), transaction.otherwise.len()];
    if steps.iter().any(|steps| *steps > MAX_TRANSACTION_OPERATIONS) {
        return Err(Error::Invalid(format!("more than {MAX_TRANSACTION_OPERATIONS} operations in one transaction")));
    }
    for compare in &transaction.compare {
        key(compare.key())?;
    }
    branch(&transaction.then)?;
    branch(&transaction.otherwise)
}

/// Checks the time of a lease.
pub(crate) fn lease_seconds(ttl_seconds: u64) -> Result<()> {
    if ttl_seconds == 0 || ttl_seconds > MAX_LEASE_SECONDS {
        return Err(Error::Invalid(format!("lease time must be 1 to {MAX_LEASE_SECONDS} seconds")));
    }
    Ok(())
}

fn branch(operations: &[Operation]) -> Result<()> {
    let mut seen = HashSet::with_capacity(operations.len());
    for operation in operations {
        key(operation.key())?;
        if !seen.insert(operation.key()) {
            return Err(Error::Invalid("a key is named twice in one transaction".into()));
        }
        if let Operation::Put(_, value, _) = operation
            && value.len() > MAX_VALUE_BYTES
        {
            return Err(Error::Invalid(format!("value is longer than {MAX_VALUE_BYTES} bytes")));
        }
    }
    Ok(())
}

fn key(key: &[u8]) -> Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        return Err(Error::Invalid(format!("key must have 1 to {MAX_KEY_BYTES} bytes")));
    }
    Ok(())
}
