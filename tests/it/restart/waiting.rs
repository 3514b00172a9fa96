//! A product that waits is charged with nothing, however long it waits and however the process dies meanwhile.

use glaneur::ledger::sqlite;
use glaneur::ledger::store::Read;
use glaneur_kit::shop::{Conduct, Hit, Purpose, When};
use glaneur_kit::{Catalogue, Daemon, Gate, Proxy, Receiver, Shops};
use rusqlite::{Connection, OpenFlags};

use crate::support::{BINARY, LONG, REAL, Stage, accepted, batch, brisk, impatient, own_search, until};

/// Indexes of the products that a death of the process now would be charged to.
fn started(daemon: &Daemon) -> Vec<u32> {
    let ledger = Connection::open_with_flags(daemon.ledger_path(), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut query = ledger.prepare("SELECT idx FROM product WHERE started = 1").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// Waits until the product at this index of the only batch would not be charged.
pub async fn until_at_rest(daemon: &Daemon, index: u32) {
    until("a death would not be charged to it", || !started(daemon).contains(&index)).await;
}

#[tokio::test]
async fn a_product_put_back_because_tor_is_away_is_not_charged_with_a_death_while_it_waits() {
    let proxy = Proxy::start().unwrap();
    let shops = Shops::start_here(Catalogue::of([REAL[0]])).unwrap();
    let receiver = Receiver::start().unwrap();
    let mut config = impatient(&receiver).socks(proxy.address()).set("tor", "probe_timeout", "1s");
    for shop in &shops.all {
        config = brisk(config.site(shop.kind().name(), shop.base()), shop.kind().name());
    }
    let stage = Stage { shops, receiver, config: own_search(config) };
    stage.shops.behave(&When::Pages, &Conduct::Normal.held(&Gate::closed()));
    let mut daemon = Daemon::start(BINARY, stage.config.clone()).await.unwrap();
    let answer = accepted(daemon.submit(&batch([REAL[0]])).await.unwrap());
    let asks_page = |hits: &[Hit]| hits.iter().any(|hit| hit.purpose == Purpose::Page);
    for shop in &stage.shops.all {
        shop.wait_until(asks_page, LONG).await.unwrap();
    }
    assert_eq!(started(&daemon), [1], "while it is visited it would be charged");
    proxy.stop_listening().await;
    daemon.wait_for_event("tor_lost", |_| true).await.unwrap();
    until_at_rest(&daemon, 1).await;
    daemon.kill_9().await.unwrap();
    stage.shops.all.iter().for_each(glaneur_kit::Shop::behave_well);
    proxy.listen_again().unwrap();
    daemon.restart().await.unwrap();
    let (products, _) = stage.finished(1).await;
    assert_eq!(products[0]["status"], "found");
    assert!(daemon.events("deaths_charged").is_empty());
    let mut ledger = sqlite::open_read_only(&daemon.ledger_path()).unwrap();
    let no = ledger.batch(answer["batch_id"].as_str().unwrap()).unwrap().unwrap().no;
    assert_eq!(ledger.products(no, 0, 1).unwrap()[0].deaths, 0);
}
