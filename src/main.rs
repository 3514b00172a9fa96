//! The binary: arguments → [`glaneur::cli`] → exit code. The only file that ends the process.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(glaneur::cli::run().code())
}
