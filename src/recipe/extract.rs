//! Page → fields.
use crate::model::Gtin;
use serde_json::{Map, Value};
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    pub fields: Map<String, Value>,
    pub gtins: Vec<Gtin>,
}
