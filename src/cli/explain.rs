//! `glaneur explain EAN|BATCH`: the whole life of one product or batch, from the ledger, in a screenful.
//!
//! Reads beside a running daemon; never writes.

use std::fmt::Write;
use std::path::Path;

use serde_json::Value;

use super::{complain, find};
use crate::exit::Exit;
use crate::ledger::sqlite;
use crate::ledger::store::{BatchView, DeliveryView, ProductState, ProductView, Read, StoreError};
use crate::model::delivery::DeliveryState;
use crate::model::{Gtin, Status};
use crate::wall::format_ms;

/// The latest lives of one barcode that are told; more fit no screen.
const LIVES_MAX: u32 = 3;
/// Products of a batch that are listed; the rest are counted.
const PRODUCTS_MAX: u32 = 30;

pub fn run(config: Option<&Path>, subject: &str) -> Exit {
    let found = match find::config(config) {
        Ok(found) => found,
        Err(exit) => return exit,
    };
    let path = &found.config.ledger.path;
    let mut ledger = match sqlite::open_read_only(path) {
        Ok(ledger) => ledger,
        Err(error) => {
            complain(format_args!("{}: {error} (configuration: {})", path.display(), found.path.display()));
            return Exit::File;
        }
    };
    match explain(&mut ledger, subject) {
        Ok(Some(story)) => {
            use std::io::Write;
            // Nobody reads a closed pipe.
            let _ = std::io::stdout().write_all(story.as_bytes());
            Exit::Ok
        }
        Ok(None) => {
            complain(format_args!("nothing about {subject:?} in {}", path.display()));
            Exit::No
        }
        Err(error) => {
            complain(format_args!("{}: {error}", path.display()));
            Exit::File
        }
    }
}

/// A batch by its name or number, else the latest lives of a barcode.
fn explain(ledger: &mut dyn Read, subject: &str) -> Result<Option<String>, StoreError> {
    if let Some(batch) = ledger.batch(subject)? {
        return batch_story(ledger, &batch).map(Some);
    }
    let Ok(gtin) = Gtin::parse(subject) else { return Ok(None) };
    let lives = ledger.products_by_gtin(&gtin.to_gtin14(), LIVES_MAX)?;
    let stories =
        lives.iter().map(|product| product_story(ledger, product)).collect::<Result<Vec<_>, _>>()?;
    Ok((!stories.is_empty()).then(|| stories.join("\n")))
}

fn product_story(ledger: &mut dyn Read, product: &ProductView) -> Result<String, StoreError> {
    let batch = ledger.batch(product.batch_id.as_str())?;
    let mut story = String::new();
    let total = batch.as_ref().map_or(0, |batch| batch.total);
    line(
        &mut story,
        &product.ean,
        format_args!("product {} of {total} in batch {}", product.index, product.batch_id),
    );
    if let Some(batch) = &batch {
        line(&mut story, "  accepted", format_ms(batch.accepted_at_ms));
        line(&mut story, "  shops", batch.sites.join(", "));
    }
    if let Some(replacement) = &product.replacement {
        line(&mut story, "  replacement", replacement);
    }
    if let Some(of) = product.duplicate_of {
        line(&mut story, "  duplicate of", format_args!("product {of}: one visit for both, ends with it"));
    }
    if let Some(note) = &product.note {
        line(&mut story, "  note", note);
    }
    if product.deaths > 0 {
        line(&mut story, "  deaths", format_args!("{} of the process while it was visited", product.deaths));
    }
    line(&mut story, "  state", state_words(product));
    if let Some(body) = product.body.as_deref().and_then(|body| serde_json::from_str::<Value>(body).ok()) {
        outcome_lines(&mut story, &body);
    }
    if let Some(delivery) = &product.delivery {
        delivery_lines(&mut story, delivery);
    }
    Ok(story)
}

fn state_words(product: &ProductView) -> String {
    match product.state {
        ProductState::Queued => "queued".into(),
        ProductState::Claimed => "being looked up".into(),
        ProductState::Ended(status) => {
            let at = product.ended_at_ms.map(format_ms).unwrap_or_default();
            let reason =
                product.reason.as_ref().map(|reason| format!(": {} ({})", reason.detail, reason.kind));
            format!("{} at {at}{}", status.as_str(), reason.unwrap_or_default())
        }
    }
}

