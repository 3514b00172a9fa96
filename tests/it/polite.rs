//! Politeness towards a shop, which all circuits share: its rate, its pauses, its Retry-After, its robots.txt.

use std::time::{Duration, Instant};

use glaneur_kit::shop::{Conduct, Hit, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Shop, ShopKind};
use serde_json::Value;

use crate::support::{BINARY, LONG, REAL, Stage, accepted, batch, stocked};
use crate::tor::{network, stage_behind};

const ONLY: ShopKind = ShopKind::Cocooncenter;

/// When each request came, also those for robots.txt.
fn moments(shop: &Shop) -> Vec<Instant> {
    let mut moments: Vec<Instant> = shop.hits().iter().chain(&shop.robots_hits()).map(|hit| hit.at).collect();
    moments.sort();
    moments
}

/// The most that came in any 10 s.
fn most_in_10_s(moments: &[Instant]) -> usize {
    let within = |from: Instant| move |at: &&Instant| (from..=from + Duration::from_secs(10)).contains(*at);
    moments.iter().map(|from| moments.iter().filter(within(*from)).count()).max().unwrap_or(0)
}

/// A file that a shop answers to `/robots.txt`.
fn robots(text: &str) -> Conduct {
    Conduct::Exactly(200, "text/plain", text.into())
}

fn ended_as(daemon: &Daemon, outcome: &str) -> usize {
    daemon.events("visit_ended").iter().filter(|event| event["outcome"] == outcome).count()
}

#[tokio::test]
async fn a_shop_is_sent_its_rate_and_no_more_whatever_the_circuits_redirects_repeats_reloads_and_restarts() {
    let stage = Stage::of(60)
        .only(ONLY)
        .set("tor", "circuits", 12)
        .set("fetch", "attempts_max", 20)
        .set("sites.cocooncenter", "rate", "2/s")
        .set("sites.cocooncenter", "concurrency", 12);
    let shop = stage.shops.of(ONLY);
    // Each page is at the end of a redirect; some connections are cut, so that their requests are repeated.
    let to_be_redirected = |hit: &Hit| hit.purpose == Purpose::Page && !hit.path.contains("hop=");
    shop.behave(When::is(to_be_redirected), Conduct::RedirectLoop);
    shop.behave(When::is(|hit| hit.purpose == Purpose::Page && hit.order % 5 == 4), Conduct::Reset);
    let mut daemon = stage.start().await;
    let eans = Catalogue::synthetic(60, 7).eans();
    accepted(daemon.submit(&batch(eans.iter().map(String::as_str))).await.unwrap());
    shop.wait_until(|hits| hits.len() >= 10, LONG).await.unwrap();
    assert_eq!(daemon.reload(stage.config.clone().circuits(24)).await.unwrap()["event"], "reloaded");
    shop.wait_until(|hits| hits.len() >= 24, LONG).await.unwrap();
    daemon.kill_9().await.unwrap();
    let first_run = moments(shop).len();
    daemon.restart().await.unwrap();
    shop.wait_until(|hits| hits.len() >= 48, LONG).await.unwrap();
    daemon.kill_9().await.unwrap();
    let moments = moments(shop);
    let (before, after) = moments.split_at(first_run);
    for run in [before, after] {
        assert!(run.len() > 22, "too few to tell: {run:?}");
        assert!(most_in_10_s(run) <= 21, "{} in 10 s: {run:?}", most_in_10_s(run));
    }
    // A restarted process knows nothing of the last request of the one before.
    assert!(most_in_10_s(&moments) <= 22, "{moments:?}");
    let redirected = shop.hits().iter().filter(|hit| hit.path.contains("hop=")).count();
    assert!(redirected > 5 && shop.robots_hits().len() == 2, "{redirected}");
}

#[tokio::test]
async fn a_visit_pauses_between_its_requests_and_no_time_runs_meanwhile() {
    const PAUSE: Duration = Duration::from_secs(4);
    let stage = Stage::direct(stocked(&[REAL[0]]))
        .only(ONLY)
        .set("fetch", "attempts_max", 1)
        .set("fetch", "visit_deadline", "1900ms")
        .set("sites.cocooncenter", "pause", "4s");
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    let hits = stage.shops.of(ONLY).hits();
    assert_eq!(hits.len(), 2);
    assert!(hits[1].at - hits[0].at >= PAUSE / 2, "{:?}", hits[1].at - hits[0].at);
}

