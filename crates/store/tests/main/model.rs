//! The embedded engine against the model: step by step, and many tasks at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use proptest::prelude::*;
use store::{
    Compare, EmbeddedOptions, EmbeddedStore, Error, KeyRange, LeaseId, MemoryStore, Operation, RangeRequest, Store,
    Transaction, TransactionResponse, WatchItem,
};

use crate::simdisk::{Faults, Random, SimDisk};
use crate::support::next_change;

const KEYS: u8 = 6;

#[derive(Clone, Debug)]
enum Step {
    Transact { compare: Vec<(u8, u8, u64)>, then: Vec<(u8, u8, u16)>, otherwise: Vec<(u8, u8, u16)> },
    Range { from: u8, to: u8, back: u64, limit: usize, keys_only: bool },
    History { key: u8, back: u64 },
    Compact { back: u64 },
    Grant,
    Revoke(usize),
    Reopen,
    CutPower,
}

fn step() -> impl Strategy<Value = Step> {
    let branch = || proptest::collection::vec((0..KEYS, 0..8u8, 0..12_000u16), 0..4);
    let compare = proptest::collection::vec((0..KEYS, 0..3u8, 0..12u64), 0..2);
    prop_oneof![
        12 => (compare, branch(), branch())
            .prop_map(|(compare, then, otherwise)| Step::Transact { compare, then, otherwise }),
        4 => (0..KEYS, 0..=KEYS, 0..12u64, 0..4usize, any::<bool>())
            .prop_map(|(from, to, back, limit, keys_only)| Step::Range { from, to, back, limit, keys_only }),
        3 => (0..KEYS, 0..12u64).prop_map(|(key, back)| Step::History { key, back }),
        1 => (0..8u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Grant),
        1 => (0..4usize).prop_map(Step::Revoke),
        1 => Just(Step::Reopen),
        1 => Just(Step::CutPower),
    ]
}

fn key(index: u8) -> Bytes {
    Bytes::from(format!("key/{index}"))
}

/// Both stores, with the leases of each under one index.
struct Pair {
    disk: SimDisk,
    engine: Arc<EmbeddedStore>,
    model: Arc<MemoryStore>,
    leases: Vec<(LeaseId, LeaseId)>,
    compacted: u64,
    random: Random,
}

fn open(disk: &SimDisk) -> Arc<EmbeddedStore> {
    let options = EmbeddedOptions { segment_bytes: 64 * 1024, ..EmbeddedOptions::default() };
    EmbeddedStore::open_on(Arc::new(disk.clone()), options).unwrap()
}

fn kind<T>(result: &Result<T, Error>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => format!("{error:?}").split(['(', ' ']).next().unwrap_or_default().into(),
    }
}

impl Pair {
    fn operations(&self, steps: &[(u8, u8, u16)], model: bool, revision: u64) -> Vec<Operation> {
        let mut operations = Vec::new();
        for (index, what, length) in steps {
            let value = Bytes::from(format!("{revision}-{index}-{}", "x".repeat(usize::from(*length))));
            let lease = self.leases.get(usize::from(*what)).map_or(0, |pair| if model { pair.1 } else { pair.0 });
            operations.push(match what {
                0 => Operation::Get(key(*index)),
                1 | 2 => Operation::Delete(key(*index)),
                3 => Operation::Put(key(*index), value, lease),
                _ => Operation::Put(key(*index), value, 0),
            });
        }
        operations
    }

    fn forget_leases(&self, response: TransactionResponse) -> String {
        // Lease identities differ between the stores; which lease it is does not.
        let mut text = format!("{response:?}");
        for (index, (engine, model)) in self.leases.iter().enumerate() {
            text = text.replace(&format!("lease: {engine} "), &format!("lease: #{index} "));
            text = text.replace(&format!("lease: {model} "), &format!("lease: #{index} "));
        }
        text
    }

