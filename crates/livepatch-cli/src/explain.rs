//! `explain`: the long text about a finding. Both tools have it.

use crate::exit::{Exit, Failure};
use crate::output::Outcome;
use livepatch_build::findings;
use serde_json::json;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// Code of a finding, such as LP0001.
    code: String,
}

/// Looks the code up.
pub(crate) fn run(args: &ExplainArgs) -> Result<Outcome, Failure> {
    let Some(text) = findings::explain(&args.code) else {
        let known: Vec<String> = findings::rules::ALL.iter().map(|rule| rule.code.to_string()).collect();
        return Err(Failure::new(Exit::Usage, format!("there is no finding `{}`", args.code))
            .help(format!("known are {}", known.join(", "))));
    };
    let code = args.code.to_ascii_uppercase();
    Ok(Outcome {
        exit: Exit::Done,
        json: json!({"code": code, "text": text}),
        human: format!("{code}\n\n{}", text.trim()),
    })
}
