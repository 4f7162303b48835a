//! Routing one step: against brute force on small placements, against its own certificate on large ones.

#[path = "support/naive_routing.rs"]
mod naive_routing;

use dualpipe::balance::route::{ExpertId, RouteOptions, Router, Routing, TokenMap};
use dualpipe::balance::{Cluster, EMPTY};
use naive_routing::{price, steps, totals, Placed, TOKENS};
use proptest::prelude::*;

#[test]
fn the_optimum_by_hand() {
    for (gpus, loads, want) in [
        // 10 of expert 0 on two GPUs beside 4 and 1: 15 / 2.
        (vec![&[0, 1][..], &[0, 2]], vec![10, 4, 1], 8),
        // 9 cannot leave GPU 0.
        (vec![&[0, 1], &[0, 2]], vec![2, 9, 1], 9),
        // 12 on GPUs 0 and 1 only, whatever GPU 2 does.
        (vec![&[0, 1], &[0, 2], &[2, 3]], vec![8, 4, 0, 1], 6),
        // A chain: what is too much on GPU 0 goes to GPU 2 by way of GPU 1.
        (vec![&[0, 1], &[1, 2], &[2, 3]], vec![1, 6, 5, 0], 4),
        // Twice on one GPU is no more than once.
        (vec![&[0, 0], &[1, 1]], vec![7, 2], 7),
    ] {
        let placed = Placed::new(&gpus, &[]);
        assert_eq!(placed.heaviest_by_sets(&loads), want, "{gpus:?}");
        assert_eq!(placed.heaviest_by_trying_all(&loads, 1), want, "{gpus:?}");
        let counts: Vec<u32> = loads.iter().map(|&load| load as u32).collect();
        assert_eq!(placed.router().route(&counts, &TOKENS).unwrap().heaviest, want, "{gpus:?}");
    }
}

#[test]
fn the_cheapest_by_hand() {
    let placed = Placed::new(&[&[0], &[0], &[0]], &[0, 0, 1]);
    for (sent, want) in [
        // Each GPU keeps its own.
        ([2, 2, 2], 0),
        // 2 of 6 leave GPU 0: one to its neighbour, one to the other node.
        ([6, 0, 0], 2 + 2 + 2 * 8),
        ([4, 2, 0], 2 + 2 * 8),
    ] {
        let sent: Vec<Vec<u32>> = sent.iter().map(|&count| vec![count]).collect();
        assert_eq!(placed.price_by_trying_all(&sent, &TOKENS), want, "{sent:?}");
        let mut router = placed.router();
        let routing = router.route_from(&sent.concat(), &TOKENS).unwrap();
        assert_eq!(routing.quotas, [2, 2, 2]);
        assert_eq!(price(6, [routing.tokens_on_gpu, routing.tokens_on_node], &TOKENS), want, "{sent:?}");
    }
}

#[test]
fn a_token_that_is_away_moves_rather_than_one_that_is_at_home() {
    // GPU 3 sends 4 tokens to expert 0, GPU 0 sends 4 to expert 1; GPU 0 has both experts, and 3 is the least.
    let placed = Placed::new(&[&[0, 1], &[1], &[0], &[2]], &[0, 0, 1, 2]);
    let sent = [vec![0, 4, 0], vec![0; 3], vec![0; 3], vec![4, 0, 0]];
    // All of expert 0's are away, so that 3 of them may as well be on GPU 2; 2 of expert 1's leave GPU 0.
    let want = 4 * 9 + 2;
    assert_eq!(placed.price_by_trying_all(&sent, &TOKENS), want);
    let mut router = placed.router();
    let routing = router.route_from(&sent.concat(), &TOKENS).unwrap();
    assert_eq!((routing.heaviest, routing.quotas), (3, &[1, 2, 2, 3, 0][..]));
    assert_eq!(price(8, [routing.tokens_on_gpu, routing.tokens_on_node], &TOKENS), want);
}

#[test]
fn a_step_by_hand() {
    // Expert 1 on both GPUs, expert 0 on the first.
    let placed = Placed::new(&[&[0, 1], &[1, 2]], &[]);
    let mut router = placed.router();
    let routing = router.route_from(&[4, 3, 0, 1, 2, 1], &TOKENS).unwrap();
    assert_eq!(routing.quotas, [5, 1, 4, 1]);
    // GPU 0 keeps 1 of its 3 tokens of expert 1.
    assert_eq!(routing.source_quotas, [4, 1, 2, 0, 1, 0, 2, 1]);
    assert_eq!(routing.gpu_loads, [6, 5]);
    assert_eq!((routing.heaviest, routing.bound, routing.bottleneck), (6, 5.5, &[0, 1][..]));
    assert_eq!((routing.tokens_on_gpu, routing.tokens_on_node), (4 + 1 + 2 + 1, 11));
    let tiles = RouteOptions { tile: 4, ..TOKENS };
    let routing = router.route(&[5, 5, 1], &tiles).unwrap();
    // 2 tiles, 2 tiles, 1 tile.
    assert_eq!((routing.heaviest, routing.gpu_loads), (12, &[12, 8][..]));
    assert_eq!((routing.quotas, routing.source_quotas), (&[5, 4, 1, 1][..], &[][..]));
}

