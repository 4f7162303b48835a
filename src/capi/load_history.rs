//! Loads of a recorded run, step by step, in the files of other programs: read, written, made anew.
//!
//! Text in, text out: opening files is the caller's. What is read is checked number by number, and an error names the
//! line and the place. docs/loads.md has the formats.
//!
//! ```c
//! // vLLM's load statistics become loads for dualpipe_expert_plan_balance: [num_steps, num_layers, num_experts].
//! #include <dualpipe.h>
//!
//! static dualpipe_status read_loads(const char *text, size_t num_bytes, dualpipe_load_history_info *info,
//!                                   float *loads, size_t capacity, size_t *count) {
//!   const dualpipe_load_history_info none = DUALPIPE_LOAD_HISTORY_INFO_INIT;
//!   dualpipe_load_history_t history = NULL;
//!   dualpipe_status status = dualpipe_load_history_read(text, num_bytes, DUALPIPE_LOAD_FORMAT_VLLM, &history);
//!   *info = none;
//!   if (status == DUALPIPE_OK) status = dualpipe_load_history_describe(history, info);
//!   if (status == DUALPIPE_OK) status = dualpipe_load_history_loads(history, loads, capacity, count);
//!   dualpipe_load_history_free(history);
//!   return status;
//! }
//! ```

use std::ffi::c_char;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::args::{self, Buffer, Out};
use super::cluster::{read_slots, to_c};
use super::guard::{call, Busy, BusyFlag};
use super::handle::{self, Kind, Object};
use super::options::{self, Growing, OutStruct};
use super::status::{dualpipe_status, Failure, Outcome};
use crate::balance::history::{HistoryMeta, HistoryStep, LoadHistory};

use dualpipe_load_format::*;

/// What a dualpipe_load_history_t points to: nothing that C could look into.
pub struct dualpipe_load_history(());

/// Loads step by step. One thread at a time may use it: others get DUALPIPE_ERROR_BUSY. It stays usable after a fork.
/// Free it with dualpipe_load_history_free.
pub type dualpipe_load_history_t = *mut dualpipe_load_history;

/// How a history is written.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_load_format {
    /// vLLM's JSON lines: loads of slots, with the expert in each.
    DUALPIPE_LOAD_FORMAT_VLLM = 1,
    /// {"load_history": [{"logical_expert_load": [[...]]}]}: loads of experts.
    DUALPIPE_LOAD_FORMAT_JSON = 2,
    /// A line for each layer, a number for each expert, an empty line between steps.
    DUALPIPE_LOAD_FORMAT_CSV = 3,
}

/// What a new history is of. Start from DUALPIPE_LOAD_HISTORY_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_load_history_options {
    /// sizeof(dualpipe_load_history_options).
    pub size: u32,
    /// MoE layers, 1 to 4096.
    pub num_layers: u32,
    /// Logical experts of a layer, 1 to 65536.
    pub num_experts: u32,
    /// GPUs that share the experts; 0 if it is not to be said.
    pub num_ranks: u32,
    /// Groups of experts; 0 likewise.
    pub num_groups: u32,
    /// Nodes of the GPUs; 0 likewise.
    pub num_nodes: u32,
    /// The model's name: UTF-8, NUL-terminated, of which at most 4095 bytes count; NULL likewise.
    pub model: *const c_char,
}

// SAFETY: repr(C), six u32 and a pointer.
unsafe impl Growing for dualpipe_load_history_options {
    const SIZE_V1: usize = 32;
}

/// What a history is of. Start from DUALPIPE_LOAD_HISTORY_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_load_history_info {
    /// sizeof(dualpipe_load_history_info).
    pub size: u32,
    /// MoE layers.
    pub num_layers: u32,
    /// Logical experts of a layer.
    pub num_experts: u32,
    /// GPUs that share the experts; 0 if nothing says.
    pub num_ranks: u32,
    /// Groups of experts; 0 likewise.
    pub num_groups: u32,
    /// Nodes of the GPUs; 0 likewise.
    pub num_nodes: u32,
    /// Steps.
    pub num_steps: u64,
}

// SAFETY: repr(C), six u32 and a u64.
unsafe impl Growing for dualpipe_load_history_info {
    const SIZE_V1: usize = 32;
}

