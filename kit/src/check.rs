//! The gate: the same steps here and in CI, in order, up to the first that fails.

use std::{path::Path, process::Command, time::Instant};

use glaneur_kit::{Because, Result, Trouble, ensure_tor};

/// Arguments of cargo, and an environment variable, for each step after `ensure_tor`.
const STEPS: [(&str, Option<(&str, &str)>); 4] = [
    ("fmt --all --check", None),
    ("clippy --workspace --all-targets --locked -- -D warnings", None),
    ("doc --workspace --no-deps --document-private-items --locked", Some(("RUSTDOCFLAGS", "-D warnings"))),
    ("test --workspace --locked", None),
];

/// Runs all steps.
pub(crate) fn run() -> Result<()> {
    let begun = Instant::now();
    step("tor", ensure_tor)?;
    for (arguments, variable) in STEPS {
        step(&format!("cargo {arguments}"), || cargo(arguments, variable))?;
    }
    println!("All passed in {:.1} s.", begun.elapsed().as_secs_f64());
    Ok(())
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("==> {name}");
    let begun = Instant::now();
    run()?;
    println!("    passed in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(arguments: &str, variable: Option<(&str, &str)>) -> Result<()> {
    let status = command().args(arguments.split(' ')).envs(variable).status();
    let status = status.because(format_args!("run cargo {arguments}"))?;
    if status.success() { Ok(()) } else { Err(Trouble::new(format!("cargo {arguments} failed ({status})"))) }
}

/// Cargo, at the root of the workspace.
pub(crate) fn command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// The root of the workspace this was built from.
pub(crate) fn root() -> &'static Path {
    let kit = Path::new(env!("CARGO_MANIFEST_DIR"));
    kit.parent().unwrap_or(kit)
}