#[tokio::test]
async fn retry_after_holds_all_visits_of_the_shop_and_charges_the_one_that_met_it() {
    let stage = Stage::direct(stocked(&REAL[..4])).set("sites.cocooncenter", "concurrency", 1);
    let shop = stage.shops.of(ONLY);
    shop.behave(When::Nth(1), Conduct::RetryAfter(503, "3"));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL[..4].iter().copied())).await.unwrap());
    let (products, _) = stage.finished(4).await;
    assert!(products.iter().all(|product| product["data"].as_object().unwrap().len() == 3), "{products:?}");
    let hits = shop.hits();
    assert!(hits[1].at - hits[0].at >= Duration::from_secs(3), "{:?}", hits[1].at - hits[0].at);
    let held = daemon.events("shop_held");
    assert_eq!(held.len(), 1, "{held:?}");
    assert_eq!((&held[0]["site"], &held[0]["seconds"]), (&ONLY.name().into(), &3.into()));
    let charged: Vec<Value> =
        daemon.events("visit_ended").into_iter().filter(|event| event["attempt"] != 1).collect();
    assert_eq!(charged.len(), 1, "{charged:?}");
}

#[tokio::test]
async fn a_shop_that_refuses_is_asked_less_often_until_it_answers_well() {
    let stage = Stage::of(20)
        .only(ONLY)
        .set("fetch", "attempts_max", 10)
        .set("sites.cocooncenter", "adaptive", true)
        .set("sites.cocooncenter", "concurrency", 1);
    let shop = stage.shops.of(ONLY);
    shop.behave(When::is(|hit| hit.order < 3), Conduct::Status(503));
    let daemon = stage.start().await;
    accepted(daemon.submit(&Catalogue::synthetic(20, 7).batch()).await.unwrap());
    stage.finished(20).await;
    let hits = shop.hits();
    for two in hits[..4].windows(2) {
        // Half of the second that a refusal aims at; a request may leave a quarter of it early.
        assert!(two[1].at - two[0].at >= Duration::from_millis(370), "{:?}", two[1].at - two[0].at);
    }
    let paced = daemon.events("shop_paced");
    let intervals: Vec<u64> = paced.iter().map(|event| event["interval_ms"].as_u64().unwrap()).collect();
    let top = intervals.iter().position_max();
    assert!(intervals[..=top].is_sorted() && intervals[top] >= 1_000, "{intervals:?}");
    assert!(intervals[top..].is_sorted_by(|one, next| next < one), "{intervals:?}");
    assert!(
        *intervals.last().unwrap() < 20 && intervals.len() < 15,
        "once for each factor of two: {intervals:?}"
    );
}

trait PositionMax {
    fn position_max(self) -> usize;
}

impl<'a, I: Iterator<Item = &'a u64>> PositionMax for I {
    fn position_max(self) -> usize {
        self.enumerate().max_by_key(|(_, value)| **value).map_or(0, |(at, _)| at)
    }
}

#[tokio::test]
async fn robots_txt_is_asked_for_once_by_all_circuits_before_anything_else_and_again_only_by_the_next_process()
 {
    let stage = Stage::of(30).set("tor", "circuits", 12);
    let eans = Catalogue::synthetic(30, 7).eans();
    let mut daemon = stage.start().await;
    accepted(daemon.submit(&batch(eans[..15].iter().map(String::as_str))).await.unwrap());
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    for shop in &stage.shops.all {
        let asked = shop.robots_hits();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(asked[0].at <= shop.hits()[0].at, "first");
        assert_eq!(asked[0].path, "/robots.txt");
    }
    daemon.reload(stage.config.clone().circuits(3)).await.unwrap();
    accepted(daemon.submit(&batch(eans[15..20].iter().map(String::as_str))).await.unwrap());
    daemon.wait_for_event("batch_ended", |_| daemon.events("batch_ended").len() == 2).await.unwrap();
    assert!(stage.shops.all.iter().all(|shop| shop.robots_hits().len() == 1), "a reload keeps what is known");
    daemon.restart().await.unwrap();
    accepted(daemon.submit(&batch(eans[20..].iter().map(String::as_str))).await.unwrap());
    daemon.wait_for_event("batch_ended", |_| true).await.unwrap();
    assert!(stage.shops.all.iter().all(|shop| shop.robots_hits().len() == 2));
    assert_eq!(ended_as(&daemon, "found"), 30, "ten products at three shops");
}

