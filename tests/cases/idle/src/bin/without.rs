//! Prints one line; could read a file.

fn main() {
    println!("ready");
    if let Some(file) = std::env::args_os().nth(1) {
        println!("{}", std::fs::read(file).is_ok());
    }
}
