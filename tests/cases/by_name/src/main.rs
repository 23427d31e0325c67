//! Changed items that are reached through other names: macros, constants, imports; instances of generic functions that the compiler made one
//! function of; functions whose symbols have no path. Old values are even, new ones odd.

mod host;

mod entry {
    #[unsafe(no_mangle)]
    #[inline(never)]
    extern "C" fn by_name_entry() -> u32 {
        std::hint::black_box(10) //-
        std::hint::black_box(11) //+
    }

    #[inline(never)]
    pub fn plain() -> u32 {
        std::hint::black_box(20) //-
        std::hint::black_box(21) //+
    }

    pub fn call() -> u32 {
        by_name_entry()
    }
}

mod rates {
    use std::hint::black_box;

    const LIMIT: u32 = 100; //-
    const LIMIT: u32 = 101; //+
    const WIDE: u32 = LIMIT + 1000;

    macro_rules! limit {
        () => {
            LIMIT
        };
    }
    macro_rules! above {
        ($by:expr) => {
            limit!() + $by
        };
    }

    #[inline(never)]
    pub fn by_macro() -> u32 {
        black_box(above!(200))
    }

    #[inline(never)]
    pub fn by_constant() -> u32 {
        black_box(WIDE)
    }

    pub mod inner {
        use super::LIMIT as CAP;

        #[inline(never)]
        pub fn by_import() -> u32 {
            std::hint::black_box(CAP + 4000)
        }
    }
}

mod shelf {
    use std::hint::black_box;

    pub struct Shelf<T>(pub T);

    impl<T> Shelf<T> {
        const MOST: u32 = 5000; //-
        const MOST: u32 = 5001; //+

        #[inline(never)]
        pub fn most(&self) -> u32 {
            black_box(Self::MOST)
        }

        #[inline(never)]
        pub fn hosting(&self) -> u32 {
            super::small() + black_box(6000)
        }
    }

    /// Reached without its name.
    impl<T> std::fmt::Display for Shelf<T> {
        #[inline(never)]
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{}", black_box(7000)) //-
            write!(f, "{}", black_box(7001)) //+
        }
    }
}

fn small() -> u32 {
    std::hint::black_box(30) //-
    std::hint::black_box(31) //+
}

fn step() {
    use std::hint::black_box;
    println!("entry {}", entry::call());
    println!("plain {}", entry::plain());
    println!("macro {}", rates::by_macro());
    println!("constant {}", rates::by_constant());
    println!("import {}", rates::inner::by_import());
    let (bytes, words) = (black_box(shelf::Shelf(1u8)), black_box(shelf::Shelf(1u64)));
    println!("most {} {}", bytes.most(), words.most());
    println!("hosting {} {}", bytes.hosting(), words.hosting());
    println!("display {bytes} {words}");
}

fn main() {
    host::serve(step);
}
