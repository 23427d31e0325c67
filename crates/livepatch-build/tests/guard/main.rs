//! The guard on pairs of programs: each rule with what triggers it and with lookalikes that must not.

mod closures;
mod coroutines;
mod dispatch;
mod functions;
mod layout;
mod statics;
mod support;
