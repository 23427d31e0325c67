//! Keeping what went into a link and what came out.

use super::args::LinkArgs;
use super::inputs::{Content, content};
use super::{Mode, State, resolve};
use crate::baseline::{InputRecord, LinkRecord};
use crate::error::{Error, IoContext, Result, utf8};
use crate::linkmap::LinkMap;
use crate::store::{BlobStore, Store, write_atomic};
use livepatch_patch::{BuildId, Digest};
use object::Object as _;
use object::read::ReadCache;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;

/// Compression of maps: text that shrinks to a twelfth at the fastest useful level.
const MAP_LEVEL: i32 = 3;

/// The build-id of an ELF image, if it has one.
pub(crate) fn build_id(path: &Path) -> Result<Option<BuildId>> {
    let bad = |e: object::Error| Error::Image { path: path.to_path_buf(), what: e.to_string() };
    let file = ReadCache::new(File::open(path).at("read", path)?);
    let image = object::File::parse(&file).map_err(bad)?;
    Ok(image.build_id().map_err(bad)?.map(BuildId::new))
}

/// Copies the inputs, the output and the map, and writes the record.
pub(super) fn record(state: &State, linker: &str, args: &LinkArgs, map: &Path) -> Result<()> {
    let keeper = Keeper::new(state)?;
    let cwd = std::env::current_dir().at("find", ".")?;
    let output = std::path::absolute(&args.output).at("resolve", &args.output)?;
    let build_id = build_id(&output)?.ok_or_else(|| Error::Image {
        path: output.clone(),
        what: "the linker wrote no build-id although it was asked to; remove `--build-id=none`".into(),
    })?;
    let text = fs::read(map).at("read the linker map", map)?;
    let inputs = inputs(&keeper, &cwd, args, map, &text)?;
    let compressed = zstd::bulk::compress(&text, MAP_LEVEL).at("compress", map)?;
    let record = LinkRecord {
        build_id,
        crate_name: std::env::var("CARGO_CRATE_NAME").unwrap_or_default(),
        linker: linker.to_owned(),
        args: args.all.clone(),
        cwd: utf8("the working folder", &cwd)?,
        output: utf8("the output", &output)?,
        inputs,
        image: keeper.into.put_file(&output)?,
        map: keeper.into.put_bytes(&compressed)?,
    };
    let json = serde_json::to_vec(&record).unwrap_or_default();
    let name = Digest::of(record.output.as_bytes()).short();
    write_atomic(&state.work, &state.records.join(format!("{name}.json")), &json)
}

/// The inputs named on the command line, then those that the linker found itself and that got into the output (start
/// files, archives from `-l`), which only the map tells.
fn inputs(keeper: &Keeper, cwd: &Path, args: &LinkArgs, map: &Path, text: &[u8]) -> Result<Vec<InputRecord>> {
    let text = String::from_utf8_lossy(text);
    let map = LinkMap::parse(&text).map_err(|e| Error::Map {
        path: map.to_path_buf(),
        what: format!("{e}; is the linker lld, mold, GNU ld or gold?"),
    })?;
    let mut seen = HashSet::new();
    let mut inputs = Vec::new();
    let named = args.files().filter_map(Path::to_str);
    let found = map.sections().iter().map(|section| &*section.file);
    for path in named.chain(found) {
        if !seen.insert(path) {
            continue;
        }
        let file = resolve(cwd, path);
        if file.is_file() {
            inputs.push(keeper.input(path, &file)?);
        }
    }
    Ok(inputs)
}

/// Where contents go.
struct Keeper {
    store: Store,
    kept: BlobStore,
    into: BlobStore,
}

impl Keeper {
    fn new(state: &State) -> Result<Self> {
        let store = Store::at(&state.store)?;
        let kept = store.blobs();
        let into = match &state.mode {
            Mode::Baseline => kept.clone(),
            Mode::Candidate { blobs } => BlobStore::new(blobs.clone(), state.work.clone()),
        };
        Ok(Self { store, kept, into })
    }

    fn input(&self, path: &str, file: &Path) -> Result<InputRecord> {
        let Content::Known(kind) = content(file)? else {
            return Err(Error::Image {
                path: file.to_path_buf(),
                what: "LLVM bitcode, compiled by the linker where it cannot be observed; build without \
                       `-C linker-plugin-lto` (`lto = true` in the profile works)"
                    .into(),
            });
        };
        let blob = self.store.hashes().put(file, &self.kept, &self.into)?;
        Ok(InputRecord { path: path.to_owned(), kind, blob })
    }
}

/// Every record in a folder.
pub(crate) fn read_records(folder: &Path) -> Result<Vec<LinkRecord>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder).at("list", folder)? {
        let path = entry.at("list", folder)?.path();
        let bytes = fs::read(&path).at("read", &path)?;
        let record = serde_json::from_slice(&bytes)
            .map_err(|e| Error::Damaged { path: path.clone(), what: format!("not a link record: {e}") })?;
        records.push(record);
    }
    Ok(records)
}