/// Creates a history without steps, for dualpipe_load_history_append and dualpipe_load_history_append_slots.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_create(
    options: *const dualpipe_load_history_options,
    history: *mut dualpipe_load_history_t,
) -> dualpipe_status {
    call("dualpipe_load_history_create", || {
        // SAFETY: both are the caller's.
        let (given, out) = unsafe { (options::read("options", options)?, Out::new("history", history)?) };
        let model = match given.model.is_null() {
            true => None,
            // SAFETY: the caller's.
            false => Some(unsafe { args::text("options->model", given.model, MODEL_MAX) }?),
        };
        let some = |number: u32| (number > 0).then_some(number);
        let mut made = LoadHistory::new(given.num_layers as usize, given.num_experts as usize, &[])?;
        made.meta = HistoryMeta {
            model,
            num_ranks: some(given.num_ranks),
            num_groups: some(given.num_groups),
            num_nodes: some(given.num_nodes),
        };
        out.write(handle::insert(HistoryObject::new(made))?);
        Ok(())
    })
}

/// What counts of a model's name.
const MODEL_MAX: usize = 4095;

/// Reads a history (format: a dualpipe_load_format) from a text of num_bytes bytes, which needs no NUL.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT with line and place: what is not such a text in UTF-8, has steps of
/// different sizes, a number that is negative or not finite, no step, or more than 2^28 loads.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_read(
    text: *const c_char,
    num_bytes: usize,
    format: u32,
    history: *mut dualpipe_load_history_t,
) -> dualpipe_status {
    call("dualpipe_load_history_read", || {
        // SAFETY: the caller's.
        let text = unsafe { args::utf8("text", text, num_bytes) }?;
        let format = read_format(format)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("history", history) }?;
        let read = match format {
            DUALPIPE_LOAD_FORMAT_VLLM => LoadHistory::from_vllm(text)?,
            DUALPIPE_LOAD_FORMAT_JSON => LoadHistory::from_json(text)?,
            DUALPIPE_LOAD_FORMAT_CSV => LoadHistory::from_csv(text)?,
        };
        out.write(handle::insert(HistoryObject::new(read))?);
        Ok(())
    })
}

/// Frees a history. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_free(history: dualpipe_load_history_t) -> dualpipe_status {
    call("dualpipe_load_history_free", || {
        if history.is_null() {
            return Ok(());
        }
        let object = handle::get::<HistoryObject>("history", history)?;
        let _busy = object.busy.enter("history")?;
        handle::free::<HistoryObject>("history", history)
    })
}

/// Adds steps to the end, numbered step, step + 1 and so on: of each num_layers rows of num_experts loads, finite and
/// not negative, in all num_loads.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for more than 2^28 loads of all steps; nothing has been added then.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_append(
    history: dualpipe_load_history_t,
    step: u64,
    loads: *const f32,
    num_loads: usize,
) -> dualpipe_status {
    call("dualpipe_load_history_append", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_loads", num_loads) }?;
        let (_busy, mut history) = object.enter("history")?;
        Ok(history.append(step, loads)?)
    })
}

/// Adds one step to the end, as slots got it: num_layers rows of as many slots each, in all num_slots, finite and not
/// negative. slot_to_expert: the expert in each, -1 where there is none and no load.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_append_slots(
    history: dualpipe_load_history_t,
    step: u64,
    slot_to_expert: *const i64,
    loads: *const f32,
    num_slots: usize,
) -> dualpipe_status {
    call("dualpipe_load_history_append_slots", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let slots = unsafe { read_slots("slot_to_expert", slot_to_expert, "num_slots", num_slots) }?;
        // SAFETY: the caller's.
        let loads = unsafe { args::slice("loads", loads, "num_slots", num_slots) }?;
        let (_busy, mut history) = object.enter("history")?;
        Ok(history.append_slots(step, &slots, loads)?)
    })
}

/// Says what a history is of.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_describe(
    history: dualpipe_load_history_t,
    info: *mut dualpipe_load_history_info,
) -> dualpipe_status {
    call("dualpipe_load_history_describe", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let (_busy, history) = object.enter("history")?;
        let LoadHistory { num_layers, num_experts, steps, meta } = &*history;
        out.write(dualpipe_load_history_info {
            size: 0,
            num_layers: *num_layers as u32,
            num_experts: *num_experts as u32,
            num_ranks: meta.num_ranks.unwrap_or(0),
            num_groups: meta.num_groups.unwrap_or(0),
            num_nodes: meta.num_nodes.unwrap_or(0),
            num_steps: steps.len() as u64,
        });
        Ok(())
    })
}

