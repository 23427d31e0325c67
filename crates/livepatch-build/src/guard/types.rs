//! Types as facts: what a type's layout is made of, in a form in which two builds can be compared.
//!
//! A fact is a pair of a key (`size`, ``field `len` ``) and a value (`8`, `usize at 0x10`). Two types agree if their sets
//! of facts are equal. Lines, order of declaration and visibility are no facts.

use super::dwarf::{Debug, DieId, Entry};
use crate::findings::{Change, Place};
use gimli::{AttributeValue, DwTag, constants as c};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Facts of a type, in order.
pub(super) type Facts = BTreeSet<(String, String)>;

/// One type of one image.
#[derive(Clone, Debug)]
pub(super) struct TypeNode {
    pub(super) name: Arc<str>,
    pub(super) facts: Facts,
    /// Types that this one is made of or leads to.
    pub(super) refs: Vec<DieId>,
    /// Only declared here: its layout is unknown to this unit.
    pub(super) declared: bool,
    pub(super) place: Option<Place>,
}

/// Reads types of one image.
pub(super) struct Types<'d, 'a> {
    pub(super) debug: &'d Debug<'a>,
    names: RefCell<HashMap<DieId, Arc<str>>>,
}

/// How deep unnamed types (pointers to arrays of functions …) are spelled out.
const DEEPEST: usize = 16;

impl<'d, 'a> Types<'d, 'a> {
    pub(super) fn new(debug: &'d Debug<'a>) -> Self {
        Self { debug, names: RefCell::default() }
    }

    /// The fully qualified name of a type; `None` stands for `()`.
    pub(super) fn name(&self, id: Option<DieId>) -> gimli::Result<Arc<str>> {
        self.name_within(id, DEEPEST)
    }

    fn name_within(&self, id: Option<DieId>, depth: usize) -> gimli::Result<Arc<str>> {
        let Some(id) = id else { return Ok("()".into()) };
        if let Some(name) = self.names.borrow().get(&id) {
            return Ok(name.clone());
        }
        if depth == 0 {
            return Ok("_".into());
        }
        let name: Arc<str> = self.spell(id, depth - 1)?.into();
        self.names.borrow_mut().insert(id, name.clone());
        Ok(name)
    }

    fn spell(&self, id: DieId, depth: usize) -> gimli::Result<String> {
        let entry = self.debug.entry(id)?;
        if entry.tag != c::DW_TAG_subroutine_type
            && let Some(path) = self.debug.path(id)?
        {
            return Ok(path);
        }
        let target = self.debug.target(id, &entry, c::DW_AT_type)?;
        let inner = || self.name_within(target, depth);
        Ok(match entry.tag {
            c::DW_TAG_pointer_type => format!("*{}", inner()?),
            c::DW_TAG_reference_type | c::DW_TAG_rvalue_reference_type => format!("&{}", inner()?),
            c::DW_TAG_const_type => format!("const {}", inner()?),
            c::DW_TAG_volatile_type => format!("volatile {}", inner()?),
            c::DW_TAG_array_type => format!("[{}; {}]", inner()?, self.counts(id)?.join("; ")),
            c::DW_TAG_subroutine_type => {
                let params: Vec<String> = self
                    .parameters(id)?
                    .iter()
                    .map(|id| self.name_within(*id, depth).map(|n| n.to_string()))
                    .collect::<gimli::Result<_>>()?;
                format!("fn({}) -> {}", params.join(", "), inner()?)
            }
            // Unnamed C aggregates: the place of declaration is the only identity that they have.
            tag => match self.debug.place(id)? {
                Some(place) => format!("{{unnamed {tag} at {}}}", place.file),
                None => format!("{{unnamed {tag}}}"),
            },
        })
    }

    /// Types of the formal parameters below a function or function type.
    pub(super) fn parameters(&self, id: DieId) -> gimli::Result<Vec<Option<DieId>>> {
        self.debug
            .children(id)?
            .into_iter()
            .filter(|(_, tag)| *tag == c::DW_TAG_formal_parameter)
            .map(|(id, _)| self.debug.type_of(id))
            .collect()
    }

