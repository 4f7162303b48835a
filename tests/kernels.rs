//! The kernels: that their PTX is what their text gives, and that this text, on the stand-in driver, computes what it
//! says. The training example tests those that make up its model against the model on the host.

#[path = "support/standin.rs"]
mod standin;

use std::ffi::{c_void, CString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, CUmodule};

use standin::{Session, EAGER};

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// The text of each .ptx file.
fn ptx() -> Vec<String> {
    let files = fs::read_dir(kernels().join("ptx")).unwrap();
    let mut paths: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// A device with all kernels.
#[allow(clippy::undocumented_unsafe_blocks)] // the driver is the stand-in; the handles are what it gave
struct Device {
    modules: Vec<CUmodule>,
}

#[allow(clippy::undocumented_unsafe_blocks)] // as above
impl Device {
    fn new() -> Device {
        result::init().unwrap();
        let device = result::device::get(0).unwrap();
        unsafe { result::ctx::set_current(result::primary_ctx::retain(device).unwrap()) }.unwrap();
        let load = |text: &String| {
            let image = CString::new(text.as_str()).unwrap();
            unsafe { result::module::load_data(image.as_ptr().cast()) }.unwrap()
        };
        Device { modules: ptx().iter().map(load).collect() }
    }

    fn upload<T: Copy>(&self, values: &[T]) -> CUdeviceptr {
        let address = unsafe { result::malloc_sync(size_of_val(values)) }.unwrap();
        unsafe { result::memcpy_htod_sync(address, values) }.unwrap();
        address
    }

    fn download<T: Copy + Default>(&self, address: CUdeviceptr, count: usize) -> Vec<T> {
        let mut values = vec![T::default(); count];
        unsafe { result::memcpy_dtoh_sync(&mut values, address) }.unwrap();
        values
    }

    /// Each parameter in the low bits of a word.
    fn launch(&self, name: &str, grid: (u32, u32, u32), block: (u32, u32, u32), parameters: &[u64]) {
        let mut parameters = parameters.to_vec();
        let mut pointers: Vec<*mut c_void> =
            parameters.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let symbol = CString::new(name).unwrap();
        let stream = std::ptr::null_mut();
        unsafe {
            let function = result::module::get_function(self.modules[0], symbol).unwrap();
            result::launch_kernel(function, grid, block, 0, stream, &mut pointers).unwrap();
            result::ctx::synchronize().unwrap();
        }
    }
}

/// A product to compute: the strides of rows and columns of a and b, of rows of c, and of the matrices of a batch.
#[derive(Clone, Copy, Debug)]
struct Product {
    size: [usize; 3],
    a: [usize; 2],
    b: [usize; 2],
    c_row: usize,
    batch: [usize; 3],
    num_matrices: usize,
    factors: [f32; 2],
}

const PLAIN: Product = Product {
    size: [5, 7, 3],
    a: [3, 1],
    b: [7, 1],
    c_row: 7,
    batch: [0; 3],
    num_matrices: 1,
    factors: [1.0, 0.0],
};

const PRODUCTS: [Product; 6] = [
    PLAIN,
    Product { size: [9, 130, 4], a: [4, 1], b: [130, 1], c_row: 130, factors: [0.5, 2.0], ..PLAIN },
    Product { a: [1, 5], b: [1, 3], factors: [-1.0, 1.0], ..PLAIN },
    Product { size: [1, 1, 1], factors: [3.0, 0.0], ..PLAIN },
    Product { c_row: 11, a: [6, 2], num_matrices: 3, batch: [30, 21, 55], factors: [1.0, 1.0], ..PLAIN },
    Product {
        size: [8, 128, 32],
        a: [32, 1],
        b: [1, 32],
        c_row: 128,
        batch: [0, 0, 1024],
        num_matrices: 2,
        ..PLAIN
    },
];

/// Enough numbers for every product above; all of them bf16.
fn numbers(seed: u64) -> Vec<f32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..8192).map(|_| rng.i32(-64..=64) as f32 / 64.0).collect()
}

fn expected(product: &Product, a: &[f32], b: &[f32], c: &[f32]) -> Vec<f32> {
    let mut c = c.to_vec();
    let &Product { size: [rows, columns, depth], batch, factors: [alpha, beta], .. } = product;
    for z in 0..product.num_matrices {
        for i in 0..rows {
            for j in 0..columns {
                let terms = (0..depth).map(|k| {
                    let a = a[z * batch[0] + i * product.a[0] + k * product.a[1]];
                    a * b[z * batch[1] + k * product.b[0] + j * product.b[1]]
                });
                let to = &mut c[z * batch[2] + i * product.c_row + j];
                // Small multiples of a power of two: no sum is rounded.
                *to = alpha * terms.sum::<f32>() + if beta == 0.0 { 0.0 } else { beta * *to };
            }
        }
    }
    c
}

