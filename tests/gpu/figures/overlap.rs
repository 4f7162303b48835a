//! How much of a pair's communication hides behind its computing: blocks in the order of DeepSeek's trace of DualPipe
//! (deepseek-ai/profile-data, train.json), with products for the computing and copies for the exchange with experts.
//!
//! ```text
//! compute   attn(F)      mlp(B)        mlp(W)  mlp(F)   attn(B)      attn(W)
//! comm      combine(B)   dispatch(F)   dispatch(B)      combine(F)
//! ```
//!
//! One rank and its executor, so that nothing else uses the device. How long blocks are is in proportion to the trace.

use std::sync::{Arc, Mutex};

use dualpipe::execute::TaskRun;
use dualpipe::op::{Op, Task};
use dualpipe::schedule::{dualpipe_v, Work};

use super::{hidden_share, Interval};
use crate::blas::Blas;
use crate::driver::{CUstream, Event, Gpu, Outcome, Stream};
use crate::math::{Matrix, Number, Queue};
use crate::memory::Memory;
use crate::report::{spread, Report};
use crate::settings::Settings;
use crate::timed::{gate, Timed};

/// Layers of a pair, as in the trace.
const NUM_LAYERS: usize = 4;

/// A block by its place in these tables: milliseconds in the trace, of four layers, of what moves or computes.
const COMPUTE: [(&str, f64); 6] = [
    ("attn(F)", 17.48),
    ("mlp(B)", 21.22),
    ("mlp(W)", 20.25),
    ("mlp(F)", 18.42),
    ("attn(B)", 37.36),
    ("attn(W)", 9.55),
];
const COMM: [(&str, f64); 4] =
    [("combine(B)", 14.70), ("dispatch(F)", 17.79), ("dispatch(B)", 25.47), ("combine(F)", 23.98)];

/// What a block on the one stream waits for on the other, in the layer or (true) in the one before; and the order in
/// which they are enqueued.
enum Step {
    Compute(usize, Option<(usize, bool)>),
    Comm(usize, Option<(usize, bool)>),
}

const ORDER: [Step; 10] = [
    Step::Comm(0, Some((4, true))),
    Step::Compute(0, Some((3, true))),
    Step::Comm(1, Some((0, false))),
    Step::Compute(1, Some((0, false))),
    Step::Comm(2, Some((1, false))),
    Step::Compute(2, None),
    Step::Compute(3, Some((1, false))),
    Step::Comm(3, Some((3, false))),
    Step::Compute(4, Some((2, false))),
    Step::Compute(5, None),
];

/// When a block began and ended.
struct Marks([Event; 2]);

impl Marks {
    fn new() -> Outcome<Marks> {
        Ok(Marks([Event::new(true)?, Event::new(true)?]))
    }

    fn interval(&self, start: &Event) -> Outcome<Interval> {
        Ok(Interval { begin: self.0[0].ns_since(start)?, end: self.0[1].ns_since(start)? })
    }
}

/// The blocks of a layer.
struct Layer {
    compute: Vec<Marks>,
    comm: Vec<Marks>,
}

/// What blocks are made of.
struct Blocks {
    blas: Option<Mutex<Blas>>,
    /// Rows, columns and depth of a product.
    edge: usize,
    matrices: [Memory; 3],
    copied: [Memory; 2],
    /// Products of each block, and bytes of each copy.
    num_products: [usize; 6],
    bytes: [usize; 4],
}

impl Blocks {
    fn product(&self, gpu: &Gpu, stream: CUstream) -> Outcome {
        let blas = self.blas.as_ref().map(|blas| blas.lock().map_err(|why| why.to_string())).transpose()?;
        let queue = Queue { gpu, stream, number: Number::Bf16, blas: blas.as_deref() };
        let [a, b, c] = [0, 1, 2].map(|i| self.matrices[i].address());
        let edge = self.edge;
        queue.product(Matrix::new(a, edge), Matrix::new(b, edge), c, [edge; 3], 0.0)
    }

    fn copy(&self, gpu: &Gpu, stream: CUstream, bytes: usize) -> Outcome {
        gpu.copy(self.copied[1].address(), self.copied[0].address(), bytes, stream)
    }