/// That a routing is one, and proves itself.
fn check(placed: &Placed, counts: &[u32], tile: u64, routing: &Routing<'_>) -> Result<(), TestCaseError> {
    let mut by_expert = vec![0; placed.num_experts];
    for (slot, &quota) in routing.quotas.iter().enumerate() {
        if quota > 0 {
            by_expert[placed.slot_to_expert[slot] as usize] += quota;
            prop_assert!(placed.cluster.is_alive(placed.gpu(slot)), "slot {slot} is dead");
        }
    }
    prop_assert_eq!(&by_expert, counts);
    let in_tiles = |tokens: u32| u64::from(tokens).div_ceil(tile) * tile;
    prop_assert_eq!(routing.gpu_loads, placed.gpu_loads(routing.quotas.iter().map(|&quota| in_tiles(quota))));
    prop_assert_eq!(routing.heaviest, *routing.gpu_loads.iter().max().unwrap());
    // The certificate: this load cannot leave these GPUs.
    let loads: Vec<u64> = counts.iter().map(|&count| in_tiles(count)).collect();
    prop_assert_eq!(routing.bottleneck_load, placed.captive(routing.bottleneck, &loads));
    let size = routing.bottleneck.len() as u64;
    prop_assert_eq!((routing.bottleneck_load / tile).div_ceil(size) * tile, routing.heaviest);
    prop_assert_eq!(routing.bound, routing.bottleneck_load as f64 / size as f64);
    Ok(())
}

proptest! {
    #[test]
    fn the_heaviest_gpu_is_as_light_as_can_be((placed, sent) in steps(7, 3, 8, 20), tile in 1u32..6) {
        let counts = totals(&sent);
        let loads: Vec<u64> = counts.iter().map(|&count| u64::from(count.div_ceil(tile))).collect();
        let mut router = placed.router();
        let routing = router.route(&counts, &RouteOptions { tile, ..TOKENS }).unwrap();
        check(&placed, &counts, tile.into(), &routing)?;
        prop_assert_eq!(routing.heaviest, placed.heaviest_by_sets(&loads) * u64::from(tile));
    }

    #[test]
    fn no_split_in_tokens_or_tiles_is_lighter((placed, sent) in steps(3, 2, 3, 2), tile in 1u32..4) {
        let counts = totals(&sent);
        let loads: Vec<u64> = counts.iter().map(|&count| u64::from(count)).collect();
        let mut router = placed.router();
        let routing = router.route(&counts, &RouteOptions { tile, ..TOKENS }).unwrap();
        prop_assert_eq!(routing.heaviest, placed.heaviest_by_trying_all(&loads, tile.into()));
    }

    #[test]
    fn senders_keep_what_they_can((placed, sent) in steps(4, 2, 3, 2), gpu_price in 0u32..3, node_price in 0u32..4) {
        let options = RouteOptions { tile: 1, gpu_price, node_price };
        let counts = totals(&sent);
        let mut router = placed.router();
        let routing = router.route_from(&sent.concat(), &options).unwrap();
        check(&placed, &counts, 1, &routing)?;
        let total = counts.iter().map(|&count| u64::from(count)).sum();
        let paid = price(total, [routing.tokens_on_gpu, routing.tokens_on_node], &options);
        // With no price, the quotas of slots do not heed senders.
        prop_assert_eq!(paid, placed.price_by_trying_all(&sent, &options));
    }

    #[test]
    fn quotas_of_senders_add_up((placed, sent) in steps(12, 4, 12, 300), tile in 1u32..20) {
        let counts = totals(&sent);
        let mut router = placed.router();
        let routing = router.route_from(&sent.concat(), &RouteOptions { tile, ..TOKENS }).unwrap();
        check(&placed, &counts, tile.into(), &routing)?;
        let num_slots = routing.quotas.len();
        let mut by_slot = vec![0; num_slots];
        let (mut on_gpu, mut on_node) = (0, 0);
        for (source, quotas) in routing.source_quotas.chunks(num_slots).enumerate() {
            let mut by_expert = vec![0; placed.num_experts];
            for (slot, &quota) in quotas.iter().enumerate().filter(|&(_, &quota)| quota > 0) {
                by_expert[placed.slot_to_expert[slot] as usize] += quota;
                by_slot[slot] += quota;
                on_gpu += u64::from(quota) * u64::from(placed.gpu(slot) == source);
                on_node += u64::from(quota) * u64::from(placed.node(placed.gpu(slot)) == placed.node(source));
            }
            prop_assert_eq!(&by_expert, &sent[source]);
        }
        prop_assert_eq!(routing.quotas, by_slot);
        prop_assert_eq!((routing.tokens_on_gpu, routing.tokens_on_node), (on_gpu, on_node));
        // Tokens stay at home as far as the quotas of slots let them.
        let mut could = 0;
        for (expert, source) in (0..placed.num_experts).flat_map(|e| (0..sent.len()).map(move |s| (e, s))) {
            let slots = placed.slots_of(expert).into_iter().filter(|&slot| placed.gpu(slot) == source);
            let room: u32 = slots.map(|slot| routing.quotas[slot]).sum();
            could += u64::from(room.min(sent[source][expert]));
        }
        prop_assert_eq!(on_gpu, could);
    }

    #[test]
    fn shares_are_as_level_as_can_be((placed, sent) in steps(7, 3, 8, 20)) {
        let counts = totals(&sent);
        let loads: Vec<f64> = counts.iter().map(|&count| f64::from(count) / 7.0).collect();
        let mut shares = vec![-1.0; placed.slot_to_expert.len()];
        let heaviest = placed.router().shares(&loads, &mut shares).unwrap();
        let slot_load = |slot: usize| shares[slot] * loads[placed.slot_to_expert[slot] as usize];
        let mut gpu_loads = vec![0.0; placed.cluster.num_gpus()];
        (0..shares.len()).for_each(|slot| gpu_loads[placed.gpu(slot)] += slot_load(slot));
        // Many times the counts, so that whole numbers do not matter.
        let scaled: Vec<u64> = counts.iter().map(|&count| u64::from(count) * 5040).collect();
        let want = placed.heaviest_by_sets(&scaled) as f64 / 5040.0 / 7.0;
        prop_assert!((heaviest - want).abs() <= 1e-9 * want, "{heaviest} {want}");
        let got = gpu_loads.iter().copied().fold(0.0, f64::max);
        prop_assert!((got - want).abs() <= 1e-9 * want, "{got} {want}");
        for expert in 0..placed.num_experts {
            let slots = placed.slots_of(expert);
            let sum: f64 = slots.iter().map(|&slot| shares[slot]).sum();
            prop_assert!(slots.is_empty() || (sum - 1.0).abs() < 1e-14, "expert {expert}: {sum}");
        }
        prop_assert!(shares.iter().all(|&share| (0.0..=1.0).contains(&share)));
    }
}

