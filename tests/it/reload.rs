//! SIGHUP takes a changed configuration for what starts after it, or keeps the old one and says why; nothing is lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use glaneur::exit::Exit;
use glaneur_kit::magento::{Magento, Mood};
use glaneur_kit::receiver::{Answer, Seen, is_product};
use glaneur_kit::shop::{Conduct, Hit, Purpose, When};
use glaneur_kit::{Config, Daemon, Gate, ShopKind, client};
use serde_json::{Value, json};

use crate::support::{BINARY, LONG, REAL, Stage, accepted, batch, stocked, until};

/// All shops have all products.
fn stage() -> Stage {
    Stage::direct(stocked(&REAL))
}

async fn reloaded(daemon: &mut Daemon, config: impl Into<String>) -> Value {
    let event = daemon.reload(config).await.unwrap();
    assert_eq!(event["event"], "reloaded", "{event}");
    event
}

async fn refused(daemon: &mut Daemon, config: impl Into<String>) -> Value {
    let event = daemon.reload(config).await.unwrap();
    assert_eq!(event["event"], "reload_refused", "{event}");
    assert_eq!(event["level"], "ERROR", "a person must look");
    event
}

/// Shops whose object is in `data`.
fn shops_of(product: &Value) -> BTreeSet<&str> {
    product["data"].as_object().unwrap().keys().map(String::as_str).collect()
}

fn attempts(daemon: &Daemon) -> Vec<u64> {
    daemon.events("visit_started").iter().map(|event| event["attempt"].as_u64().unwrap()).collect()
}

