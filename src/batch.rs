//! A batch at work: who claims its products, asks for their visits, and gathers them into outcomes.

mod actor;
pub mod machine;
mod settings;
pub mod supervisor;
#[cfg(test)]
mod tests;

pub use settings::Settings;
pub use supervisor::{Batches, BatchesHandle};
