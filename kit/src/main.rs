//! The project's own commands: `demo` shows the main job end to end, `check` is the gate before a commit and in CI.
#![allow(clippy::print_stdout, reason = "what these commands print is what they are for")]

mod check;
mod demo;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use glaneur_kit::{Result, Trouble};

/// Shows and checks glaneur on this machine, with a private Tor network.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the main job end to end: the daemon, real tor, three shops, a receiver, the real batch of eight.
    Demo {
        /// The daemon to run; without it, one is built first.
        #[arg(long)]
        bin: Option<PathBuf>,
    },
    /// Runs everything a change must pass: format, lints, documentation, tests.
    Check,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Demo { bin } => run_demo(bin),
        Command::Check => check::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("error: {trouble}");
            ExitCode::FAILURE
        }
    }
}

fn run_demo(bin: Option<PathBuf>) -> Result<()> {
    use glaneur_kit::Because;
    let runtime = tokio::runtime::Runtime::new().because("start a runtime")?;
    runtime.block_on(async {
        // Whatever was started is ended by being dropped, also when a person has seen enough.
        tokio::select! {
            done = demo::run(bin) => done,
            _ = tokio::signal::ctrl_c() => Err(Trouble::new("interrupted")),
        }
    })
}