/// What `glaneur check` says of the daemon's file.
fn check(daemon: &Daemon) -> (i32, String) {
    let output = Command::new(BINARY)
        .arg("check")
        .arg("--config")
        .arg(daemon.config_path())
        .current_dir(daemon.dir())
        .output()
        .unwrap();
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_reload_with_mistakes_keeps_the_old_configuration_whole_and_says_every_line() {
    let stage = stage();
    let mut daemon = stage.start().await;
    let good = stage.config.to_string();
    let off =
        stage.config.clone().site_key("drakkars", "enabled", false).set("tor", "cirkuits", 3).to_string();
    let wrong = format!("{off}\n[shutdown]\ndrain = 20\n");
    let event = refused(&mut daemon, wrong.as_str()).await;
    assert_eq!(event["problems"], 2);
    let line = |text: &str| wrong.lines().position(|line| line.starts_with(text)).unwrap() + 1;
    let (code, said) = check(&daemon);
    assert_eq!(code, i32::from(Exit::Config.code()));
    for place in [line("cirkuits"), line("drain")] {
        let place = format!("config.toml:{place}:");
        let detail = event["detail"].as_str().unwrap();
        assert!(detail.contains(&place), "no {place} in {detail}");
        let problem = detail.split("; ").find(|problem| problem.contains(&place)).unwrap();
        assert!(said.contains(problem), "`check` says the same: {said}");
    }
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(shops_of(&products[0]).len(), 3, "a right line of a wrong file changes nothing");
    let event = reloaded(&mut daemon, good).await;
    assert_eq!(event["changed"], "", "the old one has run all the time");
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_refuses_the_reload_at_its_key_and_check_says_the_same() {
    let stage = stage();
    let mut daemon = stage.start().await;
    let config = stage.config.clone().set("server", "token_file", "/nonexistent/token").to_string();
    let line = config.lines().position(|line| line.starts_with("token_file")).unwrap() + 1;
    let event = refused(&mut daemon, config).await;
    let detail = event["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("config.toml:{line}:14: `server.token_file`")), "{detail}");
    let (code, said) = check(&daemon);
    assert_eq!(code, i32::from(Exit::File.code()));
    assert!(said.contains(detail), "{said}");
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
}

#[tokio::test]
async fn a_file_that_is_right_for_another_listener_only_is_refused() {
    let stage = stage();
    let secrets = tempfile::tempdir().unwrap();
    let token = secrets.path().join("token");
    std::fs::write(&token, "sesame").unwrap();
    let open = stage.config.clone().set("server", "listen", "0.0.0.0:0");
    let guarded = open.set("server", "token_file", token.to_string_lossy().as_ref());
    let mut daemon = Daemon::start(BINARY, guarded).await.unwrap();
    // On loopback nobody needs a token; but the daemon goes on listening where it does.
    let event = refused(&mut daemon, stage.config.clone()).await;
    let detail = event["detail"].as_str().unwrap();
    assert!(detail.contains("0.0.0.0:") && detail.contains("server.token_file"), "{detail}");
    let (status, _) = daemon.get("/api/batches/1").await.unwrap();
    assert_eq!(status, 401, "the old token still guards it");
}

#[tokio::test]
async fn a_configuration_that_is_gone_keeps_the_old_one() {
    let stage = stage();
    let daemon = stage.start().await;
    std::fs::remove_file(daemon.config_path()).unwrap();
    daemon.hang_up().unwrap();
    let event = daemon.wait_for_event("reload_refused", |_| true).await.unwrap();
    assert!(event["detail"].as_str().unwrap().contains("config.toml"), "{event}");
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    stage.finished(1).await;
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_at_each_reload_and_the_rest_applies() {
    let stage = stage();
    let mut daemon = stage.start().await;
    let changed = stage
        .config
        .clone()
        .set("server", "listen", "127.0.0.1:1")
        .set("ledger", "url", "sqlite:{dir}/other.sqlite")
        .product_url(stage.receiver.url("/mended"));
    for applied in ["webhooks.product_url", ""] {
        let event = reloaded(&mut daemon, changed.clone()).await;
        assert_eq!(event["changed"], applied);
    }
    let named: Vec<Value> =
        daemon.events("reload_needs_restart").iter().map(|event| event["keys"].clone()).collect();
    assert_eq!(named, ["server.listen, ledger.url", "server.listen, ledger.url"]);
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    stage.finished(1).await;
    let products: Vec<_> =
        stage.receiver.seen().into_iter().filter(|seen| is_product(&seen.json())).collect();
    assert_eq!(products[0].path, "/mended");
    assert!(!daemon.dir().join("other.sqlite").exists());
}

#[tokio::test]
async fn an_added_shop_serves_batches_accepted_after_it_and_a_batch_at_work_keeps_its_shops() {
    let stage = stage().only(ShopKind::Cocooncenter).set("batches", "window", 1);
    let gate = Gate::closed();
    stage.shops.of(ShopKind::Cocooncenter).behave(When::Pages, Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0], REAL[1]])).await.unwrap());
    stage.shops.of(ShopKind::Cocooncenter).wait_until(|hits| hits.len() == 2, LONG).await.unwrap();
    let event = reloaded(&mut daemon, stage.config.clone().site_key("pharmagdd", "enabled", true)).await;
    assert_eq!((&event["changed"], &event["shops"]), (&json!("sites.pharmagdd.enabled"), &json!(2)));
    let answer = accepted(daemon.submit(&batch([REAL[2]])).await.unwrap());
    gate.open();
    let is_of_product = |seen: &&Seen| is_product(&seen.json());
    stage.receiver.wait_until(|seen| seen.iter().filter(is_of_product).count() == 3, LONG).await.unwrap();
    for product in stage.receiver.products() {
        let expected: &[&str] = if product["batch_id"] == answer["batch_id"] {
            &["cocooncenter", "pharmagdd"]
        } else {
            &["cocooncenter"]
        };
        assert_eq!(shops_of(&product), expected.iter().copied().collect(), "{product}");
    }
}

