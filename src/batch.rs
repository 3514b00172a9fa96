//! A batch at work: who claims its products, asks for their visits, and gathers them into outcomes.

pub mod machine;
