//! Tasks: what an executor's callback is handed.
//!
//! ```text
//! kind           forward     backward    reads                  writes
//! F              a pass      NULL        inputs                 outputs
//! B, I           NULL        a pass      inputs, output_grads   input_grads
//! W              NULL        a pass      inputs, output_grads
//! FB             a pass      a pass      as F and as B          as F and as B
//! REDUCE_GRADS   NULL        NULL        (op.backward says of which copy, reduce_peer with whom to sum)
//! ```
//!
//! B, FB and W add to the gradients of the stage's weights, which are yours, as all that is not in the table:
//! parameters, data at the first stage, labels at the last. Of the last stage no gradient comes in: its loss is where
//! it begins. A stage has two copies in a schedule of two directions, on two ranks: pass.copy tells the rank's own
//! apart.
//!
//! On failure say why with dualpipe_task_set_error and return non-zero: the step ends with these words on all ranks.

use std::cell::RefCell;
use std::ffi::{c_char, c_void, CStr, CString};
use std::ptr::{null, null_mut, NonNull};
use std::sync::Arc;

use super::args::{self, UserData};
use super::guard::call;
use super::op::{dualpipe_op, dualpipe_pass};
use super::status::dualpipe_status;
use super::tensor::{self, DLDataType, DLDevice, DLTensor};
use crate::execute::boundary::DIMENSIONS_MAX;
use crate::execute::{DType, PassTensors, Place, TaskRun, TaskRunner, Tensor};
use crate::op::Task;
use crate::placement::Placement;
use crate::program::Program;

/// A tensor of a message: dense, row-major, in ordinary memory or, as dl.device says, in that of a CUDA device.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_tensor {
    /// The tensor. Its shape and strides are the executor's, until the task returns. Where shapes are exchanged the
    /// task may make the numbers in the shape of what it writes smaller; the strides then follow.
    pub dl: DLTensor,
    /// With the caller's memory (dualpipe_memory): the word that release gets with data. Otherwise NULL.
    pub owner: *mut c_void,
    /// 1; 0 for a gradient that does not exist: in output_grads, the next stage made none; in input_grads, the task
    /// sets it if it has none. Activations are always there.
    pub is_present: u32,
    /// 0.
    pub reserved: u32,
}

/// A pass and its tensors. At the first stage there are no inputs and no input_grads, at the last no outputs and no
/// output_grads; whatever else a stage keeps from F to W is its own business.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_task_pass {
    /// Direction, stage, micro-batch, and which of the rank's copies.
    pub pass: dualpipe_pass,
    /// Length of inputs.
    pub num_inputs: u32,
    /// Length of outputs.
    pub num_outputs: u32,
    /// Length of output_grads.
    pub num_output_grads: u32,
    /// Length of input_grads.
    pub num_input_grads: u32,
    /// Activations from the previous stage, the same from F to W. To be read.
    pub inputs: *const dualpipe_tensor,
    /// Activations for the next stage, to be filled by F. With the caller's memory data is NULL: the task sets dl, or
    /// only its data, and owner; the dtype and shape stay as they are, row-major.
    pub outputs: *mut dualpipe_tensor,
    /// Gradients from the next stage. To be read.
    pub output_grads: *const dualpipe_tensor,
    /// Gradients for the previous stage, to be filled by B or I, or said to be absent. Memory as for outputs.
    pub input_grads: *mut dualpipe_tensor,
}

/// A task to run now. F reads inputs and writes outputs; B and I read inputs and output_grads and write input_grads; W
/// reads inputs and output_grads; FB does F and B of two passes, whose work may overlap. REDUCE_GRADS has no tensors:
/// every weight gradient of the copy in op.backward is final; sum it with that of the same stage in the other
/// direction, which is on reduce_peer. It grows with later versions: read it by its size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_task {
    /// sizeof(dualpipe_task) in the library.
    pub size: u32,
    /// For REDUCE_GRADS the rank that has the other copy; else DUALPIPE_NONE.
    pub reduce_peer: u32,
    /// What to do: its kind is a dualpipe_op_kind.
    pub op: dualpipe_op,
    /// 0.
    pub reserved: u32,
    /// The pass to run forward; NULL if there is none.
    pub forward: *const dualpipe_task_pass,
    /// The pass to run backward; NULL if there is none.
    pub backward: *const dualpipe_task_pass,
    /// On a CUDA device, the CUstream to compute on: what the task reads is there in its order, and whoever reads
    /// what the task writes comes after it. NULL on the host.
    pub compute_stream: *mut c_void,
    /// On a CUDA device, a stream for expert communication, if the executor has one. The task's work on it comes
    /// after all earlier tasks, and before all later ones. NULL if there is none.
    pub comm_stream: *mut c_void,
}

