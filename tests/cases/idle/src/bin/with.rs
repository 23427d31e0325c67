//! Prints one line; could patch itself.

fn main() {
    println!("ready");
    if let Some(patch) = std::env::args_os().nth(1) {
        println!("{}", livepatch::apply(patch).is_ok());
    }
}
