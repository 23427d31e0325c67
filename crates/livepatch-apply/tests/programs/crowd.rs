//! 64 threads that wait thirty calls deep.
use std::hint::black_box;
use std::sync::{Arc, Barrier};

#[inline(never)]
fn nest(depth: u32, arrived: &Barrier) -> u32 {
    if depth == 0 {
        arrived.wait();
        loop {
            std::thread::park();
        }
    }
    black_box(nest(depth - 1, arrived)) + 1
}

fn main() {
    let arrived = Arc::new(Barrier::new(65));
    for _ in 0..64 {
        let arrived = arrived.clone();
        std::thread::spawn(move || nest(30, &arrived));
    }
    arrived.wait();
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