    /// Sized by how long a product and a copy take alone.
    fn new(gpu: &Gpu, settings: &Settings, stream: &Stream) -> Outcome<Blocks> {
        let blas = if gpu.is_standin() { None } else { Blas::new().ok().map(Mutex::new) };
        let edge = match (settings.is_small, &blas) {
            (true, _) => 4,
            (_, Some(_)) => 2048,
            (_, None) => 512,
        };
        let most = if settings.is_small { 1 << 10 } else { 2 << 30 };
        let mut rng = fastrand::Rng::with_seed(3);
        let numbers: Vec<u16> = (0..edge * edge).map(|_| crate::model::bf16(rng.f32() - 0.5)).collect();
        let matrix = || Memory::with(&numbers, stream);
        let copied = [Memory::zeros(most, stream)?, Memory::zeros(most, stream)?];
        let matrices = [matrix()?, matrix()?, matrix()?];
        let mut blocks = Blocks { blas, edge, matrices, copied, num_products: [2; 6], bytes: [most / 4; 4] };
        if settings.is_small {
            return Ok(blocks);
        }
        let product_ns = alone(stream, 20, || blocks.product(gpu, stream.raw()))?;
        let copy_ns = alone(stream, 5, || blocks.copy(gpu, stream.raw(), most / 4))?;
        // The shortest block has four products.
        let shortest = COMPUTE.iter().map(|(_, milliseconds)| *milliseconds).fold(f64::INFINITY, f64::min);
        let ns_per_millisecond = 4.0 * product_ns / shortest;
        let products = |(_, milliseconds): (&str, f64)| {
            (milliseconds * ns_per_millisecond / product_ns).round() as usize
        };
        blocks.num_products = COMPUTE.map(products);
        let bytes =
            |(_, milliseconds): (&str, f64)| milliseconds * ns_per_millisecond * (most / 4) as f64 / copy_ns;
        blocks.bytes = COMM.map(|block| (bytes(block) as usize).min(most));
        Ok(blocks)
    }

