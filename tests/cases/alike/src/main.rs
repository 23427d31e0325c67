//! Items that are called alike in several types and modules, small enough to leave little behind where they are inlined. Old values
//! are even, new ones odd.

mod codec;
mod fleet;
mod host;
mod tariff;

use codec::{Codec, Rot, Xor};
use fleet::Truck;
use fleet::yard::{Spare, Yard};
use std::hint::black_box;

#[inline(never)]
fn truck_load() -> u64 {
    let n = |x: u64| black_box(x);
    Truck { id: n(2) }.load(n(4))
}

#[inline(never)]
fn spare_load() -> u64 {
    let n = |x: u64| black_box(x);
    Spare { id: n(6) }.load(n(8))
}

#[inline(never)]
fn rot() -> u64 {
    let n = |x: u64| black_box(x);
    Rot(n(2)).enc(n(4))
}

#[inline(never)]
fn xor() -> u64 {
    let n = |x: u64| black_box(x);
    Xor(n(2) as u32).enc(n(8))
}

#[inline(never)]
fn rot_nip() -> u64 {
    Rot(black_box(2)).nip(black_box(4))
}

#[inline(never)]
fn xor_nip() -> u64 {
    Xor(black_box(6u32)).nip(black_box(2))
}

#[inline(never)]
fn plus_long() -> u64 {
    &Truck { id: black_box(2) } + black_box(4u64)
}

#[inline(never)]
fn plus_short() -> u64 {
    &Truck { id: black_box(2) } + black_box(6u32)
}

#[inline(never)]
fn from() -> u64 {
    u64::from(&Truck { id: black_box(8) })
}

// Has a `from` of the standard library's, which leaves nothing.
#[inline(never)]
fn bulk() -> u64 {
    u64::from(black_box(2u32)) + tariff::bulk(black_box(10))
}

#[inline(never)]
fn slots() -> u64 {
    Yard { left: black_box(1) }.map(u64::from).sum()
}

#[inline(never)]
fn drops() -> u64 {
    drop(Yard { left: black_box(4) });
    fleet::yard::dropped()
}

fn step() {
    println!("Truck::load {}", truck_load());
    println!("Spare::load {}", spare_load());
    println!("Rot::enc {}", rot());
    println!("Xor::enc {}", xor());
    println!("Rot::nip {}", rot_nip());
    println!("Xor::nip {}", xor_nip());
    println!("Truck+u64 {}", plus_long());
    println!("Truck+u32 {}", plus_short());
    println!("u64::from {}", from());
    println!("tariff::bulk {}", bulk());
    println!("tariff::lonely {}", tariff::lonely(black_box(2)));
    println!("Yard::next {}", slots());
    println!("Yard::drop {}", drops());
}

fn main() {
    host::serve(step);
}
