use std::fmt;
use std::hint::black_box;

pub struct Order<T> {
    pub n: T,
}

pub trait Shape {
    fn area(&self) -> u32;
    #[inline(never)]
    fn name(&self) -> u32 {
        black_box(20) //-
        black_box(21) //+
    }
}

impl<T> Order<T> {
    #[inline(never)]
    pub fn total(&self) -> u32 {
        2 * size_of::<T>() as u32 + black_box(30) //-
        2 * size_of::<T>() as u32 + black_box(31) //+
    }
}

impl<T> fmt::Display for Order<T> {
    #[inline(never)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", black_box(40)) //-
        write!(f, "{}", black_box(41)) //+
    }
}

impl<T> fmt::Debug for Order<T> {
    #[inline(never)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", black_box(50)) //-
        write!(f, "{}", black_box(51)) //+
    }
}

#[inline(never)]
pub fn route() -> u32 {
    black_box(60) //-
    black_box(61) //+
}

#[inline(never)]
pub fn generic<T>(value: T) -> u32 {
    black_box(value);
    black_box(70) //-
    black_box(71) //+
}

pub async fn job() -> u32 {
    std::future::ready(()).await;
    inner()
}

#[inline(never)]
fn inner() -> u32 {
    black_box(80) //-
    black_box(81) //+
}

/// Does not change itself.
#[inline(never)]
pub fn hosting() -> u32 {
    #[inline(never)]
    fn local() -> u32 {
        black_box(610) //-
        black_box(611) //+
    }
    local()
}

pub mod deep {
    #[inline(never)]
    pub fn dive() -> u32 {
        std::hint::black_box(90) //-
        std::hint::black_box(91) //+
    }
}
