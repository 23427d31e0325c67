use std::hint::black_box;

#[inline(never)]
pub fn route() -> u32 {
    black_box(100) //-
    black_box(101) //+
}

#[inline(never)]
pub fn within() -> u32 {
    black_box(crate::cart::LIMIT + 4000)
}