#[tokio::test]
async fn a_removed_shop_ends_the_visit_in_flight_answers_those_that_wait_and_costs_nothing_else() {
    let stage = stage().set("sites.drakkars", "concurrency", 1).set("tor", "circuits", 8);
    let gate = Gate::closed();
    stage.shops.of(ShopKind::Drakkars).behave(When::Pages, Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    stage.shops.of(ShopKind::Drakkars).wait_until(|hits| hits.len() == 2, LONG).await.unwrap();
    reloaded(&mut daemon, stage.config.clone().site_key("drakkars", "enabled", false)).await;
    gate.open();
    let (products, summary) = stage.finished(8).await;
    assert_eq!(summary["counts"]["found"], 8, "{summary}");
    let from_it = products.iter().filter(|product| shops_of(product).contains("drakkars")).count();
    let removed =
        products.iter().filter(|product| product["errors"]["drakkars"]["kind"] == "removed").count();
    assert_eq!((from_it, removed), (1, 7), "what was in flight ended as it began");
    assert_eq!(stage.shops.of(ShopKind::Drakkars).hits().len(), 2, "and nobody went there again");
    assert!(attempts(&daemon).iter().all(|attempt| *attempt == 1), "no attempt was charged");
}

#[tokio::test]
async fn a_visit_between_two_attempts_at_a_removed_shop_is_over() {
    let stage = stage().set("fetch", "retry_min", "2s").set("fetch", "retry_max", "2s");
    stage.shops.of(ShopKind::Drakkars).behave(When::Always, Conduct::Status(500));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    daemon.wait_for_event("visit_ended", |event| event["site"] == "drakkars").await.unwrap();
    reloaded(&mut daemon, stage.config.clone().site_key("drakkars", "enabled", false)).await;
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(products[0]["errors"]["drakkars"]["kind"], "removed");
}

#[tokio::test]
async fn a_batch_whose_last_shop_was_removed_ends_as_failed_with_the_reason() {
    let stage = stage().only(ShopKind::Cocooncenter).set("batches", "window", 1);
    let gate = Gate::closed();
    stage.shops.of(ShopKind::Cocooncenter).behave(When::Pages, Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0], REAL[1]])).await.unwrap());
    stage.shops.of(ShopKind::Cocooncenter).wait_until(|hits| hits.len() == 2, LONG).await.unwrap();
    reloaded(&mut daemon, stage.config.clone().site_key("cocooncenter", "enabled", false)).await;
    daemon.wait_for_event("no_shop_enabled", |_| true).await.unwrap();
    gate.open();
    let (products, _) = stage.finished(2).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(
        (&products[1]["status"], &products[1]["reason"]["kind"]),
        (&json!("failed"), &json!("removed"))
    );
    assert_eq!(daemon.submit(&batch([REAL[2]])).await.unwrap().0, 503, "nobody could be asked");
}

#[tokio::test]
async fn visits_that_wait_for_a_slow_pace_go_on_at_the_faster_one() {
    let stage = stage().only(ShopKind::Cocooncenter).set("sites.cocooncenter", "robots", false).set(
        "sites.cocooncenter",
        "rate",
        "1/h",
    );
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0], REAL[1], REAL[2]])).await.unwrap());
    // Its search took the only slot of this hour; its page waits for the next one, and the others behind it.
    stage.shops.of(ShopKind::Cocooncenter).wait_until(|hits| hits.len() == 1, LONG).await.unwrap();
    let event = reloaded(&mut daemon, stage.config.clone().site_key("cocooncenter", "rate", "1000/s")).await;
    assert_eq!(event["changed"], "sites.cocooncenter.rate");
    let (_, summary) = stage.finished(3).await;
    assert_eq!(summary["counts"]["found"], 3);
    assert_eq!(attempts(&daemon), [1, 1, 1], "waiting counts against nothing");
}

