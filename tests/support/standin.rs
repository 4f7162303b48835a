//! The stand-in driver and NCCL (tests/cuda_standin, tests/nccl_standin), built, loaded and steered.
#![allow(dead_code)] // each test file uses a part of it

use std::ffi::{c_char, c_void, CString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// What an op touches.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) address: u64,
    pub(crate) num_bytes: u64,
    pub(crate) is_write: u32,
    pub(crate) reserved: u32,
}

pub(crate) const EAGER: u32 = 0;
pub(crate) const LAZY: u32 = 1;
/// Ranks must be safe by their own waits alone.
pub(crate) const RANK_LOCAL: u32 = 1;

macro_rules! functions {
    ($name:ident { $($symbol:ident: fn($($type:ty),*) $(-> $result:ty)?;)* }) => {
        pub(crate) struct $name { $(pub(crate) $symbol: unsafe extern "C" fn($($type),*) $(-> $result)?,)* _library: Library }

        impl $name {
            fn load(path: &Path) -> $name {
                // SAFETY: a library of this project's own.
                let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
                let library = library.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                // SAFETY: the types are those of its header.
                unsafe {
                    $(let $symbol = *library.get(concat!(stringify!($symbol), "\0").as_bytes()).unwrap();)*
                    $name { $($symbol,)* _library: library }
                }
            }
        }
    };
}

functions!(Driver {
    standin_reset: fn(u64, u32, u32, u32);
    standin_run: fn() -> u64;
    standin_set_rank: fn(i32);
    standin_launch: fn(
        *mut c_void, *const c_char, unsafe extern "C" fn(*mut c_void), *mut c_void, *const Access, usize
    ) -> i32;
    standin_num_waits: fn(i32) -> u64;
    standin_skip_wait: fn(i32, u64);
    standin_num_ops: fn(i32) -> u64;
    standin_fail_op: fn(i32, u64, i32);
    standin_hang_op: fn(i32, u64);
    standin_release: fn();
    standin_fail_call: fn(*const c_char, u64, i32);
    standin_num_calls: fn(*const c_char) -> u64;
    standin_live: fn(*const c_char) -> u64;
    standin_report: fn(*mut c_char, usize) -> usize;
});

functions!(NcclControl {
    nccl_standin_reset: fn(u64, i32);
    nccl_standin_set_rank: fn(i32);
    nccl_standin_drop: fn(i32, i32, u64);
    nccl_standin_async_error: fn(i32, u64, i32);
    nccl_standin_fail_call: fn(*const c_char, u64, i32);
    nccl_standin_hang_init: fn(i32);
    nccl_standin_hang_abort: fn(i32);
    nccl_standin_forbid_same_device: fn(i32);
    nccl_standin_connect_at_first_use: fn(i32);
    nccl_standin_offer_windows: fn(i32);
    nccl_standin_release_waits: fn();
    nccl_standin_live_comms: fn() -> u64;
    nccl_standin_num_sends: fn(i32, i32) -> u64;
    nccl_standin_report: fn(*mut c_char, usize) -> usize;
    nccl_standin_waiting: fn(*mut c_char, usize) -> usize;
});

fn build(which: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = root.join("target/standin");
    let built = Command::new(root.join("tests").join(which).join("build")).arg(&out).output().unwrap();
    assert!(built.status.success(), "{which}: {}", String::from_utf8_lossy(&built.stderr));
    out
}

/// Loaded before the first call of the driver: the loader then finds it under the driver's own name.
fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| Driver::load(&build("cuda_standin").join("libcuda.so.1")))
}

/// As [`driver`].
fn nccl() -> &'static NcclControl {
    static NCCL: OnceLock<NcclControl> = OnceLock::new();
    NCCL.get_or_init(|| {
        driver();
        NcclControl::load(&build("nccl_standin").join("libnccl.so.2"))
    })
}

/// One use of the stand-ins, from reset to a look at what they found. One at a time in a process.
pub(crate) struct Session {
    has_nccl: bool,
    #[allow(clippy::vec_box)] // the stand-in has their addresses
    kernels: Mutex<Vec<Box<Kernel>>>,
}

/// Whether there is a session.
static IS_TAKEN: Mutex<bool> = Mutex::new(false);
static GIVEN_BACK: Condvar = Condvar::new();

/// What an op of the test's own does.
struct Kernel(Box<dyn Fn() + Send + Sync>);

unsafe extern "C" fn run_kernel(kernel: *mut c_void) {
    // SAFETY: `Session::launch` passed it, and keeps it until nothing can run any more.
    (unsafe { &*kernel.cast::<Kernel>() }.0)();
}

