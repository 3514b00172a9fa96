//! `glaneur generate DIR`: the files that are made from the program itself. For whoever builds a package; a test sees to
//! it that those in the repository are fresh.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::{Arguments, complain};
use crate::exit::Exit;
use crate::telemetry::catalogue;

pub fn run(dir: &Path) -> Exit {
    for (path, bytes) in files() {
        let path = dir.join(path);
        if let Err(error) = write(&path, &bytes) {
            complain(format_args!("cannot write {}: {error}", path.display()));
            return Exit::File;
        }
    }
    Exit::Ok
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, bytes)
}

/// All of them, with their places in the repository.
pub fn files() -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = vec![
        ("systemd/glaneur.catalog".into(), catalogue::journal().into_bytes()),
        ("docs/events.md".into(), catalogue::table().into_bytes()),
    ];
    files.extend(manuals());
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Arguments::command(), "glaneur", &mut script);
        let name = match shell {
            Shell::Zsh => "_glaneur",
            Shell::Fish => "glaneur.fish",
            _ => "glaneur.bash",
        };
        files.push((Path::new("completions").join(OsStr::new(name)), script));
    }
    files
}

/// A page for the program, with its exit codes, and one for each command.
fn manuals() -> Vec<(PathBuf, Vec<u8>)> {
    let mut command = Arguments::command().disable_help_subcommand(true);
    command.build(); // Gives the commands their full names.
    let mut pages = vec![("glaneur".to_owned(), page(&command) + &exit_codes())];
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("glaneur-{}", command.get_name());
        let parts = command.get_subcommands().map(|part| (format!("{name}-{}", part.get_name()), page(part)));
        pages.extend(parts);
        pages.push((name, page(command)));
    }
    let file =
        |(name, page): (String, String)| (Path::new("man").join(format!("{name}.1")), page.into_bytes());
    pages.into_iter().map(file).collect()
}

fn page(command: &Command) -> String {
    let mut page = Vec::new();
    // Writing to memory does not fail.
    let _ = clap_mangen::Man::new(command.clone()).render(&mut page);
    String::from_utf8_lossy(&page).into_owned()
}

fn exit_codes() -> String {
    let code = |exit: &Exit| format!(".TP\n\\fB{}\\fR\n{}\n", exit.code(), exit.meaning());
    format!(".SH \"EXIT STATUS\"\n{}", Exit::ALL.iter().map(code).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_files_in_the_repository_are_fresh() {
        for (path, bytes) in files() {
            let there = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path)).unwrap_or_default();
            assert!(there == bytes, "{} is old: run `cargo run -- generate .`", path.display());
        }
    }
}
