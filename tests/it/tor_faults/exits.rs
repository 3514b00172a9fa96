//! One exit fails under a download: that costs an attempt, and no cut page is taken for a whole one.

use glaneur_kit::shop::{Conduct, Framing, HALFWAY_BYTES, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Gate, ShopKind, TorNetwork};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{assert_within_attempts, network};
use crate::support::{LONG, REAL, Stage, accepted, batch, until};
use crate::tor::{assert_only_exits_came, stage_behind};

const ATTEMPTS_MAX: u64 = 8;

/// The shops whose pages stop halfway, each with its way to show where a page ends.
const HALFWAY: [(ShopKind, Framing); 2] =
    [(ShopKind::Cocooncenter, Framing::Length), (ShopKind::Pharmagdd, Framing::Close)];

/// A product whose pages came halfway through this exit, the rest held by the gate.
async fn halfway_through(network: &TorNetwork, exit: usize, stage: &Stage, gate: &Gate) -> Daemon {
    network.use_exit(exit).await.unwrap();
    for (kind, framing) in HALFWAY {
        stage.shops.of(kind).behave(When::Pages, Conduct::Halfway(gate.clone(), framing));
    }
    let daemon = stage.start().await;
    let before = network.client_bytes_read().await.unwrap();
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    for (kind, _) in HALFWAY {
        let asks = |hits: &[glaneur_kit::shop::Hit]| hits.iter().any(|hit| hit.purpose == Purpose::Page);
        let hits = stage.shops.of(kind).wait_until(asks, LONG).await.unwrap();
        assert!(hits.iter().all(|hit| hit.local == network.exits()[exit].alias), "{hits:?}");
    }
    // Both halves are in the client, from where to the daemon there is only loopback.
    let halves = (HALFWAY.len() * HALFWAY_BYTES / 2) as u64;
    loop {
        let read = network.client_bytes_read().await.unwrap() - before;
        if read >= halves {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    until("the other shop is done", || {
        daemon.events("visit_ended").iter().any(|end| end["site"] == "drakkars" && end["outcome"] == "found")
    })
    .await;
    daemon
}

/// What the visits of a shop came to, in their order.
fn outcomes(daemon: &Daemon, kind: ShopKind) -> Vec<Value> {
    let ends = daemon.events("visit_ended");
    ends.iter().filter(|end| end["site"] == kind.name()).map(|end| end["outcome"].clone()).collect()
}

/// The same product once more, of shops and exits in good order.
async fn undisturbed(daemon: &Daemon, stage: &Stage) -> Value {
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    let mut body = batch([REAL[0]]);
    body["force"] = json!(true);
    accepted(daemon.submit(&body).await.unwrap());
    until("the second product", || stage.receiver.products().len() == 2).await;
    stage.receiver.products()[1]["data"].clone()
}

#[tokio::test]
async fn an_exit_killed_in_the_middle_of_a_page_costs_an_attempt_and_no_cut_page_is_taken() {
    const EXIT: usize = 0;
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::of([REAL[0]])).set("fetch", "attempts_max", ATTEMPTS_MAX);
    let gate = Gate::closed();
    let daemon = halfway_through(&network, EXIT, &stage, &gate).await;
    network.use_all_exits().await.unwrap();
    network.kill_exit(EXIT);
    for (kind, _) in HALFWAY {
        daemon.wait_for_event("visit_ended", |end| end["site"] == kind.name()).await.unwrap();
        assert_eq!(outcomes(&daemon, kind)[0], "truncated", "{kind:?}");
    }
    gate.open();
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(products[0]["data"], undisturbed(&daemon, &stage).await, "nothing of a page is missing");
    assert_eq!(products[0]["data"].as_object().unwrap().len(), 3);
    assert_within_attempts(&daemon, &stage, ATTEMPTS_MAX);
    assert_only_exits_came(&network, &stage);
    network.revive_exit(EXIT).await.unwrap();
}

#[tokio::test]
async fn an_exit_that_is_frozen_in_the_middle_of_a_page_costs_no_product() {
    const EXIT: usize = 1;
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::of([REAL[0]]))
        .set("fetch", "attempts_max", ATTEMPTS_MAX)
        .set("fetch", "silence_timeout", "8s")
        .set("fetch", "connect_timeout", "8s");
    let gate = Gate::closed();
    let daemon = halfway_through(&network, EXIT, &stage, &gate).await;
    network.signal_exit(EXIT, Signal::STOP).unwrap();
    network.avoid(EXIT).await.unwrap();
    for (kind, _) in HALFWAY {
        assert_eq!(outcomes(&daemon, kind), [json!(null); 0], "it is the frozen exit that is waited for");
    }
    gate.open();
    let (products, _) = stage.finished(1).await;
    network.signal_exit(EXIT, Signal::CONT).unwrap();
    assert_eq!(
        (&products[0]["status"], products[0]["data"].as_object().unwrap().len()),
        (&json!("found"), 3)
    );
    for (kind, _) in HALFWAY {
        let outcomes = outcomes(&daemon, kind);
        // Charged, unless no circuit of so small a network answered without that relay (rule 4).
        assert!(outcomes[0] == "timeout" || outcomes[0] == "put_back", "{kind:?}: {outcomes:?}");
    }
    assert_within_attempts(&daemon, &stage, ATTEMPTS_MAX);
    assert_only_exits_came(&network, &stage);
    network.mend().await.unwrap();
}
