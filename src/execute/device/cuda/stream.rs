//! Streams and events, and who has waited for what: a wait that another one already implies is not issued.

use std::ffi::{c_int, c_uint};
use std::sync::Arc;

use super::context::Context;
use super::sys::{self, CUevent, CUstream, DriverResult};

/// An event of one device.
pub(crate) struct Event {
    context: Arc<Context>,
    raw: CUevent,
}

// SAFETY: the driver's functions may be called from any thread; the handle is only a name.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that `is_timed`, or only orders streams.
    pub(crate) fn new(context: &Arc<Context>, is_timed: bool) -> DriverResult<Arc<Event>> {
        let _entered = context.enter()?;
        let flags: c_uint = if is_timed { 0 } else { sys::EVENT_DISABLE_TIMING };
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes to a local.
        unsafe { context.driver().cuEventCreate(&mut raw, flags) }?;
        Ok(Arc::new(Event { context: Arc::clone(context), raw }))
    }

    /// Records it: it happens when the stream has done all that was enqueued before.
    pub(crate) fn record(&self, stream: &Stream) -> DriverResult {
        // SAFETY: both live.
        unsafe { self.context.driver().cuEventRecord(self.raw, stream.raw) }
    }

    /// Records it in a capture so that every launch of the graph records it anew.
    pub(crate) fn record_at_launch(&self, stream: &Stream) -> DriverResult {
        let driver = self.context.driver();
        // SAFETY: both live.
        unsafe { driver.cuEventRecordWithFlags(self.raw, stream.raw, sys::EVENT_RECORD_EXTERNAL) }
    }

    /// What is enqueued on `stream` from now on comes after it; for events that no [`Mark`] tells of.
    pub(crate) fn wait_in(&self, stream: &Stream) -> DriverResult {
        // SAFETY: both live.
        unsafe { self.context.driver().cuStreamWaitEvent(stream.raw, self.raw, 0) }
    }

    /// Whether what it was recorded after is done. It does not wait.
    pub(crate) fn is_done(&self) -> DriverResult<bool> {
        // SAFETY: it lives.
        match unsafe { self.context.driver().cuEventQuery(self.raw) } {
            Ok(()) => Ok(true),
            Err(why) if why.is_not_ready() => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// Nanoseconds from `start` to this; both timed, of one device, and done. The driver's resolution is about half a
    /// microsecond.
    pub(crate) fn ns_since(&self, start: &Event) -> DriverResult<i64> {
        let mut milliseconds = 0.0;
        // SAFETY: both live; writes to a local.
        unsafe { self.context.driver().cuEventElapsedTime(&mut milliseconds, start.raw, self.raw) }?;
        Ok((f64::from(milliseconds) * 1e6) as i64)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once; the driver lets pending work end.
        let _ = unsafe { self.context.driver().cuEventDestroy_v2(self.raw) };
    }
}

/// Names a stream within one executor: its own first, then the other ranks' that it hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StreamKey(pub(crate) usize);

/// A point in the order of a stream.
#[derive(Clone)]
pub(crate) struct Mark {
    /// Whose order.
    pub(crate) stream: StreamKey,
    /// How far: of two marks of a stream the greater one implies the other.
    pub(crate) number: u64,
    /// What happens there.
    pub(crate) event: Arc<Event>,
}

/// A stream, the caller's or our own.
pub(crate) struct Stream {
    context: Arc<Context>,
    raw: CUstream,
    is_own: bool,
    key: StreamKey,
    /// Marks made so far.
    marks: u64,
    /// By stream key, the greatest mark that has been waited for.
    seen: Vec<u64>,
    /// What is to be waited for before the next work, the greatest mark of each stream.
    due: Vec<Mark>,
}

// SAFETY: the driver's functions may be called from any thread; the handle is only a name.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream of our own; `is_urgent` ones go before others where blocks of kernels compete.
    pub(crate) fn new(context: &Arc<Context>, key: StreamKey, is_urgent: bool) -> DriverResult<Stream> {
        let driver = context.driver();
        let _entered = context.enter()?;
        let (mut least, mut greatest): (c_int, c_int) = (0, 0);
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes to locals.
        unsafe {
            driver.cuCtxGetStreamPriorityRange(&mut least, &mut greatest)?;
            let priority = if is_urgent { greatest } else { least };
            driver.cuStreamCreateWithPriority(&mut raw, sys::STREAM_NON_BLOCKING, priority)?;
        }
        Ok(Stream {
            context: Arc::clone(context),
            raw,
            is_own: true,
            key,
            marks: 0,
            seen: Vec::new(),
            due: Vec::new(),
        })
    }

    /// The caller's stream.
    ///
    /// # Safety
    /// It is a stream of `context` for as long as this lives.
    pub(crate) unsafe fn borrowed(context: &Arc<Context>, key: StreamKey, raw: CUstream) -> Stream {
        Stream {
            context: Arc::clone(context),
            raw,
            is_own: false,
            key,
            marks: 0,
            seen: Vec::new(),
            due: Vec::new(),
        }
    }

    pub(crate) fn raw(&self) -> CUstream {
        self.raw
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Records `event` here, now.
    pub(crate) fn mark(&mut self, event: &Arc<Event>) -> DriverResult<Mark> {
        event.record(self)?;
        self.marks += 1;
        Ok(Mark { stream: self.key, number: self.marks, event: Arc::clone(event) })
    }

    /// What is enqueued from now on comes after `mark`.
    pub(crate) fn wait(&mut self, mark: &Mark) -> DriverResult {
        let key = mark.stream.0;
        if mark.stream == self.key {
            return Ok(());
        }
        if self.seen.len() <= key {
            self.seen.resize(key + 1, 0);
        }
        if self.seen[key] >= mark.number {
            return Ok(());
        }
        mark.event.wait_in(self)?;
        self.seen[key] = mark.number;
        Ok(())
    }

    /// As [`Stream::wait`], but not before [`Stream::settle`]: of marks of one stream only the greatest is waited for.
    pub(crate) fn wait_when_settled(&mut self, mark: &Mark) {
        match self.due.iter_mut().find(|due| due.stream == mark.stream) {
            Some(due) if due.number >= mark.number => {}
            Some(due) => due.clone_from(mark),
            None => self.due.push(mark.clone()),
        }
    }

    /// Work is about to be enqueued here.
    pub(crate) fn settle(&mut self) -> DriverResult {
        while let Some(mark) = self.due.pop() {
            self.wait(&mark)?;
        }
        Ok(())
    }

    /// Forgets what it has waited for: in a capture, waits from before it do not count.
    pub(crate) fn forget(&mut self) {
        self.seen.fill(0);
        self.due.clear();
    }

    /// Writes a 32 bit number.
    ///
    /// # Safety
    /// The address is good for it until the stream has come to it and done it.
    pub(crate) unsafe fn set_word(&self, address: u64, value: u32) -> DriverResult {
        // SAFETY: the caller's.
        unsafe { self.context.driver().cuMemsetD32Async(address, value, 1, self.raw) }
    }

    /// Copies between any two places, on one device or two.
    ///
    /// # Safety
    /// Both are good for `bytes`, in the contexts given, until the stream has come to it and done it.
    pub(crate) unsafe fn copy(
        &self,
        to: u64,
        from: u64,
        from_context: &Context,
        bytes: usize,
    ) -> DriverResult {
        let driver = self.context.driver();
        if from_context.raw() == self.context.raw() {
            // SAFETY: the caller's.
            return unsafe { driver.cuMemcpyAsync(to, from, bytes, self.raw) };
        }
        let (here, there) = (self.context.raw(), from_context.raw());
        // SAFETY: the caller's.
        unsafe { driver.cuMemcpyPeerAsync(to, here, from, there, bytes, self.raw) }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.is_own {
            // SAFETY: created by `new`, destroyed once; the driver lets pending work end.
            let _ = unsafe { self.context.driver().cuStreamDestroy_v2(self.raw) };
        }
    }
}
