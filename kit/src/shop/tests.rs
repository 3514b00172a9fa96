use std::net::TcpStream;

use serde_json::Value;

use super::*;
use crate::Gate;
use crate::client;

const SOON: Duration = Duration::from_secs(20);

fn shop(kind: ShopKind) -> Shop {
    Shop::start_here(kind, Arc::new(Catalogue::real_batch())).unwrap()
}

async fn answer(shop: &Shop, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
    let mut request = client::request(method, path, body.to_owned())?;
    request.headers_mut().insert("x-requested-with", http::HeaderValue::from_static("XMLHttpRequest"));
    let answer = client::send((Ipv4Addr::LOCALHOST, shop.port()).into(), request).await?;
    Ok((answer.status().as_u16(), String::from_utf8_lossy(answer.body()).into_owned()))
}

async fn get(shop: &Shop, path: &str) -> Result<(u16, String)> {
    answer(shop, "GET", path, "").await
}

async fn json(shop: &Shop, method: &str, path: &str, body: &str) -> Value {
    serde_json::from_str(&answer(shop, method, path, body).await.unwrap().1).unwrap()
}

#[tokio::test]
async fn each_structure_leads_from_a_search_to_its_page() {
    let ean = "0748322148474";
    let cocooncenter = shop(ShopKind::Cocooncenter);
    let found = json(&cocooncenter, "POST", "/index/search/searchVue", &format!("recherche={ean}")).await;
    let path = cocooncenter.page_path(ean).unwrap();
    assert_eq!(found["nb_total"], 1);
    assert!(found["vue"].as_str().unwrap().contains(&format!("href=\"{path}\"")));
    let page = get(&cocooncenter, &path).await.unwrap().1;
    assert!(page.contains(&format!("<span itemprop=\"gtin13\">{ean}</span>")), "{page}");

    let pharmagdd = shop(ShopKind::Pharmagdd);
    let found = json(&pharmagdd, "GET", &format!("/fr/search/autocomplete?s={ean}"), "").await;
    assert_eq!(found["length"], 1);
    let page = get(&pharmagdd, found["variant_4100"]["href"].as_str().unwrap()).await.unwrap().1;
    assert!(page.contains(&format!("data-js-product-reference>{ean}<")), "{page}");

    let drakkars = shop(ShopKind::Drakkars);
    let found = json(&drakkars, "GET", "/5/search?hashid=x&query=3665606002802", "").await;
    let links: Vec<&str> =
        found["results"].as_array().unwrap().iter().map(|result| result["link"].as_str().unwrap()).collect();
    let base = drakkars.direct_base();
    assert!(
        links[0].starts_with(&base) && links[0].ends_with("-3665606002406.html?dfd_layer=1"),
        "{links:?}"
    );
    let page = get(&drakkars, links[1].strip_prefix(&base).unwrap()).await.unwrap().1;
    assert!(page.contains("id=\"product_reference\">3665606002802<"), "{page}");
    let hits = drakkars.hits();
    assert_eq!((hits[0].purpose, hits[1].purpose), (Purpose::Search, Purpose::Page));
    assert!(hits.iter().all(|hit| hit.is_about("3665606002802") && hit.local == Ipv4Addr::LOCALHOST));
}

#[tokio::test]
async fn a_search_without_its_header_gets_a_page() {
    let shop = shop(ShopKind::Pharmagdd);
    let address = (Ipv4Addr::LOCALHOST, shop.port()).into();
    let answer = client::get(address, "/fr/search/autocomplete?s=0748322148474").await.unwrap();
    assert!(answer.body().starts_with(b"<!DOCTYPE html>"));
}

#[tokio::test]
async fn an_exit_is_blocked_after_its_requests_and_another_is_not() {
    let ips = [Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 2).into()];
    let shop = Shop::start(ShopKind::Pharmagdd, Arc::new(Catalogue::real_batch()), &ips).unwrap();
    shop.behave(When::Always, Conduct::BlockedAfter(2));
    let status = async |ip| {
        let answer = client::get(SocketAddr::new(ip, shop.port()), "/").await.unwrap();
        answer.status().as_u16()
    };
    let mut statuses = Vec::new();
    for ip in [ips[0], ips[0], ips[0], ips[1], ips[0]] {
        statuses.push(status(ip).await);
    }
    assert_eq!(statuses, [200, 200, 403, 200, 403]);
    assert_eq!(shop.hits()[3].local, ips[1]);
}

