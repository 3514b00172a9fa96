//! glaneur: a supervised scraping daemon. Barcodes in, one webhook per product out.

pub mod batch;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod exit;
pub mod failpoint;
pub mod ingress;
pub mod ledger;
pub mod markup;
pub mod model;
pub mod recipe;
pub mod scraper;
pub mod supervisor;
pub mod systemd;
pub mod telemetry;
pub mod wall;
pub mod watchdog;
pub mod webhook;
