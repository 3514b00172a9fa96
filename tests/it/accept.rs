//! The promise "202 means it is on disk", over the wire.

use serde_json::json;

use crate::support::{REAL, Stage, accepted, batch};

#[tokio::test]
async fn an_accepted_batch_is_whole_after_kill_9_right_after_the_202() {
    let stage = Stage::real_batch();
    let mut daemon = stage.start().await;
    for round in 0..20_u32 {
        let body = json!({"eans": REAL.map(|ean| json!({"primary": ean})), "metadata": {"round": round}});
        let answer = accepted(daemon.submit(&body).await.unwrap());
        daemon.kill_9().await.unwrap();
        daemon.restart().await.unwrap();
        let (status, view) = daemon.get(answer["status_url"].as_str().unwrap()).await.unwrap();
        assert_eq!(status, 200);
        let products = view["products"].as_array().unwrap();
        let eans: Vec<_> = products.iter().map(|product| product["ean"].as_str().unwrap()).collect();
        assert_eq!(eans, REAL, "round {round}");
    }
}

#[tokio::test]
async fn the_202_says_what_the_contract_says() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    let body = json!({"eans": [REAL[0], {"primary": "123"}, {"primary": 3_400_930_000_120_u64}]});
    let answer = accepted(daemon.submit(&body).await.unwrap());
    let keys: Vec<_> = answer.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "success",
        "message",
        "status",
        "total_products",
        "thread_id",
        "batch_id",
        "status_url",
        "counts",
        "refused",
    ];
    assert_eq!(keys, expected);
    assert_eq!(answer["message"], "Scraping lancé en arrière-plan");
    assert_eq!(answer["total_products"], 3);
    assert_eq!(answer["counts"], json!({"queued": 1, "skipped": 1, "ignored": 1}));
    assert_eq!(answer["refused"][0]["index"], 2);
    assert!(answer["thread_id"].as_u64().unwrap() < 1 << 53);
}

#[tokio::test]
async fn nothing_is_stored_for_a_4xx() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    for body in [
        json!({}),
        json!({"eans": []}),
        json!({"eans": [true]}),
        json!({"eans": [{"primary": ["0748322148474"]}]}),
        json!({"eans": ["0748322148474"], "callback_url": "http://elsewhere.example/"}),
        json!({"eans": ["0748322148474"], "sites": ["nobody"]}),
        json!({"eans": ["0748322148474"], "metadata": [1]}),
    ] {
        let (status, answer) = daemon.submit(&body).await.unwrap();
        assert_eq!(status, 400, "{body}: {answer}");
        assert_eq!(answer["success"], false);
        assert!(answer["error"].as_str().is_some_and(|error| !error.is_empty()));
    }
    let answer = accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    assert_eq!(answer["thread_id"], 1, "the first row of the ledger");
}

#[tokio::test]
async fn a_number_gets_its_zero_back() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    accepted(daemon.submit(&json!({"eans": [{"primary": 748_322_148_474_u64}]})).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["ean"], "0748322148474");
    assert_eq!(products[0]["status"], "found");
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_also_after_a_crash() {
    let stage = Stage::real_batch();
    let mut daemon = stage.start().await;
    let first = accepted(daemon.submit(&batch(REAL)).await.unwrap());
    daemon.kill_9().await.unwrap();
    daemon.restart().await.unwrap();
    let again = accepted(daemon.submit(&batch(REAL)).await.unwrap());
    assert_eq!(again["batch_id"], first["batch_id"]);
    assert_eq!(again["duplicate"], true);
    stage.finished(8).await;
}

#[tokio::test]
async fn two_entries_of_one_product_are_one_visit_and_two_webhooks() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    let body = json!({"eans": ["0748322148474", "748322148474", {"primary": "0748322148474", "replacement": "3701129820322"}]});
    accepted(daemon.submit(&body).await.unwrap());
    let (products, summary) = stage.finished(3).await;
    assert_eq!(products[1]["ean"], "748322148474");
    assert_eq!(products[1]["duplicate_of"], 1);
    assert_eq!(products[1]["data"], products[0]["data"]);
    assert_eq!(
        products[2]["duplicate_of"],
        serde_json::Value::Null,
        "another replacement is another product"
    );
    assert_eq!(summary["counts"]["found"], 3);
    let searches = stage.shops.all[0].hits().iter().filter(|hit| hit.is_about("0748322148474")).count();
    assert_eq!(searches, 4, "a search and a page for each of two visits");
}

#[tokio::test]
async fn a_batch_that_is_over_at_once_sends_its_webhooks_and_its_summary() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    let body = json!({"eans": ["7.48E+11", ""], "ignored3400": ["3400930000120"]});
    let answer = accepted(daemon.submit(&body).await.unwrap());
    assert_eq!(answer["counts"]["skipped"], 2);
    let (products, summary) = stage.finished(2).await;
    assert_eq!(products[0]["status"], "skipped");
    assert_eq!(products[0]["reason"]["kind"], "rounded");
    assert_eq!(summary["ignored_3400"], json!(["3400930000120"]));
    assert_eq!(summary["ignored_3400_count"], 1);
}
