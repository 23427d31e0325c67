//! Baselines: what was recorded about an artifact when it was linked.

mod manifest;

pub use manifest::{
    Artifact, ArtifactKind, BlobRef, InputKind, InputRecord, Invocation, LinkRecord, MANIFEST_VERSION, Manifest,
};
