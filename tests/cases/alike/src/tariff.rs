const FLOOR: u64 = 8; //-
const FLOOR: u64 = 9; //+

#[inline(never)]
pub fn bulk(x: u64) -> u64 {
    x * 4 //-
    x * 4 + 5 //+
}

#[inline(never)]
pub fn lonely(x: u64) -> u64 {
    x.max(FLOOR)
}