/// Runs one task on the thread that runs the step, and returns 0; on a CUDA device enqueues it, and waits for nothing.
/// Anything else ends the step on all ranks. The task and all that it points to is valid until it returns. It may call
/// any function of the library but those on its own executor, which return DUALPIPE_ERROR_BUSY.
pub type dualpipe_task_fn =
    Option<unsafe extern "C-unwind" fn(user_data: *mut c_void, task: *const dualpipe_task) -> i32>;

/// Says in words why the task that this thread runs is about to return non-zero: the step's error repeats them.
///
/// text: NUL-terminated, at most 4095 bytes are kept; NULL takes the words back.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_task_set_error(text: *const c_char) -> dualpipe_status {
    call("dualpipe_task_set_error", || {
        let text = match text.is_null() {
            true => None,
            false => {
                // SAFETY: not NULL; the caller's text ends with a NUL.
                let length = unsafe { libc::strnlen(text, TEXT_MAX) };
                // SAFETY: so many bytes were looked at.
                let bytes = unsafe { args::slice("text", text.cast::<u8>(), "its length", length) }?;
                CString::new(bytes).ok()
            }
        };
        TASK_ERROR.with(|error| *error.borrow_mut() = text);
        Ok(())
    })
}

/// Most bytes of a task's words.
const TEXT_MAX: usize = 4095;

thread_local! {
    static TASK_ERROR: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Room for the tensors of a forward and of a backward pass as C sees them, kept from task to task.
#[derive(Default)]
pub(super) struct LentTensors([LentPass; 2]);

/// The tensors of a pass, and their shapes, which the task may write.
#[derive(Default)]
struct LentPass {
    tensors: Vec<dualpipe_tensor>,
    shapes: Vec<[i64; DIMENSIONS_MAX]>,
}

// SAFETY: they are empty between tasks.
unsafe impl Send for LentTensors {}

/// The caller's function as the runner of tasks.
pub(super) struct CallerTasks<'a> {
    pub(super) function: unsafe extern "C-unwind" fn(*mut c_void, *const dualpipe_task) -> i32,
    pub(super) user_data: UserData,
    pub(super) program: Arc<Program>,
    pub(super) tensors: &'a mut LentTensors,
}

impl TaskRunner for CallerTasks<'_> {
    fn run(&mut self, run: &mut TaskRun<'_>) -> Result<(), String> {
        let placement = self.program.placement();
        let [of_forward, of_backward] = &mut self.tensors.0;
        let forward = run.forward.as_ref().map(|pass| lend(placement, pass, of_forward));
        let backward = run.backward.as_ref().map(|pass| lend(placement, pass, of_backward));
        let twin = match run.task {
            Task::ReduceGrads(copy) => {
                let direction = copy.direction.opposite();
                placement.rank_of(crate::op::StageCopy { direction, ..copy })
            }
            Task::Op(_) => None,
        };
        let task = dualpipe_task {
            size: size_of::<dualpipe_task>() as u32,
            reduce_peer: twin.map_or(super::op::DUALPIPE_NONE, |rank| rank.0),
            op: dualpipe_op::new(placement, run.task),
            reserved: 0,
            forward: forward.as_ref().map_or(null(), std::ptr::from_ref),
            backward: backward.as_ref().map_or(null(), std::ptr::from_ref),
            compute_stream: run.streams.map_or(null_mut(), |streams| streams.compute),
            comm_stream: run.streams.map_or(null_mut(), |streams| streams.comm),
        };
        TASK_ERROR.with(|error| *error.borrow_mut() = None);
        // SAFETY: the caller's function, with a task that outlives the call.
        let code = unsafe { (self.function)(self.user_data.0, &task) };
        let taken_back = [(run.forward.as_mut(), &of_forward), (run.backward.as_mut(), &of_backward)];
        let taken_back = taken_back.into_iter().try_for_each(|(pass, tensors)| {
            // SAFETY: what the task left in its outputs is tensors, as its documentation asks.
            pass.map_or(Ok(()), |pass| unsafe { take_back(pass, &tensors.tensors) })
        });
        of_forward.tensors.clear();
        of_backward.tensors.clear();
        match (code, TASK_ERROR.with(|error| error.borrow_mut().take())) {
            (0, _) => taken_back,
            (code, None) => Err(format!("it returned {code}")),
            (_, Some(text)) => Err(CStr::to_string_lossy(&text).into_owned()),
        }
    }
}