    /// Enqueues a pair; `comm` may be `compute`, and then nothing overlaps.
    fn pair(&self, gpu: &Gpu, [compute, comm]: [CUstream; 2], layers: &[Layer]) -> Outcome {
        let done = |marks: &[Marks], stream, at: usize| marks[at].0[1].wait(stream);
        for (l, layer) in layers.iter().enumerate() {
            let waited = |is_before: bool| match is_before {
                true => l.checked_sub(1).map(|before| &layers[before]),
                false => Some(layer),
            };
            for step in &ORDER {
                match *step {
                    Step::Compute(i, needs) => {
                        if let Some((on, layer)) = needs.and_then(|(on, before)| Some((on, waited(before)?)))
                        {
                            done(&layer.comm, compute, on)?;
                        }
                        layer.compute[i].0[0].record(compute)?;
                        (0..self.num_products[i]).try_for_each(|_| self.product(gpu, compute))?;
                        layer.compute[i].0[1].record(compute)?;
                    }
                    Step::Comm(i, needs) => {
                        if let Some((on, layer)) = needs.and_then(|(on, before)| Some((on, waited(before)?)))
                        {
                            done(&layer.compute, comm, on)?;
                        }
                        layer.comm[i].0[0].record(comm)?;
                        self.copy(gpu, comm, self.bytes[i])?;
                        layer.comm[i].0[1].record(comm)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Nanoseconds of one of several that run one after the other with nothing beside them.
fn alone(stream: &Stream, count: usize, enqueue: impl Fn() -> Outcome) -> Outcome<f64> {
    let [begin, end] = [Event::new(true)?, Event::new(true)?];
    for _ in 0..2 {
        begin.record(stream.raw())?;
        (0..count).try_for_each(|_| enqueue())?;
        end.record(stream.raw())?;
        stream.synchronize()?;
    }
    Ok(end.ns_since(&begin)? / count as f64)
}

/// A pair: how long, how much of it computes, how much of the communication is hidden; and how long each is busy.
struct Pair {
    span: f64,
    hidden: f64,
    compute: f64,
    comm: f64,
}

/// The pairs of a step: `overlaps` or one block after the other. `stream` is where the blocks' memory was filled.
fn pairs(
    gpu: &Arc<Gpu>,
    settings: &Settings,
    blocks: &Arc<Blocks>,
    stream: &Stream,
    overlaps: bool,
) -> Outcome<Vec<Pair>> {
    let schedule = dualpipe_v(1, 12, Work::Training).map_err(|why| why.to_string())?;
    let num_pairs = schedule.orders()[0].iter().filter(|op| matches!(op, Op::FB(..))).count();
    let marks = |count: usize| (0..count).map(|_| Marks::new()).collect::<Outcome<Vec<_>>>();
    let layer = || Ok(Layer { compute: marks(COMPUTE.len())?, comm: marks(COMM.len())? });
    let layers = (0..num_pairs * NUM_LAYERS).map(|_| layer()).collect::<Outcome<Vec<_>>>()?;
    let (layers, next) = (Arc::new(layers), Mutex::new(0));
    let ranks = Timed::new(gpu, &schedule, 64, settings.timeout, |cuda| cuda.has_comm_stream = true)?;
    let (all, blocks) = (Arc::clone(&layers), Arc::clone(blocks));
    let work = move |gpu: &Gpu, run: &mut TaskRun<'_>, _: usize, at: usize| {
        let mut next = next.lock().map_err(|why| why.to_string())?;
        *next = if at == 0 { 0 } else { *next };
        let Task::Op(Op::FB(..)) = run.task else { return Ok(()) };
        let streams = run.streams.ok_or("no streams")?;
        let comm = if overlaps { streams.comm } else { streams.compute };
        let layers = &all[*next * NUM_LAYERS..][..NUM_LAYERS];
        *next += 1;
        blocks.pair(gpu, [streams.compute.cast(), comm.cast()], layers)
    };
    let work = Arc::new(work);
    // Behind all that was done before, by this thread and by others.
    gpu.synchronize()?;
    let ready = Arc::new(Event::new(false)?);
    ready.record(stream.raw())?;
    ranks.good_step(Arc::clone(&work), Some(&ready))?;
    let (_gate, start) = gate(gpu, if settings.is_small { 1_000 } else { 20_000_000 })?;
    ranks.good_step(work, Some(&start))?;
    let measured = layers.chunks(NUM_LAYERS).map(|layers| {
        let intervals = |of: fn(&Layer) -> &[Marks]| {
            layers.iter().flat_map(of).map(|marks| marks.interval(&start)).collect::<Outcome<Vec<Interval>>>()
        };
        let (compute, comm) = (intervals(|layer| &layer.compute)?, intervals(|layer| &layer.comm)?);
        let both = || compute.iter().chain(&comm);
        let begin = both().map(|one| one.begin).fold(f64::INFINITY, f64::min);
        let end = both().map(|one| one.end).fold(0.0, f64::max);
        let busy = |all: &[Interval]| all.iter().map(|one| one.end - one.begin).sum::<f64>();
        let hidden = hidden_share(&compute, &comm);
        Ok(Pair { span: end - begin, hidden, compute: busy(&compute), comm: busy(&comm) })
    });
    measured.collect()
}

pub(crate) fn measure(gpu: &Arc<Gpu>, settings: &Settings, report: &mut Report) {
    let title =
        "Communication hidden in F&B: blocks in the order and proportions of DeepSeek's trace, one rank, \
                 copies on the device for the exchange, products of bf16";
    report.heading(title, &["figure", "median", "least to greatest", "for comparison"]);
    let measured = (|| {
        let stream = Stream::new()?;
        let blocks = Arc::new(Blocks::new(gpu, settings, &stream)?);
        Ok((
            pairs(gpu, settings, &blocks, &stream, true)?,
            pairs(gpu, settings, &blocks, &stream, false)?,
            blocks,
        ))
    })();
    let (overlapped, serial, blocks) = match measured {
        Ok(measured) => measured,
        Err(why) => return report.check("communication hidden", Err(why)),
    };
    let of = |pairs: &[Pair], figure: fn(&Pair) -> f64| spread(pairs.iter().map(figure).collect());
    let base = [
        of(&serial, |pair| pair.span)[0],
        of(&serial, |pair| pair.compute)[0],
        of(&serial, |pair| pair.comm)[0],
    ];
    let percent = |[median, least, greatest]: [f64; 3], than: &str| {
        let of = |share: f64| format!("{:.1} %", 100.0 * share);
        Ok(vec![of(median), format!("{} to {}", of(least), of(greatest)), than.to_string()])
    };
    let share_of = |figure: fn(&Pair) -> f64, whole: f64| of(&overlapped, figure).map(|value| value / whole);
    let who = if blocks.blas.is_some() { "cuBLAS" } else { "our kernel" };
    let than = "DeepSeek's trace: 96.3 %; the aim is more";
    report.figure("communication hidden", percent(of(&overlapped, |pair| pair.hidden), than));
    let computing = of(&overlapped, |pair| pair.compute / pair.span);
    report.figure(&format!("computing ({who})"), percent(computing, "DeepSeek's trace: 96.3 %"));
    let than = "DeepSeek's trace: 62.6 % of F + B";
    report.figure("F&B, of all blocks one by one", percent(share_of(|pair| pair.span, base[0]), than));
    let than = "100 %: the copies do not slow it down";
    report.figure("computing, of that alone", percent(share_of(|pair| pair.compute, base[1]), than));
    let than = "100 %: the products do not slow it down";
    report.figure("communication, of that alone", percent(share_of(|pair| pair.comm, base[2]), than));
    let milliseconds = |ns: f64| format!("{:.2} ms", ns / 1e6);
    let [median, least, greatest] = of(&overlapped, |pair| pair.span);
    let range = format!("{} to {}", milliseconds(least), milliseconds(greatest));
    let bytes: usize = blocks.bytes.iter().sum();
    let than = format!("{} pairs; {} MB copied in a layer", overlapped.len(), bytes / 1_000_000);
    report.figure("a pair", Ok(vec![milliseconds(median), range, than]));
}
