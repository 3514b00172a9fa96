//! The daemon under a service manager, which the test plays: what it tells, what it is handed, and when it falls silent.

mod sockets;
