//! Memory against time: the best schedule within each of several memory caps, beside what no schedule can beat.
//!
//! One plan for each cap, as of plan.h. A schedule that keeps to a cap keeps to every larger one, and a bound that
//! holds within a cap holds within every smaller one: along a front neither makespan nor bound ever rises.
//!
//! ```c
//! // What fewer activations cost: a line for each cap from 4 to 9. Free the front with dualpipe_front_free.
//! #include <dualpipe.h>
//! #include <stdio.h>
//!
//! static dualpipe_status print_front(const dualpipe_plan_options *options, const dualpipe_costs *costs,
//!                                    dualpipe_front_t *front) {
//!   const uint64_t caps[] = {4, 5, 6, 7, 8, 9};
//!   dualpipe_status status = dualpipe_front_create(options, costs, DUALPIPE_MEMORY_ACTIVATIONS, caps, 6, front);
//!   for (uint32_t i = 0; status == DUALPIPE_OK && i < 6; i++) {
//!     dualpipe_front_point point = DUALPIPE_FRONT_POINT_INIT;
//!     status = dualpipe_front_describe_point(*front, i, &point);
//!     if (status == DUALPIPE_OK) printf("%d: %.3f ms\n", (int)point.cap, point.makespan_ns / 1e6);
//!   }
//!   return status;
//! }
//! ```

use std::ffi::c_char;

use super::args::{self, Buffer, Out};
use super::cost::{self, dualpipe_costs};
use super::guard::call;
use super::handle::{self, Kind, Object};
use super::options::{self, Growing, OutStruct};
use super::plan::{dualpipe_plan_options, schedule_object};
use super::planner::read_problem;
use super::schedule::dualpipe_schedule_t;
use super::status::{dualpipe_status, Failure, Outcome};
use crate::search::{
    memory_time_front, Caps, Front, FrontPoint, PublishedPoint, FRONT_ALL_POINTS, FRONT_POINTS_MAX,
};
use crate::sim::MemoryCap;

use dualpipe_front_format::*;
use dualpipe_memory_unit::*;

/// What a dualpipe_front_t points to: nothing that C could look into.
pub struct dualpipe_front(());

/// Plans within several memory caps. It never changes: any number of threads may use it at once. It stays usable after
/// a fork. Free it with dualpipe_front_free.
pub type dualpipe_front_t = *mut dualpipe_front;

/// What memory is counted in.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_memory_unit {
    /// Micro-batch activations alive at once, as dualpipe_schedule_check counts them.
    DUALPIPE_MEMORY_ACTIVATIONS = 1,
    /// Bytes, parameters included, as dualpipe_timeline_ranks counts them.
    DUALPIPE_MEMORY_BYTES = 2,
}

/// What a front can be drawn as.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum dualpipe_front_format {
    /// A table for a terminal, a line for each cap and each published schedule, with a bar from bound to makespan.
    DUALPIPE_FRONT_TEXT = 1,
    /// A self-contained SVG: makespan over memory as steps, bounds as a line below, published schedules as named dots.
    DUALPIPE_FRONT_SVG = 2,
}

/// What a front is. Start from DUALPIPE_FRONT_INFO_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_front_info {
    /// sizeof(dualpipe_front_info).
    pub size: u32,
    /// A dualpipe_memory_unit.
    pub unit: u32,
    /// Points: one for each cap.
    pub num_points: u32,
    /// Published schedules beside them.
    pub num_published: u32,
    /// 1 if the progress callback stopped it: then some points were not searched for. Otherwise 0.
    pub is_stopped: u32,
    /// Always 0.
    pub reserved: u32,
}

// SAFETY: repr(C), six u32.
unsafe impl Growing for dualpipe_front_info {
    const SIZE_V1: usize = 24;
}

/// The best schedule within a cap, which is the same for all ranks. Start from DUALPIPE_FRONT_POINT_INIT.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_front_point {
    /// sizeof(dualpipe_front_point).
    pub size: u32,
    /// Always 0.
    pub reserved: u32,
    /// Activations or bytes.
    pub cap: u64,
    /// What the rank that keeps most keeps at once, in the same unit.
    pub peak: u64,
    /// How long a step takes.
    pub makespan_ns: u64,
    /// No schedule on this placement that keeps to the cap is faster.
    pub lower_bound_ns: u64,
}

