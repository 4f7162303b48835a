//! Where the two copies of a stage meet to sum their gradients: an all-reduce between two ranks of one process.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use dualpipe::op::StageCopy;

/// Gradients, or where on a device they are, on their way to the rank that holds the other copy.
pub(crate) struct GradientExchange<G> {
    state: Mutex<State<G>>,
    change: Condvar,
}

struct State<G> {
    given: BTreeMap<StageCopy, G>,
    /// Why no more will come.
    closed: Option<String>,
}

impl<G> Default for GradientExchange<G> {
    fn default() -> GradientExchange<G> {
        let state = State { given: BTreeMap::new(), closed: None };
        GradientExchange { state: Mutex::new(state), change: Condvar::new() }
    }
}

impl<G> GradientExchange<G> {
    /// Gives the gradients of `copy` away, for its twin to take.
    pub(crate) fn give(&self, copy: StageCopy, grads: G) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.given.insert(copy, grads);
        self.change.notify_all();
    }

    /// Lets nobody wait any more: a rank has failed, and this is why.
    pub(crate) fn close(&self, why: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed.get_or_insert_with(|| why.into());
        self.change.notify_all();
    }

    /// Waits for the gradients of `copy` and takes them.
    pub(crate) fn take(&self, copy: StageCopy, timeout: Duration) -> Result<G, String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .change
            .wait_timeout_while(state, timeout, |state| {
                !state.given.contains_key(&copy) && state.closed.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.given.remove(&copy).ok_or_else(|| {
            let StageCopy { direction, stage } = copy;
            let what = format!("the gradients of stage {stage} in direction {direction}");
            match &state.closed {
                Some(why) => format!("{what} will not come [{why}]"),
                None => format!("{what} did not come in {timeout:?}"),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dualpipe::ids::{Direction, Stage};

    #[test]
    fn gradients_come_once_and_a_lost_one_is_an_error() {
        let copy = StageCopy { direction: Direction::Up, stage: Stage(0) };
        let exchange = GradientExchange::default();
        let timeout = Duration::from_millis(10);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| exchange.take(copy, Duration::from_secs(60)));
            exchange.give(copy, "gradients");
            assert_eq!(taker.join().unwrap(), Ok("gradients"));
        });
        assert_eq!(
            exchange.take(copy, timeout).err().as_deref(),
            Some("the gradients of stage 0 in direction 1 did not come in 10ms")
        );
    }

    #[test]
    fn who_waits_hears_of_a_failure() {
        let copy = StageCopy { direction: Direction::Down, stage: Stage(2) };
        let exchange = GradientExchange::<()>::default();
        let error = std::thread::scope(|scope| {
            let taker = scope.spawn(|| exchange.take(copy, Duration::from_secs(60)));
            exchange.close("no memory");
            taker.join().unwrap().err()
        });
        let text = "the gradients of stage 2 in direction 0 will not come [no memory]";
        assert_eq!(error.as_deref(), Some(text));
    }
}