fn outcome_lines(story: &mut String, body: &Value) {
    if let Some(ms) = body["duration_ms"].as_u64().filter(|ms| *ms > 0) {
        line(story, "  took", format_args!("{ms} ms from the first dial"));
    }
    for (site, object) in body["data"].as_object().into_iter().flatten() {
        let field = |name: &str| object[name].as_str().unwrap_or("-");
        line(
            story,
            &format!("  {site}"),
            format_args!("{}  {}  {}", field("prix"), field("titre"), field("url")),
        );
    }
    for (site, error) in body["errors"].as_object().into_iter().flatten() {
        let field = |name: &str| error[name].as_str().unwrap_or("-");
        line(story, &format!("  {site}"), format_args!("{}: {}", field("kind"), field("detail")));
    }
}

fn delivery_lines(story: &mut String, delivery: &DeliveryView) {
    let endpoint = delivery.endpoint.for_log();
    line(story, "  webhook", format_args!("{} to {endpoint}", delivery.webhook_id));
    let attempts = match delivery.attempts {
        1 => "1 attempt".to_owned(),
        n => format!("{n} attempts"),
    };
    let last = delivery.last_attempt_at_ms.map(|at| {
        let status = delivery.last_status.map(|status| format!(" status {status}")).unwrap_or_default();
        let detail = delivery.last_detail.as_deref().filter(|detail| !detail.is_empty());
        let detail = detail.map(|detail| format!(": {}", first_line(detail))).unwrap_or_default();
        format!(", last at {}{status}{detail}", format_ms(at))
    });
    let due = (delivery.state == DeliveryState::Waiting)
        .then(|| format!(", next at {}", format_ms(delivery.due_at_ms)));
    let (last, due) = (last.unwrap_or_default(), due.unwrap_or_default());
    line(story, "  delivery", format_args!("{}, {attempts}{last}{due}", delivery.state.as_str()));
}

/// A refusal may carry a page; its first words are enough here.
fn first_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.chars().take(120).collect()
}

fn batch_story(ledger: &mut dyn Read, batch: &BatchView) -> Result<String, StoreError> {
    let mut story = String::new();
    line(&mut story, batch.batch_id.as_str(), format_args!("batch {}, {} products", batch.no.0, batch.total));
    line(&mut story, "  accepted", format_ms(batch.accepted_at_ms));
    let ended = batch.ended_at_ms.map_or_else(|| "not yet".to_owned(), format_ms);
    line(&mut story, "  ended", ended);
    line(&mut story, "  shops", batch.sites.join(", "));
    line(&mut story, "  open", format_args!("{} queued, {} being looked up", batch.queued, batch.claimed));
    line(
        &mut story,
        "  outcomes",
        counted(Status::ALL.iter().map(|status| status.as_str()).zip(batch.ended)),
    );
    let states = DeliveryState::ALL.iter().map(|state| state.as_str());
    line(&mut story, "  webhooks", counted(states.zip(batch.deliveries)));
    for summary in ledger.summaries(batch.no)? {
        delivery_lines(&mut story, &summary);
    }
    let products = ledger.products(batch.no, 0, PRODUCTS_MAX)?;
    for product in &products {
        line(&mut story, &format!("  {:>4} {}", product.index, product.ean), state_words(product));
    }
    let listed = products.len() as u32;
    if batch.total > listed {
        line(&mut story, "", format_args!("and {} more products", batch.total - listed));
    }
    Ok(story)
}

fn counted<'a>(counts: impl Iterator<Item = (&'a str, u32)>) -> String {
    let words: Vec<_> = counts.filter(|(_, n)| *n > 0).map(|(word, n)| format!("{n} {word}")).collect();
    if words.is_empty() { "none".into() } else { words.join(", ") }
}

fn line(story: &mut String, label: &str, text: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(story, "{label:<20} {text}");
}
