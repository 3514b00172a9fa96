//! What the daemon tells the manager, and what the manager does with it.

use std::time::Instant;

use glaneur_kit::shop::{Conduct, When};
use glaneur_kit::{Gate, Receiver};

use super::service::{POLL, Service, for_service, under_systemd};
use crate::support::{LONG, REAL, Stage, accepted, batch, stocked};

/// A service that has a batch and visits that wait for the gate.
async fn at_work(service: &Service, stage: &Stage, gate: &Gate) {
    service.configure_for(stage);
    stage.shops.behave(&When::Always, &Conduct::Normal.held(gate));
    service.does("start");
    accepted(service.submit(&batch(REAL)).await.unwrap());
    stage.shops.all[0].records().wait_until(|hits| !hits.is_empty(), LONG).await.unwrap();
}

/// The next start has no fail point any more.
async fn a_hang_ends_by_the_watchdog(service: Service, point: &'static str) {
    service.drop_in("watchdog", "WatchdogSec=2s");
    service.drop_in("hang", &format!("Environment=GLANEUR_FAIL={point}"));
    let stage = Stage::direct(stocked(&REAL)).set("fetch", "visit_deadline", "2s");
    let gate = Gate::closed();
    at_work(&service, &stage, &gate).await;
    service.take_back("hang");
    service.wait_until("NRestarts", |restarts| restarts == "1").await;
    gate.open();
    stage.finished(REAL.len()).await;
    assert_eq!(service.said("Watchdog timeout"), 1, "{}", service.journal());
    assert_eq!(service.said("watchdog_withheld"), 1);
    assert_eq!((service.show("NRestarts"), service.show("ActiveState")), ("1".into(), "active".into()));
}

#[test]
fn a_root_that_hangs_is_killed_by_the_watchdog_and_the_batch_ends() {
    under_systemd(|service| a_hang_ends_by_the_watchdog(service, "root.tick=hang@3"));
}

#[test]
fn a_visit_that_hangs_is_killed_by_the_watchdog_and_the_batch_ends() {
    under_systemd(|service| a_hang_ends_by_the_watchdog(service, "scraper.visit=hang@2"));
}

/// "draining 7 visits, 3 deliveries, 12 s left".
fn seconds_left(status: &str) -> Option<u64> {
    status.strip_prefix("draining")?.strip_suffix(" s left")?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_drain_longer_than_the_stop_time_is_waited_for_and_loses_nothing() {
    const STOP_TIME_S: u64 = 2;
    under_systemd(|service| async move {
        let stage = Stage::direct(stocked(&REAL));
        service.drop_in("stop", &format!("TimeoutStopSec={STOP_TIME_S}s"));
        let gate = Gate::closed();
        at_work(&service, &stage, &gate).await;
        service.wait_until("StatusText", |status| status.contains(" visits")).await;
        service.systemctl(&["stop", "--no-block", "glaneur.socket", "glaneur.service"]);
        let status = service.wait_until("StatusText", |status| seconds_left(status).is_some()).await;
        assert!(status.contains(" visits"), "{status}");
        let begun = seconds_left(&status).unwrap();
        let late = |status: &str| seconds_left(status).is_some_and(|left| left + STOP_TIME_S + 2 <= begun);
        service.wait_until("StatusText", late).await;
        assert_eq!(service.show("ActiveState"), "deactivating");
        gate.open();
        service.wait_until("ActiveState", |state| state == "inactive").await;
        assert_eq!((service.show("Result"), service.show("ExecMainStatus")), ("success".into(), "0".into()));
        service.does("start");
        let (products, _) = stage.finished(REAL.len()).await;
        assert!(products.iter().all(|product| product["status"] == "found"), "{products:?}");
        assert_eq!(service.said("deaths_charged"), 0);
    });
}

#[test]
fn a_reload_takes_a_right_file_and_fails_on_a_wrong_one_which_changes_nothing() {
    under_systemd(|service| async move {
        // The check before the reload reads the secrets too, of which only the daemon has copies.
        let token = "/run/credentials/glaneur.service/webhook-secret";
        let stage = Stage::direct(stocked(&REAL)).set("webhooks", "secret_file", token);
        service
            .lab
            .write("/etc/glaneur/webhook-secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", 0o600)
            .unwrap();
        service.configure_for(&stage);
        service.does("start");
        let pid = service.show("MainPID");

        service.configure(format!("[sever]\n{}", for_service(stage.config.clone())));
        let ran = service.systemctl(&["reload", "glaneur"]);
        assert_eq!(ran.code, 1, "{ran}");
        assert_eq!(service.said("config.toml:1:2: unknown key `sever`"), 1, "{}", service.journal());
        accepted(service.submit(&batch(REAL)).await.unwrap());
        stage.finished(REAL.len()).await;

        let elsewhere = Receiver::start().unwrap();
        let changed = for_service(stage.config.clone()).product_url(elsewhere.url("/p"));
        service.configure(changed);
        service.does("reload");
        let begin = Instant::now();
        while service.said("configuration reloaded") == 0 {
            assert!(begin.elapsed() < LONG, "{}", service.journal());
            tokio::time::sleep(POLL).await;
        }
        accepted(service.submit(&batch(["0748322148474"])).await.unwrap());
        elsewhere.wait_for_taken(1, LONG).await.unwrap();
        assert_eq!((service.show("MainPID"), service.show("NRestarts")), (pid, "0".into()));
    });
}