#[tokio::test]
async fn the_last_rule_that_fits_decides() {
    let shop = shop(ShopKind::Cocooncenter);
    let path = shop.page_path("0748322148474").unwrap();
    shop.behave(When::Always, Conduct::Status(500));
    shop.behave(When::Ean("748322148474".into()), Conduct::WrongProduct);
    shop.behave(When::Nth(3), Conduct::Nothing);
    assert_eq!(get(&shop, "/").await.unwrap().0, 500);
    assert!(get(&shop, &path).await.unwrap().1.contains("3665606002406"));
    assert_eq!(get(&shop, &path).await.unwrap().0, 404);
    shop.behave_well();
    assert!(get(&shop, &path).await.unwrap().1.contains("0748322148474"));
}

#[tokio::test]
async fn bodies_are_as_bad_as_asked() {
    let shop = shop(ShopKind::Cocooncenter);
    let path = shop.page_path("0748322148474").unwrap();
    let right = get(&shop, &path).await.unwrap().1;
    let with = async |conduct| {
        shop.behave(When::Always, conduct);
        get(&shop, &path).await
    };
    let cut = with(Conduct::CutShort).await.unwrap().1;
    assert_eq!(cut.as_bytes(), &right.as_bytes()[..right.len() / 2], "it looks complete");
    with(Conduct::Truncated).await.unwrap_err();
    with(Conduct::Reset).await.unwrap_err();
    let nested = with(Conduct::NestedDivs).await.unwrap().1;
    assert!(nested.len() > 1_000_000 && nested.contains("</html>"));
    let filled = with(Conduct::Filler(60_000)).await.unwrap().1;
    assert!((60_000..60_100).contains(&filled.len()), "{}", filled.len());
    assert!(filled.contains("gtin13") && filled.ends_with("</html>\n"));
    let dripped = with(Conduct::Drip(Duration::ZERO)).await.unwrap().1;
    assert_eq!(dripped, right);
    assert_eq!(
        with(Conduct::Exactly(418, "text/plain", "thé".into())).await.unwrap(),
        (418, "thé".to_owned())
    );
}

#[tokio::test]
async fn the_bomb_is_small_on_the_wire() {
    let shop = shop(ShopKind::Cocooncenter);
    shop.behave(When::Always, Conduct::GzipBomb);
    let answer = client::get((Ipv4Addr::LOCALHOST, shop.port()).into(), "/").await.unwrap();
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    assert!(answer.body().len() < 1 << 20, "{}", answer.body().len());
    let mut decoded = flate2::read::GzDecoder::new(&answer.body()[..]);
    assert_eq!(std::io::copy(&mut decoded, &mut std::io::sink()).unwrap(), BOMB_BYTES as u64);
}

#[tokio::test]
async fn a_redirect_leads_on_and_on() {
    let shop = shop(ShopKind::Cocooncenter);
    shop.behave(When::Always, Conduct::RedirectLoop);
    let mut path = "/x.html?a=b".to_owned();
    for hop in 1..4 {
        let answer = client::get((Ipv4Addr::LOCALHOST, shop.port()).into(), &path).await.unwrap();
        path = answer.headers()["location"].to_str().unwrap().to_owned();
        assert_eq!((answer.status().as_u16(), path.as_str()), (302, format!("/x.html?hop={hop}").as_str()));
    }
}

#[tokio::test]
async fn a_held_request_is_recorded_before_it_is_answered() {
    let shop = shop(ShopKind::Drakkars);
    let gate = Gate::closed();
    shop.behave(When::Always, Conduct::Status(500).held(&gate));
    let opened = async {
        shop.wait_until(|hits| hits.len() == 1, SOON).await.unwrap();
        gate.open();
    };
    let (answer, ()) = tokio::join!(get(&shop, "/"), opened);
    assert_eq!(answer.unwrap().0, 500);
}

#[tokio::test]
async fn an_endless_body_ends_with_its_reader() {
    use std::io::{Read, Write};
    let shop = shop(ShopKind::Drakkars);
    shop.behave(When::Always, Conduct::Endless);
    let port = shop.port();
    let read = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        stream.read_exact(&mut vec![0; 3 << 20]).is_ok()
    });
    assert!(read.await.unwrap());
}

#[tokio::test]
async fn robots_txt_is_not_there_unless_a_test_wants_it_and_counts_with_no_other_request() {
    let shop = shop(ShopKind::Pharmagdd);
    shop.behave(When::Always, Conduct::Status(500));
    assert_eq!(get(&shop, "/robots.txt").await.unwrap().0, 404);
    shop.behave(When::Robots, Conduct::RetryAfter(503, "7"));
    let request = client::request("GET", "/robots.txt", String::new()).unwrap();
    let busy = client::send((Ipv4Addr::LOCALHOST, shop.port()).into(), request).await.unwrap();
    assert_eq!((busy.status().as_u16(), &busy.headers()["retry-after"]), (503, &"7".parse().unwrap()));
    assert_eq!((shop.hits().len(), shop.robots_hits().len()), (0, 2));
    assert_eq!(shop.robots_hits()[1].purpose, Purpose::Robots);
}
