//! The functions of NCCL that the library calls, looked up once, when a communicator is asked for.
//!
//! cudarc would look for `libnccl.so` and `libnccl.so.13`; what PyTorch ships, and has loaded, is `libnccl.so.2`.

#![allow(non_snake_case)] // the names are NCCL's

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};
use crate::execute::device::cuda::sys::CUstream;

/// `ncclComm_t`.
pub(super) type Comm = *mut c_void;

/// `ncclSuccess`.
pub(super) const SUCCESS: c_int = 0;
/// `ncclInProgress`: a communicator that does not block has not done it yet.
pub(super) const IN_PROGRESS: c_int = 7;
/// `ncclUint8`.
pub(super) const UINT8: c_int = 1;
/// `NCCL_WIN_COLL_SYMMETRIC`: a window into which the other ranks may put.
pub(super) const WINDOW_SYMMETRIC: c_int = 1;

/// `ncclWindow_t`.
pub(super) type Window = *mut c_void;

/// `ncclWaitSignalDesc_t`: `count` signals of `peer`; NCCL wants the rest to be 0.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Signals {
    pub(super) count: c_int,
    pub(super) peer: c_int,
    pub(super) index: c_int,
    pub(super) context: c_int,
}

/// `ncclUniqueId`, by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclConfig_t` as of 2.17: NCCL reads `size` first and fills in what a newer one has besides.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Config {
    size: usize,
    magic: u32,
    version: u32,
    pub(super) blocking: c_int,
    cga_cluster_size: c_int,
    pub(super) min_ctas: c_int,
    pub(super) max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;

impl Config {
    /// All as NCCL would have it.
    pub(super) fn new() -> Config {
        Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: 21700,
            blocking: UNDEFINED,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        }
    }
}

macro_rules! nccl {
    (
        always { $($symbol:ident($($argument:ident: $type:ty),*);)* }
        puts { $($put:ident($($put_argument:ident: $put_type:ty),*);)* }
    ) => {
        /// NCCL's functions.
        pub(super) struct Nccl {
            $(pub(super) $symbol: unsafe extern "C" fn($($type),*) -> c_int,)*
            /// `None` if some of them are missing.
            pub(super) puts: Option<Puts>,
            ncclGetErrorString: unsafe extern "C" fn(c_int) -> *const c_char,
            ncclGetLastError: Option<unsafe extern "C" fn(Comm) -> *const c_char>,
            /// Keeps the functions where they are.
            _library: libloading::Library,
        }

        /// NCCL's functions for memory that other ranks put messages into.
        pub(super) struct Puts {
            $(pub(super) $put: unsafe extern "C" fn($($put_type),*) -> c_int,)*
        }

        impl Puts {
            fn find(library: &libloading::Library) -> Option<Puts> {
                // SAFETY: the types are those that NCCL's documentation gives for these names.
                Some(unsafe { Puts { $($put: *library.get(concat!(stringify!($put), "\0").as_bytes()).ok()?,)* } })
            }
        }

        impl Nccl {
            fn load() -> std::result::Result<Nccl, String> {
                let library = open()?;
                $(
                    // SAFETY: the type is the one that NCCL's documentation gives for this name.
                    let found = unsafe { library.get(concat!(stringify!($symbol), "\0").as_bytes()) };
                    let $symbol = *found.map_err(|_| {
                        format!("the NCCL that was found has no {}: it must be 2.18 or newer", stringify!($symbol))
                    })?;
                )*
                // SAFETY: as above.
                let (text, last) = unsafe { (library.get(b"ncclGetErrorString\0"), library.get(b"ncclGetLastError\0")) };
                let ncclGetErrorString = *text.map_err(|_| "the NCCL that was found has no ncclGetErrorString")?;
                let ncclGetLastError = last.ok().map(|symbol| *symbol);
                let puts = Puts::find(&library);
                Ok(Nccl { $($symbol,)* puts, ncclGetErrorString, ncclGetLastError, _library: library })
            }
        }
    };
}