#[tokio::test]
async fn a_forbidden_search_fails_with_the_rule_and_its_line_is_told_once_and_never_tried() {
    let stage = Stage::real_batch();
    let shop = stage.shops.of(ONLY);
    shop.behave(When::Robots, robots("User-agent: *\nAllow: /\nDisallow: /index/search # no robots\n"));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL[..2].iter().copied())).await.unwrap());
    let (products, _) = stage.finished(2).await;
    for product in &products {
        assert_eq!(product["status"], "found", "at the other shops");
        let error = &product["errors"]["cocooncenter"];
        assert_eq!(error["kind"], "robots");
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains("line 3") && detail.contains("Disallow: /index/search"), "{detail}");
    }
    assert!(shop.hits().is_empty(), "{:?}", shop.hits());
    assert_eq!(ended_as(&daemon, "robots"), 2, "one attempt each");
    let told = daemon.events("robots_forbids");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["level"], &told[0]["line"]), (&"WARN".into(), &3.into()));
    assert_eq!(told[0]["path"], "/index/search/searchVue");
}

#[tokio::test]
async fn a_forbidden_page_is_not_fetched_and_rules_for_our_own_name_go_before_those_for_anyone() {
    let stage = Stage::direct(stocked(&[REAL[0]]));
    let (cocooncenter, pharmagdd) =
        (stage.shops.of(ShopKind::Cocooncenter), stage.shops.of(ShopKind::Pharmagdd));
    cocooncenter.behave(When::Robots, robots("User-agent: *\nDisallow: /*.html$\n"));
    pharmagdd.behave(
        When::Robots,
        robots("User-agent: *\nDisallow: /\n\nUser-agent: Glaneur/1.0\nDisallow: /panier\n"),
    );
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["errors"]["cocooncenter"]["kind"], "robots", "{}", products[0]);
    assert!(cocooncenter.hits().iter().all(|hit| hit.purpose == Purpose::Search));
    assert!(daemon.events("robots_forbids").is_empty(), "its search is allowed");
    assert!(products[0]["data"]["pharmagdd"].is_object(), "{}", products[0]);
}

#[tokio::test]
async fn robots_false_asks_for_nothing_and_heeds_nothing() {
    let stage = Stage::direct(stocked(&[REAL[0]])).set("every_site", "robots", false);
    for shop in &stage.shops.all {
        shop.behave(When::Robots, robots("User-agent: *\nDisallow: /\n"));
    }
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["data"].as_object().unwrap().len(), 3, "{}", products[0]);
    assert!(stage.shops.all.iter().all(|shop| shop.robots_hits().is_empty()));
}

#[tokio::test]
async fn a_robots_txt_that_cannot_be_got_is_asked_for_again_later_and_refuses_nothing_for_ever() {
    let stage = Stage::direct(stocked(&REAL[..4])).only(ONLY);
    let shop = stage.shops.of(ONLY);
    shop.behave(When::Robots, Conduct::RetryAfter(503, "4"));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL[..4].iter().copied())).await.unwrap());
    let held = daemon.wait_for_event("shop_held", |_| true).await.unwrap();
    assert_eq!(held["seconds"], 4);
    assert!(shop.hits().is_empty(), "nothing is fetched unread");
    shop.behave_well();
    let (products, _) = stage.finished(4).await;
    assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
    let asked = shop.robots_hits();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked[1].at - asked[0].at >= Duration::from_secs(4));
    assert_eq!(ended_as(&daemon, "robots_error"), 1, "one visit asked, and is charged; the others waited");
    let failed = daemon.events("visit_ended").into_iter().find(|event| event["outcome"] == "robots_error");
    assert_eq!(failed.unwrap()["detail"], "robots.txt: status 503");
}

