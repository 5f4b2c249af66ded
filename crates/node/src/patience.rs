//! Questions to the machine that may stay without an answer: a path that a user names may lie on a file system whose server is gone,
//! and whoever looks at it, or at a process that waits for it, waits in the kernel until that is back. Each such question is asked on a
//! thread of its own and given up after a while. Its thread stays until the kernel lets it go, so only so many may be out at once, and
//! what has not answered is not asked again meanwhile.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

/// How long an answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most questions at the same time. Each that stays without an answer keeps a thread.
const QUESTIONS_MAX: usize = 64;
/// Stack of a question's thread. Units: bytes.
const STACK_BYTES: usize = 256 << 10;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It is not there, or asked for still.
    #[error("{0} does not answer")]
    Silent(String),
    /// Too many others are not answered.
    #[error("{0} is not asked: too many others do not answer")]
    TooMany(String),
    /// The question could not be asked.
    #[error("{0} cannot be asked: {1}")]
    NotAsked(String, String),
}

impl From<NoAnswer> for crate::Error {
    fn from(error: NoAnswer) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// What is out, and the places for it.
#[derive(Debug)]
struct Questions {
    places: Semaphore,
    next: AtomicU64,
    /// About what, and until when an answer is waited for.
    out: Mutex<BTreeMap<u64, (String, Instant)>>,
}

/// Those of this process.
static OURS: Questions = Questions::new();

/// Asks on a thread of its own. `about` names in a few words who is asked, and is the beginning of the error's text.
///
/// Errors: there was no answer for [`ANSWER_TIMEOUT`], or there has been none to an earlier question about the same.
pub async fn ask<T: Send + 'static>(
    about: impl Into<String>,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    OURS.ask(ANSWER_TIMEOUT, about.into(), question).await
}

/// Asks about a path, by which it is named, as [`ask`] does.
///
/// Errors: as there.
pub async fn ask_path<T: Send + 'static>(
    path: impl Into<PathBuf>,
    question: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, NoAnswer> {
    let path = path.into();
    ask(path.display().to_string(), move || question(&path)).await
}

impl Questions {
    const fn new() -> Self {
        let (places, next) = (Semaphore::const_new(QUESTIONS_MAX), AtomicU64::new(0));
        Self { places, next, out: Mutex::new(BTreeMap::new()) }
    }

    async fn ask<T: Send + 'static>(
        &'static self,
        limit: Duration,
        about: String,
        question: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        self.may_ask(&about)?;
        let Ok(Ok(place)) = tokio::time::timeout(limit, self.places.acquire()).await else {
            return Err(NoAnswer::TooMany(about));
        };
        let (answer, answered) = oneshot::channel();
        self.start(limit, &about, place, move || drop(answer.send(question())))?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(NoAnswer::NotAsked(about, "the question was cut off".to_owned())),
            Err(_) => Err(NoAnswer::Silent(about)),
        }
    }

    fn out(&self) -> MutexGuard<'_, BTreeMap<u64, (String, Instant)>> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Errors: what would be asked is silent, or too much is.
    fn may_ask(&self, about: &str) -> Result<(), NoAnswer> {
        let (out, now) = (self.out(), Instant::now());
        let silent: Vec<_> = out.values().filter(|(_, until)| *until <= now).collect();
        if silent.iter().any(|(other, _)| other == about) {
            return Err(NoAnswer::Silent(about.to_owned()));
        }
        if silent.len() >= QUESTIONS_MAX {
            return Err(NoAnswer::TooMany(about.to_owned()));
        }
        Ok(())
    }

    /// Starts the thread of a question, which has its place until it ends.
    fn start(
        &'static self,
        limit: Duration,
        about: &str,
        place: SemaphorePermit<'static>,
        question: impl FnOnce() + Send + 'static,
    ) -> Result<(), NoAnswer> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.out().insert(number, (about.to_owned(), Instant::now() + limit));
        let out = Out { questions: self, number, _place: place };
        let thread = std::thread::Builder::new().name("question".into()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            let _out = out;
            question();
        });
        started.map(drop).map_err(|error| NoAnswer::NotAsked(about.to_owned(), error.to_string()))
    }
}

/// A question that is out, and its place.
struct Out {
    questions: &'static Questions,
    number: u64,
    _place: SemaphorePermit<'static>,
}

impl Drop for Out {
    fn drop(&mut self) {
        self.questions.out().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    fn questions() -> &'static Questions {
        Box::leak(Box::new(Questions::new()))
    }

    /// Waits until no question is out.
    async fn until_answered(questions: &Questions) {
        while !questions.out().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_does_not_answer_is_given_up_and_not_asked_again_until_it_does() {
        let questions = questions();
        let ask = |about: &str, answer: i32| questions.ask(ANSWER_TIMEOUT, about.to_owned(), move || answer);
        let (holds, held) = mpsc::channel::<()>();
        let answer = questions.ask(SHORT, "/dead".to_owned(), move || held.recv()).await;
        assert_eq!(answer, Err(NoAnswer::Silent("/dead".to_owned())));
        assert_eq!(ask("/dead", 1).await, Err(NoAnswer::Silent("/dead".to_owned())));
        assert_eq!(questions.out().len(), 1, "no second thread waits");
        assert_eq!(ask("/fine", 2).await, Ok(2));
        drop(holds);
        until_answered(questions).await;
        assert_eq!(ask("/dead", 3).await, Ok(3));
    }

    #[tokio::test]
    async fn only_so_many_stay_without_an_answer() {
        let questions = questions();
        let mut all = Vec::new();
        for number in 0..QUESTIONS_MAX {
            let (holds, held) = mpsc::channel::<()>();
            all.push(holds);
            let answer = questions.ask(Duration::ZERO, number.to_string(), move || held.recv()).await;
            assert_eq!(answer, Err(NoAnswer::Silent(number.to_string())));
        }
        let answer = questions.ask(ANSWER_TIMEOUT, "/fine".to_owned(), || ()).await;
        assert_eq!(answer, Err(NoAnswer::TooMany("/fine".to_owned())));
        drop(all);
        until_answered(questions).await;
        assert_eq!(questions.ask(ANSWER_TIMEOUT, "/fine".to_owned(), || ()).await, Ok(()));
    }

    #[tokio::test]
    async fn a_question_that_panics_is_over() {
        let questions = questions();
        let failed = questions.ask(ANSWER_TIMEOUT, "/broken".to_owned(), || panic!("as a defect of ours")).await;
        let failed: NoAnswer = failed.map(|(): ()| ()).unwrap_err();
        assert!(matches!(failed, NoAnswer::NotAsked(..)), "{failed}");
        until_answered(questions).await;
    }
}