    async fn apply(&mut self, step: &Step) {
        let newest = self.model.revision().await.unwrap();
        match step {
            Step::Transact { compare, then, otherwise } => {
                let compare: Vec<Compare> = compare
                    .iter()
                    .map(|(index, what, back)| match what {
                        0 => Compare::Exists(key(*index)),
                        1 => Compare::ModRevision(key(*index), newest.saturating_sub(*back)),
                        _ => Compare::CreateRevision(key(*index), newest.saturating_sub(*back)),
                    })
                    .collect();
                let transaction = |model| Transaction {
                    compare: compare.clone(),
                    then: self.operations(then, model, newest),
                    otherwise: self.operations(otherwise, model, newest),
                };
                let ours = self.engine.transact(transaction(false)).await;
                let theirs = self.model.transact(transaction(true)).await;
                assert_eq!(kind(&ours), kind(&theirs));
                if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                    assert_eq!(self.forget_leases(ours), self.forget_leases(theirs));
                }
            }
            Step::Range { from, to, back, limit, keys_only } => {
                let request = RangeRequest {
                    range: KeyRange::Between(key(*from), key(*to)),
                    revision: back.checked_sub(1).map(|back| newest.saturating_sub(back).max(1)),
                    limit: *limit,
                    keys_only: *keys_only,
                };
                let ours = self.engine.range(request.clone()).await;
                let theirs = self.model.range(request).await;
                assert_eq!(kind(&ours), kind(&theirs));
                if let (Ok(ours), Ok(theirs)) = (ours, theirs) {
                    let plain = |response: store::RangeResponse| {
                        let items: Vec<_> = response
                            .items
                            .into_iter()
                            .map(|item| (item.key, item.value, item.create_revision, item.mod_revision, item.version))
                            .collect();
                        (items, response.count, response.revision)
                    };
                    assert_eq!(plain(ours), plain(theirs));
                }
            }
            Step::History { key: index, back } => {
                let from = newest.saturating_sub(*back).max(1);
                let ours = history(self.engine.as_ref(), key(*index), from).await;
                let theirs = history(self.model.as_ref(), key(*index), from).await;
                assert_eq!(ours, theirs);
            }
            Step::Compact { back } => {
                let revision = newest.saturating_sub(*back);
                let ours = self.engine.compact(revision).await;
                let theirs = self.model.compact(revision).await;
                assert_eq!(kind(&ours), kind(&theirs));
                self.compacted = self.compacted.max(revision);
            }
            Step::Grant => {
                let pair = (self.engine.lease_grant(3600).await.unwrap(), self.model.lease_grant(3600).await.unwrap());
                self.leases.push(pair);
            }
            Step::Revoke(index) => {
                let Some((engine, model)) = self.leases.get(*index).copied() else { return };
                let ours = self.engine.lease_revoke(engine).await;
                let theirs = self.model.lease_revoke(model).await;
                assert_eq!(ours.is_ok(), theirs.is_ok());
            }
            Step::Reopen | Step::CutPower => {
                let options = EmbeddedOptions { segment_bytes: 64 * 1024, ..EmbeddedOptions::default() };
                if matches!(step, Step::CutPower) {
                    self.disk = self.disk.cut(&mut self.random);
                    self.engine = open(&self.disk);
                    return;
                }
                let spare = SimDisk::new(Faults::default());
                self.engine = EmbeddedStore::open_on(Arc::new(spare), options).unwrap();
                self.engine = open(&self.disk);
            }
        }
    }
}

async fn history(store: &dyn Store, key: Bytes, from: u64) -> Result<Vec<String>, String> {
    let mut watch = store.watch(KeyRange::Key(key), Some(from)).await.map_err(|error| format!("{error:?}"))?;
    let mut items = Vec::new();
    loop {
        match watch.next().await.unwrap().unwrap() {
            WatchItem::Progress(_) => return Ok(items),
            WatchItem::Events { revision, events } => {
                let events = events.iter().map(|event| match event {
                    store::Event::Put { current, previous } => format!(
                        "put {:?} {} {:?}",
                        current.value,
                        current.version,
                        previous.as_ref().map(|previous| &previous.value)
                    ),
                    store::Event::Delete { previous, .. } => {
                        format!("delete {:?}", previous.as_ref().map(|previous| &previous.value))
                    }
                });
                items.push(format!("{revision}: {:?}", events.collect::<Vec<_>>()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_answers_as_the_model_does(steps in proptest::collection::vec(step(), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let disk = SimDisk::new(Faults::default());
            let engine = open(&disk);
            let model = MemoryStore::new();
            let mut pair = Pair { disk, engine, model, leases: Vec::new(), compacted: 0, random: Random(5) };
            for step in &steps {
                pair.apply(step).await;
            }
        });
    }
}

/// Many tasks write at once; the revisions that they got give the order in which the model must agree with every answer,
/// and one watcher must have seen the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_transactions_are_as_if_one_after_another() {
    for seed in 0..12 {
        let disk = SimDisk::new(Faults::default());
        let engine = open(&disk);
        let mut watch = engine.watch(KeyRange::Prefix(Bytes::new()), None).await.unwrap();
        let mut tasks = Vec::new();
        for writer in 0..16u64 {
            let engine = Arc::clone(&engine);
            let mut random = Random(seed * 1000 + writer);
            tasks.push(tokio::spawn(async move {
                let mut done = Vec::new();
                let mut known = 0;
                for step in 0..40u64 {
                    let index = u8::try_from(random.below(u64::from(KEYS))).unwrap();
                    let value = Bytes::from(format!("{writer}/{step}"));
                    let transaction = Transaction {
                        compare: vec![Compare::ModRevision(key(index), known)],
                        then: vec![
                            Operation::Put(key(index), value.clone(), 0),
                            Operation::Get(key((index + 1) % KEYS)),
                        ],
                        otherwise: match random.below(3) {
                            0 => vec![Operation::Delete(key(index))],
                            1 => vec![Operation::Put(key(index), value, 0)],
                            _ => vec![Operation::Get(key(index))],
                        },
                    };
                    let response = engine.transact(transaction.clone()).await.unwrap();
                    known = response.revision;
                    done.push((transaction, response));
                }
                done
            }));
        }
        let mut writes = BTreeMap::new();
        for task in tasks {
            for (transaction, response) in task.await.unwrap() {
                let wrote = response.results.iter().any(|result| {
                    matches!(result, store::OperationResult::Put | store::OperationResult::Deleted(Some(_)))
                });
                if wrote {
                    assert!(writes.insert(response.revision, (transaction, response)).is_none(), "a revision twice");
                }
            }
        }
        let model = MemoryStore::new();
        let mut expected = model.watch(KeyRange::Prefix(Bytes::new()), None).await.unwrap();
        for (revision, (transaction, response)) in writes {
            let theirs = model.transact(transaction).await.unwrap();
            assert_eq!(format!("{theirs:?}"), format!("{response:?}"));
            assert_eq!(theirs.revision, revision, "no revision is left out");
            assert_eq!(next_change(&mut watch).await.unwrap(), next_change(&mut expected).await.unwrap());
        }
    }
}