    pub(super) fn counts(&self, id: DieId) -> gimli::Result<Vec<String>> {
        let mut counts = Vec::new();
        for (child, tag) in self.debug.children(id)? {
            if tag == c::DW_TAG_subrange_type {
                let entry = self.debug.entry(child)?;
                let count = number(&entry, c::DW_AT_count)
                    .or(number(&entry, c::DW_AT_upper_bound).map(|last| last.wrapping_add(1)));
                counts.push(count.map_or("?".to_owned(), |count| count.to_string()));
            }
        }
        Ok(counts)
    }

    /// Reads a type.
    pub(super) fn node(&self, id: DieId) -> gimli::Result<TypeNode> {
        let entry = self.debug.entry(id)?;
        let mut node = TypeNode {
            name: self.name(Some(id))?,
            facts: Facts::new(),
            refs: Vec::new(),
            declared: entry.attr_value(c::DW_AT_declaration) == Some(AttributeValue::Flag(true)),
            place: self.debug.place(id)?,
        };
        node.fact("kind", kind(entry.tag));
        for (key, at) in
            [("size", c::DW_AT_byte_size), ("alignment", c::DW_AT_alignment), ("encoding", c::DW_AT_encoding)]
        {
            if let Some(value) = entry.attr_value(at) {
                node.fact(key, &plain(&value));
            }
        }
        if let Some(target) = self.debug.target(id, &entry, c::DW_AT_type)? {
            node.fact("of", &self.name(Some(target))?);
            node.refs.push(target);
        } else if matches!(entry.attr_value(c::DW_AT_type), Some(AttributeValue::DebugTypesRef(_))) {
            node.declared = true;
        }
        match entry.tag {
            c::DW_TAG_array_type => node.fact("length", &self.counts(id)?.join("; ")),
            c::DW_TAG_subroutine_type => node.refs.extend(self.parameters(id)?.into_iter().flatten()),
            _ => self.members(id, "", &mut node)?,
        }
        Ok(node)
    }

