use crate::router::{Order, Shape};
use std::hint::black_box;

pub struct Cart;

pub const LIMIT: u32 = 0; //-
pub const LIMIT: u32 = 1; //+

pub trait Billed {
    fn bill(&self) -> u32;
}

impl<T> Billed for Order<T> {
    #[inline(never)]
    fn bill(&self) -> u32 {
        black_box(110) //-
        black_box(111) //+
    }
}

impl Shape for Cart {
    #[inline(never)]
    fn area(&self) -> u32 {
        black_box(120) //-
        black_box(121) //+
    }
}

impl Cart {
    #[inline(never)]
    pub fn each(&self, items: &[u32]) -> u32 {
        let add = |item: &u32| black_box(*item & !1); //-
        let add = |item: &u32| black_box(*item | 1); //+
        visit(items, &add)
    }
}

#[inline(never)]
fn visit(items: &[u32], each: &dyn Fn(&u32) -> u32) -> u32 {
    items.iter().map(each).max().unwrap_or(9)
}

fn shared() -> u32 {
    black_box(130) //-
    black_box(131) //+
}

#[inline(never)]
pub fn first() -> u32 {
    black_box(shared())
}

#[inline(never)]
pub fn second() -> u32 {
    black_box(shared()) + black_box(2000)
}

#[inline(never)]
pub fn within() -> u32 {
    black_box(LIMIT + 3000)
}

#[inline(never)]
pub fn caller() -> u32 {
    black_box(1000) + 2 * crate::router::deep::dive() //-
    black_box(1001) + 2 * crate::router::deep::dive() //+
}
