//! What glaneur's tests, benchmarks and demonstration need; never shipped.
//!
//! Everything stands at the edge of the daemon, on loopback, and breaks on request:
//!
//! ```text
//!              Receiver  (stands for n8n)
//!                 ▲ webhooks
//!   test ──▶ Daemon  (the real binary, a child process)
//!                 │ SOCKS5
//!        Proxy (misbehaves)  or  TorNetwork (the real tor: 1 authority, 3 exits, 1 client)
//!                 │ one address per exit
//!                 ▼
//!               Shop, Magento
//! ```
//!
//! What each of them saw is a list of [`records::Records`], which a test can wait on: nothing here sleeps and hopes.
//! Deliberately absent: any dependency on the glaneur crate. The kit knows the daemon as its users do.

mod apt;
mod trouble;

mod form;
pub mod gate;
pub mod records;

mod server;

pub mod client;
pub mod clock;
pub mod daemon;
pub mod figures;
pub mod magento;
pub mod manager;
pub mod proxy;
pub mod receiver;
pub mod shop;
pub mod systemd;
pub mod tor;
pub mod town;

pub use clock::WallClock;
pub use daemon::{Config, Daemon};
pub use figures::figures;
pub use gate::Gate;
pub use magento::Magento;
pub use manager::Manager;
pub use proxy::Proxy;
pub use receiver::Receiver;
pub use shop::{Catalogue, Shop, ShopKind, Shops};
pub use tor::{TorNetwork, ensure_tor};
pub use town::Town;
pub use trouble::{Because, Result, Trouble};
