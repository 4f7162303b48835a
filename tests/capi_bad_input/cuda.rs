//! What is wrong behind the pointers to options for CUDA and NCCL. All of it is found before the driver is asked for,
//! so that it is the same on every machine.

use std::ffi::c_void;
use std::ptr::{null, null_mut};

use dualpipe::capi::cuda::*;
use dualpipe::capi::executor::*;
use dualpipe::capi::memory::dualpipe_memory;
use dualpipe::capi::status::dualpipe_status::*;

use super::inputs::{self, last_error, set_u32};
use super::world::{self, World};
use super::{refuse, NO_TRANSPORT};

const CUDA: dualpipe_cuda_options = dualpipe_cuda_options {
    size: size_of::<dualpipe_cuda_options>() as u32,
    device: 0,
    compute_stream: null_mut(),
    comm_stream: null_mut(),
    has_comm_stream: 0,
    is_timed: 0,
    is_stream_ordered: 0,
    uses_graph: 0,
    exchanges_shapes: 0,
    reserved: 0,
};

/// Two links, one for each way between two ranks.
static ID: [u8; 256] = [0; 256];

const NCCL: dualpipe_nccl_options = dualpipe_nccl_options {
    size: size_of::<dualpipe_nccl_options>() as u32,
    max_ctas: 0,
    unique_id: &ID as *const u8,
    unique_id_length: ID.len() as u64,
    zero_cta: 0,
    reserved: 0,
};

/// The words of a struct of options, with some changed, and with more of them than the struct has.
fn changed<T: Copy>(options: &T, changes: &[(usize, u32)]) -> Vec<u64> {
    let mut words = inputs::words(options);
    words.resize(words.len() + 8, 0);
    changes.iter().for_each(|&(word, value)| set_u32(&mut words, word, value));
    words
}

