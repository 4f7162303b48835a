//! Which device an executor runs on and what joins it to the other ranks, as its options say.

use std::sync::atomic::Ordering;
use std::sync::Arc;

use super::caller_streams::CallerStreams;
use super::cuda::read_nccl;
use super::executor::dualpipe_executor_options;
use super::handle;
use super::options;
use super::status::dualpipe_status::*;
use super::status::{Failure, Outcome};
use super::transport::{CallerTransport, InprocObject};
use crate::execute::{CudaLink, Executor, Options};
use crate::program::Program;

/// # Safety
/// All pointers, if their bits pass, are what their documentation says.
pub(super) unsafe fn connect(
    program: Arc<Program>,
    given: &dualpipe_executor_options,
    options: Options,
) -> Outcome<Executor> {
    let links = [
        ("inproc", given.inproc.is_null()),
        ("transport", given.transport.is_null()),
        ("nccl", given.nccl.is_null()),
    ];
    if links.iter().filter(|(_, is_null)| !is_null).count() != 1 {
        let names: Vec<_> = links.iter().filter(|(_, is_null)| !is_null).map(|(name, _)| *name).collect();
        let which = if names.is_empty() { "none".to_string() } else { names.join(" and ") };
        let text = format!("options has {which} of inproc, transport and nccl, must have exactly one");
        return Err(Failure::new(DUALPIPE_ERROR_INVALID_ARGUMENT, text));
    }
    if given.cuda.is_null() && !given.nccl.is_null() {
        return Err(Failure::argument("options->nccl", "is given without options->cuda, which it needs"));
    }
    let cuda = match given.cuda.is_null() {
        true => None,
        // SAFETY: the caller's promise.
        false => Some(unsafe { options::read("options->cuda", given.cuda)?.checked("options->cuda")? }),
    };
    let rank = program.rank();
    let inproc = match given.inproc.is_null() {
        true => None,
        false => Some(handle::get::<InprocObject>("options->inproc", given.inproc)?),
    };
    let Some(cuda) = cuda else {
        if let Some(inproc) = inproc {
            return Ok(Executor::new(program, inproc.0.transport(rank)?, options)?);
        }
        // SAFETY: the caller's promise.
        let transport = unsafe { CallerTransport::read("options->transport", given.transport, &program) }?;
        let is_taken = transport.is_taken();
        let executor = Executor::new(program, transport, options)?;
        is_taken.store(true, Ordering::Release);
        return Ok(executor);
    };
    if let Some(inproc) = inproc {
        return Ok(Executor::on_cuda(program, CudaLink::inproc(&inproc.0), options, &cuda)?);
    }
    if !given.nccl.is_null() {
        // SAFETY: the caller's promise.
        let nccl = unsafe { read_nccl("options->nccl", given.nccl) }?;
        return Ok(Executor::on_cuda(program, CudaLink::nccl(nccl), options, &cuda)?);
    }
    // SAFETY: the caller's promise.
    let transport = unsafe { CallerTransport::read("options->transport", given.transport, &program) }?;
    let is_taken = transport.is_taken();
    let link = CudaLink::custom(move |context| Box::new(CallerStreams::new(transport, context)));
    let executor = Executor::on_cuda(program, link, options, &cuda)?;
    is_taken.store(true, Ordering::Release);
    Ok(executor)
}
