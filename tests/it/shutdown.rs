//! A signal drains; a second one ends at once; nothing that was committed is lost.

use glaneur_kit::Gate;
use glaneur_kit::receiver::Answer;
use glaneur_kit::shop::{Conduct, When};

use crate::support::{LONG, REAL, Stage, accepted, batch};

#[tokio::test]
async fn sigterm_finishes_the_visit_and_the_delivery_in_flight() {
    let stage = Stage::real_batch();
    let (shop_gate, hook_gate) = (Gate::closed(), Gate::closed());
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&shop_gate));
    stage.receiver.behave(Answer::Started.held(&hook_gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    stage.shops.all[0].wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();
    daemon.term().unwrap();
    daemon.wait_for_event("drain_started", |_| true).await.unwrap();
    shop_gate.open();
    hook_gate.open();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    assert_eq!(daemon.events("product_ended").len(), 1, "the visit in flight ended as an outcome");
    daemon.restart().await.unwrap();
    stage.finished(1).await;
}

#[tokio::test]
async fn a_visit_longer_than_the_drain_is_put_back_uncharged_and_goes_on_at_the_next_start() {
    let stage = Stage::real_batch().set("shutdown", "drain", "1s").set("fetch", "attempts_max", 1);
    stage.shops.behave(&When::Pages, &Conduct::Silent);
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    stage.shops.all[0].wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    daemon.restart().await.unwrap();
    assert_eq!(daemon.events("deaths_charged").len(), 0);
    let (products, _) = stage.finished(8).await;
    assert!(products.iter().all(|product| product["status"] != "failed"), "no attempt was charged");
}

#[tokio::test]
async fn a_second_sigterm_ends_at_once_and_loses_nothing() {
    let stage = Stage::real_batch();
    stage.shops.behave(&When::Pages, &Conduct::Silent);
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    stage.shops.all[0].wait_until(|hits| hits.len() >= 2, LONG).await.unwrap();
    daemon.term().unwrap();
    daemon.wait_for_event("drain_started", |_| true).await.unwrap();
    daemon.term().unwrap();
    assert_eq!(daemon.wait_exit().await.unwrap(), i32::from(glaneur::exit::Exit::Cut.code()));
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    daemon.restart().await.unwrap();
    assert_eq!(daemon.events("deaths_charged").len(), 0, "a stop that was asked for is nobody's fault");
    stage.finished(8).await;
}
