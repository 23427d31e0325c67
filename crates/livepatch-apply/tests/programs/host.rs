//! Loads the shared object named by its argument and calls into it on request.
use std::ffi::{CString, c_char, c_void};
use std::io::BufRead;

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: i32) -> *mut c_void;
    fn dlmopen(namespace: isize, path: *const c_char, flags: i32) -> *mut c_void;
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

fn main() {
    let path = CString::new(std::env::args().nth(1).unwrap()).unwrap();
    let handle = unsafe { dlopen(path.as_ptr(), 2) };
    assert!(!handle.is_null());
    let call = |name: &str| {
        let name = CString::new(name).unwrap();
        let function = unsafe { dlsym(handle, name.as_ptr()) };
        assert!(!function.is_null());
        let function: extern "C" fn() -> u64 = unsafe { std::mem::transmute(function) };
        function()
    };
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        match line.unwrap().as_str() {
            "load again" => println!("{}", !unsafe { dlmopen(-1, path.as_ptr(), 2) }.is_null()),
            name => println!("{}", call(name)),
        }
    }
}