/// A shop that is down costs its visits what any error costs, however many there are: none waits for those before it.
#[tokio::test]
async fn a_robots_txt_that_cannot_be_got_is_an_error_of_every_visit_that_needs_it() {
    let stage = Stage::direct(stocked(&REAL)).only(ONLY).set("fetch", "attempts_max", 1);
    let shop = stage.shops.of(ONLY);
    shop.behave(When::Robots, Conduct::Status(503));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let (products, _) = stage.finished(REAL.len()).await;
    let name = ONLY.name();
    let of_robots = |product: &Value| {
        product["errors"][name]["kind"] == "robots_error"
            && product["errors"][name]["detail"] == "robots.txt: status 503"
    };
    assert!(products.iter().all(of_robots), "{products:?}");
    assert_eq!(shop.robots_hits().len(), 1, "once for all of them");
    assert!(shop.hits().is_empty(), "nothing is fetched unread");
    assert_eq!(daemon.events("shop_held").len(), 0);
}

#[tokio::test]
async fn a_robots_txt_at_the_end_of_too_many_redirects_is_none() {
    let stage = Stage::direct(stocked(&[REAL[0]])).only(ONLY).set("fetch", "redirects_max", 0);
    let shop = stage.shops.of(ONLY);
    shop.behave(When::Robots, Conduct::RedirectLoop);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    assert_eq!(shop.robots_hits().len(), 6, "five are followed, whatever pages may");
}

#[tokio::test]
async fn a_robots_txt_that_one_circuit_does_not_bring_is_asked_for_through_another() {
    let stage = Stage::direct(stocked(&REAL[..3])).only(ONLY).set("fetch", "attempts_max", 20);
    let shop = stage.shops.of(ONLY);
    shop.behave(When::Robots, Conduct::Reset);
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL[..3].iter().copied())).await.unwrap());
    let failed = daemon.wait_for_event("visit_ended", |_| true).await.unwrap();
    assert_eq!(failed["outcome"], "connect");
    assert!(failed["detail"].as_str().unwrap().starts_with("robots.txt: "), "{failed}");
    daemon.wait_for_event("circuit_retired", |event| event["reason"] == "connect").await.unwrap();
    assert!(shop.hits().is_empty());
    shop.behave_well();
    let (products, _) = stage.finished(3).await;
    assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
}

#[tokio::test]
async fn robots_txt_goes_through_tor_once_for_all_circuits() {
    let network = network().await;
    let stage = stage_behind(&network, Catalogue::of(REAL));
    let forbidding = stage.shops.of(ONLY);
    forbidding.behave(When::Robots, robots("User-agent: *\nDisallow: /index/\n"));
    let daemon = stage.start().await;
    accepted(daemon.submit(&batch(REAL)).await.unwrap());
    let (products, _) = stage.finished(8).await;
    assert!(products.iter().all(|product| product["errors"]["cocooncenter"]["kind"] == "robots"));
    assert!(forbidding.hits().is_empty());
    for shop in &stage.shops.all {
        let asked = shop.robots_hits();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(network.exit_of(asked[0].local).is_some(), "{:?} came by no exit", asked[0]);
    }
    drop(daemon);
}

#[tokio::test]
async fn check_says_which_shops_will_be_asked_for_their_robots_txt() {
    let mut stage = Stage::direct(stocked(&[REAL[0]])).set("sites.pharmagdd", "robots", false);
    let search = "https://search.example/5/search?hashid=demo&query={ean}";
    stage.config = stage.config.set("sites.drakkars.search", "url", search);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, stage.config.to_string()).unwrap();
    let check = std::process::Command::new(BINARY).arg("check").arg("--config").arg(&path).output().unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success(), "{said}");
    for line in [
        "cocooncenter: robots.txt will be asked of 127.0.0.1",
        "drakkars: robots.txt will be asked of search.example and 127.0.0.1",
        "pharmagdd: robots.txt is not asked for",
    ] {
        assert!(said.lines().any(|other| other == line), "{line}\n{said}");
    }
}
