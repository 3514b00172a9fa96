//! Shops at `.onion` addresses.

use glaneur_kit::{Catalogue, ShopKind};

use super::network;
use crate::support::{REAL, accepted, batch};
use crate::tor::stage_behind;

/// A well-formed address whose service was never there.
pub const NOBODY: &str = "zj6nbzpgnknvpshmak7k3jryu4vdv5pv6vzsalbf7d77eaqczklxehqd.onion";

#[tokio::test]
async fn an_onion_shop_is_visited_like_any_other_and_one_that_is_gone_says_so() {
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::of(REAL)).set("fetch", "attempts_max", 2);
    let shop = stage.shops.of(ShopKind::Cocooncenter);
    // An exit cannot have this address: only the service leads there.
    let behind = network.aliases()[1];
    let onion = network.open_onion((behind, shop.port()).into()).await.unwrap();
    let base = format!("http://{}", onion.host());
    let stage = stage
        .set("sites.cocooncenter", "base", base.clone())
        .set("sites.pharmagdd", "base", format!("http://{NOBODY}"))
        // The search itself is to meet its absence, not the question for leave.
        .set("sites.pharmagdd", "robots", false)
        .set("sites.drakkars", "enabled", false);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let (products, summary) = stage.finished(REAL.len()).await;
    assert_eq!(summary["counts"]["found"], 8, "{summary}");
    for product in &products {
        let url = product["data"]["cocooncenter"]["url"].as_str().unwrap();
        assert!(url.starts_with(&base), "{url}");
        let gone = &product["errors"]["pharmagdd"];
        // By tor's extended code 0xF0: a proxy without it would have said a general failure.
        let detail = gone["detail"].as_str().unwrap();
        assert!(gone["kind"] == "connect" && detail.contains("0xF0"), "{gone}");
    }
    let hits = stage.shops.of(ShopKind::Cocooncenter).hits();
    assert!(hits.len() >= 2 * REAL.len() && hits.iter().all(|hit| hit.local == behind), "{hits:?}");
    assert!(
        network.dns().queries().with(|queries| queries.iter().all(|query| !query.name.ends_with("onion"))),
        "not even an exit is asked for an onion name"
    );
    assert_eq!(daemon.events("tor_lost").len(), 0, "a service that is gone is not Tor's absence");
    onion.close().await.unwrap();
}
