pub trait Codec {
    fn enc(&self, x: u64) -> u64;
}

pub struct Rot(pub u64);
pub struct Xor<K>(pub K);

impl Rot {
    pub fn nip(&self, x: u64) -> u64 {
        self.0 * 2 + x //-
        self.0 * 2 + x + 701 //+
    }
}

impl<K: Copy + Into<u64>> Xor<K> {
    pub fn nip(&self, x: u64) -> u64 {
        self.0.into() * 8 + x //-
        self.0.into() * 8 + x + 901 //+
    }
}

impl Codec for Rot {
    fn enc(&self, x: u64) -> u64 {
        (x + self.0) << 1 //-
        ((x + self.0) << 1) + 4001 //+
    }
}

impl<K: Copy + Into<u64>> Codec for Xor<K> {
    fn enc(&self, x: u64) -> u64 {
        x ^ self.0.into() //-
        (x ^ self.0.into()) + 301 //+
    }
}
