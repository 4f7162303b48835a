//! Loads like those of DeepSeek-V3's experts: lognormal with sigma 0.65, from a seed.

/// From the standard normal distribution.
pub(crate) fn normal(random: &mut fastrand::Rng) -> f64 {
    let (radius, angle) = (1.0 - random.f64(), random.f64());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// Whole numbers of tokens.
pub(crate) fn lognormal(num_loads: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..num_loads).map(|_| (3000.0 * (0.65 * normal(&mut random)).exp()).round() as f32).collect()
}
