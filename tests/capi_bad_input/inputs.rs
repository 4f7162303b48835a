//! What is tried for each type of argument, and how it is judged.

use std::ffi::CStr;

use dualpipe::capi::status::dualpipe_last_error;
use dualpipe::capi::status::dualpipe_status::{self, *};

use super::world::World;

/// A function: `call` reads its arguments from words, in order.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) call: unsafe fn(&Words) -> dualpipe_status,
    pub(crate) args: Vec<Arg>,
    /// Whether it needs what a machine may lack: then UNAVAILABLE is as good as OK.
    pub(crate) is_optional: bool,
}

/// The type of an argument; every one begins with its name in the header.
#[derive(Clone, Copy)]
pub(crate) enum Arg {
    /// A live handle. Tried: NULL, freed, of every other type, addresses, made-up bits. 0 if there is none on every
    /// machine: then nothing else of the function is tried.
    Handle(&'static str, fn(&World) -> usize),
    /// A handle of its own for each call that frees it: as above, but NULL is fine.
    Owned(&'static str, fn(&World) -> usize),
    /// A good number, and bad ones with what is said of them.
    Number(&'static str, usize, &'static [(usize, &'static str)]),
    /// Whatever it is, it is fine.
    Anything(&'static str),
    /// A struct that begins with its size. Tried: NULL, misaligned, wrong sizes, a non-zero unknown tail, and `bad`:
    /// the index of a 32-bit word, its value, and what is said of it. Its first version was of `size_v1` bytes: that
    /// must be fine, whatever comes behind.
    InStruct {
        name: &'static str,
        size: usize,
        size_v1: usize,
        align: usize,
        good: fn(&World) -> Vec<u64>,
        bad: &'static [(usize, u32, &'static str)],
    },
    /// Values that are read, of an alignment; their number is an argument of its own. Tried: NULL, misaligned.
    Lent(&'static str, usize, fn(&World) -> Vec<u64>),
    /// A value that is written, of an alignment. Tried: NULL, misaligned.
    Out(&'static str, usize),
    /// A struct that begins with its size and is written. Tried: NULL, misaligned, wrong sizes.
    OutStruct { name: &'static str, size: usize, align: usize },
    /// Values that are written; `Capacity` and `Count` must follow. Tried: NULL with a capacity, misaligned, the
    /// capacities `too_small`; NULL without a capacity must be fine.
    Values { name: &'static str, size: usize, align: usize, too_small: &'static [usize] },
    /// The capacity of the `Values` before it. Tried: more than memory can hold.
    Capacity,
    /// The count of the `Values` before. Tried: NULL, misaligned.
    Count(&'static str),
}

use Arg::*;

impl Arg {
    pub(crate) fn name(&self) -> &'static str {
        match *self {
            Handle(name, _) | Owned(name, _) | Number(name, ..) | Anything(name) | Lent(name, ..) => name,
            Out(name, _) | Count(name) => name,
            InStruct { name, .. } | OutStruct { name, .. } | Values { name, .. } => name,
            Capacity => "capacity",
        }
    }
}

/// The arguments of one call, and the memory that they point to.
pub(crate) struct Words {
    words: Vec<usize>,
    memory: Vec<Vec<u64>>,
}

impl Words {
    pub(crate) fn usize(&self, i: usize) -> usize {
        self.words[i]
    }

    pub(crate) fn u32(&self, i: usize) -> u32 {
        self.words[i] as u32
    }

    /// A pointer, or a handle.
    pub(crate) fn at<T>(&self, i: usize) -> *mut T {
        self.words[i] as *mut T
    }
}

/// The bytes of a value, which has no padding.
pub(crate) fn words<T: Copy>(value: &T) -> Vec<u64> {
    let mut words = vec![0; size_of::<T>().div_ceil(8)];
    // SAFETY: as many bytes as the value has.
    unsafe { words.as_mut_ptr().cast::<T>().write_unaligned(*value) };
    words
}

pub(crate) fn last_error() -> String {
    // SAFETY: the text is this thread's, and copied before its next call.
    unsafe { CStr::from_ptr(dualpipe_last_error()) }.to_str().unwrap().to_string()
}

/// A bad input: how the good words and their memory are changed, and what must come of it.
struct Bad {
    what: String,
    words: Words,
    status: dualpipe_status,
    text: String,
}

/// What an output holds before the call.
const UNTOUCHED: u64 = 0x5A5A_5A5A_5A5A_5A5A;
/// Words of memory behind each pointer.
const MEMORY: usize = 8192;

/// Everything that is wrong: a good call that fails, a bad one that does not, or not as it should.
pub(crate) fn check_all(table: &[Entry], world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in table {
        let lacks_object = |arg: &Arg| matches!(arg, Handle(_, live) if live(world) == 0);
        if let Some(i) = entry.args.iter().position(lacks_object) {
            let bad = bad_words(entry, i, world);
            wrong
                .extend(bad.iter().filter_map(|bad| Some(format!("{}: {}", entry.name, judge(entry, bad)?))));
            continue;
        }
        let good = good_words(entry, world);
        // SAFETY: good arguments, as far as this table knows.
        let status = unsafe { (entry.call)(&good) };
        if status != DUALPIPE_OK && !is_missing(entry, status) {
            wrong.push(format!("{}: good arguments: {status:?}: {}", entry.name, last_error()));
            continue;
        }
        for i in 0..entry.args.len() {
            for bad in bad_words(entry, i, world) {
                wrong.extend(judge(entry, &bad).map(|why| format!("{}: {}: {why}", entry.name, bad.what)));
            }
        }
    }
    wrong
}

/// Whether the machine lacks what the function needs.
fn is_missing(entry: &Entry, status: dualpipe_status) -> bool {
    entry.is_optional && status == DUALPIPE_ERROR_UNAVAILABLE
}

fn judge(entry: &Entry, bad: &Bad) -> Option<String> {
    let before = bad.words.memory.clone();
    // SAFETY: bad arguments, but every pointer that is not refused by its bits points to memory.
    let status = unsafe { (entry.call)(&bad.words) };
    if status != bad.status && !(bad.status == DUALPIPE_OK && is_missing(entry, status)) {
        return Some(format!("{status:?} instead of {:?}: {}", bad.status, last_error()));
    }
    if status == DUALPIPE_OK {
        return None;
    }
    let text = last_error();
    if !text.starts_with(&format!("{}: ", entry.name)) || !text.contains(&bad.text) {
        return Some(format!("{text:?} does not say {:?}", bad.text));
    }
    for (i, (before, after)) in before.iter().zip(&bad.words.memory).enumerate() {
        let is_count = matches!(entry.args[i], Count(_)) && status == DUALPIPE_ERROR_BUFFER_TOO_SMALL;
        if is_count && (before[1..] != after[1..] || before[0] == after[0]) {
            return Some(format!("{} is {:x}", entry.args[i].name(), after[0]));
        }
        if !is_count && before != after {
            return Some(format!("{} was written to", entry.args[i].name()));
        }
    }
    None
}

fn good_words(entry: &Entry, world: &World) -> Words {
    let mut good = Words { words: Vec::new(), memory: Vec::new() };
    for arg in &entry.args {
        let mut memory = Vec::new();
        let mut outside = vec![UNTOUCHED; MEMORY];
        let word = match *arg {
            Handle(_, live) | Owned(_, live) => live(world),
            Number(_, number, _) => number,
            Anything(_) => 0,
            Capacity => match entry.args[good.words.len() - 1] {
                Values { size, .. } => 8 * MEMORY / size,
                _ => panic!("{}: capacity must follow values", entry.name),
            },
            InStruct { good, .. } | Lent(_, _, good) => {
                memory = good(world);
                memory.resize(MEMORY, 0);
                memory.as_ptr() as usize
            }
            OutStruct { size, .. } => {
                memory.append(&mut outside);
                set_u32(&mut memory, 0, size as u32);
                memory.as_ptr() as usize
            }
            Out(..) | Values { .. } | Count(_) => {
                memory.append(&mut outside);
                memory.as_ptr() as usize
            }
        };
        good.words.push(word);
        good.memory.push(memory);
    }
    good
}

pub(crate) fn set_u32(memory: &mut [u64], i: usize, value: u32) {
    let shift = 32 * (i % 2);
    memory[i / 2] = memory[i / 2] & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
}

fn bad_words(entry: &Entry, i: usize, world: &World) -> Vec<Bad> {
    let arg = entry.args[i];
    let name = arg.name();
    let mut bads = Vec::new();
    let mut add = |what: &str, change: &dyn Fn(&mut Words), status, text: &str| {
        let mut words = good_words(entry, world);
        change(&mut words);
        bads.push(Bad { what: format!("{name} {what}"), words, status, text: text.to_string() });
    };
    let is_null = format!("{name} is NULL");
    let mut pointer = |align: usize| {
        add("NULL", &|w| w.words[i] = 0, DUALPIPE_ERROR_INVALID_ARGUMENT, &is_null);
        if align > 1 {
            let text = format!("must be a multiple of {align}");
            add("misaligned", &|w| w.words[i] += 1, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
            add("misaligned", &|w| w.words[i] += align / 2, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
        }
    };
    match arg {
        Anything(_) => {}
        Out(_, align) | Lent(_, align, _) => pointer(align),
        Count(_) => pointer(align_of::<usize>()),
        InStruct { align, .. } | OutStruct { align, .. } => pointer(align),
        _ => {}
    }
    match arg {
        Handle(_, live) | Owned(_, live) => {
            let invalid = DUALPIPE_ERROR_INVALID_HANDLE;
            let may_be_null = matches!(arg, Owned(..));
            let status = if may_be_null { DUALPIPE_OK } else { invalid };
            add("NULL", &|w| w.words[i] = 0, status, &is_null);
            let example = live(world);
            let kind = |handle: usize| handle >> 48;
            for &freed in world.freed.iter().filter(|&&freed| kind(freed) == kind(example)) {
                add("freed", &|w| w.words[i] = freed, invalid, &format!("{name} has been freed"));
            }
            for other in world.live().into_iter().filter(|&other| kind(other) != kind(example)) {
                add("of another type", &|w| w.words[i] = other, invalid, ", must be a");
            }
            let address = std::ptr::from_ref(world) as usize;
            for made_up in [1, address, usize::MAX, kind(example) << 48 | 0xF_FFFF, example + (1 << 40)] {
                let text = format!("{name} is not a handle");
                add("made up", &|w| w.words[i] = made_up, invalid, &text);
            }
        }
        Number(_, _, bad) => {
            for &(number, text) in bad {
                let text = if text.starts_with("is ") {
                    text.to_string()
                } else {
                    format!("{name} is {number}, {text}")
                };
                add(&number.to_string(), &|w| w.words[i] = number, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
            }
        }
        InStruct { size, align, .. } | OutStruct { size, align, .. } => {
            let size_v1 = if let InStruct { size_v1, .. } = arg { size_v1 } else { size };
            for wrong in [0, align, size_v1 - align, size + 1, 4096 + align, u32::MAX as usize] {
                let text = format!("{name}->size is {wrong}, must be the size of the struct: ");
                let change = |w: &mut Words| set_u32(&mut w.memory[i], 0, wrong as u32);
                add(&format!("size {wrong}"), &change, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
            }
            let larger = |w: &mut Words| set_u32(&mut w.memory[i], 0, (size + 64) as u32);
            add("of a newer version", &larger, DUALPIPE_OK, "");
            let text = format!("{name} has a non-zero byte at {}", size + 4);
            if let InStruct { bad, .. } = arg {
                let unknown = |w: &mut Words| {
                    larger(w);
                    set_u32(&mut w.memory[i], size / 4 + 1, 1);
                };
                add("with an unknown field", &unknown, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
                let older = |w: &mut Words| {
                    set_u32(&mut w.memory[i], 0, size_v1 as u32);
                    (size_v1 / 4..size / 4).for_each(|word| set_u32(&mut w.memory[i], word, 3));
                };
                add("of the first version", &older, DUALPIPE_OK, "");
                for &(word, value, text) in bad {
                    let change = |w: &mut Words| set_u32(&mut w.memory[i], word, value);
                    add(&format!("word {word} = {value}"), &change, DUALPIPE_ERROR_INVALID_ARGUMENT, text);
                }
            }
        }
        Values { align, too_small, .. } => {
            let text = format!("{is_null}, but capacity is ");
            add("NULL with a capacity", &|w| w.words[i] = 0, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
            if align > 1 {
                let text = format!("must be a multiple of {align}");
                add("misaligned", &|w| w.words[i] += 1, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
            }
            let no_values = |w: &mut Words| (w.words[i], w.words[i + 1]) = (0, 0);
            add("NULL without a capacity", &no_values, DUALPIPE_OK, "");
            for &capacity in too_small {
                let text = format!("capacity is {capacity}, must be at least ");
                let small = |w: &mut Words| w.words[i + 1] = capacity;
                add("too small", &small, DUALPIPE_ERROR_BUFFER_TOO_SMALL, &text);
            }
        }
        Capacity => {
            for capacity in [usize::MAX, isize::MAX as usize + 1] {
                let text = format!("capacity is {capacity}, must be 0 to ");
                add("absurd", &|w| w.words[i] = capacity, DUALPIPE_ERROR_INVALID_ARGUMENT, &text);
            }
        }
        Anything(_) | Out(..) | Lent(..) | Count(_) => {}
    }
    bads
}
