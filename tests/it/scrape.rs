//! From shops to outcomes.

use glaneur_kit::ShopKind;
use glaneur_kit::magento::{Magento, Mood};
use glaneur_kit::shop::{Conduct, Purpose, When};
use serde_json::json;

use crate::support::{REAL, Stage, accepted, batch, stocked};

#[tokio::test]
async fn the_real_batch_ends_as_it_should() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    accepted(daemon.submit(&glaneur_kit::shop::catalogue::real_batch_body()).await.unwrap());
    let (products, summary) = stage.finished(8).await;
    let statuses: Vec<_> = products.iter().map(|product| product["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["found", "found", "found", "found", "found", "found", "found", "not_found"]);
    assert_eq!(products[3]["used_replacement"], true);
    for object in products[3]["data"].as_object().unwrap().values() {
        assert_eq!(object["original_ean"], REAL[3]);
    }
    let confused = &products[4];
    assert!(confused["data"].get("cocooncenter").is_none(), "its search gives only another product");
    assert_eq!(confused["errors"]["cocooncenter"]["kind"], "ean_mismatch");
    assert_eq!(confused["data"]["drakkars"]["reference"], REAL[4], "the second candidate is the right one");
    assert_eq!(summary["total_products"], 8);
    assert_eq!(summary["counts"]["found"], 7);
    assert_eq!(summary["deliveries"]["taken"], 8);
    daemon.term().unwrap();
}

#[tokio::test]
async fn a_search_that_gives_only_another_product_ends_as_ean_mismatch_and_never_as_data() {
    let stage = Stage::real_batch().only(ShopKind::Cocooncenter);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[4]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "ean_mismatch");
    assert_eq!(products[0]["data"], json!({}));
    assert!(products[0]["reason"]["detail"].as_str().unwrap().contains("3665606002406"));
}

#[tokio::test]
async fn a_failed_shop_makes_failed_only_where_no_other_shop_has_the_product() {
    let stage = Stage::real_batch();
    stage.shops.of(ShopKind::Pharmagdd).behave(When::Always, Conduct::Status(500));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0], REAL[7]])).await.unwrap());
    let (products, summary) = stage.finished(2).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(products[0]["errors"]["pharmagdd"]["kind"], "status");
    assert_eq!(products[1]["status"], "failed");
    assert_eq!(products[1]["reason"]["kind"], "status");
    assert_eq!(summary["failed"][0]["ean"], REAL[7]);
}

#[tokio::test]
async fn each_hostile_shop_costs_one_visit_with_its_kind_and_the_rest_is_unharmed() {
    for (conduct, kind) in [
        (Conduct::Silent, "timeout"),
        (Conduct::Drip(std::time::Duration::from_millis(100)), "timeout"),
        (Conduct::Endless, "too_large"),
        (Conduct::GzipBomb, "too_large"),
        (Conduct::NestedDivs, "too_slow or too_deep"),
        (Conduct::RedirectLoop, "redirect"),
        (Conduct::RedirectTo("http://127.0.0.2:9/".into()), "redirect"),
        (Conduct::CutShort, "truncated"),
        (Conduct::Truncated, "truncated"),
        (Conduct::Reset, "connect"),
        (Conduct::Status(403), "blocked"),
    ] {
        let stage = Stage::direct(stocked(&[REAL[0], REAL[1]]))
            .set("fetch", "attempts_max", 1)
            .set("fetch", "first_byte_timeout", "3s")
            .set("fetch", "silence_timeout", "3s")
            .set("fetch", "visit_deadline", "8s");
        let about = REAL[0];
        let hit = When::is(move |hit| hit.is_about(about) && hit.purpose == Purpose::Page);
        stage.shops.of(ShopKind::Drakkars).behave(hit, conduct.clone());
        let daemon = stage.start().await;
        accepted(daemon.submit(&batch([REAL[0], REAL[1]])).await.unwrap());
        let (products, _) = stage.finished(2).await;
        let told = products[0]["errors"]["drakkars"]["kind"].as_str().unwrap_or("none");
        assert!(kind.contains(told), "{conduct:?}: {told}, expected {kind}");
        assert_eq!(products[0]["data"].as_object().unwrap().len(), 2, "{conduct:?}: the other shops");
        assert_eq!(products[1]["data"].as_object().unwrap().len(), 3, "{conduct:?}: the other product");
    }
}

/// As Magento 2 wants to be asked.
fn question(magento: &Magento) -> String {
    let filter = "searchCriteria[filter_groups][0][filters][0]";
    format!("{}?{filter}[field]=ean&{filter}[value]={{ean}}&{filter}[condition_type]=eq", magento.url())
}

#[tokio::test]
async fn the_catalogues_no_ends_a_product_and_its_error_is_retried_and_never_a_no() {
    let magento = Magento::start(stocked(&[REAL[0]])).unwrap();
    let stage = Stage::real_batch()
        .set("catalogue", "url", question(&magento))
        .set("catalogue", "rate", "1000/s")
        .set("catalogue", "attempts_max", 2);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0], REAL[1]])).await.unwrap());
    let (products, summary) = stage.finished(2).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(products[1]["status"], "not_in_catalogue");
    assert_eq!(summary["not_found_backend"], json!([REAL[1]]));
    assert_eq!(summary["not_found_backend_count"], 1);

    magento.set(Mood::Status(500));
    let failing = Stage::real_batch()
        .set("catalogue", "url", question(&magento))
        .set("catalogue", "rate", "1000/s")
        .set("catalogue", "attempts_max", 2);
    let asked_before = magento.questions().len();
    let daemon = failing.start().await;
    accepted(daemon.submit(&batch([REAL[1]])).await.unwrap());
    let (products, _) = failing.finished(1).await;
    assert_eq!(products[0]["status"], "failed");
    assert_eq!(products[0]["reason"]["kind"], "catalogue");
    assert_eq!(magento.questions().len(), asked_before + 2);
}
