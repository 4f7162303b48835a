//! Where the two copies of a stage meet to sum their gradients: an all-reduce between two ranks of one process.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use dualpipe::op::StageCopy;

use crate::model::Tensors;

/// Gradients on their way to the rank that holds the other copy.
#[derive(Default)]
pub(crate) struct GradientExchange {
    given: Mutex<BTreeMap<StageCopy, Tensors>>,
    arrival: Condvar,
}

impl GradientExchange {
    /// Gives the gradients of `copy` away, for its twin to take.
    pub(crate) fn give(&self, copy: StageCopy, grads: &Tensors) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.insert(copy, grads.clone());
        self.arrival.notify_all();
    }

    /// Waits for the gradients of `copy` and takes them.
    ///
    /// The sum of two numbers does not depend on their order: both ranks get the same bits, and so the two copies
    /// of a stage stay the same for ever.
    pub(crate) fn take(&self, copy: StageCopy, timeout: Duration) -> Result<Tensors, String> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut given, _) = self
            .arrival
            .wait_timeout_while(given, timeout, |given| !given.contains_key(&copy))
            .unwrap_or_else(PoisonError::into_inner);
        given.remove(&copy).ok_or_else(|| {
            let StageCopy { direction, stage } = copy;
            format!("the gradients of stage {stage} in direction {direction} did not come in {timeout:?}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Config, StageModel};
    use dualpipe::ids::{Direction, Stage};

    #[test]
    fn gradients_come_once_and_a_lost_one_is_an_error() {
        let grads = StageModel::<f32>::new(&Config::small(1), 0, 1).params;
        let copy = StageCopy { direction: Direction::Up, stage: Stage(0) };
        let exchange = GradientExchange::default();
        let timeout = Duration::from_millis(10);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| exchange.take(copy, Duration::from_secs(60)));
            exchange.give(copy, &grads);
            assert!(taker.join().unwrap().unwrap().iter().eq(grads.iter()));
        });
        assert_eq!(
            exchange.take(copy, timeout).err().as_deref(),
            Some("the gradients of stage 0 in direction 1 did not come in 10ms")
        );
    }
}