// SAFETY: repr(C), two u32 and four u64.
unsafe impl Growing for dualpipe_front_point {
    const SIZE_V1: usize = 40;
}

/// A published schedule beside a front.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dualpipe_front_published {
    /// What the rank that keeps most keeps at once, in the front's unit.
    pub peak: u64,
    /// How long a step takes.
    pub makespan_ns: u64,
}

/// Plans within each of several memory caps.
///
/// options: as for dualpipe_plan_create, but without caps: those are `caps`, 1 to 256 of them, rising, of a
/// dualpipe_memory_unit, each the same for all ranks. NULL and 0 for all: at most 24, evenly, from one micro-batch of
/// each direction at a time to where more gains nothing. Iterations and time are those of each plan; for caps that are
/// not given there is one plan more, without a cap.
///
/// Calls the progress callback with what is done of all plans. If it asks to stop, the call succeeds: each point has
/// the best that was found until then, and dualpipe_front_describe says that it was stopped.
///
/// Errors: DUALPIPE_ERROR_INVALID_ARGUMENT, also for a cap that no schedule keeps to.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_create(
    options: *const dualpipe_plan_options,
    costs: *const dualpipe_costs,
    unit: u32,
    caps: *const u64,
    num_caps: usize,
    front: *mut dualpipe_front_t,
) -> dualpipe_status {
    call("dualpipe_front_create", || {
        // SAFETY: the caller's, as is what it points to.
        let given = unsafe { options::read("options", options) }?;
        // SAFETY: as above.
        let problem = unsafe { read_problem(&given, cost::read("costs", costs)?) }?;
        if problem.cap != MemoryCap::Unlimited {
            let how = "must have no caps: those of a front are its own";
            return Err(Failure::argument("options", how));
        }
        // SAFETY: the caller's.
        let caps = unsafe { read_caps(unit, caps, num_caps) }?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("front", front) }?;
        let num_plans = if num_caps == 0 { FRONT_ALL_POINTS + 1 } else { num_caps };
        let search = given.search()?.of_plans(num_plans);
        let found = search.run(|effort, progress| memory_time_front(&problem, &caps, effort, progress))?;
        out.write(handle::insert(FrontObject(found))?);
        Ok(())
    })
}

/// # Safety
/// As of [`args::slice`].
unsafe fn read_caps(unit: u32, caps: *const u64, num_caps: usize) -> Outcome<Caps> {
    let units = [DUALPIPE_MEMORY_ACTIVATIONS, DUALPIPE_MEMORY_BYTES];
    let unit = args::one_of("unit", unit, units.map(|unit| (unit as u32, unit)))?;
    if !caps.is_null() {
        args::in_range("num_caps", num_caps, 1..=FRONT_POINTS_MAX)?;
    }
    args::in_range("num_caps", num_caps, 0..=FRONT_POINTS_MAX)?;
    // SAFETY: the caller's promise.
    let caps = unsafe { args::slice("caps", caps, "num_caps", num_caps) }?;
    Ok(match (unit, caps) {
        (DUALPIPE_MEMORY_ACTIVATIONS, []) => Caps::AllActivations,
        (DUALPIPE_MEMORY_BYTES, []) => Caps::AllBytes,
        (DUALPIPE_MEMORY_ACTIVATIONS, caps) => {
            Caps::Activations(caps.iter().map(|&cap| cap as usize).collect())
        }
        (DUALPIPE_MEMORY_BYTES, caps) => Caps::Bytes(caps.to_vec()),
    })
}

/// Frees a front. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_free(front: dualpipe_front_t) -> dualpipe_status {
    call("dualpipe_front_free", || handle::free::<FrontObject>("front", front))
}

/// What a front is: its unit and how much it has.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_describe(
    front: dualpipe_front_t,
    info: *mut dualpipe_front_info,
) -> dualpipe_status {
    call("dualpipe_front_describe", || {
        let object = handle::get::<FrontObject>("front", front)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let Front { is_bytes, points, published, is_stopped, .. } = &object.0;
        out.write(dualpipe_front_info {
            size: 0,
            unit: if *is_bytes { DUALPIPE_MEMORY_BYTES } else { DUALPIPE_MEMORY_ACTIVATIONS } as u32,
            num_points: points.len() as u32,
            num_published: published.len() as u32,
            is_stopped: (*is_stopped).into(),
            reserved: 0,
        });
        Ok(())
    })
}