pub(super) fn bad_cuda_and_nccl_options(world: &World) {
    let good = dualpipe_executor_options { cuda: &CUDA, ..world::executor_options(2) };
    let changes: [(&[(usize, u32)], &str); 15] = [
        (&[(0, 0)], "options->cuda->size is 0, must be the size of the struct: 48 to 4096, a multiple of 8"),
        (&[(0, 40)], "options->cuda->size is 40, must be"),
        (&[(0, 52)], "options->cuda->size is 52, must be"),
        (&[(0, 4104)], "options->cuda->size is 4104, must be"),
        (&[(0, 56), (13, 1)], "options->cuda has a non-zero byte at 52 of 56: a newer header's field"),
        (&[(6, 2)], "options->cuda->has_comm_stream is 2, must be 0 to 1"),
        (&[(7, 2)], "options->cuda->is_timed is 2, must be 0 to 1"),
        (&[(8, 2)], "options->cuda->is_stream_ordered is 2, must be 0 to 1"),
        (&[(9, 2)], "options->cuda->uses_graph is 2, must be 0 to 1"),
        (&[(10, 2)], "options->cuda->exchanges_shapes is 2, must be 0 to 1"),
        (&[(6, u32::MAX)], "options->cuda->has_comm_stream is 4294967295, must be 0 to 1"),
        (&[(11, 1)], "options->cuda->reserved is 1, must be 0"),
        // Several at once: the first is told.
        (&[(7, 9), (11, 9)], "options->cuda->reserved is 9, must be 0"),
        (&[(9, 1), (10, 1)], "uses_graph is 1, must be 0 with exchanges_shapes"),
        (&[(1, 77), (8, 5)], "options->cuda->is_stream_ordered is 5, must be 0 to 1"),
    ];
    for (changes, want) in changes {
        let words = changed(&CUDA, changes);
        let options = dualpipe_executor_options { cuda: words.as_ptr().cast(), ..good };
        refuse(world, &options, DUALPIPE_ERROR_INVALID_ARGUMENT, want);
    }

    let nccl = dualpipe_executor_options { inproc: null_mut(), nccl: &NCCL, ..good };
    let changes: [(&[(usize, u32)], &str); 11] = [
        (&[(0, 0)], "options->nccl->size is 0, must be the size of the struct: 32 to 4096, a multiple of 8"),
        (&[(0, 24)], "options->nccl->size is 24, must be"),
        (&[(0, 36)], "options->nccl->size is 36, must be"),
        (&[(0, 48), (10, 1)], "options->nccl has a non-zero byte at 40 of 48"),
        (&[(6, 2)], "options->nccl->zero_cta is 2, must be 0 to 1"),
        (&[(7, 1)], "options->nccl->reserved is 1, must be 0"),
        (&[(1, 65)], "options->nccl->max_ctas is 65, must be 0 to 64"),
        (&[(1, u32::MAX)], "options->nccl->max_ctas is 4294967295, must be 0 to 64"),
        (&[(2, 0), (3, 0)], "options->nccl->unique_id is NULL"),
        (&[(4, 64)], "the length of unique_id is 64, must be "),
        (&[(5, u32::MAX)], "options->nccl->unique_id_length is 18446744069414584576, must be 0 to "),
    ];
    for (changes, want) in changes {
        let words = changed(&NCCL, changes);
        let options = dualpipe_executor_options { nccl: words.as_ptr().cast(), ..nccl };
        refuse(world, &options, DUALPIPE_ERROR_INVALID_ARGUMENT, want);
    }
    let misaligned = dualpipe_executor_options { nccl: null::<u8>().wrapping_add(4).cast(), ..nccl };
    refuse(
        world,
        &misaligned,
        DUALPIPE_ERROR_INVALID_ARGUMENT,
        "options->nccl is 0x4, must be a multiple of 8",
    );
    // What is wrong with cuda is told before what is wrong with the way to other ranks.
    let (bad_cuda, bad_nccl) = (changed(&CUDA, &[(7, 2)]), changed(&NCCL, &[(1, 65)]));
    let both = dualpipe_executor_options { cuda: bad_cuda.as_ptr().cast(), ..nccl };
    let both = dualpipe_executor_options { nccl: bad_nccl.as_ptr().cast(), ..both };
    refuse(world, &both, DUALPIPE_ERROR_INVALID_ARGUMENT, "options->cuda->is_timed is 2");

    let without = dualpipe_executor_options { cuda: null(), ..nccl };
    let want = "options->nccl is given without options->cuda, which it needs";
    refuse(world, &without, DUALPIPE_ERROR_INVALID_ARGUMENT, want);
    let one_of = |options: dualpipe_executor_options, has: &str| {
        let want = format!("options has {has} of inproc, transport and nccl, must have exactly one");
        refuse(world, &options, DUALPIPE_ERROR_INVALID_ARGUMENT, &want);
    };
    one_of(dualpipe_executor_options { inproc: null_mut(), ..good }, "none");
    one_of(dualpipe_executor_options { nccl: &NCCL, ..good }, "inproc and nccl");
    one_of(dualpipe_executor_options { transport: &NO_TRANSPORT, ..good }, "inproc and transport");
    one_of(dualpipe_executor_options { transport: &NO_TRANSPORT, ..nccl }, "transport and nccl");
    let all = dualpipe_executor_options { transport: &NO_TRANSPORT, nccl: &NCCL, ..good };
    one_of(all, "inproc and transport and nccl");

    let transport = dualpipe_executor_options { inproc: null_mut(), transport: &NO_TRANSPORT, ..good };
    refuse(world, &transport, DUALPIPE_ERROR_INVALID_ARGUMENT, "options->transport->send is NULL");
    let foreign = dualpipe_executor_options { inproc: world.schedule as _, ..good };
    refuse(
        world,
        &foreign,
        DUALPIPE_ERROR_INVALID_HANDLE,
        "options->inproc is a schedule, must be an inproc",
    );
    let size = size_of::<dualpipe_memory>() as u32;
    let (allocate, release) = (Some(allocate as _), Some(release as _));
    let memory = dualpipe_memory { size, reserved: 0, user_data: null_mut(), allocate, release };
    let graph = dualpipe_cuda_options { uses_graph: 1, ..CUDA };
    let options = dualpipe_executor_options { memory: &memory, cuda: &graph, ..good };
    let want = "uses_graph is 1, must be 0 with memory of the caller's";
    refuse(world, &options, DUALPIPE_ERROR_INVALID_ARGUMENT, want);
}