    /// Facts about everything inside an aggregate; `within` names the variant that it is, if any.
    fn members(&self, id: DieId, within: &str, node: &mut TypeNode) -> gimli::Result<()> {
        for (child, tag) in self.debug.children(id)? {
            match tag {
                c::DW_TAG_member | c::DW_TAG_inheritance => self.field(child, within, node)?,
                c::DW_TAG_enumerator => {
                    let entry = self.debug.entry(child)?;
                    let name = self.debug.name(child, &entry)?.unwrap_or_default();
                    let value = entry.attr_value(c::DW_AT_const_value).map_or("?".into(), |v| plain(&v));
                    node.fact(&format!("variant `{name}`"), &value);
                }
                c::DW_TAG_variant_part => self.variants(child, node)?,
                c::DW_TAG_template_type_parameter => {
                    let entry = self.debug.entry(child)?;
                    let target = self.debug.target(child, &entry, c::DW_AT_type)?;
                    node.refs.extend(target);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn field(&self, id: DieId, within: &str, node: &mut TypeNode) -> gimli::Result<()> {
        let entry = self.debug.entry(id)?;
        if entry.attr_value(c::DW_AT_external).is_some() || entry.attr_value(c::DW_AT_declaration).is_some() {
            return Ok(());
        }
        let name = self.debug.name(id, &entry)?.unwrap_or_default();
        let target = self.debug.target(id, &entry, c::DW_AT_type)?;
        node.refs.extend(target);
        let value = format!("`{}` at {}", self.name(target)?, offset(&entry));
        node.fact(&format!("{within}field `{name}`"), &value);
        Ok(())
    }

    fn variants(&self, part: DieId, node: &mut TypeNode) -> gimli::Result<()> {
        let entry = self.debug.entry(part)?;
        if let Some(tag) = self.debug.target(part, &entry, c::DW_AT_discr)? {
            let entry = self.debug.entry(tag)?;
            let target = self.debug.target(tag, &entry, c::DW_AT_type)?;
            node.refs.extend(target);
            node.fact("discriminant", &format!("`{}` at {}", self.name(target)?, offset(&entry)));
        }
        for (variant, tag) in self.debug.children(part)? {
            if tag == c::DW_TAG_variant {
                self.variant(variant, node)?;
            }
        }
        Ok(())
    }

    fn variant(&self, id: DieId, node: &mut TypeNode) -> gimli::Result<()> {
        let entry = self.debug.entry(id)?;
        let value = match (entry.attr_value(c::DW_AT_discr_value), entry.attr_value(c::DW_AT_discr_list)) {
            (Some(value), _) => format!("discriminant {}", plain(&value)),
            (None, Some(list)) => format!("discriminants {}", plain(&list)),
            (None, None) => "any other discriminant".to_owned(),
        };
        for (member, tag) in self.debug.children(id)? {
            if tag != c::DW_TAG_member {
                continue;
            }
            // A type has no place of its own, but the state in which an async body begins has that of the body.
            if node.place.is_none() {
                node.place = self.debug.place(member)?;
            }
            let entry = self.debug.entry(member)?;
            let Some(body) = self.debug.target(member, &entry, c::DW_AT_type)? else { continue };
            let body_entry = self.debug.entry(body)?;
            let name = self.debug.name(body, &body_entry)?.unwrap_or_default().into_owned();
            node.fact(&format!("variant `{name}`"), &format!("{value} at {}", offset(&entry)));
            self.members(body, &format!("variant `{name}`, "), node)?;
        }
        Ok(())
    }
}

impl TypeNode {
    fn fact(&mut self, key: &str, value: &str) {
        self.facts.insert((key.to_owned(), value.to_owned()));
    }
}

/// What differs between two sets of facts, by key.
pub(super) fn differences(old: &Facts, new: &Facts) -> Vec<Change> {
    let mut keys: BTreeMap<&str, (Vec<&str>, Vec<&str>)> = BTreeMap::new();
    for (key, value) in old.difference(new) {
        keys.entry(key).or_default().0.push(value);
    }
    for (key, value) in new.difference(old) {
        keys.entry(key).or_default().1.push(value);
    }
    let text = |values: Vec<&str>| (!values.is_empty()).then(|| values.join(", "));
    let mut changes: Vec<Change> = keys
        .into_iter()
        .map(|(key, (old, new))| Change { what: key.to_owned(), old: text(old), new: text(new) })
        .collect();
    changes.sort_by_key(|change| (change.what != "size", change.what.starts_with("variant")));
    changes
}

pub(super) fn number(entry: &Entry<'_>, at: gimli::DwAt) -> Option<u64> {
    match entry.attr_value(at)? {
        AttributeValue::Sdata(value) => u64::try_from(value).ok(),
        value => value.udata_value(),
    }
}

/// Where a field lies: a byte offset, and for C's bit fields the bits.
fn offset(entry: &Entry<'_>) -> String {
    let mut text = match entry.attr_value(c::DW_AT_data_member_location) {
        Some(value) => match value.udata_value() {
            Some(value) => format!("{value:#x}"),
            None => plain(&value),
        },
        None => "0x0".to_owned(),
    };
    for (name, at) in [
        ("bits", c::DW_AT_bit_size),
        ("from bit", c::DW_AT_data_bit_offset),
        ("from bit", c::DW_AT_bit_offset),
    ] {
        if let Some(value) = entry.attr_value(at) {
            text.push_str(&format!(" {name} {}", plain(&value)));
        }
    }
    text
}

/// A value as text that is equal for equal values, whatever form it has.
fn plain(value: &super::dwarf::Value<'_>) -> String {
    match value {
        AttributeValue::Sdata(value) => value.to_string(),
        AttributeValue::Encoding(value) => value.to_string(),
        AttributeValue::Block(bytes) => format!("{:02x?}", bytes.slice()),
        AttributeValue::Exprloc(expression) => format!("{:02x?}", expression.0.slice()),
        other => other.udata_value().map_or_else(|| format!("{other:?}"), |value| value.to_string()),
    }
}

fn kind(tag: DwTag) -> &'static str {
    match tag {
        c::DW_TAG_structure_type | c::DW_TAG_class_type => "struct",
        c::DW_TAG_union_type => "union",
        c::DW_TAG_enumeration_type => "enum",
        c::DW_TAG_base_type => "primitive",
        c::DW_TAG_pointer_type | c::DW_TAG_reference_type | c::DW_TAG_rvalue_reference_type => "pointer",
        c::DW_TAG_array_type => "array",
        c::DW_TAG_subroutine_type => "function",
        _ => tag.static_string().unwrap_or("type"),
    }
}