fn bf16(number: f32) -> u16 {
    let bits = number.to_bits();
    let half = 0x7fff + ((bits >> 16) & 1);
    ((bits + half) >> 16) as u16
}

fn launch_product(device: &Device, name: &str, product: &Product, matrices: [CUdeviceptr; 3]) {
    let &Product { size, a, b, c_row, batch, num_matrices, factors } = product;
    let sizes = size.into_iter().chain(a).chain(b).chain([c_row]).chain(batch).map(|size| size as u64);
    let factors = factors.map(|factor| u64::from(factor.to_bits()));
    let parameters: Vec<u64> = matrices.into_iter().chain(sizes).chain(factors).collect();
    let grid = (size[1].div_ceil(128) as u32, size[0].div_ceil(8) as u32, num_matrices as u32);
    device.launch(name, grid, (32, 8, 1), &parameters);
}

#[test]
fn products_are_exact_where_sums_are() {
    let session = Session::new(1, EAGER, 1, 0);
    let device = Device::new();
    let [a, b, mut c] = [1, 2, 3].map(numbers);
    for product in PRODUCTS {
        if product.factors[1] == 0.0 {
            c.fill(f32::NAN); // must not be read
        } else {
            c = numbers(3);
        }
        let want = expected(&product, &a, &b, &c);
        let equal = |x: f32, y: f32| x == y || (x.is_nan() && y.is_nan());

        let matrices = [&a, &b, &c].map(|matrix| device.upload(matrix));
        launch_product(&device, "gemm_f32", &product, matrices);
        let got: Vec<f32> = device.download(matrices[2], c.len());
        assert!(got.iter().zip(&want).all(|(&x, &y)| equal(x, y)), "{product:?}");

        let halves = |matrix: &Vec<f32>| matrix.iter().map(|&number| bf16(number)).collect::<Vec<u16>>();
        let matrices = [&a, &b, &c].map(|matrix| device.upload(&halves(matrix)));
        launch_product(&device, "gemm_bf16", &product, matrices);
        let got: Vec<u16> = device.download(matrices[2], c.len());
        let wide = |half: u16| f32::from_bits(u32::from(half) << 16);
        let is_equal = |(&x, &y): (&u16, &f32)| equal(wide(x), wide(bf16(y)));
        assert!(got.iter().zip(&want).all(is_equal), "{product:?}, bf16");
    }
    assert_eq!(session.report(), "");
}

#[test]
fn rounding_to_bf16_takes_the_nearest_then_the_even_one() {
    let _session = Session::new(1, EAGER, 1, 0);
    let device = Device::new();
    // Products of ones: a sum of 1 and what is added to it; a bf16 has 7 bits after the point.
    let ulp = 1.0 / 128.0;
    for (small, want) in [
        (ulp / 2.0, 1.0),
        (ulp / 2.0 + ulp / 64.0, 1.0 + ulp),
        (ulp * 1.5, 1.0 + 2.0 * ulp),
        (ulp * 0.25, 1.0),
        (f32::INFINITY, f32::INFINITY),
        (f32::NAN, f32::NAN),
    ] {
        let halves =
            |numbers: &[f32]| numbers.iter().map(|&n| (n.to_bits() >> 16) as u16).collect::<Vec<u16>>();
        let (a, b) = (device.upload(&halves(&[1.0, small])), device.upload(&halves(&[1.0, 1.0])));
        let c = device.upload(&[0_u16]);
        let product = Product { size: [1, 1, 2], a: [2, 1], b: [1, 1], c_row: 1, ..PLAIN };
        launch_product(&device, "gemm_bf16", &product, [a, b, c]);
        let got = f32::from_bits(u32::from(device.download::<u16>(c, 1)[0]) << 16);
        assert!(got == want || got.is_nan() && want.is_nan(), "1 + {small}: {got}, not {want}");
    }
}

/// The kernel's formula.
fn mix(a: Option<u32>, b: Option<u32>, seed: u32, i: u32) -> u32 {
    let scramble = |x: u32| {
        let x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
        let x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
        x ^ x >> 16
    };
    let x = scramble(seed.wrapping_add(i));
    let x = scramble(x.wrapping_add(a.unwrap_or(0)));
    scramble(x.wrapping_add(b.unwrap_or(0)))
}

