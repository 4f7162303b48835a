//! When a device's events happened, on the clock that the ranks share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::context::Context;
use super::stream::{Event, Stream, StreamKey};
use super::sys::DriverResult;

/// Longest wait for the clock's own event, on a stream that has nothing else to do.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A point in time that both the host and the device know.
pub(crate) struct Clock {
    stream: Stream,
    event: Arc<Event>,
    at_ns: u64,
}

impl Clock {
    pub(crate) fn new(context: &Arc<Context>, now_ns: impl Fn() -> u64) -> DriverResult<Clock> {
        let stream = Stream::new(context, StreamKey(0), true)?;
        let event = Event::new(context, true)?;
        let mut clock = Clock { stream, event, at_ns: 0 };
        clock.set(now_ns)?;
        Ok(clock)
    }

    /// Compares the clocks anew. The driver measures time from an event in floats, which must not become long.
    pub(crate) fn set(&mut self, now_ns: impl Fn() -> u64) -> DriverResult {
        let began = Instant::now();
        self.event.record(&self.stream)?;
        while !self.event.is_done()? && began.elapsed() < TIMEOUT {
            std::hint::spin_loop();
        }
        self.at_ns = now_ns();
        Ok(())
    }

    /// When `event` happened.
    pub(crate) fn ns(&self, event: &Event) -> DriverResult<u64> {
        Ok(self.at_ns.saturating_add_signed(event.ns_since(&self.event)?))
    }
}
