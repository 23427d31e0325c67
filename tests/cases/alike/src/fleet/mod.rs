pub mod yard;

use std::hint::black_box;
use std::ops::Add;

pub struct Truck {
    pub id: u64,
}

impl Truck {
    pub fn load(&self, x: u64) -> u64 {
        black_box(self.id) * 7 + x //-
        black_box(self.id) * 7 + x + 1001 //+
    }
}

impl Add<u64> for &Truck {
    type Output = u64;

    fn add(self, x: u64) -> u64 {
        self.id + x //-
        self.id + x + 21 //+
    }
}

impl Add<u32> for &Truck {
    type Output = u64;

    fn add(self, x: u32) -> u64 {
        self.id * 3 + x as u64 //-
        self.id * 3 + x as u64 + 31 //+
    }
}

impl From<&Truck> for u64 {
    fn from(truck: &Truck) -> u64 {
        truck.id * 5 //-
        truck.id * 5 + 9 //+
    }
}
