//! glaneur: a supervised scraping daemon. Barcodes in, one webhook per product out.

pub mod model;
pub mod scraper;
