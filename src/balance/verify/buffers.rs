//! What memory a placement asks for on each GPU: weights, and buffers to receive tokens in.
//!
//! Redundant slots cost more than their weights. A low-latency dispatch (DeepEP's, and what is modelled on it) keeps a
//! place for every token of every rank in every slot of every rank, so that the buffers grow with the slots of the
//! whole cluster (vllm issue 57894: past 32 GiB).

use crate::balance::cluster::Cluster;
use crate::balance::goal::{EXPERTS_MAX, LAYERS_MAX};
use crate::error::{in_range, Error, Result};

/// What is sent and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Traffic {
    /// Layers whose experts are in memory at the same time, 1 to 4096.
    pub num_layers: usize,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: usize,
    /// Bytes of one expert's weights in one layer, with scales and whatever else lies beside them; at most 2^37.
    pub expert_bytes: u64,
    /// Numbers of a token's hidden state, 1 to 2^20; 2 bytes each.
    pub hidden: usize,
    /// Tokens that a rank sends in one dispatch, at most; 1 to 2^20.
    pub tokens_per_rank: usize,
    /// Experts of a token, 1 to `num_experts`.
    pub top_k: usize,
}

/// What a placement asks for. All bytes are of one GPU, the one that needs most; alignment and counters, some KiB, are
/// not counted, nor what a library takes besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Slots of the fullest live GPU.
    pub slots_max: usize,
    /// Its weights: `slots_max * num_layers * expert_bytes`.
    pub weight_bytes: u64,
    /// Rows that its experts compute in one layer when every rank sends it all that it can:
    /// `num_gpus * tokens_per_rank * min(top_k, slots_max)`. A row is a token at one of its experts.
    pub rows_max: u64,
    /// All low-latency buffers together: a send and a receive buffer, each twice, as steps alternate between them.
    ///
    /// ```text
    /// places  = num_gpus * slots_max * tokens_per_rank
    /// receive = places * (16 + 2 * hidden)                            dispatch: a header and the token
    /// send    = max(places * 2 * hidden,                              combine: a row for each place
    ///               tokens_per_rank * (16 + 2 * hidden))              dispatch: each token once
    /// bytes   = 2 * (receive + send)
    /// ```
    ///
    /// Every GPU counts, a dead one too, whose place in the buffers stays. The formula is this library's, read off
    /// DeepEP's layout; ask `Buffer.get_low_latency_rdma_size_hint` with `num_experts = num_gpus * slots_max` for what
    /// your version takes.
    pub low_latency_bytes: u64,
    /// The same with as few slots as hold each expert once: what the redundant slots cost is the difference.
    pub low_latency_bytes_without_redundancy: u64,
}

/// What memory a placement on `cluster` asks for. `O(num_gpus)`.
///
/// ```
/// use dualpipe::balance::verify::{buffers, Traffic};
/// use dualpipe::balance::Cluster;
///
/// let traffic = Traffic {
///     num_layers: 58,
///     num_experts: 256,
///     expert_bytes: 3 * 7168 * 2048,
///     hidden: 7168,
///     tokens_per_rank: 128,
///     top_k: 8,
/// };
/// let buffers = buffers(&Cluster::even(288, 32, 4)?, &traffic)?;
/// assert_eq!((buffers.slots_max, buffers.rows_max), (9, 32768));
/// assert_eq!(buffers.weight_bytes >> 20, 21924);
/// assert_eq!(buffers.low_latency_bytes >> 20, 2017);
/// assert_eq!(buffers.low_latency_bytes_without_redundancy >> 20, 1793);
/// # Ok::<(), dualpipe::Error>(())
/// ```
///
/// # Errors
///
/// `InvalidArgument`: a number out of its range, or bytes that do not fit in 64 bits.
pub fn buffers(cluster: &Cluster, traffic: &Traffic) -> Result<Buffers> {
    let &Traffic { num_layers, num_experts, expert_bytes, hidden, tokens_per_rank, top_k } = traffic;
    in_range("buffers", "num_layers", num_layers, 1..=LAYERS_MAX)?;
    in_range("buffers", "num_experts", num_experts, 1..=EXPERTS_MAX)?;
    in_range("buffers", "expert_bytes", expert_bytes, 0..=1 << 37)?;
    in_range("buffers", "hidden", hidden, 1..=1 << 20)?;
    in_range("buffers", "tokens_per_rank", tokens_per_rank, 1..=1 << 20)?;
    in_range("buffers", "top_k", top_k, 1..=num_experts)?;
    let slots_max = cluster.live_gpus().map(|gpu| cluster.slots(gpu).len()).max().unwrap_or(0);
    let low_latency = |slots: usize| {
        // At most 2^60 places of 2^22 bytes each.
        let places = (cluster.num_gpus() * slots) as u128 * tokens_per_rank as u128;
        let (row, message) = (2 * hidden as u128, 2 * hidden as u128 + 16);
        bytes(
            "low_latency_bytes",
            2 * (places * message + (places * row).max(tokens_per_rank as u128 * message)),
        )
    };
    Ok(Buffers {
        slots_max,
        weight_bytes: bytes("weight_bytes", (slots_max * num_layers) as u128 * u128::from(expert_bytes))?,
        rows_max: (cluster.num_gpus() * tokens_per_rank) as u64 * top_k.min(slots_max) as u64,
        low_latency_bytes: low_latency(slots_max)?,
        low_latency_bytes_without_redundancy: low_latency(num_experts.div_ceil(cluster.num_live_gpus()))?,
    })
}

fn bytes(what: &str, bytes: u128) -> Result<u64> {
    u64::try_from(bytes).map_err(|_| Error::argument("buffers", what, bytes, "must be less than 2^64"))
}
