//! Dynamic symbols of a module in memory.

use crate::elf::{Image, Peek, long, quad};
use livepatch_patch::{LinkAddr, RunAddr};
use livepatch_process::ProcessError;
use object::elf;
use std::ops::Range;

const SYM_SIZE: u64 = 24;
const MAX_NAME: usize = 4096;
/// More symbols than any real module has; a damaged hash table ends here.
const MAX_SYMBOLS: u64 = 1 << 22;
/// Set in a version index: only found by a reference that names the version.
const VERSYM_HIDDEN: u16 = 0x8000;

/// A definition found in a dynamic symbol table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its address; for an indirect function the address of the resolver.
    pub address: RunAddr,
    /// Its size in bytes.
    pub size: u64,
    /// What it is.
    pub kind: DefinitionKind,
}

/// What a dynamic symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefinitionKind {
    /// Code.
    Function,
    /// Code chosen by a resolver when the program was loaded (`STT_GNU_IFUNC`).
    Indirect,
    /// A thread-local; the address means nothing.
    ThreadLocal,
    /// Data or anything else.
    Other,
}

/// The dynamic symbol table of one module.
#[derive(Debug)]
pub struct DynamicSymbols<'a> {
    memory: &'a dyn Peek,
    image: &'a Image,
    table: RunAddr,
    strings: Vec<u8>,
    versions: Option<RunAddr>,
    hash: Hash,
}

impl std::fmt::Debug for dyn Peek + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Peek")
    }
}

#[derive(Debug)]
enum Hash {
    Gnu { buckets: Vec<u8>, offset: u64, chains: RunAddr },
    SysV { count: u64 },
}

impl<'a> DynamicSymbols<'a> {
    /// Opens the table; `None` if the module has none.
    pub fn open(memory: &'a dyn Peek, image: &'a Image) -> Result<Option<Self>, ProcessError> {
        let Some(dynamic) = &image.dynamic else { return Ok(None) };
        let address = |tag| dynamic.get(tag).map(|value| image.dynamic_address(value));
        let (Some(table), Some(strtab), Some(strsz)) =
            (address(elf::DT_SYMTAB.0), address(elf::DT_STRTAB.0), dynamic.get(elf::DT_STRSZ.0))
        else {
            return Ok(None);
        };
        let hash = match (address(elf::DT_GNU_HASH.0), address(elf::DT_HASH.0)) {
            (Some(at), _) => gnu_hash(memory, at)?,
            (None, Some(at)) => {
                let counts = memory.bytes(at, 8)?;
                Hash::SysV { count: u64::from(long(&counts, 4)).min(MAX_SYMBOLS) }
            }
            (None, None) => return Ok(None),
        };
        let strings = memory.table(strtab, strsz.min(1 << 28) as usize)?;
        Ok(Some(Self { memory, image, table, strings, versions: address(elf::DT_VERSYM.0), hash }))
    }

    fn name(&self, symbol: &[u8]) -> Option<&[u8]> {
        let bytes = self.strings.get(long(symbol, 0) as usize..)?;
        let end = bytes.iter().take(MAX_NAME).position(|b| *b == 0)?;
        Some(&bytes[..end])
    }

    fn definition(&self, symbol: &[u8]) -> Option<Definition> {
        let (info, section) = (symbol[4], u16::from_le_bytes([symbol[6], symbol[7]]));
        let bind = info >> 4;
        let visible = bind == elf::STB_GLOBAL.0 || bind == elf::STB_WEAK.0 || bind == elf::STB_GNU_UNIQUE.0;
        if section == elf::SHN_UNDEF.0 || !visible {
            return None;
        }
        let kind = match elf::SymbolType(info & 15) {
            elf::STT_FUNC => DefinitionKind::Function,
            elf::STT_GNU_IFUNC => DefinitionKind::Indirect,
            elf::STT_TLS => DefinitionKind::ThreadLocal,
            _ => DefinitionKind::Other,
        };
        let value = quad(symbol, 8);
        let address =
            if section == elf::SHN_ABS.0 { RunAddr(value) } else { LinkAddr(value).at(self.image.bias) };
        Some(Definition { address, size: quad(symbol, 16), kind })
    }

    fn is_default_version(&self, index: u64) -> Result<bool, ProcessError> {
        let Some(versions) = self.versions else { return Ok(true) };
        let mut version = [0; 2];
        self.memory.peek(versions.offset(index as i64 * 2), &mut version)?;
        Ok(u16::from_le_bytes(version) & VERSYM_HIDDEN == 0)
    }

