//! Ranks on several machines or processes, joined by NCCL: messages travel on streams, from device to device.
//!
//! A communicator serialises all that it is asked to do, over all streams. So there is one for each pair of ranks and
//! way between them, of two ranks each: the sender is its rank 0, the receiver its rank 1. They do not block, they take
//! few multiprocessors, and each has a stream of its own.
//!
//! NCCL matches by order alone. The programs of two ranks send and receive in the same order
//! ([`crate::program::lower`]), and the tensors of a message are one group on both sides. With
//! [`NcclOptions::zero_cta`] messages are put instead (`put`).

mod comm;
mod header;
mod link;
mod put;
mod sys;

pub(crate) use link::NcclTransport;

use std::ffi::c_int;

use crate::error::{in_range, Error, ErrorKind, Result};
use crate::ids::Rank;
use crate::op::StageCopy;
use crate::placement::Placement;

/// Bytes of one communicator's unique id.
pub const NCCL_ID_BYTES: usize = 128;
/// Most multiprocessors that a communicator may be given.
pub const NCCL_CTAS_MAX: u32 = 64;

/// How the ranks of a pipeline find one another through NCCL.
#[derive(Clone, Debug)]
pub struct NcclOptions {
    /// What [`nccl_unique_id`] gave on one rank, the same on all.
    pub unique_id: Vec<u8>,
    /// Multiprocessors (CTAs) that each communicator uses at most, 1 to [`NCCL_CTAS_MAX`].
    pub max_ctas: u32,
    /// Whether messages are put by copy engines where NCCL can, which take no multiprocessor: NCCL 2.29 or newer, not
    /// with `exchanges_shapes`. Every rank must say the same. Each link has a slot at both ends, for the largest
    /// message.
    ///
    /// With `uses_graph` it takes NCCL 2.30, and every rank's step must be capturable: NCCL counts the signals of
    /// graphs apart. After a fault a stream may wait for a signal for ever, since nothing wakes it as an abort wakes a
    /// kernel: its memory is given up, and another process should take over.
    pub zero_cta: bool,
}

impl NcclOptions {
    /// Two multiprocessors each, which send and receive.
    pub fn new(unique_id: Vec<u8>) -> NcclOptions {
        NcclOptions { unique_id, max_ctas: 2, zero_cta: false }
    }

    /// Before anything is allocated: whether they are of this placement and of one another.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`].
    pub(crate) fn check(&self, placement: &Placement, exchanges_shapes: bool) -> Result<()> {
        in_range("nccl", "max_ctas", self.max_ctas, 1..=NCCL_CTAS_MAX)?;
        if self.zero_cta && exchanges_shapes {
            return Err(Error::argument("nccl", "zero_cta", 1, "must be 0 with exchanges_shapes"));
        }
        let num_links = links(placement).len();
        let (given, needed) = (self.unique_id.len(), num_links * NCCL_ID_BYTES);
        if given != needed {
            let range = format!("must be {needed} for the {num_links} links of this placement");
            return Err(Error::argument("nccl", "the length of unique_id", given, range));
        }
        Ok(())
    }
}

/// The pairs of ranks between which messages travel, sender first: what there is a communicator for, in the order of
/// their ids.
pub(crate) fn links(placement: &Placement) -> Vec<(Rank, Rank)> {
    let mut links = Vec::new();
    for rank in (0..placement.num_ranks()).map(Rank::from_index) {
        for &copy in placement.copies_on(rank) {
            let next = StageCopy { stage: crate::ids::Stage(copy.stage.0 + 1), ..copy };
            if let Some(other) = placement.rank_of(next).filter(|&other| other != rank) {
                links.extend([(rank, other), (other, rank)]);
            }
        }
    }
    links.sort_unstable();
    links.dedup();
    links
}

/// The version of NCCL that is found: 10000 * major + 100 * minor + patch.
///
/// # Errors
/// [`ErrorKind::Unavailable`] with what is missing.
pub fn nccl_version() -> Result<u32> {
    let nccl = sys::nccl()?;
    let mut version: c_int = 0;
    // SAFETY: writes to a local.
    let code = unsafe { (nccl.ncclGetVersion)(&mut version) };
    match code {
        sys::SUCCESS => Ok(version.max(0) as u32),
        code => Err(Error::new(ErrorKind::Transport, nccl.say("ncclGetVersion", code, std::ptr::null_mut()))),
    }
}

/// New ids for the communicators of a pipeline: [`NCCL_ID_BYTES`] for each. One rank asks for them, and hands them to
/// all others by whatever it has: MPI, a store, a file. Each set is for one executor on each rank.
///
/// # Errors
/// [`ErrorKind::Unavailable`] without NCCL; [`ErrorKind::Transport`] with NCCL's words.
pub fn nccl_unique_id(placement: &Placement) -> Result<Vec<u8>> {
    let nccl = sys::nccl()?;
    let mut bytes = Vec::new();
    for _ in links(placement) {
        let mut id = sys::UniqueId([0; NCCL_ID_BYTES]);
        // SAFETY: writes to a local.
        let code = unsafe { (nccl.ncclGetUniqueId)(&mut id) };
        if code != sys::SUCCESS {
            let text = nccl.say("ncclGetUniqueId", code, std::ptr::null_mut());
            return Err(Error::new(ErrorKind::Transport, text));
        }
        bytes.extend(id.0);
    }
    Ok(bytes)
}