/// The model's name in UTF-8, empty if nothing says. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_model(
    history: dualpipe_load_history_t,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_history_model", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        let (_busy, history) = object.enter("history")?;
        // A NUL in a file's name would end C's text.
        let model = history.meta.model.as_deref().unwrap_or("");
        out.fill_text(model.split('\0').next().unwrap_or(""))
    })
}

/// The loads of all steps, one after the other: of each num_layers rows of num_experts numbers. Buffers are filled as
/// dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_loads(
    history: dualpipe_load_history_t,
    loads: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_history_loads", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("loads", loads, capacity, "count", count) }?;
        let (_busy, history) = object.enter("history")?;
        let num_loads = history.steps.len() * history.num_layers * history.num_experts;
        out.fill(num_loads, history.steps.iter().flat_map(|step| step.loads.iter().copied()))
    })
}

/// The number of each step, as the file has it. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_step_numbers(
    history: dualpipe_load_history_t,
    steps: *mut u64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_history_step_numbers", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("steps", steps, capacity, "count", count) }?;
        let (_busy, history) = object.enter("history")?;
        out.fill(history.steps.len(), history.steps.iter().map(|step| step.step))
    })
}

/// The placement of a step, counted from 0: num_layers rows of its slots, the expert in each, -1 where there is none.
/// No number if the step was recorded without. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_slot_to_expert(
    history: dualpipe_load_history_t,
    index: u64,
    experts: *mut i64,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_history_slot_to_expert", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("experts", experts, capacity, "count", count) }?;
        let (_busy, history) = object.enter("history")?;
        let slots = step(&history, index)?.slots.as_ref();
        let experts = slots.map_or(&[][..], |slots| &slots.slot_to_expert);
        out.fill(experts.len(), experts.iter().map(|&expert| to_c(expert)))
    })
}

/// What each slot got in a step, counted from 0, in the order of dualpipe_load_history_slot_to_expert; no number
/// likewise. Buffers are filled as dualpipe.h says under "Buffers".
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_slot_loads(
    history: dualpipe_load_history_t,
    index: u64,
    loads: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_history_slot_loads", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("loads", loads, capacity, "count", count) }?;
        let (_busy, history) = object.enter("history")?;
        let slots = step(&history, index)?.slots.as_ref();
        let loads = slots.map_or(&[][..], |slots| &slots.loads);
        out.fill(loads.len(), loads.iter().copied())
    })
}

/// Writes a history (format: a dualpipe_load_format). As vLLM wants a placement with each step, a step without one
/// gets a slot for each expert there; the other formats have neither slots nor numbers of steps. UTF-8; a NUL ends
/// it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_load_history_write(
    history: dualpipe_load_history_t,
    format: u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_load_history_write", || {
        let object = handle::get::<HistoryObject>("history", history)?;
        let format = read_format(format)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        let (_busy, history) = object.enter("history")?;
        out.fill_text(&match format {
            DUALPIPE_LOAD_FORMAT_VLLM => history.to_vllm()?,
            DUALPIPE_LOAD_FORMAT_JSON => history.to_json()?,
            DUALPIPE_LOAD_FORMAT_CSV => history.to_csv()?,
        })
    })
}

fn step(history: &LoadHistory, index: u64) -> Outcome<&HistoryStep> {
    let len = history.steps.len();
    let step = usize::try_from(index).ok().and_then(|index| history.steps.get(index));
    step.ok_or_else(|| Failure::argument("index", format!("is {index}, must be less than the {len} steps")))
}

fn read_format(format: u32) -> Outcome<dualpipe_load_format> {
    let all = [DUALPIPE_LOAD_FORMAT_VLLM, DUALPIPE_LOAD_FORMAT_JSON, DUALPIPE_LOAD_FORMAT_CSV];
    args::one_of("format", format, all.map(|format| (format as u32, format)))
}

struct HistoryObject {
    busy: BusyFlag,
    history: Mutex<LoadHistory>,
}

impl HistoryObject {
    fn new(history: LoadHistory) -> HistoryObject {
        HistoryObject { busy: BusyFlag::default(), history: Mutex::new(history) }
    }

    /// Nobody waits here: who has the busy flag has the history.
    fn enter(&self, argument: &str) -> Outcome<(Busy, MutexGuard<'_, LoadHistory>)> {
        let busy = self.busy.enter(argument)?;
        Ok((busy, self.history.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Object for HistoryObject {
    type Opaque = dualpipe_load_history;
    const KIND: Kind = Kind::LoadHistory;
}
