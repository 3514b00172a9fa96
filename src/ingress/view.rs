//! A batch as `GET /api/batches/{id}` shows it. Pure.

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::ledger::store::{BatchView, DeliveryView, ProductState, ProductView};
use crate::model::Reason;
use crate::model::batch::{SiteName, Status};
use crate::model::delivery::DeliveryState;
use crate::wall::format_ms;

#[derive(Serialize)]
struct Batch<'a> {
    batch_id: &'a str,
    thread_id: i64,
    status: &'static str,
    accepted_at: String,
    ended_at: Option<String>,
    total_products: u32,
    counts: Map<String, Value>,
    deliveries: Map<String, Value>,
    sites: &'a [SiteName],
    ignored_3400: &'a [String],
    webhook_url: Option<&'a str>,
    callback_url: Option<&'a str>,
    metadata: &'a RawValue,
    /// Empty until the summary is released, or where nobody wants one.
    summaries: Vec<Delivery<'a>>,
    products: Vec<Product<'a>>,
    /// The next page of `products`, until the last.
    next: Option<String>,
}

#[derive(Serialize)]
struct Product<'a> {
    index: u32,
    ean: &'a str,
    replacement: Option<&'a str>,
    duplicate_of: Option<u32>,
    state: &'static str,
    /// The `status` of its webhook, once it ended.
    status: Option<&'static str>,
    reason: Option<&'a Reason>,
    note: Option<&'a str>,
    ended_at: Option<String>,
    delivery: Option<Delivery<'a>>,
}

#[derive(Serialize)]
struct Delivery<'a> {
    webhook_id: &'a str,
    endpoint: &'a str,
    state: &'static str,
    attempts: u32,
    due_at: Option<String>,
    last_attempt_at: Option<String>,
    last_status: Option<u16>,
    last_detail: Option<&'a str>,
}

/// The body of the answer. `page` holds at most `limit` products.
pub fn batch(batch: &BatchView, summaries: &[DeliveryView], page: &[ProductView], limit: u32) -> Vec<u8> {
    let last_shown = page.last().map_or(batch.total, |product| product.index);
    let more = last_shown < batch.total && limit > 0;
    super::wire::to_json(&Batch {
        batch_id: batch.batch_id.as_str(),
        thread_id: batch.no.0,
        status: if batch.ended_at_ms.is_some() { "ended" } else { "processing" },
        accepted_at: format_ms(batch.accepted_at_ms),
        ended_at: batch.ended_at_ms.map(format_ms),
        total_products: batch.total,
        counts: counts(batch),
        deliveries: tally(DeliveryState::ALL.map(DeliveryState::as_str), batch.deliveries),
        sites: &batch.sites,
        ignored_3400: &batch.ignored_3400,
        webhook_url: batch.webhook_url.as_deref().map(without_query),
        callback_url: batch.callback_url.as_deref().map(without_query),
        metadata: metadata(batch),
        summaries: summaries.iter().map(delivery).collect(),
        products: page.iter().map(product).collect(),
        next: more.then(|| format!("/api/batches/{}?after={last_shown}&limit={limit}", batch.batch_id)),
    })
}

/// They add up to the total.
fn counts(batch: &BatchView) -> Map<String, Value> {
    let mut counts = tally(["queued", "claimed"], [batch.queued, batch.claimed]);
    counts.append(&mut tally(Status::ALL.map(Status::as_str), batch.ended));
    counts
}

fn tally<const N: usize>(names: [&str; N], numbers: [u32; N]) -> Map<String, Value> {
    names.into_iter().zip(numbers).map(|(name, number)| (name.to_owned(), number.into())).collect()
}

fn metadata(batch: &BatchView) -> &RawValue {
    let sent = batch.metadata.as_deref().and_then(|text| serde_json::from_str(text).ok());
    sent.or_else(|| serde_json::from_str("{}").ok()).unwrap_or(RawValue::NULL)
}

