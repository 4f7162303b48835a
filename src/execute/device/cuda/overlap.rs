//! The two halves of an F&B pair under one another: communication of the one while the other computes.
//!
//! The order is that of DeepSeek's published trace (profile-data, train.json, "1F1B"), for each pair of a forward and a
//! backward block of attention and experts (MLP):
//!
//! ```text
//! compute  attention F   MLP B         MLP W     MLP F   attention B   attention W
//! comm     combine B     dispatch F    dispatch B        combine F
//! ```
//!
//! Forward blocks go from the first to the last, backward blocks from the last to the first. Where one half has more
//! blocks than the other, or a task is only one half, the other's parts are left out.

use std::sync::Arc;

use super::context::Context;
use super::stream::{Event, Mark, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::execute::task::TaskStreams;
use crate::execute::transport::stream_ordered::key;

/// Most blocks of a stage.
pub const BLOCKS_MAX: usize = 4096;

/// A part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Part {
    /// Forward through the attention; computes.
    AttentionF = 0,
    /// Tokens to their experts; communicates.
    DispatchF = 1,
    /// Forward through the experts; computes.
    MlpF = 2,
    /// Tokens back from their experts; communicates.
    CombineF = 3,
    /// Gradients to the experts: backward through combine; communicates.
    CombineB = 4,
    /// Backward for the input through the experts; computes.
    MlpB = 5,
    /// Backward for the experts' weights; computes.
    MlpW = 6,
    /// Gradients back from the experts: backward through dispatch; communicates.
    DispatchB = 7,
    /// Backward for the input through the attention; computes.
    AttentionB = 8,
    /// Backward for the attention's weights; computes.
    AttentionW = 9,
}

use Part::*;

/// The parts of a forward and a backward block in the order in which they are enqueued, each with the one whose result
/// it takes: of the same block, or of the block before in its half's order if that comes later in this list.
const ORDER: [(Part, Part); 10] = [
    (CombineB, AttentionB),
    (AttentionF, CombineF),
    (DispatchF, AttentionF),
    (MlpB, CombineB),
    (DispatchB, MlpB),
    (MlpW, MlpB),
    (MlpF, DispatchF),
    (CombineF, MlpF),
    (AttentionB, DispatchB),
    (AttentionW, AttentionB),
];

impl Part {
    /// Whether it goes to the communication stream.
    pub fn communicates(self) -> bool {
        matches!(self, DispatchF | CombineF | CombineB | DispatchB)
    }

    /// Whether it belongs to the forward half.
    pub fn is_forward(self) -> bool {
        matches!(self, AttentionF | DispatchF | MlpF | CombineF)
    }
}

/// Enqueues tasks part by part on two streams of a device, with the waits that the parts need between them.
///
/// Used by one thread at a time. It may be captured.
pub struct Overlap {
    context: Arc<Context>,
    /// By part, recorded at its end.
    events: Vec<Arc<Event>>,
}

impl Overlap {
    /// For tasks on CUDA device `device`.
    ///
    /// # Errors
    /// As for an executor there.
    pub fn new(device: usize) -> Result<Overlap> {
        let context = Context::primary(device)?;
        let events =
            (0..ORDER.len()).map(|_| Event::new(&context, false)).collect::<std::result::Result<_, _>>()?;
        Ok(Overlap { context, events })
    }

    /// Has `enqueue` enqueue every part of `num_forward` forward blocks and `num_backward` backward blocks: it is
    /// told the part, the block's number in the order of the model, and the stream. What a part reads from the part
    /// before it in its half is there in the order of its stream; the first parts take what the task reads, and the
    /// task's end comes after the last.
    ///
    /// # Errors
    /// `enqueue`'s; [`ErrorKind::InvalidArgument`] for no communication stream or more than [`BLOCKS_MAX`] blocks;
    /// [`ErrorKind::Device`].
    pub fn run(
        &mut self,
        streams: TaskStreams,
        num_forward: usize,
        num_backward: usize,
        mut enqueue: impl FnMut(Part, usize, *mut std::ffi::c_void) -> std::result::Result<(), String>,
    ) -> Result<()> {
        if streams.comm.is_null() {
            let text = "overlap: the task has no communication stream, the executor needs has_comm_stream";
            return Err(Error::new(ErrorKind::InvalidArgument, text));
        }
        for (name, count) in [("num_forward", num_forward), ("num_backward", num_backward)] {
            crate::error::in_range("overlap", name, count, 0..=BLOCKS_MAX)?;
        }
        let _entered = self.context.enter()?;
        // SAFETY: the streams of a task that is running.
        let mut pair = unsafe {
            [(key::COMPUTE, streams.compute), (key::COMM, streams.comm)]
                .map(|(key, stream)| Stream::borrowed(&self.context, key, stream.cast()))
        };
        let mut ends: [Option<Mark>; ORDER.len()] = [const { None }; ORDER.len()];
        for i in 0..num_forward.max(num_backward) {
            for (part, needed) in ORDER {
                let (count, block) = match part.is_forward() {
                    true => (num_forward, i),
                    false => (num_backward, num_backward.wrapping_sub(i + 1)),
                };
                if i >= count {
                    continue;
                }
                let stream = &mut pair[usize::from(part.communicates())];
                if let Some(end) = &ends[needed as usize] {
                    stream.wait(end)?;
                }
                enqueue(part, block, stream.raw().cast())
                    .map_err(|why| Error::new(ErrorKind::CallbackFailed, why))?;
                if ORDER.iter().any(|(later, of)| *of == part && later.communicates() != part.communicates())
                {
                    ends[part as usize] = Some(stream.mark(&self.events[part as usize])?);
                }
            }
        }
        Ok(())
    }
}