unsafe extern "C-unwind" fn allocate(
    _: *mut c_void,
    _: u64,
    _: *mut *mut c_void,
    _: *mut *mut c_void,
) -> i32 {
    1
}

unsafe extern "C-unwind" fn release(_: *mut c_void, _: *mut c_void, _: *mut c_void) {}

/// Without a driver, or without NCCL, good options are refused with UNAVAILABLE, and what needs neither works.
pub(super) fn what_is_missing_is_said(world: &World) {
    let good = dualpipe_executor_options { cuda: &CUDA, ..world::executor_options(2) };
    let mut info = dualpipe_cuda_info {
        size: size_of::<dualpipe_cuda_info>() as u32,
        num_devices: 0,
        driver_version: 0,
        reserved: 7,
    };
    // SAFETY: a local.
    if unsafe { dualpipe_cuda_available(&mut info) } == DUALPIPE_OK {
        assert!(info.num_devices > 0 && info.driver_version >= 12_000 && info.reserved == 0, "{info:?}");
        let none = dualpipe_cuda_options { device: info.num_devices, ..CUDA };
        let options = dualpipe_executor_options { cuda: &none, ..good };
        let (device, last) = (info.num_devices, info.num_devices - 1);
        let want = format!("device is {device}, must be 0 to {last}");
        refuse(world, &options, DUALPIPE_ERROR_INVALID_ARGUMENT, &want);
    } else {
        let said = last_error();
        let why = said.strip_prefix("dualpipe_cuda_available: ").expect("the function's name").to_string();
        refuse(world, &good, DUALPIPE_ERROR_UNAVAILABLE, &why);
        let nowhere = dualpipe_cuda_options { device: u32::MAX, ..CUDA };
        refuse(
            world,
            &dualpipe_executor_options { cuda: &nowhere, ..good },
            DUALPIPE_ERROR_UNAVAILABLE,
            &why,
        );
        let nccl = dualpipe_executor_options { inproc: null_mut(), nccl: &NCCL, ..good };
        refuse(world, &nccl, DUALPIPE_ERROR_UNAVAILABLE, &why);
    }
    let (mut version, mut bytes, mut count) = (77, [1; 256], 0);
    let want = "NCCL was not found (/nowhere/libnccl.so.2: ";
    // SAFETY: locals, and a handle.
    unsafe {
        assert_eq!(dualpipe_nccl_version(&mut version), DUALPIPE_ERROR_UNAVAILABLE);
        assert!(last_error().contains(want) && version == 77, "{}", last_error());
        assert!(last_error().contains("set DUALPIPE_NCCL_LIB to the path"), "{}", last_error());
        let schedule = world.schedule as _;
        let ids = dualpipe_nccl_unique_id(schedule, bytes.as_mut_ptr(), bytes.len(), &mut count);
        assert_eq!((ids, count, bytes), (DUALPIPE_ERROR_UNAVAILABLE, 0, [1; 256]));
        assert!(last_error().contains(want), "{}", last_error());
        // How many there are to be is known all the same.
        assert_eq!(dualpipe_nccl_unique_id(schedule, null_mut(), 0, &mut count), DUALPIPE_OK);
        assert_eq!(count, 256);
        let small = dualpipe_nccl_unique_id(schedule, bytes.as_mut_ptr(), 255, &mut count);
        assert_eq!((small, count, bytes), (DUALPIPE_ERROR_BUFFER_TOO_SMALL, 256, [1; 256]));
    }
}
