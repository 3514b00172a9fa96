//! `glaneur-kit demo`: the main job, end to end. `./demo` at the root of the repository builds what it needs and runs it.
#![allow(clippy::print_stdout, reason = "what these commands print is what they are for")]

mod demo;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use glaneur_kit::{Result, Trouble};

/// Shows glaneur on this machine, with a private Tor network.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the main job end to end: the daemon, real tor, three shops, a receiver, the real batch of eight.
    Demo {
        /// The daemon to run.
        #[arg(long)]
        bin: PathBuf,
    },
}

fn main() -> ExitCode {
    let Command::Demo { bin } = Arguments::parse().command;
    match run_demo(&bin) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            eprintln!("error: {trouble}");
            ExitCode::FAILURE
        }
    }
}

fn run_demo(bin: &Path) -> Result<()> {
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
