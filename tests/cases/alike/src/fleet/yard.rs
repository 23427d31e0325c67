use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

static DROPPED: AtomicU64 = AtomicU64::new(0);

pub struct Spare {
    pub id: u64,
}

impl Spare {
    pub fn load(&self, x: u64) -> u64 {
        black_box(self.id) * 9 + x //-
        black_box(self.id) * 9 + x + 1003 //+
    }
}

pub struct Yard {
    pub left: u64,
}

impl Iterator for Yard {
    type Item = u64;

    #[inline(never)]
    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        Some(self.left * 2 + 20) //-
        Some(self.left * 2 + 21) //+
    }
}

impl Drop for Yard {
    #[inline(never)]
    fn drop(&mut self) {
        DROPPED.store(self.left * 2, Ordering::Relaxed); //-
        DROPPED.store(self.left * 2 + 1, Ordering::Relaxed); //+
    }
}

pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}
