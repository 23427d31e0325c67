# The few commands one needs. Each is plain cargo; `just` only saves typing.

# Build, patch and roll back a web service under load.
demo *ARGS:
    cargo run --release --bin livepatch -- demo {{ARGS}}

# Everything: unit tests, properties, programs.
test:
    cargo test --workspace

# One or several end-to-end cases, by a part of their name.
case NAME:
    cargo test --package livepatch-tests --test fixtures -- {{NAME}}

# What CI insists on besides the tests.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy --package livepatch-cli --no-default-features --features apply -- -D warnings
    cargo clippy --package livepatch --no-default-features -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Licences, advisories and duplicate dependencies (needs cargo-deny).
deny:
    cargo deny check

# All of CI.
ci:
    .ci/run

# How long a transition takes and holds threads, by the number of threads; into docs/bench and docs/performance.md.
bench-transition:
    cargo bench --package livepatch-tests --bench transition

# How long a transition takes beside 64 threads that never leave the changed function; into docs/bench and docs/performance.md.
bench-converge:
    cargo bench --package livepatch-tests --bench converge

# What a patched function costs against a native one; into docs/bench and docs/performance.md.
bench-calls:
    cargo bench --package livepatch-tests --bench calls

# What `create` takes beside cargo's own rebuild; into docs/bench and docs/performance.md.
bench-create:
    cargo bench --package livepatch-tests --bench create

# Ten thousand (LIVEPATCH_SOAK_CYCLES) cycles under HTTP load; into docs/bench and docs/performance.md.
soak:
    cargo bench --package livepatch-tests --bench soak
