//! Which configuration a command uses, and what is wrong with it.

use std::path::{Path, PathBuf};

use super::complain;
use super::secrets::{CREDENTIALS, Secrets};
use crate::config::{self, Config};
use crate::exit::Exit;

/// A configuration, and where it was found.
#[derive(Debug)]
pub struct Found {
    pub path: PathBuf,
    pub config: Config,
}

impl Found {
    /// Says what is wrong with a file that it names, or with what it leads to.
    pub fn complain(&self, what: impl std::fmt::Display) {
        complain(format_args!("{what} (configuration: {})", self.path.display()));
    }
}

/// A configuration that is right in every part, with what the files that it names hold.
#[derive(Debug)]
pub struct Loaded {
    pub path: PathBuf,
    pub config: Config,
    pub secrets: Secrets,
}

/// Why a configuration is not taken: every mistake, most of them as `file:line:column: …`.
#[derive(Debug)]
pub struct Refusal {
    pub problems: Vec<String>,
    pub exit: Exit,
}

/// The configuration alone, for commands that need no secret and may not be allowed to read one.
pub fn config(argument: Option<&Path>) -> Result<Found, Exit> {
    let path = path(argument)?;
    match read(&path) {
        Ok((_, config)) => Ok(Found { path, config }),
        Err(refusal) => Err(complain_of(&path, &refusal)),
    }
}

/// As [`config()`], without a word on what is wrong with it.
pub fn config_if_right(argument: Option<&Path>) -> Result<Found, Exit> {
    let path = path(argument)?;
    let (_, config) = read(&path).map_err(|refusal| refusal.exit)?;
    Ok(Found { path, config })
}

/// What the daemon would take, found where `argument` or the usual places say.
pub fn load(argument: Option<&Path>) -> Result<Loaded, Exit> {
    let path = path(argument)?;
    load_at(&path).map_err(|refusal| complain_of(&path, &refusal))
}

/// What the daemon would take: the very same check for `check`, the start and a reload.
pub fn load_at(path: &Path) -> Result<Loaded, Refusal> {
    let (text, config) = read(path)?;
    let credentials = std::env::var_os(CREDENTIALS).map(PathBuf::from);
    let place = (&*path.to_string_lossy(), text.as_str());
    match Secrets::read(&config, place, credentials.as_deref()) {
        Ok(secrets) => Ok(Loaded { path: path.to_owned(), config, secrets }),
        Err(troubles) => {
            let unreadable = troubles.iter().all(|trouble| trouble.exit == Exit::File);
            let problems = troubles.iter().map(|trouble| trouble.problem.to_string()).collect();
            Err(Refusal { problems, exit: if unreadable { Exit::File } else { Exit::Config } })
        }
    }
}

fn read(path: &Path) -> Result<(String, Config), Refusal> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Refusal { problems: vec![format!("{name}: {error}")], exit: Exit::Config })?;
    match config::parse(&name, &text) {
        Ok(config) => Ok((text, config)),
        Err(problems) => {
            let problems = problems.iter().map(ToString::to_string).collect();
            Err(Refusal { problems, exit: Exit::Config })
        }
    }
}

fn complain_of(path: &Path, refusal: &Refusal) -> Exit {
    for problem in &refusal.problems {
        complain(problem);
    }
    if let n @ 2.. = refusal.problems.len() {
        complain(format_args!("{n} mistakes in {}", path.display()));
    }
    refusal.exit
}

fn path(argument: Option<&Path>) -> Result<PathBuf, Exit> {
    if let Some(path) = argument {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os("GLANEUR_CONFIG").filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let usual = ["config.toml", "/etc/glaneur/config.toml"].map(PathBuf::from);
    usual.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        complain(
            "no configuration: neither --config nor $GLANEUR_CONFIG is given, and there is no ./config.toml or \
             /etc/glaneur/config.toml",
        );
        Exit::Config
    })
}
