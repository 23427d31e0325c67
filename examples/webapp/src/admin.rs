//! `/admin`: a page, and what it asks for. The service applies patches to itself.
//!
//! Applying a patch runs its code here. So only files of the folder that the service was started with can be applied, and a
//! change needs a header that a foreign page in the same browser cannot send. A service that is reachable from outside would have
//! to put its own authentication in front.

use crate::stats;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use livepatch::{Error, Holds, Patch, PatchState};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What changes must carry. A page of another origin cannot set it without being asked first (CORS), and is not.
const HEADER: &str = "x-livepatch";

type Answer<T> = Result<Json<T>, (StatusCode, String)>;

#[derive(Default)]
struct Admin {
    patches: Option<PathBuf>,
    history: Mutex<Vec<Entry>>,
}

/// Something that was done.
#[derive(Clone, Serialize)]
struct Entry {
    /// What, and to which patch.
    what: String,
    /// Whether it worked; otherwise `detail` says why.
    done: bool,
    detail: String,
    total_ms: f64,
    world_stopped_us: Option<u64>,
    parked_us: Option<u64>,
}

/// What the page shows all the time. It costs no more than reading some numbers.
#[derive(Serialize)]
struct Live {
    requests: u64,
    files: Vec<String>,
    history: Vec<Entry>,
}

/// What is in the process.
#[derive(Serialize)]
struct Status {
    patches: Vec<PatchView>,
}

#[derive(Serialize)]
struct PatchView {
    id: String,
    name: String,
    state: String,
    applied: bool,
    functions: Vec<FunctionView>,
}

#[derive(Serialize)]
struct FunctionView {
    path: String,
    address: String,
    new_address: String,
}

/// The routes below `/admin`.
pub fn router(patches: Option<PathBuf>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(include_str!("admin.html")) }))
        .route("/live", get(live))
        .route("/status", get(status))
        .route("/apply/{file}", post(apply))
        .route("/rollback", post(rollback))
        .with_state(Arc::new(Admin { patches, history: Mutex::default() }))
}

async fn live(State(admin): State<Arc<Admin>>) -> Json<Live> {
    let history = admin.history.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Json(Live { requests: stats::requests(), files: admin.files(), history })
}

async fn status() -> Answer<Status> {
    let status = blocking(livepatch::status).await.map_err(|error| refuse(&error))?;
    Ok(Json(Status { patches: status.patches.iter().map(view).collect() }))
}

async fn apply(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    Path(file): Path<String>,
) -> Answer<Entry> {
    permitted(&headers)?;
    let listed = admin.files().contains(&file);
    let path = admin.patches.as_ref().filter(|_| listed).map(|folder| folder.join(&file));
    let path = path.ok_or_else(|| (StatusCode::NOT_FOUND, format!("there is no patch {file}")))?;
    let result = blocking(move || livepatch::apply(path)).await;
    let result = result.map(|report| (report.functions().count(), report.call.total, report.holds));
    admin.note(
        format!("apply {file}"),
        result.map(|(count, total, holds)| (format!("{count} functions"), total, holds)),
    )
}

async fn rollback(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Answer<Entry> {
    permitted(&headers)?;
    let result = blocking(livepatch::rollback_all).await;
    let result = result.map(|report| (report.rolled_back.len(), report.call.total, report.holds));
    admin.note(
        "rollback".into(),
        result.map(|(count, total, holds)| (format!("{count} patches"), total, holds)),
    )
}

/// The library's calls block; the runtime's other threads serve on.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(call).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

fn permitted(headers: &HeaderMap) -> Result<(), (StatusCode, String)> {
    match headers.contains_key(HEADER) {
        true => Ok(()),
        false => Err((StatusCode::FORBIDDEN, format!("the header {HEADER} is missing"))),
    }
}

fn refuse(error: &Error) -> (StatusCode, String) {
    (StatusCode::CONFLICT, error.to_string())
}

impl Admin {
    /// Names of the patch files, sorted.
    fn files(&self) -> Vec<String> {
        let entries =
            self.patches.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".lpatch")).collect();
        names.sort();
        names
    }

    fn note(
        &self,
        what: String,
        result: Result<(String, std::time::Duration, Holds), Error>,
    ) -> Answer<Entry> {
        let entry = match &result {
            Ok((detail, total, holds)) => Entry {
                what,
                done: true,
                detail: detail.clone(),
                total_ms: total.as_secs_f64() * 1000.0,
                world_stopped_us: Some(holds.world_stopped_us),
                parked_us: Some(holds.parked_us),
            },
            Err(error) => Entry {
                what,
                done: false,
                detail: error.to_string(),
                total_ms: 0.0,
                world_stopped_us: None,
                parked_us: None,
            },
        };
        self.history.lock().unwrap_or_else(PoisonError::into_inner).push(entry.clone());
        match result {
            Ok(_) => Ok(Json(entry)),
            Err(error) => Err(refuse(&error)),
        }
    }
}

fn view(patch: &Patch) -> PatchView {
    PatchView {
        id: patch.id.clone(),
        name: patch.name.clone(),
        state: format!("{:?}", patch.state),
        applied: patch.state == PatchState::Applied,
        functions: patch
            .functions
            .iter()
            .map(|function| FunctionView {
                path: function.path.clone(),
                address: function.address.to_string(),
                new_address: function.new_address.to_string(),
            })
            .collect(),
    }
}
