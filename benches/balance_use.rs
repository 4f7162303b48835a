//! How long it takes to use a placement: to route a step, to find the slots of tokens, to plan the copies to the next
//! one.
//!
//! Loads are lognormal like those of DeepSeek-V3 (sigma 0.65), from a seed. Tokens are drawn by them, so that a step
//! is as uneven as steps are. Placements are DeepSeek's policy for those loads; nearly all slots move to the next
//! one, which is for loads drawn anew.

#[path = "../tests/support/lognormal.rs"]
#[allow(dead_code)] // only the loads are needed
mod lognormal;

use std::ffi::c_void;
use std::hint::black_box;
use std::ptr::{null, null_mut};

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use dualpipe::balance::route::{RouteOptions, Router, TokenMap};
use dualpipe::balance::transfer::{check_transfers, transfers, TransferOptions};
use dualpipe::balance::{deepseek, Cluster, ExpertPlan, Options, Problem};
use dualpipe::capi::cluster::dualpipe_cluster;
use dualpipe::capi::route::*;
use dualpipe::capi::token_map::dualpipe_router_slots_by_quotas;
use lognormal::lognormal;

#[derive(Clone, Copy)]
struct Size {
    num_layers: usize,
    num_experts: usize,
    num_slots: usize,
    num_gpus: usize,
    num_nodes: usize,
}

/// A layer of DeepSeek-V3 on 32 GPUs.
const V3: Size = Size { num_layers: 1, num_experts: 256, num_slots: 288, num_gpus: 32, num_nodes: 4 };
const SIZES: [Size; 4] = [
    V3,
    Size { num_experts: 256, num_slots: 320, num_gpus: 160, num_nodes: 20, ..V3 },
    Size { num_experts: 1024, num_slots: 2048, num_gpus: 512, num_nodes: 64, ..V3 },
    Size { num_experts: 2048, num_slots: 8192, num_gpus: 4096, num_nodes: 512, ..V3 },
];

impl Size {
    fn name(&self) -> String {
        format!("{} experts, {} slots, {} GPUs", self.num_experts, self.num_slots, self.num_gpus)
    }

    fn cluster(&self) -> Cluster {
        Cluster::even(self.num_slots, self.num_gpus, self.num_nodes).unwrap()
    }

    fn loads(&self, seed: u64) -> Vec<f32> {
        lognormal(self.num_layers * self.num_experts, seed)
    }

    fn plan(&self, loads: &[f32]) -> ExpertPlan {
        let &Size { num_layers, num_experts, num_slots, num_gpus, .. } = self;
        let problem = Problem { num_layers, num_experts, num_slots, num_groups: 1, num_nodes: 1, num_gpus };
        deepseek(&problem, loads, Options::default()).unwrap()
    }
}

/// `[num_tokens, 8]`: experts drawn by their loads.
fn choices(loads: &[f32], num_tokens: usize, seed: u64) -> Vec<i64> {
    let mut random = fastrand::Rng::with_seed(seed);
    let ends: Vec<f64> = loads
        .iter()
        .scan(0.0, |sum, &load| {
            *sum += f64::from(load);
            Some(*sum)
        })
        .collect();
    let all = *ends.last().unwrap();
    let draw = |_| {
        let point = random.f64() * all;
        ends.partition_point(|&end| end <= point).min(loads.len() - 1) as i64
    };
    (0..8 * num_tokens).map(draw).collect()
}

fn counts(num_experts: usize, choices: &[i64]) -> Vec<u32> {
    let mut counts = vec![0; num_experts];
    choices.iter().for_each(|&expert| counts[expert as usize] += 1);
    counts
}

/// `[num_gpus, num_experts]`: what each GPU sends of its 128 tokens.
fn counts_of_senders(size: &Size, loads: &[f32]) -> Vec<u32> {
    (0..size.num_gpus as u64)
        .flat_map(|gpu| counts(size.num_experts, &choices(loads, 128, 1000 + gpu)))
        .collect()
}

const TOKENS: RouteOptions = RouteOptions { tile: 1, gpu_price: 1, node_price: 8 };
const TILES: RouteOptions = RouteOptions { tile: 128, ..TOKENS };

fn routing(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for size in SIZES {
        let loads = size.loads(20260217);
        let mut router =
            Router::new(&size.cluster(), size.num_experts, size.plan(&loads).slot_to_expert()).unwrap();
        let totals = counts(size.num_experts, &choices(&loads, 128 * size.num_gpus, 7));
        for (name, options) in [("tokens", TOKENS), ("tiles of 128", TILES)] {
            group.bench_function(BenchmarkId::new(name, size.name()), |b| {
                b.iter(|| router.route(black_box(&totals), &options).unwrap().heaviest)
            });
        }
        let of_senders = counts_of_senders(&size, &loads);
        group.bench_function(BenchmarkId::new("tokens by sender", size.name()), |b| {
            b.iter(|| router.route_from(black_box(&of_senders), &TOKENS).unwrap().heaviest)
        });
    }
    group.finish();
}

