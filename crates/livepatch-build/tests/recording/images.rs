//! What the tests look at in an image.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Contents of a section.
pub fn section(image: &Path, name: &str) -> Vec<u8> {
    let bytes = fs::read(image).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let section = file.section_by_name(name).unwrap_or_else(|| panic!("{} has {name}", image.display()));
    section.data().unwrap().to_vec()
}

pub fn has_section(image: &Path, name: &str) -> bool {
    let bytes = fs::read(image).unwrap();
    object::File::parse(&*bytes).unwrap().section_by_name(name).is_some()
}

pub fn build_id(image: &Path) -> Vec<u8> {
    let bytes = fs::read(image).unwrap();
    object::File::parse(&*bytes).unwrap().build_id().unwrap().unwrap().to_vec()
}

/// Names and addresses of the defined symbols; local ones may share a name.
pub fn symbols(image: &Path) -> BTreeSet<(String, u64)> {
    let bytes = fs::read(image).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let defined = file.symbols().filter(|symbol| symbol.is_definition());
    defined.map(|symbol| (symbol.name().unwrap().to_owned(), symbol.address())).collect()
}
