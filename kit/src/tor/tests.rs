use std::collections::BTreeSet;

use super::*;
use crate::{
    Catalogue, Shop, ShopKind,
    client::{self, Credentials},
};

/// The page of `shop` through the network's client, as one user; and the address it saw itself called on.
async fn visit(network: &TorNetwork, shop: &Shop, user: &str) -> Result<IpAddr> {
    let credentials = Credentials { user, password: "1.1" };
    let stream = client::through_socks(network.socks(), credentials, &shop.host(), shop.port()).await?;
    let path = format!("/?user={user}");
    let answer = client::exchange(stream, client::request("GET", &path, "")?).await?;
    assert_eq!(answer.status(), 200);
    let hit = shop.hits().into_iter().rev().find(|hit| hit.path == path);
    Ok(hit.ok_or_else(|| Trouble::new("the shop saw nothing"))?.local)
}

/// Opens a shop where every exit sees it.
fn open_shop(network: &TorNetwork) -> Shop {
    Shop::start(ShopKind::Drakkars, Catalogue::real_batch().into(), &network.aliases()).unwrap()
}

#[tokio::test]
async fn a_network_shows_which_exit_each_user_has_and_lives_through_losses() {
    let cache = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let network = TorNetwork::start(Some(cache.path())).await.unwrap();
    eprintln!("fresh start: {:.1?}", begun.elapsed());
    let shop = open_shop(&network);

    // Two users have two circuits, and keep them; the shop and the control port name the same exits.
    let mut seen = Vec::new();
    for user in ["one", "two", "one"] {
        seen.push(visit(&network, &shop, user).await.unwrap());
    }
    assert_eq!(seen[0], seen[2], "a user keeps the exit");
    let circuits = network.open_control().await.unwrap().circuit_status().await.unwrap();
    let of = |user: &str| -> Vec<&Circuit> {
        circuits.iter().filter(|circuit| circuit.socks_username.as_deref() == Some(user)).collect()
    };
    assert_eq!((of("one").len(), of("two").len()), (1, 1), "{circuits:#?}");
    assert_ne!(of("one")[0].id, of("two")[0].id);
    for (user, local) in [("one", seen[0]), ("two", seen[1])] {
        assert_eq!(of(user)[0].exit(), network.exit_of(local).map(|exit| exit.name.as_str()));
    }
    let name = shop.host();
    assert!(network.dns().queries().with(|queries| queries.iter().any(|query| query.name == name)));

    // A stopped client refuses, and comes back.
    network.stop_client();
    let refused = visit(&network, &shop, "one").await.unwrap_err().to_string();
    assert!(refused.contains("refused"), "{refused}");
    let begun = Instant::now();
    network.start_client().await.unwrap();
    eprintln!("client again: {:.1?}", begun.elapsed());
    visit(&network, &shop, "one").await.unwrap();

    // Without one exit the others carry on; nobody leaves through it.
    network.kill_exit(0);
    let lost = network.exits()[0].alias;
    let mut used = BTreeSet::new();
    for user in 0..6 {
        used.insert(visit(&network, &shop, &format!("u{user}")).await.unwrap());
    }
    assert!(!used.contains(&lost), "{used:?}");
    network.revive_exit(0).await.unwrap();
    drop(network);

    // The second start takes the snapshot; a third at the same time has its own addresses.
    let begun = Instant::now();
    let network = TorNetwork::start(Some(cache.path())).await.unwrap();
    eprintln!("from the snapshot: {:.1?}", begun.elapsed());
    let shop = open_shop(&network);
    visit(&network, &shop, "one").await.unwrap();
    assert!(network.run.starts_with(cache.path().canonicalize().unwrap()));
    let other = Subnet::any(RELAYS).unwrap();
    assert_ne!(other.name(), network.subnet.name());
    let pids: Vec<u32> =
        (0..4).filter_map(|exit| network.exit_pid(exit)).chain(network.client_pid()).collect();
    assert_eq!(pids.len(), 5);
    drop(network);
    assert!(pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "nothing is left behind");
}