fn product(view: &ProductView) -> Product<'_> {
    let (state, status) = match view.state {
        ProductState::Queued => ("queued", None),
        ProductState::Claimed => ("claimed", None),
        ProductState::Ended(status) => ("ended", Some(status.as_str())),
    };
    Product {
        index: view.index,
        ean: &view.ean,
        replacement: view.replacement.as_deref(),
        duplicate_of: view.duplicate_of,
        state,
        status,
        reason: view.reason.as_ref(),
        note: view.note.as_deref(),
        ended_at: view.ended_at_ms.map(format_ms),
        delivery: view.delivery.as_ref().map(delivery),
    }
}

fn delivery(view: &DeliveryView) -> Delivery<'_> {
    Delivery {
        webhook_id: &view.webhook_id,
        endpoint: view.endpoint.for_log(),
        state: view.state.as_str(),
        attempts: view.attempts,
        due_at: (view.state == DeliveryState::Waiting).then(|| format_ms(view.due_at_ms)),
        last_attempt_at: view.last_attempt_at_ms.map(format_ms),
        last_status: view.last_status,
        last_detail: view.last_detail.as_deref(),
    }
}

/// The query of a URL may be a secret, such as the signature of an n8n resume URL.
fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::delivery::Endpoint;
    use crate::model::{BatchId, BatchNo};

    fn view() -> BatchView {
        BatchView {
            no: BatchNo(42),
            batch_id: BatchId::from_text("b"),
            accepted_at_ms: 1_760_695_200_000,
            ended_at_ms: None,
            total: 3,
            queued: 1,
            claimed: 1,
            ended: [1, 0, 0, 0, 0, 0, 0, 0],
            deliveries: [0, 1, 0, 0, 0, 0],
            sites: vec!["alpha".into()],
            ignored_3400: Vec::new(),
            callback_url: Some("http://n8n:5678/webhook-waiting/7?signature=secret".into()),
            webhook_url: None,
            metadata: Some(r#"{"a": 1.50}"#.into()),
            summary_released: false,
        }
    }

    fn ended(index: u32) -> ProductView {
        ProductView {
            batch_id: BatchId::from_text("b"),
            index,
            ean: "0748322148474".into(),
            replacement: None,
            duplicate_of: None,
            note: None,
            state: ProductState::Ended(Status::Found),
            reason: None,
            deaths: 0,
            ended_at_ms: Some(1_760_695_261_234),
            delivery: Some(DeliveryView {
                no: crate::model::delivery::DeliveryNo(1),
                webhook_id: "msg_b_1".into(),
                endpoint: Endpoint::Url("http://n8n:5678/p?token=secret".into()),
                state: DeliveryState::Taken,
                attempts: 1,
                due_at_ms: 0,
                last_attempt_at_ms: Some(1_760_695_262_000),
                last_status: Some(200),
                last_detail: None,
            }),
            body: None,
        }
    }

    #[test]
    fn a_batch_tells_its_counts_its_products_and_the_next_page_but_no_query() {
        let text = String::from_utf8(batch(&view(), &[], &[ended(1)], 1)).unwrap();
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains(r#""metadata":{"a": 1.50}"#), "as it was sent");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["status"], "processing");
        assert_eq!(value["accepted_at"], "2025-10-17T10:00:00Z");
        assert_eq!(value["next"], "/api/batches/b?after=1&limit=1");
        let sum: u64 = value["counts"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(sum, 3, "the counts add up to the total");
        assert_eq!(value["deliveries"]["taken"], 1);
        assert_eq!(value["products"][0]["state"], "ended");
        assert_eq!(value["products"][0]["status"], "found");
        assert_eq!(value["products"][0]["delivery"]["state"], "taken");
        assert_eq!(value["products"][0]["delivery"]["endpoint"], "http://n8n:5678/p");
    }

    #[test]
    fn the_last_page_has_no_next() {
        for (page, limit) in [(vec![ended(3)], 100), (vec![], 100), (vec![], 0)] {
            let value: Value = serde_json::from_slice(&batch(&view(), &[], &page, limit)).unwrap();
            assert_eq!(value["next"], Value::Null);
        }
    }
}
