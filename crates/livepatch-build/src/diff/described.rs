//! What debug information says of functions of a program.

use super::program::{At, Program};
use crate::build::Build;
use crate::emit::name_of;
use crate::guard::{FunctionInfo, GuardError, trees};
use crate::objects::Kind;
use std::collections::HashMap;

/// Describes those of these sections that are code in the image and have debug information.
///
/// # Errors
/// The image cannot be read or its debug information is damaged.
pub(crate) fn described(
    program: &Program<'_>,
    build: &Build,
    sections: impl Iterator<Item = At>,
) -> Result<HashMap<At, FunctionInfo>, GuardError> {
    let code = sections.filter(|at| program.section(*at).kind == Kind::Text);
    let placed: Vec<_> = code.filter_map(|at| Some((at, program.addr(at)?))).collect();
    // Opening an image reads all of it.
    if placed.is_empty() {
        return Ok(HashMap::new());
    }
    let queries: Vec<_> = placed.iter().map(|(at, addr)| (name_of(program, *at), *addr)).collect();
    let infos = trees(&build.image, &queries)?;
    Ok(placed.iter().zip(infos).filter_map(|((at, _), info)| Some((*at, info?))).collect())
}
