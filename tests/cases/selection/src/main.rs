//! Every line that a round prints is the work of one function, or of one item in several; all of them change. Old values
//! are even, new ones odd, and no two functions are alike, so that none are merged.

mod cart;
mod host;
mod router;
mod router2;

use cart::{Billed, Cart};
use router::{Order, Shape};

fn step() {
    let (small, wide) = (Order { n: 1u8 }, Order { n: 1u64 });
    println!("router::route {}", router::route());
    println!("router2::route {}", router2::route());
    println!("router::deep::dive {}", router::deep::dive());
    println!("Order::total {} {}", small.total(), wide.total());
    println!("Order::display {small}");
    println!("Order::debug {small:?}");
    println!("Order::bill {}", small.bill());
    println!("Cart::area {}", Cart.area());
    println!("Cart::name {}", Cart.name());
    println!("Cart::each {}", Cart.each(&[80]));
    println!("router::generic {} {}", router::generic(1u8), router::generic("x"));
    println!("router::job {}", host_future());
    println!("cart::first {}", cart::first());
    println!("cart::second {}", cart::second());
    println!("cart::caller {}", cart::caller());
    println!("router::hosting {}", router::hosting());
    println!("cart::limit {} {}", cart::within(), router2::within());
}

fn host_future() -> u32 {
    let mut future = std::pin::pin!(router::job());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::future::Future::poll(future.as_mut(), &mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => 99,
    }
}

fn main() {
    host::serve(step);
}
