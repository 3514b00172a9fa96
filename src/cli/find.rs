//! Which configuration a command uses, and what is wrong with it.

use std::path::{Path, PathBuf};

use super::complain;
use crate::config::{self, Config};
use crate::exit::Exit;

/// A configuration, and where it was found.
#[derive(Debug)]
pub struct Found {
    pub path: PathBuf,
    pub config: Config,
}

/// Looks at `--config`, `$GLANEUR_CONFIG`, `./config.toml`, `/etc/glaneur/config.toml`, in this order; complains of every
/// mistake at once.
pub fn config(argument: Option<&Path>) -> Result<Found, Exit> {
    let path = path(argument)?;
    let text = std::fs::read_to_string(&path).map_err(|error| {
        complain(format_args!("{}: {error}", path.display()));
        Exit::Config
    })?;
    match config::parse(&path.display().to_string(), &text) {
        Ok(config) => Ok(Found { path, config }),
        Err(problems) => {
            for problem in &problems {
                complain(problem);
            }
            let s = if problems.len() == 1 { "" } else { "s" };
            complain(format_args!("{} mistake{s} in {}", problems.len(), path.display()));
            Err(Exit::Config)
        }
    }
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
