//! A library that is not found by its name.

use super::{Code, Rule, Severity};

/// LP0030.
pub static RULE: Rule = Rule {
    code: Code(30),
    severity: Severity::Refusal,
    title: "the fix needs the library {}, which is not found by its name",
    reason: "a patch names the libraries that it brings in and leaves it to the loader of the production host to find them; a path of this host says nothing there",
    help: "link a library that has a soname and is installed where the loader looks, or ship the change with the next release",
    explanation: r##"Where the fix begins to use a library that the running program has not loaded, the patch names that library and `apply`
has the program's own loader load it, by its soname, from where it is installed on that host.

This library has no soname, or one with a path in it, so that the linker wrote down a path:

    println!("cargo:rustc-link-arg=/opt/acme/libacme.so");    // no soname: `/opt/acme/libacme.so` is needed

Whatever lies under that path on the production host would be loaded into the running program, so such a patch is not made.

What to do: build the library with a soname (`-Wl,-soname,libacme.so.1`) and install it where the loader looks, link it
statically, or ship the change with the next release.
"##,
};
