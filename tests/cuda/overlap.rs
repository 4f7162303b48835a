//! The halves of an F&B pair under one another: the order of the trace, and no wait too few or too many.

use std::sync::{Arc, Mutex};

use dualpipe::execute::overlap::{Overlap, Part, Part::*};
use dualpipe::execute::TaskStreams;
use dualpipe::ErrorKind;

use crate::device::Device;
use crate::standin::{Access, Session, LAZY};

/// What a part reads: of its own block, or of the one before in its half's order.
fn reads(part: Part) -> (Part, bool) {
    match part {
        AttentionF => (CombineF, true),
        DispatchF => (AttentionF, false),
        MlpF => (DispatchF, false),
        CombineF => (MlpF, false),
        CombineB => (AttentionB, true),
        MlpB => (CombineB, false),
        MlpW => (CombineB, false),
        DispatchB => (MlpB, false),
        AttentionB => (DispatchB, false),
        AttentionW => (DispatchB, false),
    }
}

struct Run {
    parts: Vec<(Part, usize, bool)>,
    num_waits: u64,
    report: String,
}

/// Every part writes a word of its own and reads its predecessor's.
fn run(num_forward: usize, num_backward: usize, skipped: Option<u64>, seed: u64) -> Run {
    let session = Session::new(seed, LAZY, 1, 0);
    session.set_rank(0);
    skipped.into_iter().for_each(|ordinal| session.skip_wait(0, ordinal));
    let [compute, comm] = [0, 1].map(|_| Device::new(0));
    let memory = Device::memory(4 * 10 * 64);
    let address = |part: Part, block: usize| memory.address + 4 * (part as usize * 64 + block) as u64;
    let mut overlap = Overlap::new(0).unwrap();
    let parts = Arc::new(Mutex::new(Vec::new()));
    let ran = overlap.run(
        TaskStreams { compute: compute.stream(), comm: comm.stream() },
        num_forward,
        num_backward,
        |part, block, stream| {
            let is_comm = stream == comm.stream();
            parts.lock().unwrap().push((part, block, is_comm));
            let access = |address, is_write| Access { address, num_bytes: 4, is_write, reserved: 0 };
            let (from, is_before) = reads(part);
            let before = match (is_before, part.is_forward()) {
                (false, _) => Some(block),
                (true, true) => block.checked_sub(1),
                (true, false) => Some(block + 1).filter(|&block| block < num_backward),
            };
            let mut accesses = vec![access(address(part, block), 1)];
            accesses.extend(before.map(|before| access(address(from, before), 0)));
            assert_eq!(session.launch(stream, &format!("{part:?} {block}"), &accesses, || {}), 0);
            Ok(())
        },
    );
    assert_eq!(ran, Ok(()));
    session.run();
    let (num_waits, report) = (session.num_waits(0), session.report());
    drop((overlap, memory, compute, comm));
    let parts = parts.lock().unwrap().clone();
    Run { parts, num_waits, report }
}

#[test]
fn parts_go_in_the_order_of_the_published_trace() {
    let run = run(1, 1, None, 0);
    let names = |wanted: bool| {
        let on = run.parts.iter().filter(|(.., is_comm)| *is_comm == wanted);
        on.map(|(part, ..)| format!("{part:?}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(false), "AttentionF MlpB MlpW MlpF AttentionB AttentionW");
    assert_eq!(names(true), "CombineB DispatchF DispatchB CombineF");
    assert_eq!(run.report, "");
}

#[test]
fn every_part_comes_after_what_it_reads_and_waits_for_nothing_else() {
    for (num_forward, num_backward) in [(1, 1), (4, 4), (3, 1), (1, 3), (2, 0), (0, 2), (0, 0)] {
        let what = format!("{num_forward} forward, {num_backward} backward");
        let whole = run(num_forward, num_backward, None, 1);
        assert_eq!(whole.report, "", "{what}");
        assert_eq!(whole.parts.len(), 4 * num_forward + 6 * num_backward, "{what}");
        for ordinal in 0..whole.num_waits {
            let part = run(num_forward, num_backward, Some(ordinal), ordinal);
            assert!(
                part.report.contains("race"),
                "{what}: wait {ordinal} of {} can be spared",
                whole.num_waits
            );
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let session = Session::new(0, LAZY, 1, 0);
    let device = Device::new(0);
    let mut overlap = Overlap::new(0).unwrap();
    let one = TaskStreams { compute: device.stream(), comm: std::ptr::null_mut() };
    let two = TaskStreams { comm: device.stream(), ..one };
    let error = overlap.run(one, 1, 1, |_, _, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("has_comm_stream"), "{error}");
    let error = overlap.run(two, 1, 4097, |_, _, _| Ok(())).unwrap_err();
    assert_eq!(error.to_string(), "overlap: num_backward is 4097, must be 0 to 4096");
    let error = overlap.run(two, 1, 1, |_, _, _| Err("no".into())).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::CallbackFailed, "no"));
    drop((overlap, device));
    session.assert_clean("refused");
}
