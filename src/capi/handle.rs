//! Handles: what C holds of an object, and the table that finds the object again.
//!
//! A handle is a number carried as the bits of a typed pointer, so that C still checks types. It is never
//! dereferenced: a freed, foreign or made-up handle is found out in the table and refused.
//!
//! ```text
//! bits 63..56  0xD9, which no address of a process has
//!      55..48  the type of the object
//!      47..20  how often the slot had been freed when the object was created
//!      19..0   the slot
//! ```
//!
//! A slot that has been freed 2^28 times is given up, so that no handle ever comes back.
//!
//! A new type of object takes:
//!
//! 1. a file `thing.rs`, `pub mod thing;` in mod.rs: its header follows by itself (tests/header.rs);
//! 2. `pub struct dualpipe_thing(());`, `pub type dualpipe_thing_t = *mut dualpipe_thing;` with what threads may do;
//! 3. a [`Kind`], and a struct that implements [`Object`]; `OWNS_THREADS` if a fork makes it useless;
//! 4. a [`BusyFlag`](super::guard::BusyFlag) in it if only one call at a time may use it: each call, and the free,
//!    begins with `let _busy = object.busy.enter("thing")?`, and a callback that comes back gets BUSY;
//! 5. literal `#[no_mangle] pub unsafe extern "C" fn` items whose body is one [`call`](super::guard::call): handles,
//!    then inputs, then outputs checked, the work done, the outputs written last;
//! 6. an entry for each function in tests/capi_bad_input.rs, its structs in tests/abi/layout.rs, a program in tests/c.

use std::any::Any;
use std::ptr::without_provenance_mut;
use std::sync::Arc;

use super::process;
use super::status::dualpipe_status::*;
use super::status::{Failure, Outcome};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("handles are 64 bits wide");

/// An object that C holds a handle of. It is kept in an `Arc`: a free while another thread uses it is harmless.
pub(crate) trait Object: Any + Send + Sync {
    /// What the handle points to, for C's type checks: an opaque type with the C name.
    type Opaque;
    /// Its type, as in the bits.
    const KIND: Kind;
    /// Whether it is useless in a child of fork: it owns threads, or talks to them.
    const OWNS_THREADS: bool = false;
}

/// The types of objects. The numbers are not part of the ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Schedule = 1,
    Timeline = 2,
    Program = 3,
    Inproc = 4,
    Executor = 5,
    ExpertPlan = 6,
    Overlap = 7,
    Router = 8,
    ExpertTransfers = 9,
    LoadMonitor = 10,
    LoadHistory = 11,
    Replay = 12,
    Verification = 13,
    Plan = 14,
    Front = 15,
    Comparison = 16,
    #[cfg(test)]
    Test = 0xFE,
    #[cfg(test)]
    Threads = 0xFF,
}

impl Kind {
    /// With its article, for people.
    fn name(self) -> &'static str {
        match self {
            Kind::Schedule => "a schedule",
            Kind::Timeline => "a timeline",
            Kind::Program => "a program",
            Kind::Inproc => "an inproc",
            Kind::Executor => "an executor",
            Kind::ExpertPlan => "an expert plan",
            Kind::Overlap => "an overlap",
            Kind::Router => "a router",
            Kind::ExpertTransfers => "a plan of transfers",
            Kind::LoadMonitor => "a load monitor",
            Kind::LoadHistory => "a load history",
            Kind::Replay => "a replay",
            Kind::Verification => "a verification",
            Kind::Plan => "a plan",
            Kind::Front => "a front",
            Kind::Comparison => "a comparison",
            #[cfg(test)]
            Kind::Test => "a test",
            #[cfg(test)]
            Kind::Threads => "an owner of threads",
        }
    }
}

/// A handle for a new object.
pub(crate) fn insert<O: Object>(object: O) -> Outcome<*mut O::Opaque> {
    let stored = Stored { kind: O::KIND, fork_epoch: process::fork_epoch(), object: Arc::new(object) };
    let bits = process::lock().handles.insert(stored).ok_or_else(|| {
        Failure::new(DUALPIPE_ERROR_INTERNAL, format!("there are {} objects already; free some", SLOTS_MAX))
    })?;
    Ok(without_provenance_mut(bits.0 as usize))
}

/// The object of a handle, given as `argument`.
pub(crate) fn get<O: Object>(argument: &str, handle: *mut O::Opaque) -> Outcome<Arc<O>> {
    let found = process::lock().handles.find(Bits(handle.addr() as u64), O::KIND).cloned();
    let stored = found.map_err(|miss| miss.say(argument, O::KIND))?;
    if O::OWNS_THREADS && stored.fork_epoch != process::fork_epoch() {
        let text = format!("{argument} was created before a fork: its threads are not in this process");
        return Err(Failure::new(DUALPIPE_ERROR_FORKED, text));
    }
    stored.object.downcast().map_err(|_| Miss::Foreign.say(argument, O::KIND))
}