fn text(write: impl Fn(*mut c_char, usize) -> usize) -> String {
    let mut bytes = vec![0_u8; 1 << 16];
    let length = write(bytes.as_mut_ptr().cast(), bytes.len()).min(bytes.len() - 1);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[allow(clippy::undocumented_unsafe_blocks)] // the stand-ins' functions may be called from any thread
impl Session {
    /// A fresh driver, when the session before is over.
    pub(crate) fn new(seed: u64, mode: u32, num_devices: u32, flags: u32) -> Arc<Session> {
        Session::take();
        unsafe { (driver().standin_reset)(seed, mode, num_devices, flags) };
        Arc::new(Session { has_nccl: false, kernels: Mutex::default() })
    }

    /// And a fresh NCCL of this version.
    pub(crate) fn with_nccl(
        seed: u64,
        mode: u32,
        num_devices: u32,
        flags: u32,
        version: i32,
    ) -> Arc<Session> {
        Session::take();
        unsafe {
            (driver().standin_reset)(seed, mode, num_devices, flags);
            (nccl().nccl_standin_reset)(seed, version);
        }
        Arc::new(Session { has_nccl: true, kernels: Mutex::default() })
    }

    fn take() {
        let is_taken = IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let mut is_taken = GIVEN_BACK.wait_while(is_taken, |is_taken| *is_taken).unwrap();
        *is_taken = true;
    }

    pub(crate) fn nccl(&self) -> &'static NcclControl {
        nccl()
    }

    /// The calling thread is this rank.
    pub(crate) fn set_rank(&self, rank: usize) {
        unsafe { (driver().standin_set_rank)(rank as i32) };
        if self.has_nccl {
            unsafe { (nccl().nccl_standin_set_rank)(rank as i32) };
        }
    }

    /// Enqueues a kernel of the test's own, which runs again whenever a graph that it is captured in does.
    pub(crate) fn launch(
        &self,
        stream: *mut c_void,
        label: &str,
        accesses: &[Access],
        run: impl Fn() + Send + Sync + 'static,
    ) -> i32 {
        let kernel = Box::new(Kernel(Box::new(run)));
        let user = std::ptr::from_ref(&*kernel).cast_mut().cast();
        self.kernels.lock().unwrap().push(kernel);
        let label = CString::new(label).unwrap();
        let (accesses, count) = (accesses.as_ptr(), accesses.len());
        unsafe { (driver().standin_launch)(stream, label.as_ptr(), run_kernel, user, accesses, count) }
    }

    pub(crate) fn run(&self) -> u64 {
        unsafe { (driver().standin_run)() }
    }

    pub(crate) fn num_waits(&self, rank: usize) -> u64 {
        unsafe { (driver().standin_num_waits)(rank as i32) }
    }

    pub(crate) fn skip_wait(&self, rank: usize, ordinal: u64) {
        unsafe { (driver().standin_skip_wait)(rank as i32, ordinal) };
    }

    pub(crate) fn num_ops(&self, rank: usize) -> u64 {
        unsafe { (driver().standin_num_ops)(rank as i32) }
    }

    pub(crate) fn fail_op(&self, rank: usize, ordinal: u64, code: i32) {
        unsafe { (driver().standin_fail_op)(rank as i32, ordinal, code) };
    }

    pub(crate) fn hang_op(&self, rank: usize, ordinal: u64) {
        unsafe { (driver().standin_hang_op)(rank as i32, ordinal) };
    }

    pub(crate) fn release(&self) {
        unsafe { (driver().standin_release)() };
    }

    pub(crate) fn fail_call(&self, function: &str, ordinal: u64, code: i32) {
        let function = CString::new(function).unwrap();
        unsafe { (driver().standin_fail_call)(function.as_ptr(), ordinal, code) };
    }

    pub(crate) fn num_calls(&self, function: &str) -> u64 {
        let function = CString::new(function).unwrap();
        unsafe { (driver().standin_num_calls)(function.as_ptr()) }
    }

    /// What the stand-ins found wrong.
    pub(crate) fn report(&self) -> String {
        let mut report = text(|bytes, capacity| unsafe { (driver().standin_report)(bytes, capacity) });
        if self.has_nccl {
            report += &text(|bytes, capacity| unsafe { (nccl().nccl_standin_report)(bytes, capacity) });
        }
        report
    }

    /// Nothing was found wrong, and nothing is left.
    pub(crate) fn assert_clean(&self, what: &str) {
        assert_eq!(self.report(), "", "{what}");
        for kind in
            ["streams", "events", "allocations", "host_allocations", "graphs", "graph_execs", "contexts"]
        {
            let name = CString::new(kind).unwrap();
            assert_eq!(unsafe { (driver().standin_live)(name.as_ptr()) }, 0, "{what}: {kind} are left");
        }
        if self.has_nccl {
            assert_eq!(unsafe { (nccl().nccl_standin_live_comms)() }, 0, "{what}: communicators are left");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: as above. The kernels are kept until here.
        unsafe { (driver().standin_reset)(0, LAZY, 1, 0) };
        *IS_TAKEN.lock().unwrap_or_else(PoisonError::into_inner) = false;
        GIVEN_BACK.notify_one();
    }
}