/// A pass as C sees it: its tensors one after the other in `lent`.
fn lend(placement: &Placement, pass: &PassTensors<'_>, lent: &mut LentPass) -> dualpipe_task_pass {
    let lists: [&[Tensor]; 4] = [pass.inputs, pass.outputs, pass.output_grads, pass.input_grads];
    let all = || lists.into_iter().flatten();
    let LentPass { tensors, shapes } = lent;
    shapes.clear();
    shapes.extend(all().map(|tensor| {
        let mut shape = [0; DIMENSIONS_MAX];
        shape[..tensor.shape().len()].copy_from_slice(tensor.shape());
        shape
    }));
    tensors.clear();
    tensors.extend(all().zip(shapes).map(|(tensor, shape)| dualpipe_tensor::new(tensor, shape.as_mut_ptr())));
    let mut rest = tensors.as_mut_ptr();
    let [inputs, outputs, output_grads, input_grads] = lists.map(|list| {
        let first = rest;
        rest = rest.wrapping_add(list.len());
        if list.is_empty() {
            null_mut()
        } else {
            first
        }
    });
    let [num_inputs, num_outputs, num_output_grads, num_input_grads] = lists.map(|list| list.len() as u32);
    dualpipe_task_pass {
        pass: dualpipe_pass::new(placement, pass.pass),
        num_inputs,
        num_outputs,
        num_output_grads,
        num_input_grads,
        inputs,
        outputs,
        output_grads,
        input_grads,
    }
}

/// What the task has said of the tensors that it writes.
///
/// # Safety
/// Each tensor's header may be read as far as its own fields say.
unsafe fn take_back(pass: &mut PassTensors<'_>, tensors: &[dualpipe_tensor]) -> Result<(), String> {
    let (outputs, rest) = tensors[pass.inputs.len()..].split_at(pass.outputs.len());
    let input_grads = &rest[pass.output_grads.len()..];
    for (name, ours, theirs) in
        [("outputs", &mut *pass.outputs, outputs), ("input_grads", &mut *pass.input_grads, input_grads)]
    {
        for (i, (ours, theirs)) in ours.iter_mut().zip(theirs).enumerate() {
            ours.set_present(theirs.is_present != 0);
            if ours.is_present() && !theirs.dl.data.is_null() {
                // SAFETY: the caller's promise.
                unsafe { adopt(ours, theirs) }.map_err(|why| format!("{name}[{i}]{why}"))?;
            }
        }
    }
    Ok(())
}

/// Takes over where the task has put a tensor, if that is another place than before. An error begins behind its name.
///
/// # Safety
/// As for [`take_back`].
unsafe fn adopt(ours: &mut Tensor, theirs: &dualpipe_tensor) -> Result<(), String> {
    // SAFETY: the caller's promise.
    let given = unsafe { tensor::read("", &theirs.dl) }.map_err(|failure| failure.text)?;
    let is_resized = given.shape != ours.shape();
    if is_resized {
        ours.set_shape(given.shape).map_err(|why| format!(": {why}"))?;
    }
    let is_row_major =
        given.strides.is_none() || (is_resized && theirs.dl.strides.cast_const() == ours.strides().as_ptr());
    let is_ours =
        given.dtype == DLDataType::from(ours.dtype()) && given.num_bytes == ours.bytes() && is_row_major;
    let place = device_of(ours.place());
    if !is_ours || given.device != place {
        let (dtype, shape) = (DLDataType::from(ours.dtype()), ours.shape());
        let text = format!("must be a row-major tensor of {dtype:?} {shape:?} on {place:?}, is {given:?}");
        return Err(format!(" {text}"));
    }
    let data = NonNull::new(given.data).filter(|&data| ours.data() != Some(data));
    if let Some(data) = data {
        // SAFETY: a task that sets data promises memory for the tensor until it is released.
        unsafe { ours.adopt(data, theirs.owner) };
    }
    Ok(())
}

/// As DLPack says where a tensor is.
fn device_of(place: Place) -> DLDevice {
    /// DLPack's kDLCPU.
    const CPU: i32 = 1;
    /// DLPack's kDLCUDA.
    const CUDA: i32 = 2;
    match place {
        Place::Host => DLDevice { device_type: CPU, device_id: 0 },
        Place::Cuda(device) => DLDevice { device_type: CUDA, device_id: device as i32 },
    }
}

impl From<DType> for DLDataType {
    fn from(DType { code, bits, lanes }: DType) -> DLDataType {
        DLDataType { code, bits, lanes }
    }
}

impl dualpipe_tensor {
    fn new(tensor: &Tensor, shape: *mut i64) -> dualpipe_tensor {
        dualpipe_tensor {
            dl: DLTensor {
                data: tensor.data().map_or(null_mut(), |data| data.as_ptr().cast()),
                device: device_of(tensor.place()),
                ndim: tensor.shape().len() as i32,
                dtype: tensor.dtype().into(),
                shape,
                strides: tensor.strides().as_ptr().cast_mut(),
                byte_offset: 0,
            },
            owner: tensor.owner(),
            is_present: tensor.is_present().into(),
            reserved: 0,
        }
    }
}