/// A point: `point` is 0 to num_points - 1, the smallest cap first.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_describe_point(
    front: dualpipe_front_t,
    point: u32,
    info: *mut dualpipe_front_point,
) -> dualpipe_status {
    call("dualpipe_front_describe_point", || {
        let object = handle::get::<FrontObject>("front", front)?;
        let point = object.point(point)?;
        // SAFETY: the caller's.
        let out = unsafe { OutStruct::new("info", info) }?;
        let &FrontPoint { cap, peak, makespan_ns, lower_bound_ns, .. } = point;
        out.write(dualpipe_front_point { size: 0, reserved: 0, cap, peak, makespan_ns, lower_bound_ns });
        Ok(())
    })
}

/// The name of what the search that found a point's schedule began with, as of dualpipe_plan_started_from. A NUL ends
/// it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_started_from(
    front: dualpipe_front_t,
    point: u32,
    name: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_front_started_from", || {
        let object = handle::get::<FrontObject>("front", front)?;
        let point = object.point(point)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("name", name, capacity, "length", length) }?;
        out.fill_text(&point.started_from)
    })
}

/// A schedule of its own from a point: what was found within its cap, as of dualpipe_plan_schedule.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_schedule(
    front: dualpipe_front_t,
    point: u32,
    schedule: *mut dualpipe_schedule_t,
) -> dualpipe_status {
    call("dualpipe_front_schedule", || {
        let object = handle::get::<FrontObject>("front", front)?;
        let point = object.point(point)?;
        // SAFETY: the caller's.
        let out = unsafe { Out::new("schedule", schedule) }?;
        out.write(handle::insert(schedule_object(&point.schedule))?);
        Ok(())
    })
}

/// The published schedules that are possible, whether they fit a cap or not, by memory. Buffers are filled as
/// dualpipe.h says under "Buffers"; the count is num_published.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_published_schedules(
    front: dualpipe_front_t,
    published: *mut dualpipe_front_published,
    capacity: usize,
    count: *mut usize,
) -> dualpipe_status {
    call("dualpipe_front_published_schedules", || {
        let object = handle::get::<FrontObject>("front", front)?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("published", published, capacity, "count", count) }?;
        let in_c = |published: &PublishedPoint| {
            let &PublishedPoint { peak, makespan_ns, .. } = published;
            dualpipe_front_published { peak, makespan_ns }
        };
        out.fill(object.0.published.len(), object.0.published.iter().map(in_c))
    })
}

/// The name of a published schedule, 0 to num_published - 1, such as "dualpipe_v". A NUL ends it; the length is without
/// the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_published_name(
    front: dualpipe_front_t,
    published: u32,
    name: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_front_published_name", || {
        let object = handle::get::<FrontObject>("front", front)?;
        let all = &object.0.published;
        let found = all.get(published as usize).ok_or_else(|| {
            let how = format!("is {published}, must be less than num_published, which is {}", all.len());
            Failure::argument("published", how)
        })?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("name", name, capacity, "length", length) }?;
        out.fill_text(&found.name)
    })
}

/// Draws a front. format: a dualpipe_front_format. UTF-8; a NUL ends it; the length is without the NUL.
#[no_mangle]
pub unsafe extern "C" fn dualpipe_front_draw(
    front: dualpipe_front_t,
    format: u32,
    text: *mut c_char,
    capacity: usize,
    length: *mut usize,
) -> dualpipe_status {
    call("dualpipe_front_draw", || {
        let object = handle::get::<FrontObject>("front", front)?;
        let formats = [DUALPIPE_FRONT_TEXT, DUALPIPE_FRONT_SVG];
        let format = args::one_of("format", format, formats.map(|format| (format as u32, format)))?;
        // SAFETY: the caller's.
        let out = unsafe { Buffer::new("text", text, capacity, "length", length) }?;
        out.fill_text(&match format {
            DUALPIPE_FRONT_TEXT => object.0.to_text(),
            DUALPIPE_FRONT_SVG => object.0.to_svg(),
        })
    })
}

/// A front that C has a handle of.
struct FrontObject(Front);

impl Object for FrontObject {
    type Opaque = dualpipe_front;
    const KIND: Kind = Kind::Front;
}

impl FrontObject {
    fn point(&self, point: u32) -> Outcome<&FrontPoint> {
        let all = &self.0.points;
        Ok(&all[args::index("point", point, all.len())?])
    }
}