fn token_maps(c: &mut Criterion) {
    let mut group = c.benchmark_group("token map, 4096 tokens x 8");
    let loads = V3.loads(20260217);
    let plan = V3.plan(&loads);
    let wide = choices(&loads, 4096, 7);
    let narrow: Vec<i32> = wide.iter().map(|&expert| expert as i32).collect();
    let mut router = Router::new(&V3.cluster(), 256, plan.slot_to_expert()).unwrap();
    let quotas = router.route(&counts(256, &wide), &TOKENS).unwrap().quotas.to_vec();
    let mut map = TokenMap::new(&V3.cluster(), 256, plan.slot_to_expert()).unwrap();
    let shares = plan.shares().into_owned();
    let mut slots = vec![0; wide.len()];
    group.throughput(Throughput::Elements(wide.len() as u64));
    group.bench_function("by quotas, int64", |b| {
        b.iter(|| map.by_quotas(black_box(&quotas), &[], black_box(&wide), &mut slots).unwrap())
    });
    group.bench_function("by quotas, int32", |b| {
        b.iter(|| map.by_quotas(black_box(&quotas), &[], black_box(&narrow), &mut slots).unwrap())
    });
    group.bench_function("by shares, int64", |b| {
        b.iter(|| map.by_shares(black_box(&shares), 3, black_box(&wide), &mut slots).unwrap())
    });
    group.finish();
}

/// The same through the C interface: what its checks cost.
fn through_c(c: &mut Criterion) {
    let mut group = c.benchmark_group("through C");
    let loads = V3.loads(20260217);
    let plan = V3.plan(&loads);
    let wide = choices(&loads, 4096, 7);
    let totals = counts(256, &wide);
    let of_senders = counts_of_senders(&V3, &loads);
    let experts: Vec<i64> = plan.slot_to_expert().iter().map(|&expert| expert.into()).collect();
    let cluster = dualpipe_cluster {
        size: size_of::<dualpipe_cluster>() as u32,
        num_gpus: 32,
        num_slots: 288,
        num_nodes: 4,
        slots_per_gpu: null(),
        node_of_gpu: null(),
        is_alive: null(),
    };
    let mut router = null_mut();
    let (mut quotas, mut slots, mut count) = (vec![0; 288], vec![0; wide.len()], 0);
    let size = size_of::<dualpipe_route_options>() as u32;
    let options = dualpipe_route_options { size, tile: 0, gpu_price: 0, node_price: 0, ignore_senders: 0 };
    let size = size_of::<dualpipe_routing>() as u32;
    let (heaviest, bound, bottleneck_load) = (0, 0.0, 0);
    let (num_bottleneck_gpus, tokens_on_gpu, tokens_on_node) = (0, 0, 0);
    let mut routing = dualpipe_routing {
        size,
        num_bottleneck_gpus,
        heaviest,
        bound,
        bottleneck_load,
        tokens_on_gpu,
        tokens_on_node,
    };
    // SAFETY: locals, as long as is said, also below.
    let status =
        unsafe { dualpipe_router_create_from_slots(&cluster, 256, experts.as_ptr(), 288, &mut router) };
    assert_eq!(status as u32, 0);
    group.bench_function("route, tokens", |b| {
        b.iter(|| {
            let (counts, to) = (black_box(totals.as_ptr()), quotas.as_mut_ptr());
            // SAFETY: as above.
            unsafe {
                dualpipe_router_route(router, 0, &options, counts, 256, to, 288, &mut count, &mut routing)
            }
        })
    });
    group.bench_function("slots by quotas, int64", |b| {
        b.iter(|| {
            let (quotas, choices) = (quotas.as_ptr(), black_box(wide.as_ptr().cast::<c_void>()));
            let (len, to) = (wide.len(), slots.as_mut_ptr());
            // SAFETY: as above.
            unsafe {
                dualpipe_router_slots_by_quotas(
                    router,
                    0,
                    quotas,
                    288,
                    null(),
                    0,
                    choices,
                    8,
                    len,
                    to,
                    len,
                    &mut count,
                )
            }
        })
    });
    group.bench_function("route, tokens by sender", |b| {
        b.iter(|| {
            let (counts, to) = (black_box(of_senders.as_ptr()), quotas.as_mut_ptr());
            let len = of_senders.len();
            // SAFETY: as above.
            unsafe {
                dualpipe_router_route_from(
                    router,
                    0,
                    &options,
                    counts,
                    len,
                    to,
                    288,
                    &mut count,
                    &mut routing,
                )
            }
        })
    });
    // SAFETY: a handle.
    unsafe { dualpipe_router_free(router) };
    group.finish();
}

fn transfer_plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("transfers");
    group.sample_size(20);
    let sizes = SIZES.map(|size| Size { num_layers: if size.num_gpus == 32 { 58 } else { 4 }, ..size });
    for size in sizes {
        let (from, to) = (size.plan(&size.loads(1)), size.plan(&size.loads(2)));
        let (from, to) = (from.slot_to_expert(), to.slot_to_expert());
        let cluster = size.cluster();
        let moved = from.iter().zip(to).filter(|(from, to)| from != to).count();
        group.throughput(Throughput::Elements(moved as u64));
        for (name, staging_per_gpu) in [("least staging", 0), ("2 buffers a GPU", 2)] {
            let options = TransferOptions { staging_per_gpu, ..TransferOptions::default() };
            let name = format!("{name}, {} layers", size.num_layers);
            group.bench_function(BenchmarkId::new(name, size.name()), |b| {
                b.iter(|| transfers(&cluster, size.num_experts, black_box(from), to, &options).unwrap())
            });
        }
        let options = TransferOptions::default();
        let plan = transfers(&cluster, size.num_experts, from, to, &options).unwrap();
        group.bench_function(
            BenchmarkId::new(format!("check, {} layers", size.num_layers), size.name()),
            |b| b.iter(|| check_transfers(&plan, &cluster, size.num_experts, from, to, &options).unwrap()),
        );
    }
    group.finish();
}

criterion_group!(benches, routing, token_maps, through_c, transfer_plans);
criterion_main!(benches);
