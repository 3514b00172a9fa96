//! The frame of a benchmark that has limits.

use std::process::ExitCode;

use crate::Result;

/// Runs a benchmark; `run` says whether every figure is within its limit.
pub fn figures(run: impl Future<Output = Result<bool>>) -> ExitCode {
    // Cargo passes `--bench`; a run of all tests passes nothing, and has no use for a figure.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    match runtime.block_on(run) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            eprintln!("{trouble}");
            ExitCode::FAILURE
        }
    }
}