    /// The definition that a reference without a version binds to in this module.
    pub fn find(&self, name: &str) -> Result<Option<Definition>, ProcessError> {
        let wanted: Vec<u64> = match &self.hash {
            Hash::SysV { count } => return self.find_among(1..*count, name),
            Hash::Gnu { buckets, offset, chains } => {
                let hash = gnu_hash_of(name);
                let count = buckets.len() / 4;
                if count == 0 {
                    return Ok(None);
                }
                let first = u64::from(long(buckets, hash as usize % count * 4));
                if first < *offset {
                    return Ok(None);
                }
                let chain = chain(self.memory, *chains, *offset, first)?;
                (first..)
                    .zip(chain)
                    .filter(|(_, found)| (found ^ hash) >> 1 == 0)
                    .map(|(index, _)| index)
                    .collect()
            }
        };
        for index in wanted {
            if let Some(definition) = self.find_among(index..index + 1, name)? {
                return Ok(Some(definition));
            }
        }
        Ok(None)
    }

    fn find_among(&self, indices: Range<u64>, name: &str) -> Result<Option<Definition>, ProcessError> {
        let size = indices.end.saturating_sub(indices.start) * SYM_SIZE;
        let symbols =
            self.memory.bytes(self.table.offset((indices.start * SYM_SIZE) as i64), size as usize)?;
        for (index, symbol) in indices.zip(symbols.chunks_exact(SYM_SIZE as usize)) {
            if self.name(symbol) == Some(name.as_bytes())
                && let Some(definition) = self.definition(symbol)
                && self.is_default_version(index)?
            {
                return Ok(Some(definition));
            }
        }
        Ok(None)
    }

    /// Every definition with its name.
    pub fn all(&self) -> Result<Vec<(String, Definition)>, ProcessError> {
        let count = match &self.hash {
            Hash::SysV { count } => *count,
            Hash::Gnu { buckets, offset, chains } => {
                let highest = buckets.chunks_exact(4).map(|b| u64::from(long(b, 0))).max().unwrap_or(0);
                match highest < *offset {
                    true => *offset,
                    false => highest + chain(self.memory, *chains, *offset, highest)?.len() as u64,
                }
            }
        };
        let bytes = self.memory.table(self.table, (count.min(MAX_SYMBOLS) * SYM_SIZE) as usize)?;
        Ok(bytes
            .chunks_exact(SYM_SIZE as usize)
            .filter_map(|symbol| {
                let name = String::from_utf8_lossy(self.name(symbol)?).into_owned();
                Some((name, self.definition(symbol)?))
            })
            .collect())
    }

    /// A string of the table, as `DT_NEEDED` and `DT_SONAME` refer to it.
    pub fn string(&self, offset: u64) -> Option<String> {
        let bytes = self.strings.get(usize::try_from(offset).ok()?..)?;
        let end = bytes.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}

fn gnu_hash(memory: &dyn Peek, at: RunAddr) -> Result<Hash, ProcessError> {
    let header = memory.bytes(at, 16)?;
    let buckets = u64::from(long(&header, 0)).min(MAX_SYMBOLS);
    let bloom_words = u64::from(long(&header, 8)).min(MAX_SYMBOLS);
    let buckets_at = at.offset(16 + bloom_words as i64 * 8);
    Ok(Hash::Gnu {
        buckets: memory.table(buckets_at, buckets as usize * 4)?,
        offset: u64::from(long(&header, 4)),
        chains: buckets_at.offset(buckets as i64 * 4),
    })
}

/// The hash values of the chain that starts at symbol `first`. Their low bit is not part of them: it marks the end of the chain.
fn chain(memory: &dyn Peek, chains: RunAddr, offset: u64, first: u64) -> Result<Vec<u32>, ProcessError> {
    /// What follows the table need not be mapped: a block that is read lies in one page.
    const BLOCK: u64 = 64;
    let mut hashes = Vec::new();
    let mut at = chains.offset((first - offset) as i64 * 4);
    loop {
        let mut block = [0; BLOCK as usize];
        let len = (BLOCK - at.0 % BLOCK) as usize;
        memory.peek(at, &mut block[..len])?;
        for word in block[..len].chunks_exact(4) {
            hashes.push(long(word, 0));
            if word[0] & 1 != 0 || hashes.len() as u64 > MAX_SYMBOLS {
                return Ok(hashes);
            }
        }
        at = at.offset(len as i64);
    }
}

fn gnu_hash_of(name: &str) -> u32 {
    name.bytes().fold(5381, |hash: u32, byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)))
}

/// Whether the module's dynamic strings hold this name: it defines or imports it.
pub fn mentions(memory: &dyn Peek, image: &Image, name: &str) -> Result<bool, ProcessError> {
    let Some(symbols) = DynamicSymbols::open(memory, image)? else { return Ok(false) };
    let mut wanted = name.as_bytes().to_vec();
    wanted.push(0);
    Ok(symbols.strings.windows(wanted.len()).any(|window| window == wanted))
}