#[test]
fn mix_shows_every_input() {
    let session = Session::new(1, EAGER, 1, 0);
    let device = Device::new();
    let mut rng = fastrand::Rng::with_seed(1);
    let [a, b] = [(); 2].map(|()| (0..1000).map(|_| rng.u32(..)).collect::<Vec<u32>>());
    let (on_a, on_b, out) = (device.upload(&a), device.upload(&b), device.upload(&[0_u32; 1000]));
    for (has_a, has_b) in [(true, true), (true, false), (false, true), (false, false)] {
        let inputs = [if has_a { on_a } else { 0 }, if has_b { on_b } else { 0 }];
        device.launch("mix", (8, 1, 1), (128, 1, 1), &[inputs[0], inputs[1], out, 9, 1000]);
        let want = (0..1000).map(|i| mix(has_a.then_some(a[i]), has_b.then_some(b[i]), 9, i as u32));
        assert!(device.download::<u32>(out, 1000).into_iter().eq(want), "{has_a}, {has_b}");
    }
    assert_eq!(session.report(), "");
}

#[test]
fn the_lower_expert_comes_first_among_equals() {
    let _session = Session::new(1, EAGER, 1, 0);
    let device = Device::new();
    let scores = [[1.0_f32, 1.0, 1.0, 1.0], [0.0, 2.0, 1.0, 2.0], [0.0, 1.0, 3.0, 1.0], [3.0, 0.0, 0.0, 0.0]];
    let scores = device.upload(&scores.concat());
    let [choices, weights, probabilities] = [8, 8, 16].map(|count| device.upload(&vec![0_u32; count]));
    device.launch("route", (1, 1, 1), (4, 1, 1), &[scores, choices, weights, probabilities, 4, 4]);
    assert_eq!(device.download::<u32>(choices, 8), [0, 1, 1, 3, 2, 1, 0, 1]);
    assert_eq!(device.download::<f32>(weights, 4), [0.5; 4]);
    assert_eq!(device.download::<f32>(probabilities, 4), [0.25; 4]);
}

#[test]
fn simple_kernels_stop_at_the_last_number() {
    let session = Session::new(1, EAGER, 1, 0);
    let device = Device::new();
    let [x, y] = [[1.0_f32, 2.0, 3.0, 4.0], [10.0, 20.0, 30.0, 40.0]].map(|numbers| device.upload(&numbers));
    let launch = |name: &str, parameters: &[u64]| {
        device.launch(name, (1, 1, 1), (128, 1, 1), parameters);
        device.download::<f32>(y, 4)
    };
    let two = u64::from(2.0_f32.to_bits());
    assert_eq!(launch("axpy_f32", &[two, x, y, 3]), [12.0, 24.0, 36.0, 40.0]);
    assert_eq!(launch("copy_f32", &[x, y, 3]), [1.0, 2.0, 3.0, 40.0]);
    assert_eq!(launch("add_f32", &[x, y, y, 3]), [2.0, 4.0, 6.0, 40.0]);
    assert_eq!(launch("fill_f32", &[y, two, 3]), [2.0, 2.0, 2.0, 40.0]);
    // What lies between two bf16 goes to the even one, and comes back as that.
    let (near, halves) =
        (device.upload(&[1.0 + 1.0 / 256.0, 3.0, -0.5, 7.0_f32]), device.upload(&[0_u16; 4]));
    device.launch("cast_to_bf16", (1, 1, 1), (128, 1, 1), &[near, halves, 3]);
    assert_eq!(device.download::<u16>(halves, 4), [0x3f80, 0x4040, 0xbf00, 0]);
    assert_eq!(launch("cast_to_f32", &[halves, y, 3]), [1.0, 3.0, -0.5, 40.0]);
    assert_eq!(session.report(), "");
}

#[test]
fn spin_takes_its_time() {
    let _session = Session::new(1, EAGER, 1, 0);
    let device = Device::new();
    let began = std::time::Instant::now();
    device.launch("spin", (1, 1, 1), (1, 1, 1), &[20_000_000]);
    assert!(began.elapsed().as_millis() >= 20);
}

#[test]
fn the_stand_in_has_every_kernel() {
    let _session = Session::new(1, EAGER, 1, 0);
    let device = Device::new();
    let mut num_kernels = 0;
    for text in ptx() {
        for entry in text.split(".entry ").skip(1) {
            let name = entry.split('(').next().unwrap();
            // SAFETY: the module is loaded.
            let found =
                unsafe { result::module::get_function(device.modules[0], CString::new(name).unwrap()) };
            assert!(found.is_ok(), "{name} is not in tests/cuda_standin/kernels.cpp");
            num_kernels += 1;
        }
    }
    assert!(num_kernels > 20, "{num_kernels}");
}

#[test]
fn the_ptx_is_what_the_text_gives() {
    let built = Command::new(kernels().join("build")).arg("--check").output().unwrap();
    let words = String::from_utf8_lossy(&built.stderr);
    if built.status.code() == Some(3) {
        // Written past the harness, which would keep it to itself.
        let text = format!("\nSKIPPED the_ptx_is_what_the_text_gives: {words}\n");
        std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).unwrap();
        return;
    }
    assert!(built.status.success(), "{words}");
}