/// Frees a handle; NULL is fine. The object goes when the last call that uses it ends.
pub(crate) fn free<O: Object>(argument: &str, handle: *mut O::Opaque) -> Outcome {
    if handle.is_null() {
        return Ok(());
    }
    let removed = process::lock().handles.remove(Bits(handle.addr() as u64), O::KIND);
    let stored = removed.map_err(|miss| miss.say(argument, O::KIND))?;
    if O::OWNS_THREADS && stored.fork_epoch != process::fork_epoch() {
        // Its threads cannot be joined here: they are the parent's.
        std::mem::forget(stored);
    }
    Ok(())
}

/// The number that a handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits(u64);

const MARK: u64 = 0xD9;
const SLOT_BITS: u32 = 20;
const SLOTS_MAX: usize = 1 << SLOT_BITS;
const GENERATION_BITS: u32 = 28;
const GENERATION_MAX: u32 = (1 << GENERATION_BITS) - 1;

impl Bits {
    fn new(kind: Kind, generation: u32, slot: usize) -> Bits {
        Bits(MARK << 56 | (kind as u64) << 48 | (generation as u64) << SLOT_BITS | slot as u64)
    }

    fn is_marked(self) -> bool {
        self.0 >> 56 == MARK
    }

    fn kind(self) -> u8 {
        (self.0 >> 48) as u8
    }

    fn generation(self) -> u32 {
        (self.0 >> SLOT_BITS) as u32 & GENERATION_MAX
    }

    fn slot(self) -> usize {
        self.0 as usize & (SLOTS_MAX - 1)
    }
}

/// Why a handle has no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Miss {
    Null,
    Foreign,
    Freed,
    Other(Kind),
}

impl Miss {
    fn say(self, argument: &str, wanted: Kind) -> Failure {
        let text = match self {
            Miss::Null => format!("{argument} is NULL, must be {}", wanted.name()),
            Miss::Foreign => format!("{argument} is not a handle that this library gave out"),
            Miss::Freed => format!("{argument} has been freed"),
            Miss::Other(kind) => format!("{argument} is {}, must be {}", kind.name(), wanted.name()),
        };
        Failure::new(DUALPIPE_ERROR_INVALID_HANDLE, text)
    }
}

/// All live objects.
pub(crate) struct Table {
    slots: Vec<Slot>,
    /// Empty slots.
    empty: Vec<usize>,
}

struct Slot {
    /// How often it has been freed.
    generation: u32,
    object: Option<Stored>,
}

#[derive(Clone)]
struct Stored {
    kind: Kind,
    fork_epoch: u64,
    object: Arc<dyn Any + Send + Sync>,
}

impl Table {
    pub(crate) const fn new() -> Table {
        Table { slots: Vec::new(), empty: Vec::new() }
    }

    /// `None` if it is full.
    fn insert(&mut self, stored: Stored) -> Option<Bits> {
        let slot = match self.empty.pop() {
            Some(slot) => slot,
            None if self.slots.len() < SLOTS_MAX => {
                self.slots.push(Slot { generation: 0, object: None });
                self.slots.len() - 1
            }
            None => return None,
        };
        let bits = Bits::new(stored.kind, self.slots[slot].generation, slot);
        self.slots[slot].object = Some(stored);
        Some(bits)
    }

    fn find(&self, bits: Bits, wanted: Kind) -> Result<&Stored, Miss> {
        if bits.0 == 0 {
            return Err(Miss::Null);
        }
        let slot = self.slots.get(bits.slot()).filter(|_| bits.is_marked()).ok_or(Miss::Foreign)?;
        if bits.generation() < slot.generation {
            return Err(Miss::Freed);
        }
        let stored = slot.object.as_ref().filter(|_| bits.generation() == slot.generation);
        let stored = stored.filter(|stored| stored.kind as u8 == bits.kind()).ok_or(Miss::Foreign)?;
        if stored.kind != wanted {
            return Err(Miss::Other(stored.kind));
        }
        Ok(stored)
    }

    fn remove(&mut self, bits: Bits, wanted: Kind) -> Result<Stored, Miss> {
        self.find(bits, wanted)?;
        let slot = &mut self.slots[bits.slot()];
        let stored = slot.object.take().ok_or(Miss::Foreign)?;
        slot.generation += 1;
        if slot.generation <= GENERATION_MAX {
            self.empty.push(bits.slot());
        }
        Ok(stored)
    }
}

#[cfg(test)]
#[path = "handle_tests.rs"]
mod tests;
