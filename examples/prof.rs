use dualpipe::schedule::*;
use std::time::Instant;
fn main() {
    for _ in 0..3 {
        let s = dualpipe_v(16, 512, Work::Training).unwrap();
        let t = Instant::now();
        s.check().unwrap();
        println!("check {:?}", t.elapsed());
        let t = Instant::now();
        let mut n = 0;
        play(&s, |_| n += 1).unwrap();
        println!("play {:?} {n}", t.elapsed());
        let t = Instant::now();
        let p = dualpipe::program::lower(&s).unwrap();
        println!("lower all {:?}", t.elapsed());
        let t = Instant::now();
        dualpipe::program::check(&s, &p).unwrap();
        println!("program check {:?}", t.elapsed());
        println!("instr {}", p.iter().map(|p| p.instructions().len()).sum::<usize>());
    }
    let s = dualpipe_v(16, 512, Work::Training).unwrap();
    for _ in 0..std::env::args().count() * 20 {
        dualpipe::program::lower(&s).unwrap();
    }
}
