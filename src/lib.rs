//! glaneur: a supervised scraping daemon. Barcodes in, one webhook per product out.

pub mod failpoint;
pub mod ingress;
pub mod ledger;
pub mod model;
pub mod supervisor;
pub mod telemetry;
