//! The daemon as its users meet it: the real binary, a child process on a free port, against stand-ins at the edge of
//! the network or the real tor. The names are the specification.

mod support;

mod accept;
mod config;
mod deliver;
mod disk;
mod explain;
mod rubbish;
mod scrape;
mod shutdown;
