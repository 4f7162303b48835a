//! Whether all ranks mean the same placement.
//!
//! Ranks that route by different placements compute wrong results without any error (sglang issue 32962). Each rank
//! hashes its own, 8 bytes are gathered, [`agree`] names who differs.
//!
//! The hash is FNV-1a of 64 bits (Fowler, Noll, Vo: offset 0xcbf29ce484222325, prime 0x100000001b3) over these bytes,
//! every number in little endian, u32 unless said otherwise:
//!
//! ```text
//! 1                          the version of this list
//! num_gpus
//! slots of each GPU          [num_gpus]
//! node of each GPU           [num_gpus]
//! 1 alive, 0 dead            [num_gpus]
//! length of slot_to_expert   u64
//! slot_to_expert             as it is
//! 1 with shares, 0 without
//! shares                     float64, -0 as 0
//! ```
//!
//! It is for honest mistakes, not against those who forge it.

use crate::balance::cluster::Cluster;

/// The hash of a placement and the cluster it is for: the same on every machine, and easy to compute elsewhere (the
/// source's head says of which bytes). `O(num_gpus + num_layers * num_slots)`, about 1 GB/s.
///
/// ```
/// use dualpipe::balance::verify::hash;
/// use dualpipe::balance::Cluster;
///
/// let cluster = Cluster::even(4, 2, 1)?;
/// assert_eq!(hash(&cluster, &[0, 1, 2, 0], None), 0xc749_d0bc_9228_1331);
/// # Ok::<(), dualpipe::Error>(())
/// ```
pub fn hash(cluster: &Cluster, slot_to_expert: &[u32], shares: Option<&[f64]>) -> u64 {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    let gpus = || 0..cluster.num_gpus();
    hash.u32(1);
    hash.u32(cluster.num_gpus() as u32);
    gpus().for_each(|gpu| hash.u32(cluster.slots(gpu).len() as u32));
    cluster.node_of_gpu().iter().for_each(|&node| hash.u32(node));
    gpus().for_each(|gpu| hash.u32(u32::from(cluster.is_alive(gpu))));
    hash.bytes(&(slot_to_expert.len() as u64).to_le_bytes());
    slot_to_expert.iter().for_each(|&expert| hash.u32(expert));
    hash.u32(u32::from(shares.is_some()));
    // Adding 0 makes -0 to 0 and changes nothing else.
    shares.into_iter().flatten().for_each(|share| hash.bytes(&(share + 0.0).to_le_bytes()));
    hash.0
}

struct Fnv(u64);

impl Fnv {
    fn u32(&mut self, number: u32) {
        self.bytes(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// Who agrees with whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// What most ranks have; where several hashes are equally frequent, that of the lowest rank among theirs.
    pub hash: u64,
    /// The ranks that have another, in order.
    pub differing: Vec<usize>,
}

/// Which ranks differ from what most have; `hashes` is `[num_ranks]`, of none the answer is that nobody differs.
/// `O(num_ranks * log num_ranks)`.
pub fn agree(hashes: &[u64]) -> Agreement {
    let mut ranks: Vec<usize> = (0..hashes.len()).collect();
    ranks.sort_unstable_by_key(|&rank| (hashes[rank], rank));
    let alike = ranks.chunk_by(|&a, &b| hashes[a] == hashes[b]);
    let most = alike.min_by_key(|ranks| (std::cmp::Reverse(ranks.len()), ranks[0]));
    let hash = most.map_or(0, |ranks| hashes[ranks[0]]);
    Agreement { hash, differing: (0..hashes.len()).filter(|&rank| hashes[rank] != hash).collect() }
}
