//! cuBLAS, if it is there: looked up when it is first asked for, by the names of its versions 13 and 12.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::driver::{CUdeviceptr, CUstream, Outcome};
use crate::math::{Matrix, Number};
use crate::memory::Memory;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type Destroy = unsafe extern "C" fn(Handle) -> c_int;
type SetStream = unsafe extern "C" fn(Handle, CUstream) -> c_int;
type SetWorkspace = unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int;
type Version = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
#[rustfmt::skip] // as the manual has it: op(A), op(B), sizes, alpha A B, beta C, type of the sums, algorithm
type GemmEx = unsafe extern "C" fn(
    Handle, c_int, c_int, c_int, c_int, c_int,
    *const c_void, *const c_void, c_int, c_int, *const c_void, c_int, c_int,
    *const c_void, *mut c_void, c_int, c_int, c_int, c_int,
) -> c_int;

/// `CUBLAS_COMPUTE_32F`, no tensor cores' shortcuts for f32.
const SUMS_F32: c_int = 68;
/// `CUBLAS_GEMM_DEFAULT`.
const DEFAULT_ALGORITHM: c_int = -1;
/// Its own for each handle, so that results do not depend on what other streams do.
const WORKSPACE_BYTES: usize = 32 << 20;

struct Functions {
    create: Create,
    destroy: Destroy,
    set_stream: SetStream,
    set_workspace: SetWorkspace,
    version: Version,
    gemm: GemmEx,
}

fn functions() -> Outcome<&'static Functions> {
    static FUNCTIONS: OnceLock<Outcome<Functions>> = OnceLock::new();
    FUNCTIONS.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Outcome<Functions> {
    let open = |name| {
        // SAFETY: loading runs the library's own start-up code.
        unsafe { Library::open(Some(name), RTLD_NOW | RTLD_LOCAL) }.ok()
    };
    let library = ["libcublas.so.13", "libcublas.so.12"].into_iter().find_map(open);
    let library = library.ok_or("neither libcublas.so.13 nor libcublas.so.12 was found")?;
    macro_rules! get {
        ($name:literal) => {
            // SAFETY: the types are those of cublas_v2.h of versions 12 and 13.
            *unsafe { library.get(concat!($name, "\0").as_bytes()) }.map_err(|why| why.to_string())?
        };
    }
    let functions = Functions {
        create: get!("cublasCreate_v2"),
        destroy: get!("cublasDestroy_v2"),
        set_stream: get!("cublasSetStream_v2"),
        set_workspace: get!("cublasSetWorkspace_v2"),
        version: get!("cublasGetVersion_v2"),
        gemm: get!("cublasGemmEx"),
    };
    std::mem::forget(library); // its functions are used to the end
    Ok(functions)
}

fn check(code: c_int, call: &str) -> Outcome {
    match code {
        0 => Ok(()),
        code => Err(format!("{call}: cuBLAS status {code}")),
    }
}

/// A handle for the products of one stream at a time.
pub(crate) struct Blas {
    functions: &'static Functions,
    handle: Handle,
    workspace: Memory,
}

// SAFETY: a handle may be used by any thread, one at a time.
unsafe impl Send for Blas {}

impl Blas {
    /// In the thread's context.
    pub(crate) fn new() -> Outcome<Blas> {
        let functions = functions()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes to a local.
        check(unsafe { (functions.create)(&mut handle) }, "cublasCreate")?;
        Ok(Blas { functions, handle, workspace: Memory::new(WORKSPACE_BYTES)? })
    }

    pub(crate) fn version(&self) -> c_int {
        let mut version = 0;
        // SAFETY: writes to a local.
        unsafe { (self.functions.version)(self.handle, &mut version) };
        version
    }

    /// `c = a b + beta c`, as [`crate::math::Queue::product`].
    pub(crate) fn product(
        &self,
        stream: CUstream,
        number: Number,
        [a, b]: [Matrix; 2],
        c: CUdeviceptr,
        size: [usize; 3],
        beta: f32,
    ) -> Outcome {
        let [columns, rows, depth] = [size[1], size[0], size[2]].map(|n| n as c_int);
        let ((first, second), alpha) = ((column_major(b), column_major(a)), 1.0_f32);
        let (kind, functions) = (number.cuda_type(), self.functions);
        let workspace = self.workspace.address() as usize as *mut c_void;
        let number = |number: &f32| std::ptr::from_ref(number).cast::<c_void>();
        let at = |address: CUdeviceptr| address as usize as *mut c_void;
        // SAFETY: handle and stream are alive; the factors are read before the calls return. The matrices are the
        // device's matter.
        unsafe {
            check((functions.set_stream)(self.handle, stream), "cublasSetStream")?;
            check((functions.set_workspace)(self.handle, workspace, WORKSPACE_BYTES), "cublasSetWorkspace")?;
            #[rustfmt::skip] // as in the type
            let code = (functions.gemm)(
                self.handle, first.0, second.0, columns, rows, depth,
                number(&alpha), at(b.start), kind, first.1, at(a.start), kind, second.1,
                number(&beta), at(c), kind, columns, SUMS_F32, DEFAULT_ALGORITHM,
            );
            check(code, "cublasGemmEx")
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and destroyed once.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}

/// cuBLAS stores columns side by side: it computes the transposed product, bT aT, of which it sees each matrix
/// transposed. Whether it has to transpose one once more (1) or not (0), and the numbers from one of its columns to the
/// next.
pub(crate) fn column_major(matrix: Matrix) -> (c_int, c_int) {
    match matrix.column {
        1 => (0, matrix.row as c_int),
        _ => (1, matrix.column as c_int),
    }
}