/// A hundred or so experts at sizes as in use, by a small generator of its own.
#[test]
fn large_steps_prove_themselves() {
    let mut rng = fastrand::Rng::with_seed(5);
    for (num_experts, num_slots, num_gpus) in [(256, 288, 32), (256, 288, 72), (256, 320, 160), (64, 512, 64)]
    {
        let cluster = Cluster::even(num_slots, num_gpus, num_gpus / 8).unwrap();
        let mut slot_to_expert: Vec<u32> =
            (0..num_slots as u32).map(|slot| slot % num_experts as u32).collect();
        rng.shuffle(&mut slot_to_expert);
        let placed = Placed { cluster, num_experts, slot_to_expert };
        let mut router = placed.router();
        for tile in [1, 64] {
            let sent = |rng: &mut fastrand::Rng| (600.0 * rng.f64().powi(6)) as u32;
            let counts: Vec<u32> = (0..num_gpus * num_experts).map(|_| sent(&mut rng)).collect();
            let by_gpu: Vec<Vec<u32>> = counts.chunks(num_experts).map(<[u32]>::to_vec).collect();
            let totals = totals(&by_gpu);
            let options = RouteOptions { tile, ..TOKENS };
            let heaviest = router.route(&totals, &options).unwrap().heaviest;
            let routing = router.route_from(&counts, &options).unwrap();
            check(&placed, &totals, tile.into(), &routing).unwrap();
            assert_eq!(routing.heaviest, heaviest);
        }
    }
}

#[test]
fn a_step_does_not_depend_on_those_before() {
    let placed = Placed::new(&[&[0, 1], &[1, 2], &[2, 0]], &[]);
    let mut router = placed.router();
    let first = router.route(&[9, 5, 2], &TOKENS).unwrap().quotas.to_vec();
    router.route_from(&[1, 2, 30, 1, 1, 1, 4, 0, 0], &TOKENS).unwrap();
    assert_eq!(router.route(&[9, 5, 2], &TOKENS).unwrap().quotas, first);
}

