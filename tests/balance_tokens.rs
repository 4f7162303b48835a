//! Which token goes to which replica: by the quotas of a step, or by the shares of a plan, alike on every rank.

#[path = "support/naive_routing.rs"]
mod naive_routing;

use dualpipe::balance::route::TokenMap;
use dualpipe::balance::Cluster;
use naive_routing::{steps, totals, TOKENS};
use proptest::prelude::*;

proptest! {
    #[test]
    fn every_rank_sends_each_token_where_the_quotas_say(
        (placed, sent) in steps(6, 3, 6, 9),
        seed: u64,
        chunk in 1usize..9,
        knows_senders: bool,
    ) {
        let mut router = placed.router();
        let routing = if knows_senders {
            router.route_from(&sent.concat(), &TOKENS).unwrap()
        } else {
            router.route(&totals(&sent), &TOKENS).unwrap()
        };
        let num_slots = routing.quotas.len();
        let mut map = TokenMap::new(&placed.cluster, placed.num_experts, &placed.slot_to_expert).unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut by_slot = vec![0; num_slots];
        let mut before = vec![0u32; placed.num_experts];
        for (rank, counts) in sent.iter().enumerate() {
            let mut quotas = routing.quotas;
            if knows_senders {
                quotas = &routing.source_quotas[rank * num_slots..][..num_slots];
                before.fill(0);
            }
            let mut experts: Vec<i32> = vec![-1; 3];
            experts.extend((0..).zip(counts).flat_map(|(expert, &count)| vec![expert; count as usize]));
            rng.shuffle(&mut experts);
            // In chunks, each behind those before it.
            for experts in experts.chunks(chunk) {
                let mut slots = vec![7; experts.len()];
                map.by_quotas(quotas, &before, experts, &mut slots).unwrap();
                for (&expert, &slot) in experts.iter().zip(&slots) {
                    if expert == -1 {
                        prop_assert_eq!(slot, -1);
                        continue;
                    }
                    prop_assert_eq!(placed.slot_to_expert[slot as usize] as i32, expert);
                    by_slot[slot as usize] += 1;
                    before[expert as usize] += 1;
                }
            }
        }
        prop_assert_eq!(by_slot, routing.quotas);
    }

    #[test]
    fn no_slot_gets_its_tokens_in_a_burst(quotas in prop::collection::vec(0u32..40, 1..6)) {
        let num_slots = quotas.len();
        let cluster = Cluster::even(num_slots, num_slots, 1).unwrap();
        let mut map = TokenMap::new(&cluster, 1, &vec![0; num_slots]).unwrap();
        let total: u32 = quotas.iter().sum();
        let mut slots = vec![0; total as usize];
        map.by_quotas(&quotas, &[], &vec![0i64; total as usize], &mut slots).unwrap();
        let mut got = vec![0; num_slots];
        // Each line is off by half a token at most, and passes on what it is off by.
        let most = 0.5 * num_slots.min(3) as f64 + 1e-9;
        for (index, &slot) in slots.iter().enumerate() {
            got[slot as usize] += 1;
            for (slot, &quota) in quotas.iter().enumerate() {
                let part = (index + 1) as f64 * f64::from(quota) / f64::from(total);
                prop_assert!((f64::from(got[slot]) - part).abs() <= most, "{index}: {got:?} of {quotas:?}");
            }
        }
    }

    #[test]
    fn shares_are_kept_along_tokens_and_along_ranks(shares in prop::collection::vec(0u32..10, 2..5)) {
        prop_assume!(shares.iter().any(|&share| share > 0));
        let total: u32 = shares.iter().sum();
        let num_slots = shares.len();
        let cluster = Cluster::even(num_slots, num_slots, 1).unwrap();
        let mut map = TokenMap::new(&cluster, 1, &vec![0; num_slots]).unwrap();
        let shares: Vec<f64> = shares.iter().map(|&share| f64::from(share)).collect();
        let count = |slots: &[i32]| -> Vec<f64> {
            (0..num_slots as i32).map(|slot| slots.iter().filter(|&&s| s == slot).count() as f64).collect()
        };
        let mut along_tokens = vec![0; 200];
        map.by_shares(&shares, 3, &[0u32; 200], &mut along_tokens).unwrap();
        let mut along_ranks = vec![0; 200];
        for (rank, slot) in along_ranks.chunks_mut(1).enumerate() {
            map.by_shares(&shares, rank as u64, &[0i32], slot).unwrap();
        }
        for slots in [along_tokens, along_ranks] {
            for (got, share) in count(&slots).iter().zip(&shares) {
                let want = 200.0 * share / f64::from(total);
                prop_assert!((got - want).abs() <= 5.0 && (*share > 0.0 || *got == 0.0), "{got} for {want}");
            }
        }
    }
}

#[test]
fn tokens_by_hand() {
    let cluster = Cluster::even(4, 2, 1).unwrap();
    let mut map = TokenMap::new(&cluster, 3, &[0, 1, 1, 2]).unwrap();
    let experts = [1, 0, 1, -1, 1, 1, 2, 1, 1];
    let mut slots = [9; 9];
    map.by_quotas(&[1, 2, 4, 1], &[], &experts, &mut slots).unwrap();
    assert_eq!(slots, [2, 0, 1, -1, 2, 2, 3, 1, 2]);
    // The last three tokens of expert 1 on a higher rank, when all six are known only together.
    map.by_quotas(&[1, 2, 4, 1], &[0, 3, 0], &[1, 1, 1], &mut slots[..3]).unwrap();
    assert_eq!(slots[..3], [2, 1, 2]);
    map.by_shares(&[1.0, 0.0, 0.5, 1.0], 0, &[1, u32::MAX, 1], &mut slots[..3]).unwrap();
    assert_eq!(slots[..3], [2, -1, 2]);
}
