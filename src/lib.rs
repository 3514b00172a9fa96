//! glaneur: a supervised scraping daemon. Barcodes in, one webhook per product out.

pub mod batch;
pub mod failpoint;
pub mod ledger;
pub mod model;
pub mod scraper;
pub mod supervisor;
pub mod telemetry;
