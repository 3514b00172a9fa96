//! The command line: what a person types, and what the process answers with.

mod api;
mod check;
mod circuits;
mod explain;
mod find;
mod generate;
mod secrets;
mod serve;
mod tor;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::exit::Exit;

/// Looks product barcodes up on web shops through Tor, and sends one webhook per product.
#[derive(Debug, Parser)]
#[command(name = "glaneur", version, after_help = EXAMPLES)]
struct Arguments {
    /// Configuration; else $GLANEUR_CONFIG, else ./config.toml, else /etc/glaneur/config.toml
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon (the default)
    Serve,
    /// Checks the configuration and prints every mistake at once, as file:line:column
    Check,
    /// Tells the whole life of one product or batch, from the ledger
    Explain {
        /// A barcode, a batch_id, or a thread_id
        #[arg(value_name = "EAN|BATCH")]
        subject: String,
    },
    /// Shows each circuit of the running daemon: exit, age, latency, bytes, blocks by shop
    Circuits {
        /// Where the daemon listens, if not at `server.listen`
        #[arg(long, value_name = "ADDRESS:PORT")]
        at: Option<SocketAddr>,
        /// The answer of the API as it is
        #[arg(long)]
        json: bool,
    },
    /// Looks after Tor
    #[command(subcommand)]
    Tor(TorCommand),
    /// Writes manual page, completions, journal catalogue and table of events below a folder
    #[command(hide = true)]
    Generate {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum TorCommand {
    /// Lets tor attach streams by itself again, after a daemon with tor.binding = "strict" was killed
    Release {
        /// Says nothing where there is nothing to release, and passes over a configuration with mistakes
        #[arg(long)]
        quiet: bool,
    },
    /// Says whether Tor is there, bootstrapped, isolating, without Conflux, and which line of torrc mends what is wrong
    Check,
}

const EXAMPLES: &str = "\
Examples:
  glaneur check --config config.toml
  glaneur serve --config config.toml
  glaneur explain 0748322148474
  glaneur tor check
  glaneur circuits
  curl -d '{\"eans\": [{\"primary\": \"0748322148474\"}]}' -H 'Content-Type: application/json' \\
       http://127.0.0.1:8080/api/scrape";

/// Does what the arguments of the process say.
pub fn run() -> Exit {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let asked_for = !error.use_stderr(); // --help and --version are answers, not mistakes.
            // Nobody reads a closed pipe.
            let _ = error.print();
            return if asked_for { Exit::Ok } else { Exit::Usage };
        }
    };
    let config = arguments.config.as_deref();
    match arguments.command.unwrap_or(Command::Serve) {
        Command::Serve => serve::run(config),
        Command::Check => check::run(config),
        Command::Explain { subject } => explain::run(config, &subject),
        Command::Tor(TorCommand::Release { quiet }) => tor::release(config, quiet),
        Command::Circuits { at, json } => circuits::run(config, at, json),
        Command::Tor(TorCommand::Check) => tor::check(config),
        Command::Generate { dir } => generate::run(&dir),
    }
}

/// Says to a person why nothing was done.
fn complain(message: impl std::fmt::Display) {
    use std::io::Write;
    // Nobody reads a closed pipe.
    let _ = writeln!(std::io::stderr(), "glaneur: {message}");
}

/// Waits for what a command asks once.
fn wait_for<T>(answer: impl Future<Output = T>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => Ok(runtime.block_on(answer)),
        Err(error) => {
            complain(format_args!("cannot ask: {error}"));
            Err(Exit::Escalated)
        }
    }
}
