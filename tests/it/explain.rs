//! `glaneur explain`: the whole life of one product or batch, beside a running daemon.

use std::process::Command;

use glaneur_kit::Daemon;

use crate::support::{BINARY, REAL, Stage, accepted};

fn explain(daemon: &Daemon, subject: &str) -> (i32, String) {
    let output = Command::new(BINARY)
        .arg("--config")
        .arg(daemon.config_path())
        .args(["explain", subject])
        .current_dir(daemon.dir())
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said)
}

#[tokio::test]
async fn explain_tells_the_life_of_a_product_and_of_a_batch_in_a_screenful() {
    let stage = Stage::real_batch();
    let daemon = stage.start().await;
    let answer = accepted(daemon.submit(&glaneur_kit::shop::catalogue::real_batch_body()).await.unwrap());
    stage.finished(8).await;
    daemon.wait_for_event("delivery_taken", |event| event["endpoint"] == "summary").await.unwrap();

    let (code, story) = explain(&daemon, REAL[4]);
    assert_eq!(code, 0, "{story}");
    for part in ["product 5 of 8", "found at", "cocooncenter", "ean_mismatch", "drakkars", "taken, 1 attempt"]
    {
        assert!(story.contains(part), "no {part:?} in:\n{story}");
    }
    assert!(story.lines().count() <= 24, "a screenful:\n{story}");

    let (code, story) = explain(&daemon, answer["batch_id"].as_str().unwrap());
    assert_eq!(code, 0, "{story}");
    for part in ["8 products", "7 found, 1 not_found", "8 taken", "to summary"] {
        assert!(story.contains(part), "no {part:?} in:\n{story}");
    }
    let (by_number, same) = explain(&daemon, &answer["thread_id"].to_string());
    assert_eq!((by_number, same), (0, story));

    let (code, said) = explain(&daemon, "3665606002406");
    assert_eq!(code, 1, "{said}");
}