#[tokio::test]
async fn a_slower_pace_holds_for_every_request_that_leaves_after_the_reload() {
    const INTERVAL: Duration = Duration::from_millis(500);
    let stage = stage().only(ShopKind::Cocooncenter);
    let gate = Gate::closed();
    let shop = stage.shops.of(ShopKind::Cocooncenter);
    shop.behave(When::Searches, Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0], REAL[1], REAL[2]])).await.unwrap());
    shop.wait_until(|hits| hits.len() == 3, LONG).await.unwrap();
    reloaded(&mut daemon, stage.config.clone().site_key("cocooncenter", "rate", "2/s")).await;
    gate.open();
    stage.finished(3).await;
    let pages: Vec<Hit> = shop.hits().into_iter().filter(|hit| hit.purpose == Purpose::Page).collect();
    assert_eq!(pages.len(), 3);
    for two in pages.windows(2) {
        // A request may reach the shop a little late, and the next one then seems early.
        let apart = two[1].at - two[0].at;
        assert!(apart > INTERVAL / 2, "{apart:?} apart");
    }
}

#[tokio::test]
async fn circuits_follow_up_and_down_while_visits_are_in_flight_and_none_is_lost_or_charged() {
    let stage = stage().set("tor", "circuits", 2).set("batches", "window", 8);
    let gate = Gate::closed();
    stage.shops.behave(&When::Searches, &Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    let in_flight =
        |daemon: &Daemon| daemon.events("visit_started").len() - daemon.events("visit_ended").len();
    let started = async |daemon: &Daemon, n: usize| {
        let enough = |log: &[glaneur_kit::daemon::LogLine]| {
            (log.iter().filter(|line| line.event() == Some("visit_started")).count() >= n).then_some(())
        };
        daemon.log().wait_for(enough, LONG).await.unwrap();
    };
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    started(&daemon, 2).await;
    reloaded(&mut daemon, stage.config.clone().circuits(8)).await;
    started(&daemon, 8).await;
    assert_eq!(in_flight(&daemon), 8);
    reloaded(&mut daemon, stage.config.clone().circuits(1)).await;
    gate.open();
    let (_, summary) = stage.finished(8).await;
    assert_eq!(summary["counts"]["found"], 8);
    let visits = daemon.events("visit_started");
    assert_eq!(visits.len(), 24, "each product at each shop, once: none was lost");
    assert!(visits.iter().all(|visit| visit["attempt"] == 1), "none was charged");
    let worker = |visit: &Value| visit["circuit"].as_str().unwrap().split('.').next().unwrap().to_owned();
    assert_eq!(visits[..8].iter().map(worker).collect::<BTreeSet<_>>().len(), 8);
    assert!(visits[8..].iter().all(|visit| worker(visit) == "w0"), "those beyond got no more");
    // One circuit keeps one idle connection to each shop; the others ended with theirs.
    let ports: Vec<u16> = stage.shops.all.iter().map(glaneur_kit::Shop::port).collect();
    let to_shops =
        || daemon.sockets().unwrap().iter().filter(|socket| ports.contains(&socket.remote.port())).count();
    until("one connection to each shop is left", || to_shops() <= 3).await;
    // And up again: a scraper that was let go is a new one with a new circuit.
    gate.close();
    reloaded(&mut daemon, stage.config.clone().circuits(3)).await;
    accepted(daemon.submit(&json!({"eans": REAL[..2], "force": true})).await.unwrap());
    started(&daemon, 24 + 3).await;
    gate.open();
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    for event in ["actor_restarted", "claim_stranded", "actor_killed"] {
        assert!(daemon.events(event).is_empty(), "{event}");
    }
}

#[tokio::test]
async fn a_product_at_work_is_tried_by_the_schedule_of_now() {
    let stage = stage().only(ShopKind::Cocooncenter).set("fetch", "attempts_max", 1);
    let gate = Gate::closed();
    let shop = stage.shops.of(ShopKind::Cocooncenter);
    shop.behave(When::Always, Conduct::Status(500).held(&gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    shop.wait_until(|hits| hits.len() == 1, LONG).await.unwrap();
    reloaded(&mut daemon, stage.config.clone().set("fetch", "attempts_max", 2)).await;
    shop.behave_well();
    gate.open();
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(attempts(&daemon), [1, 2]);
}

#[tokio::test]
async fn a_product_whose_catalogue_was_removed_goes_on_to_the_shops() {
    let magento = Magento::start(stocked(&REAL)).unwrap();
    let gate = Gate::closed();
    magento.set(Mood::Held(gate.clone()));
    let filter = "searchCriteria[filter_groups][0][filters][0]";
    let url = format!("{}?{filter}[field]=ean&{filter}[value]={{ean}}", magento.url());
    let stage = stage();
    let asked = stage.config.clone().set("catalogue", "url", url).set("catalogue", "rate", "1/h");
    let mut daemon = Daemon::start(BINARY, asked).await.unwrap();
    accepted(daemon.submit(&batch([REAL[0], REAL[1]])).await.unwrap());
    magento.questions().wait_until(|questions| questions.len() == 1, LONG).await.unwrap();
    let event = reloaded(&mut daemon, stage.config.clone()).await;
    assert_eq!(event["changed"], "catalogue.url");
    gate.open();
    let (products, _) = stage.finished(2).await;
    assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
    assert_eq!(magento.questions().len(), 1, "the second one waited and was never asked");
}

#[tokio::test]
async fn outcomes_go_where_the_configuration_of_now_says_and_what_was_withheld_is_sent() {
    let stage = stage().only(ShopKind::Cocooncenter);
    let nowhere = stage.config.clone().product_url("none");
    let mut daemon = Daemon::start(BINARY, nowhere.clone()).await.unwrap();
    let gate = Gate::closed();
    // The first product ends before the reload, the second after it.
    stage.shops.of(ShopKind::Cocooncenter).behave(When::Ean(REAL[1].into()), Conduct::Normal.held(&gate));
    let answer = accepted(daemon.submit(&batch([REAL[0], REAL[1]])).await.unwrap());
    daemon.wait_for_event("product_ended", |event| event["index"] == 1).await.unwrap();
    reloaded(&mut daemon, stage.config.clone()).await;
    gate.open();
    let is_summary = |seen: &Seen| !is_product(&seen.json());
    stage.receiver.wait_until(|seen| seen.iter().any(is_summary), LONG).await.unwrap();
    let (_, view) = daemon.get(answer["status_url"].as_str().unwrap()).await.unwrap();
    let deliveries = &view["deliveries"];
    assert_eq!((&deliveries["unaddressed"], &deliveries["taken"]), (&json!(1), &json!(1)), "{view}");
    assert_eq!(stage.receiver.products()[0]["index"], 2, "what ended as unaddressed stays so");

    // A delivery that waits is withheld while there is no URL, and sent once there is one again.
    stage.receiver.behave_at("/p", Answer::Status(500, String::new()));
    let answer = accepted(daemon.submit(&batch([REAL[2]])).await.unwrap());
    daemon.wait_for_event("delivery_retried", |event| event["batch_id"] == answer["batch_id"]).await.unwrap();
    reloaded(&mut daemon, nowhere).await;
    daemon.wait_for_event("delivery_withheld", |_| true).await.unwrap();
    stage.receiver.behave_at("/p", Answer::Started);
    reloaded(&mut daemon, stage.config.clone()).await;
    let taken = daemon.wait_for_event("delivery_taken", |event| {
        event["batch_id"] == answer["batch_id"] && event["endpoint"] == "product"
    });
    taken.await.unwrap();
    assert!(daemon.events("conservation_broken").is_empty());
}

#[tokio::test]
async fn a_repeat_is_judged_by_the_dedupe_window_of_now() {
    let stage = stage().only(ShopKind::Cocooncenter);
    let mut daemon = stage.start().await;
    let first = accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    stage.finished(1).await;
    let repeat = accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    assert_eq!(repeat["batch_id"], first["batch_id"]);
    reloaded(&mut daemon, stage.config.clone().set("server", "dedupe_window", "0s")).await;
    let other = accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    assert_ne!(other["batch_id"], first["batch_id"]);
}

async fn status_with(daemon: &Daemon, token: &str) -> u16 {
    let body = batch([REAL[0]]).to_string();
    let mut request = client::request("POST", "/api/scrape", body).unwrap();
    let headers = request.headers_mut();
    headers.insert("content-type", "application/json".parse().unwrap());
    headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
    client::send(daemon.api().address, request).await.unwrap().status().as_u16()
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn secrets_are_read_again_although_no_key_changed() {
    let secrets = tempfile::tempdir().unwrap();
    let [token, signing] = ["token", "signing"].map(|name| secrets.path().join(name));
    write(&token, "old-token\n");
    write(&signing, "an-old-signing-secret\n");
    let stage = stage()
        .only(ShopKind::Cocooncenter)
        .set("server", "token_file", token.to_str().unwrap())
        .set("webhooks", "secret_file", signing.to_str().unwrap());
    let mut daemon = stage.start().await;
    write(&token, "new-token\n");
    write(&signing, "a-new-signing-secret\n");
    assert_eq!(status_with(&daemon, "new-token").await, 401);
    let event = reloaded(&mut daemon, stage.config.clone()).await;
    assert_eq!(event["changed"], "server.token_file, webhooks.secret_file");
    assert!(daemon.events("credentials_kept").is_empty());
    assert_eq!(status_with(&daemon, "old-token").await, 401);
    assert_eq!(status_with(&daemon, "new-token").await, 202);
    stage.finished(1).await;
    assert!(stage.receiver.seen().iter().all(|seen| seen.is_signed_with(b"a-new-signing-secret")));
    assert!(!daemon.stderr_tail().contains("-token\""), "no secret is ever said");
}

#[tokio::test]
async fn credentials_of_systemd_are_said_to_need_a_restart() {
    let credentials = tempfile::tempdir().unwrap();
    let token = credentials.path().join("token");
    write(&token, "a-token\n");
    let stage = stage().set("server", "token_file", token.to_str().unwrap());
    let setup = Daemon::builder(BINARY).config(stage.config.clone());
    let mut daemon = setup.env("CREDENTIALS_DIRECTORY", credentials.path()).start().await.unwrap();
    reloaded(&mut daemon, stage.config.clone()).await;
    let event = daemon.wait_for_event("credentials_kept", |_| true).await.unwrap();
    assert_eq!(event["keys"], "server.token_file");
    let other = credentials.path().join("other");
    let config = stage.config.clone().set("server", "token_file", other.to_str().unwrap());
    let event = refused(&mut daemon, config).await;
    assert!(event["detail"].as_str().unwrap().contains("restart"), "{event}");
    assert_eq!(status_with(&daemon, "a-token").await, 202, "the old token stays");
}

#[tokio::test]
async fn the_log_level_follows_and_a_reload_is_said_at_any() {
    let stage = stage().only(ShopKind::Cocooncenter).set("log", "level", "info");
    let mut daemon = stage.start().await;
    let at = |level: &str| stage.config.clone().set("log", "level", level);
    let run = async |daemon: &Daemon, n: usize| {
        let ean = json!({"eans": [REAL[n]]});
        accepted(daemon.submit(&ean).await.unwrap());
        stage.receiver.wait_for_taken(2 * (n + 1), LONG).await.unwrap();
    };
    run(&daemon, 0).await;
    assert!(daemon.events("visit_started").is_empty(), "below info");
    assert_eq!(reloaded(&mut daemon, at("debug")).await["changed"], "log.level");
    run(&daemon, 1).await;
    assert_eq!(daemon.events("visit_started").len(), 1);
    reloaded(&mut daemon, at("error")).await;
    run(&daemon, 2).await;
    assert_eq!(reloaded(&mut daemon, at("info")).await["changed"], "log.level");
    assert_eq!(daemon.events("product_ended").len(), 2, "the third one ended unsaid");
}

#[tokio::test]
async fn a_reload_during_the_drain_is_ignored_and_said_so() {
    let stage = stage().only(ShopKind::Cocooncenter);
    let gate = Gate::closed();
    let shop = stage.shops.of(ShopKind::Cocooncenter);
    shop.behave(When::Pages, Conduct::Normal.held(&gate));
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    shop.wait_until(|hits| hits.len() == 2, LONG).await.unwrap();
    daemon.term().unwrap();
    daemon.wait_for_event("drain_started", |_| true).await.unwrap();
    let config = stage.config.clone().site_key("cocooncenter", "enabled", false);
    assert_eq!(daemon.reload(config).await.unwrap()["event"], "reload_ignored");
    gate.open();
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
    assert_eq!(daemon.events("product_ended")[0]["outcome"], "found", "by the configuration it began with");
}

#[tokio::test]
async fn the_drain_time_of_now_is_the_one_that_counts() {
    let stage = stage();
    let mut daemon = stage.start().await;
    reloaded(&mut daemon, stage.config.clone().set("shutdown", "drain", "7s")).await;
    daemon.term().unwrap();
    let event = daemon.wait_for_event("drain_started", |_| true).await.unwrap();
    assert_eq!(event["seconds"], 7);
    assert_eq!(daemon.wait_exit().await.unwrap(), 0);
}

/// A pipe in place of the file: a reload reads as long as the test likes.
fn make_pipe(path: &Path) {
    std::fs::remove_file(path).unwrap();
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test]
async fn a_storm_of_signals_costs_a_few_reloads_and_the_last_file_wins() {
    const SIGNALS: usize = 10;
    let stage = stage();
    let daemon = stage.start().await;
    let path = daemon.config_path();
    let text = |config: Config| config.to_string().replace("{dir}", daemon.dir().to_str().unwrap());
    make_pipe(&path);
    daemon.hang_up().unwrap();
    // Opens once the daemon reads: its first reload is under way.
    let pipe = tokio::task::spawn_blocking({
        let path = path.clone();
        move || std::fs::File::create(path).unwrap()
    });
    let mut pipe = pipe.await.unwrap();
    for _ in 1..SIGNALS {
        daemon.hang_up().unwrap();
    }
    let last = daemon.dir().join("last.toml");
    write(&last, &text(stage.config.clone().site_key("drakkars", "enabled", false)));
    std::fs::rename(&last, &path).unwrap();
    use std::io::Write;
    pipe.write_all(text(stage.config.clone().circuits(2)).as_bytes()).unwrap();
    drop(pipe);
    daemon.wait_for_event("reloaded", |event| event["changed"] == "tor.circuits").await.unwrap();
    daemon.wait_for_event("reloaded", |event| event["shops"] == 2).await.unwrap();
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(shops_of(&products[0]), ["cocooncenter", "pharmagdd"].into());
    let reloads = daemon.events("reloaded").len();
    assert!(reloads < SIGNALS / 2, "{reloads} reloads");
}

#[tokio::test]
async fn parts_that_are_restarted_after_a_reload_have_its_configuration() {
    let stage = stage().only(ShopKind::Cocooncenter);
    let setup = Daemon::builder(BINARY).config(stage.config.clone());
    // The pool fails at the second ask, the batches' supervisor soon after: both are started anew.
    let mut daemon =
        setup.env("GLANEUR_FAIL", "scrapers.ask=panic@2,batches.tick=panic@2").start().await.unwrap();
    reloaded(&mut daemon, stage.config.clone().site_key("pharmagdd", "enabled", true)).await;
    let batches = |event: &Value| event["actor"] == "batches";
    daemon.wait_for_event("actor_restarted", batches).await.unwrap();
    accepted(daemon.submit(&batch([REAL[0], REAL[1]])).await.unwrap());
    let (products, _) = stage.finished(2).await;
    assert!(daemon.events("actor_restarted").iter().any(|event| event["actor"] == "scrapers"));
    for product in &products {
        assert_eq!(shops_of(product), ["cocooncenter", "pharmagdd"].into(), "{product}");
    }
}