nccl! {
    always {
        ncclGetVersion(version: *mut c_int);
        ncclGetUniqueId(id: *mut UniqueId);
        ncclCommInitRankConfig(comm: *mut Comm, ranks: c_int, id: UniqueId, rank: c_int, config: *mut Config);
        ncclCommGetAsyncError(comm: Comm, error: *mut c_int);
        ncclCommAbort(comm: Comm);
        ncclCommFinalize(comm: Comm);
        ncclCommDestroy(comm: Comm);
        ncclSend(data: *const c_void, count: usize, datatype: c_int, peer: c_int, comm: Comm, stream: CUstream);
        ncclRecv(data: *mut c_void, count: usize, datatype: c_int, peer: c_int, comm: Comm, stream: CUstream);
        ncclGroupStart();
        ncclGroupEnd();
    }
    puts {
        ncclMemAlloc(memory: *mut *mut c_void, bytes: usize);
        ncclMemFree(memory: *mut c_void);
        ncclCommWindowRegister(comm: Comm, data: *mut c_void, bytes: usize, window: *mut Window, flags: c_int);
        ncclCommWindowDeregister(comm: Comm, window: Window);
        ncclPutSignal(
            data: *const c_void, count: usize, datatype: c_int, peer: c_int, window: Window, offset: usize,
            index: c_int, context: c_int, flags: c_uint, comm: Comm, stream: CUstream
        );
        ncclSignal(peer: c_int, index: c_int, context: c_int, flags: c_uint, comm: Comm, stream: CUstream);
        ncclWaitSignal(num_signals: c_int, signals: *mut Signals, comm: Comm, stream: CUstream);
    }
}

/// `$DUALPIPE_NCCL_LIB` if it is set; else the copy that the process has or the loader finds.
fn open() -> std::result::Result<libloading::Library, String> {
    let chosen = std::env::var_os("DUALPIPE_NCCL_LIB").filter(|name| !name.is_empty());
    let names = match &chosen {
        Some(name) => vec![name.clone()],
        None => ["libnccl.so.2", "libnccl.so"].map(Into::into).to_vec(),
    };
    let mut failures = Vec::new();
    for name in &names {
        // SAFETY: loading runs the library's own start-up code, which is NCCL's.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => return Ok(library),
            Err(why) => failures.push(format!("{}: {why}", name.to_string_lossy())),
        }
    }
    let how = "install NCCL, or set DUALPIPE_NCCL_LIB to the path of its libnccl.so.2";
    Err(format!("NCCL was not found ({}); {how}", failures.join("; ")))
}

impl Nccl {
    /// Why `function` returned `code`, in NCCL's own words.
    pub(super) fn say(&self, function: &str, code: c_int, comm: Comm) -> String {
        // SAFETY: any number has a text, which is static.
        let text = unsafe { text_of((self.ncclGetErrorString)(code)) };
        // SAFETY: the communicator lives, or is NULL, which stands for any; the text is the thread's until its next
        // call.
        let last = self.ncclGetLastError.map(|last| unsafe { text_of(last(comm)) }).unwrap_or_default();
        let mut said = format!("{function}: {text} ({code})");
        let last = last.trim();
        if !last.is_empty() {
            said = format!("{said}, {last}");
        }
        if last.contains("Duplicate GPU") || last.contains("same GPU") {
            said += "; several ranks on one device need NCCL 2.30.3 or newer and NCCL_MULTI_RANK_GPU_ENABLE=1 in the \
                     environment";
        }
        said
    }
}

/// # Safety
/// A text that ends with a NUL, or NULL.
unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// NCCL, loaded at the first call that finds it, since a program may load its own later; never unloaded.
///
/// # Errors
/// [`ErrorKind::Unavailable`] with what is missing.
pub(super) fn nccl() -> Result<&'static Nccl> {
    static NCCL: OnceLock<Nccl> = OnceLock::new();
    if let Some(nccl) = NCCL.get() {
        return Ok(nccl);
    }
    let loaded = Nccl::load().map_err(|why| Error::new(ErrorKind::Unavailable, format!("nccl: {why}")))?;
    Ok(NCCL.get_or_init(|| loaded))
}
