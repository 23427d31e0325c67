//! The rebuild is not comparable: other settings than the baseline's.

use super::{Code, Rule, Severity};

/// LP0021.
pub static RULE: Rule = Rule {
    code: Code(21),
    severity: Severity::Refusal,
    title: "{} is built in another way than the running program",
    reason: "features, profile and compiler flags decide the names and the code of every function, so that nothing of the rebuild can be told to continue something of the running program",
    help: "put back what is listed (Cargo.toml, .cargo/config.toml, flags), or ship the change with the next release and build a new baseline of it",
    explanation: r##"`cargo livepatch create` rebuilds with the arguments and environment variables of the baseline, and compares function by
function. What else decides how a crate is compiled has to be as it was too: code generation settings of the profile,
compiler flags of a configuration file, the edition.

    [profile.release]
    opt-level = 3        # was "z" in the running program

With another setting every function is other code, and mostly has another name. The finding lists what differs.

Another version of a dependency, an added or removed one and other features do not end here: the rebuild then uses the
names of the running program for the crates that both have. They do where it is not clear which crate continues which,
because several versions of one package changed at once, and where the baseline does not know how a crate was compiled:
it was up to date when `cargo livepatch build` first ran in that target folder.

What to do: put back what is listed, or ship the change with the next release.
"##,
};