#[test]
fn what_cannot_be_is_refused() {
    let cluster = Cluster::new(&[2, 2], &[], &[true, false]).unwrap();
    let error = |result: dualpipe::error::Result<()>| result.unwrap_err().to_string();
    let new = |experts: usize, slots: &[u32]| error(Router::new(&cluster, experts, slots).map(|_| ()));
    let mut router = Router::new(&cluster, 3, &[0, 1, 2, EMPTY]).unwrap();
    let mut map = TokenMap::new(&cluster, 3, &[0, 1, 2, EMPTY]).unwrap();
    let mut route =
        |counts: &[u32], tile: u32| error(router.route(counts, &RouteOptions { tile, ..TOKENS }).map(|_| ()));
    let mut by_quotas = |quotas: &[u32], before: &[u32], experts: &[i32]| {
        error(map.by_quotas(quotas, before, experts, &mut vec![0; experts.len()]))
    };
    for (error, want) in [
        (new(0, &[0; 4]), "num_experts is 0, must be 1 to 65536"),
        (new(3, &[0; 3]), "the length of slot_to_expert is 3, must be 4 to 4"),
        (new(3, &[0, 1, 3, 0]), "slot_to_expert[2] is 3, must be less than 3, or 4294967295 for none"),
        (route(&[1, 1], 1), "the number of counts is 2, must be 3 to 3"),
        (route(&[1, 1, 2], 1), "the count of expert 2 is 2, must be 0: no live GPU has this expert"),
        (route(&[u32::MAX, 1, 0], 1), "the sum of counts is 4294967296, must be at most 4294967295"),
        (route(&[1, 1, 0], 0), "tile is 0, must be 1 to 65536"),
        (by_quotas(&[1; 3], &[], &[0]), "the number of quotas is 3, must be 4 to 4"),
        (by_quotas(&[1; 4], &[0], &[0]), "the length of before is 1, must be 3 to 3"),
        (by_quotas(&[1; 4], &[], &[0, -2]), "experts[1] is -2, must be less than 3, or -1 for none"),
        (by_quotas(&[1; 4], &[], &[3]), "experts[0] is 3, must be less than 3, or -1 for none"),
        (
            by_quotas(&[1; 4], &[], &[2]),
            "the number of tokens of expert 2 is 1, must be 0: no live GPU has this expert",
        ),
        (
            by_quotas(&[1; 4], &[1, 0, 0], &[0]),
            "the number of tokens of expert 0 is 1, must be at most its quotas 1 less before 1",
        ),
    ] {
        assert_eq!(error, format!("route: {want}"));
    }
    let mut shares = [0.0; 4];
    for (loads, want) in [
        ([1.0, f64::NAN, 0.0], "loads[expert 1] is NaN, must be 0 to 1e300"),
        ([1.0, -1.0, 0.0], "loads[expert 1] is -1.0, must be 0 to 1e300"),
        ([1.0, 1.0, 0.5], "loads[expert 2] is 0.5, must be 0: no live GPU has this expert"),
    ] {
        assert_eq!(router.shares(&loads, &mut shares).unwrap_err().to_string(), format!("route: {want}"));
    }
    for (shares, want) in [
        ([1.0, f64::INFINITY, 0.0, 0.0], "shares[slot 1] is inf, must be 0 to 1e300"),
        ([1.0, 0.0, 0.0, 0.0], "the sum of shares of expert 1 is 0, must be more than 0 and at most 1e300"),
    ] {
        let error = map.by_shares(&shares, 0, &[1], &mut [0]).unwrap_err();
        assert_eq!(error.to_string(), format!("route: {want}"));
    }
}

#[test]
fn what_is_greatest_is_still_routed() {
    let placed = Placed::new(&[&[0, 0], &[0, 1]], &[]);
    let mut router = placed.router();
    let routing = router.route(&[u32::MAX, 0], &RouteOptions { tile: 1 << 16, ..TOKENS }).unwrap();
    assert_eq!(routing.heaviest, 1 << 31);
    assert_eq!(routing.quotas.iter().map(|&quota| u64::from(quota)).sum::<u64>(), u64::from(u32::MAX));
    let mut map = TokenMap::new(&placed.cluster, 2, &placed.slot_to_expert).unwrap();
    let mut slot = [0];
    map.by_quotas(&[1 << 31, 1 << 30, (1 << 30) - 1, 0], &[u32::MAX - 1, 0], &[0i64], &mut slot).unwrap();
    assert!(slot[0] >= 0 && slot[0] < 3);
    let none = router.route(&[0, 0], &TOKENS).unwrap();
    assert_eq!((none.heaviest, none.bound), (0, 0.0));
    assert_eq!(-1, u32::MAX.number());
}
