use super::{FetchError, FetchLimits, Redirects, Verdict, exchange, message};
use crate::model::page::{End, Method, Page, Request, Via};
use crate::scraper::circuit::{Circuit, Connection, Origin, Settings, SocksReply, Traffic};
use crate::scraper::stand_in::{Manner, Shop, Socks, Visitor, certified};
use crate::scraper::tls::Tls;
use crate::scraper::tor::TorGate;
use std::io::Write;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::{Instant, sleep};
use url::Url;

/// Limits that no test meets by being slow.
pub(in crate::scraper) fn limits() -> FetchLimits {
    FetchLimits {
        connect: Duration::from_secs(60),
        first_byte: Duration::from_secs(60),
        silence: Duration::from_secs(60),
        body_bytes_max: 1 << 20,
        decoded_bytes_max: 1 << 20,
        redirects_max: 5,
        user_agent: "Mozilla/5.0 (test)".to_owned(),
    }
}

pub(in crate::scraper) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Redirects within these hosts, of a shop that has no way to say no by one.
fn within(hosts: &[String]) -> Redirects<'_> {
    Redirects { hosts, blocks: None }
}

/// A limit that is meant to be met.
const SHORT: Duration = Duration::from_millis(100);

fn circuit(socks: &str) -> Circuit {
    Circuit::new(1, 41, 1, settings(socks, None))
}

pub(in crate::scraper) fn settings(socks: &str, roots: Option<&str>) -> Settings {
    let tls = Tls::new(roots.map(str::as_bytes)).unwrap();
    Settings::new(TorGate::new(socks.parse().unwrap()), tls)
}

/// Fetches one request straight from `shop`, with a new circuit, within the shop's own address.
async fn fetch(shop: &Shop, request: Request, limits: &FetchLimits) -> Result<Page, FetchError> {
    let hosts = [shop.address.to_string()];
    circuit("127.0.0.1:1").fetch(&request, Via::Direct, limits, &hosts, soon()).await
}

async fn get(shop: &Shop, limits: &FetchLimits) -> Result<Page, FetchError> {
    fetch(shop, Request::get(shop.url("/")), limits).await
}

/// A shop that answers `bytes` to the first request and then closes.
async fn saying(bytes: impl Into<Vec<u8>>) -> Shop {
    let bytes: std::sync::Arc<[u8]> = bytes.into().into();
    Shop::start(None, move |mut visitor| {
        let bytes = bytes.clone();
        async move {
            visitor.request().await?;
            visitor.write(&bytes).await?;
            visitor.close().await;
            Some(())
        }
    })
    .await
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn coded(coding: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_request_looks_like_a_browsers_and_the_answer_comes_back_whole() {
    let head =
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html; charset=iso-8859-1\r\nContent-Length: 4\r\n\r\n";
    let shop = Shop::answering([head.as_slice(), b"n\xe9\r\n"].concat()).await;
    let request = Request {
        method: Method::Post,
        url: shop.url("/search?q=a%20b#part"),
        headers: vec![
            ("X-Requested-With".into(), "XMLHttpRequest".into()),
            ("accept".into(), "application/json".into()),
            ("Host".into(), "evil.example".into()),
            ("Transfer-Encoding".into(), "chunked".into()),
        ],
        body: Some(("application/x-www-form-urlencoded".into(), b"recherche=1".to_vec())),
    };
    let page = fetch(&shop, request.clone(), &limits()).await.unwrap();
    assert_eq!(page.url, request.url);
    assert_eq!((page.status, page.bytes.as_slice(), page.end), (404, b"n\xe9\r\n".as_slice(), End::Framed));
    assert_eq!(page.content_type.as_deref(), Some("text/html; charset=iso-8859-1"));
    let expected = format!(
        "POST /search?q=a%20b HTTP/1.1\r\nHost: {}\r\nUser-Agent: Mozilla/5.0 (test)\r\nAccept: application/json\r\n\
         Accept-Language: fr-FR,fr;q=0.9,en;q=0.5\r\nAccept-Encoding: gzip, br, zstd\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nX-Requested-With: XMLHttpRequest\r\n\
         Content-Length: 11\r\n\r\nrecherche=1",
        shop.address
    );
    assert_eq!(shop.requests(), [expected]);
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_dials_nobody() {
    let shop = Shop::answering("").await;
    let mut request = Request::get(shop.url("/"));
    request.headers.push(("X-Bad".into(), "a\r\nInjected: b".into()));
    let error = fetch(&shop, request, &limits()).await.unwrap_err();
    assert_eq!((error.kind(), error.verdict()), ("request", Verdict::Never));
    assert_eq!(shop.connections().len(), 0);
}

#[tokio::test]
async fn a_deadline_in_the_past_dials_nobody() {
    let shop = Shop::answering("").await;
    let fetched = circuit("127.0.0.1:1")
        .fetch(&Request::get(shop.url("/")), Via::Direct, &limits(), &[], Instant::now())
        .await;
    assert!(matches!(fetched, Err(FetchError::Deadline { seen: false })), "{fetched:?}");
    assert_eq!(shop.connections().len(), 0);
}

mod time {
    use super::*;

    #[tokio::test]
    async fn a_shop_that_never_answers_is_left_without_one_byte_seen() {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.linger().await;
            Some(())
        })
        .await;
        let error = get(&shop, &FetchLimits { first_byte: SHORT, ..limits() }).await.unwrap_err();
        assert!(matches!(error, FetchError::FirstByteTimeout { seen: false, .. }), "{error:?}");
        assert_eq!((error.kind(), error.seen_bytes()), ("timeout", false));
        // The connection went with the fetch.
        shop.ended(1).await;
    }

    #[tokio::test]
    async fn a_shop_that_agrees_on_tls_and_then_never_answers_was_seen() {
        let (pem, acceptor) = certified("www.shop.example");
        let shop = Shop::start(Some(acceptor), |mut visitor| async move {
            visitor.linger().await;
            Some(())
        })
        .await;
        let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
        let mut circuit = Circuit::new(1, 41, 1, settings(&socks.address, Some(&pem)));
        let request = Request::get(Url::parse("https://www.shop.example/").unwrap());
        let limits = FetchLimits { first_byte: SHORT, ..limits() };
        let error = circuit.fetch(&request, Via::Tor, &limits, &[], soon()).await.unwrap_err();
        assert!(matches!(error, FetchError::FirstByteTimeout { seen: true, .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_byte_at_a_time_ends_at_the_deadline() {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.write("HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                visitor.write("x").await?;
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        let deadline = Instant::now() + Duration::from_millis(300);
        let fetched = circuit("127.0.0.1:1")
            .fetch(&Request::get(shop.url("/")), Via::Direct, &limits(), &[], deadline)
            .await;
        assert!(matches!(fetched, Err(FetchError::Deadline { seen: true })), "{fetched:?}");
        shop.ended(1).await;
    }

    /// One exchange in memory, where the paused clock moves only while both sides wait.
    async fn exchange_with<F>(
        serve: impl FnOnce(tokio::io::DuplexStream) -> F,
    ) -> (Result<Page, FetchError>, Duration)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, theirs) = duplex(1024);
        tokio::spawn(serve(theirs));
        let started = Instant::now();
        let connection = Connection::over(ours, Traffic::new()).await.unwrap();
        let request = Request::get(Url::parse("http://shop.example/").unwrap());
        let limits =
            FetchLimits { first_byte: Duration::from_secs(20), silence: Duration::from_secs(5), ..limits() };
        let origin = Origin::of(&request.url, Via::Tor).unwrap();
        let message = message(&request, "test").unwrap();
        let mut circuit = circuit("127.0.0.1:1");
        let (answer, _) =
            exchange::run(&mut circuit, &origin, connection, message, &request.url, &limits).await;
        let page = answer.map(|answer| match answer {
            exchange::Answer::Page(page) => page,
            exchange::Answer::Redirect { .. } => unreachable!("no redirect is served here"),
        });
        (page, started.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn slowness_is_no_silence_in_head_or_body() {
        let (page, took) = exchange_with(|mut io| async move {
            sleep(Duration::from_secs(19)).await;
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789" {
                sleep(Duration::from_secs(1)).await;
                io.write_all(&[*byte]).await.unwrap();
            }
            let _ = io.read_to_end(&mut Vec::new()).await;
        })
        .await;
        assert!(page.is_err(), "the first byte was a tick late: {page:?}");
        assert_eq!(took.as_secs(), 20);

        let (page, took) = exchange_with(|mut io| async move {
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789" {
                sleep(Duration::from_secs(4)).await;
                io.write_all(&[*byte]).await.unwrap();
            }
            let _ = io.read_to_end(&mut Vec::new()).await;
        })
        .await;
        assert_eq!(page.unwrap().bytes, b"0123456789");
        assert_eq!(took.as_secs(), 49 * 4);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_in_the_head_and_in_the_body_has_its_own_limit() {
        for (said, what) in
            [("HTTP/1.1 200 O", "head"), ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n012", "body")]
        {
            let (page, took) = exchange_with(move |mut io| async move {
                sleep(Duration::from_secs(3)).await;
                io.write_all(said.as_bytes()).await.unwrap();
                let _ = io.read_to_end(&mut Vec::new()).await;
                std::future::pending::<()>().await;
            })
            .await;
            assert!(matches!(page, Err(FetchError::SilenceTimeout { .. })), "{what}: {page:?}");
            assert_eq!(took.as_secs(), 8, "{what}");
        }
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_is_not_written_to_its_end() {
        const LONG: usize = 32 << 20;
        let (given_up, wait) = tokio::sync::watch::channel(false);
        let (count, mut counted) = tokio::sync::watch::channel(None);
        let shop = Shop::start(None, move |mut visitor| {
            let (mut wait, count) = (wait.clone(), count.clone());
            async move {
                wait.wait_for(|given_up| *given_up).await.ok()?;
                count.send_replace(Some(visitor.linger().await));
                Some(())
            }
        })
        .await;
        let mut request = Request::get(shop.url("/"));
        request.method = Method::Post;
        request.body = Some(("text/plain".into(), vec![b'x'; LONG]));
        let error = fetch(&shop, request, &FetchLimits { first_byte: SHORT, ..limits() }).await.unwrap_err();
        assert!(matches!(error, FetchError::FirstByteTimeout { .. }), "{error:?}");
        given_up.send_replace(true);
        let read = counted.wait_for(Option::is_some).await.unwrap().unwrap();
        assert!(read < LONG, "{read} bytes came");
    }

    #[tokio::test]
    async fn a_fetch_that_is_dropped_closes_its_connection() {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.linger().await;
            Some(())
        })
        .await;
        let mut circuit = circuit("127.0.0.1:1");
        let (request, limits) = (Request::get(shop.url("/")), limits());
        tokio::select! {
            fetched = circuit.fetch(&request, Via::Direct, &limits, &[], soon()) => panic!("{fetched:?}"),
            () = async { while shop.requests().is_empty() { tokio::task::yield_now().await } } => {}
        }
        shop.ended(1).await;
    }
}

mod size {
    use super::*;

    #[tokio::test]
    async fn an_endless_body_is_cut_at_the_limit() {
        for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"] {
            let shop = Shop::start(None, move |mut visitor: Visitor| async move {
                visitor.request().await?;
                visitor.write(head).await?;
                loop {
                    visitor.write([b'x'; 4096]).await?;
                }
            })
            .await;
            let error = get(&shop, &limits()).await.unwrap_err();
            assert!(matches!(error, FetchError::BodyTooLarge { limit_bytes: 1_048_576 }), "{error:?}");
            assert_eq!((error.kind(), error.verdict()), ("too_large", Verdict::Never));
            shop.ended(1).await;
        }
    }

    #[tokio::test]
    async fn a_body_of_exactly_the_limit_is_taken() {
        let shop = saying("HTTP/1.1 200 OK\r\n\r\n0123456789").await;
        assert_eq!(
            get(&shop, &FetchLimits { body_bytes_max: 10, ..limits() }).await.unwrap().bytes.len(),
            10
        );
        let over = get(&shop, &FetchLimits { body_bytes_max: 9, ..limits() }).await;
        assert!(matches!(over, Err(FetchError::BodyTooLarge { .. })), "{over:?}");
        let over = get(&shop, &FetchLimits { decoded_bytes_max: 9, ..limits() }).await;
        assert!(matches!(over, Err(FetchError::DecodedTooLarge { .. })), "{over:?}");
    }

    #[tokio::test]
    async fn a_gzip_bomb_ends_at_the_limit() {
        let zeros = vec![0; 100 << 20];
        let shop = saying(coded("gzip", &gzip(&zeros))).await;
        drop(zeros);
        let error = get(&shop, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::DecodedTooLarge { limit_bytes: 1_048_576 }), "{error:?}");
    }

    #[tokio::test]
    async fn an_endless_head_is_cut() {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.write("HTTP/1.1 200 OK\r\n").await?;
            loop {
                visitor.write(format!("X-Pad: {}\r\n", "x".repeat(1000))).await?;
            }
        })
        .await;
        let error = get(&shop, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::HeadTooLarge { .. }), "{error:?}");
        let shop = saying(format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(200))).await;
        let error = get(&shop, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::HeadTooLarge { .. }), "{error:?}");
    }
}

mod coding {
    use super::*;

    #[tokio::test]
    async fn bodies_are_unpacked() {
        let zstd = zstd::encode_all(b"page".as_slice(), 3).unwrap();
        let br = [0x8b, 0x01, 0x80, 0x70, 0x61, 0x67, 0x65, 0x03];
        for (name, body) in
            [("gzip", gzip(b"page")), ("zstd", zstd), ("br", br.to_vec()), ("identity", b"page".to_vec())]
        {
            let page = get(&saying(coded(name, &body)).await, &limits()).await.unwrap();
            assert_eq!(page.bytes, b"page", "{name}");
        }
    }

    #[tokio::test]
    async fn what_was_not_asked_for_or_is_broken_is_an_error() {
        let broken = b"\x1f\x8bnot really gzip at all".as_slice();
        for (name, body, verdict) in [
            ("compress", b"page".as_slice(), Verdict::Never),
            ("gzip, br", b"page".as_slice(), Verdict::Never),
            ("gzip", broken, Verdict::RetryElsewhere),
        ] {
            let error = get(&saying(coded(name, body)).await, &limits()).await.unwrap_err();
            assert_eq!((error.kind(), error.verdict()), ("encoding", verdict), "{name}: {error:?}");
        }
    }
}

mod end {
    use super::*;

    #[tokio::test]
    async fn an_answer_with_a_length_that_ends_early_is_truncated() {
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n012",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            let error = get(&saying(cut).await, &limits()).await.unwrap_err();
            assert!(matches!(error, FetchError::Truncated { .. }), "{cut:?}: {error:?}");
            assert_eq!((error.kind(), error.seen_bytes()), ("truncated", true));
            assert_eq!(error.verdict(), Verdict::RetryElsewhere);
        }
    }

    #[tokio::test]
    async fn an_answer_without_a_length_is_marked_as_doubtful() {
        for (said, end) in [
            ("HTTP/1.1 200 OK\r\n\r\nok", End::Closed),
            ("HTTP/1.0 200 OK\r\n\r\nok", End::Closed),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", End::Framed),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", End::Framed),
        ] {
            let page = get(&saying(said).await, &limits()).await.unwrap();
            assert_eq!((page.bytes.as_slice(), page.end), (b"ok".as_slice(), end), "{said:?}");
        }
        let page = get(&saying("HTTP/1.1 204 No Content\r\n\r\n").await, &limits()).await.unwrap();
        assert_eq!((page.status, page.bytes.len(), page.end), (204, 0, End::Framed));
    }

    #[tokio::test]
    async fn packed_bytes_tell_that_their_end_is_missing() {
        let packed = gzip(b"a page that says more than a few bytes, so that half of it is something");
        let half = &packed[..packed.len() / 2];
        let head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n".as_slice();
        let error = get(&saying([head, half].concat()).await, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::Truncated { .. }), "{error:?}");
        // With a length it is the shop's own mistake.
        let error = get(&saying(coded("gzip", half)).await, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::Encoding { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn under_tls_an_end_without_a_goodbye_is_truncated() {
        for (polite, path) in [(true, "polite"), (false, "rude")] {
            let (pem, acceptor) = certified("www.shop.example");
            let shop = Shop::start(Some(acceptor), move |mut visitor| async move {
                visitor.request().await?;
                visitor.write("HTTP/1.1 200 OK\r\n\r\n<html>").await?;
                if polite {
                    visitor.close().await;
                }
                Some(())
            })
            .await;
            let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
            let mut circuit = Circuit::new(1, 41, 1, settings(&socks.address, Some(&pem)));
            let request = Request::get(Url::parse("https://www.shop.example/").unwrap());
            let fetched = circuit.fetch(&request, Via::Tor, &limits(), &[], soon()).await;
            match fetched {
                Ok(page) if polite => assert_eq!(page.end, End::Closed),
                Err(FetchError::Truncated { bytes: 6, .. }) if !polite => {}
                other => panic!("{path}: {other:?}"),
            }
        }
    }
}

mod turns {
    use super::*;
    use crate::scraper::errand::Errand;
    use crate::scraper::pace::Pace;

    const INTERVAL: Duration = Duration::from_millis(400);
    /// A request may leave so much earlier as the one before it left late.
    const EARLIER: Duration = Duration::from_millis(100);

    /// An errand of a shop that was asked just now.
    fn errand() -> Errand<'static> {
        let pace = Pace::new(INTERVAL, Instant::now());
        pace.take(Instant::now());
        Errand::in_turn(Via::Direct, pace, soon())
    }

    #[tokio::test]
    async fn every_redirect_that_is_followed_waits_for_its_turn() {
        let shop = Shop::start(None, |mut visitor| async move {
            for hop in 1..=2 {
                visitor.request().await?;
                let head = format!("HTTP/1.1 302 Found\r\nLocation: /{hop}\r\nContent-Length: 0\r\n\r\n");
                visitor.write(&head).await?;
            }
            visitor.request().await?;
            visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            Some(())
        })
        .await;
        let (begun, mut errand) = (Instant::now(), errand());
        let hosts = [shop.address.to_string()];
        let request = Request::get(shop.url("/"));
        circuit("127.0.0.1:1").fetch_in_turn(&request, &limits(), within(&hosts), &mut errand).await.unwrap();
        assert_eq!(shop.requests().len(), 3);
        assert!(begun.elapsed() >= 3 * INTERVAL - EARLIER, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_request_that_is_repeated_waits_for_another_turn() {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            visitor.request().await?;
            Some(())
        })
        .await;
        let (begun, mut errand, mut circuit) = (Instant::now(), errand(), circuit("127.0.0.1:1"));
        let request = Request::get(shop.url("/"));
        for _ in 0..2 {
            circuit.fetch_in_turn(&request, &limits(), within(&[]), &mut errand).await.unwrap();
        }
        assert_eq!(shop.requests().len(), 3, "one was repeated");
        assert!(begun.elapsed() >= 3 * INTERVAL - EARLIER, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_connection_that_ended_while_its_shop_was_left_alone_is_made_again() {
        let first = std::sync::atomic::AtomicBool::new(true);
        let shop = Shop::start(None, move |mut visitor| {
            let hangs_up = first.swap(false, std::sync::atomic::Ordering::Relaxed);
            async move {
                if hangs_up {
                    return None;
                }
                visitor.request().await?;
                visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
                Some(())
            }
        })
        .await;
        let (pace, request) = (Pace::new(INTERVAL, Instant::now()), Request::get(shop.url("/")));
        // Another request left just now, so this one waits with its connection.
        pace.leave().await;
        let mut errand = Errand::in_turn(Via::Direct, pace, soon());
        let fetched =
            circuit("127.0.0.1:1").fetch_in_turn(&request, &limits(), within(&[]), &mut errand).await;
        assert_eq!(fetched.unwrap().bytes, b"ok");
        assert_eq!(shop.requests().len(), 1);
    }

    #[tokio::test]
    async fn requests_whose_slots_are_long_past_leave_one_by_one() {
        let shop = Shop::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let pace = Pace::new(INTERVAL, Instant::now());
        let deadlines = crate::scraper::deadlines::Deadlines::default();
        let begun = Instant::now();
        let four = std::array::from_fn::<_, 4, _>(|_| async {
            let watched = deadlines.enter("shop".into(), soon(), Duration::ZERO);
            // The queue took their slots, and something else came before them.
            let mut errand = Errand::of_visit("shop", Via::Direct, pace.clone(), soon(), &watched);
            let request = Request::get(shop.url("/"));
            circuit("127.0.0.1:1")
                .fetch_in_turn(&request, &limits(), within(&[]), &mut errand)
                .await
                .unwrap();
        });
        let [one, two, three, four] = four;
        tokio::join!(one, two, three, four);
        assert!(begun.elapsed() >= 3 * INTERVAL - EARLIER, "{:?}", begun.elapsed());
    }
}

mod redirects {
    use super::*;

    #[tokio::test]
    async fn a_redirect_within_the_shop_is_followed_on_the_same_connection() {
        let shop = Shop::start(None, |mut visitor| async move {
            loop {
                let request = visitor.request().await?;
                let answer = if request.starts_with("POST /a ") {
                    "HTTP/1.1 302 Found\r\nLocation: /caf\u{e9}?q=1\r\nContent-Length: 5\r\n\r\nmoved"
                } else {
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                };
                visitor.write(answer).await?;
            }
        })
        .await;
        let mut request = Request::get(shop.url("/a"));
        request.method = Method::Post;
        request.body = Some(("text/plain".into(), b"x".to_vec()));
        let page = fetch(&shop, request, &limits()).await.unwrap();
        assert_eq!(page.url, shop.url("/caf%C3%A9?q=1"));
        assert_eq!(shop.connections().len(), 1);
        let second = &shop.requests()[1];
        assert!(second.starts_with("GET /caf%C3%A9?q=1 ") && !second.contains("Content-"), "{second}");
    }

    #[tokio::test]
    async fn an_endless_redirect_ends_after_its_limit() {
        let shop =
            Shop::answering("HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n").await;
        let error = get(&shop, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::TooManyRedirects { limit: 5 }), "{error:?}");
        assert_eq!((error.kind(), shop.requests().len()), ("redirect", 6));
    }

    #[tokio::test]
    async fn a_redirect_elsewhere_is_not_followed() {
        let other = Shop::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let shop = Shop::answering(format!(
            "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
            other.url("/?secret=1")
        ))
        .await;
        let error = get(&shop, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::RedirectElsewhere { .. }), "{error:?}");
        assert_eq!(error.to_string(), "redirected to 127.0.0.1, which is not the shop's");
        assert_eq!(other.connections().len(), 0);
    }

    #[tokio::test]
    async fn a_redirect_with_an_endless_body_is_followed_on_another_connection() {
        let shop = Shop::start(None, |mut visitor| async move {
            loop {
                if visitor.request().await?.starts_with("GET /a ") {
                    visitor.write("HTTP/1.1 301 Moved\r\nLocation: /b\r\n\r\n").await?;
                    loop {
                        visitor.write([b'x'; 4096]).await?;
                    }
                }
                visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
            }
        })
        .await;
        let page = fetch(&shop, Request::get(shop.url("/a")), &limits()).await.unwrap();
        assert_eq!((page.bytes.as_slice(), shop.connections().len()), (b"ok".as_slice(), 2));
    }

    #[tokio::test]
    async fn a_redirect_that_says_not_where_to_is_an_answer() {
        let page =
            get(&saying("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n").await, &limits()).await.unwrap();
        assert_eq!(page.status, 302);
    }
}

mod kept {
    use super::*;

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    /// Answers once on each connection and hangs up on what comes next without a byte.
    async fn forgetful() -> Shop {
        Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.write(OK).await?;
            visitor.request().await?;
            Some(())
        })
        .await
    }

    #[tokio::test]
    async fn a_get_is_repeated_once_on_a_fresh_connection() {
        let shop = forgetful().await;
        let mut circuit = circuit("127.0.0.1:1");
        let request = Request::get(shop.url("/"));
        for _ in 0..2 {
            circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
        }
        assert_eq!((shop.connections().len(), shop.requests().len()), (2, 3));
    }

    #[tokio::test]
    async fn a_post_that_was_sent_is_not_repeated() {
        let shop = forgetful().await;
        let mut circuit = circuit("127.0.0.1:1");
        let mut request = Request::get(shop.url("/"));
        circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
        request.method = Method::Post;
        let error = circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap_err();
        assert!(matches!(error, FetchError::HungUp { kept: true, seen: false, .. }), "{error:?}");
        assert_eq!(error.verdict(), Verdict::RetryHere);
        assert_eq!(shop.requests().len(), 2);
    }

    #[tokio::test]
    async fn a_fresh_connection_that_hangs_up_is_not_tried_again() {
        let shop = Shop::start(None, |mut visitor| async move { visitor.request().await.map(|_| ()) }).await;
        let error = get(&shop, &limits()).await.unwrap_err();
        assert!(matches!(error, FetchError::HungUp { kept: false, seen: false, .. }), "{error:?}");
        assert_eq!((error.kind(), error.verdict()), ("connect", Verdict::RetryElsewhere));
        assert_eq!(shop.connections().len(), 1);
    }

    #[tokio::test]
    async fn a_byte_of_the_answer_forbids_the_repeat() {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.write(OK).await?;
            visitor.request().await?;
            visitor.write("H").await?;
            visitor.close().await;
            Some(())
        })
        .await;
        let mut circuit = circuit("127.0.0.1:1");
        let request = Request::get(shop.url("/"));
        circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
        let error = circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap_err();
        assert!(matches!(error, FetchError::Truncated { .. }), "{error:?}");
        assert_eq!(shop.connections().len(), 1);
    }
}

mod tor {
    use super::*;

    async fn through(manner: Manner, limits: &FetchLimits) -> FetchError {
        let socks = Socks::start(manner).await;
        let request = Request::get(Url::parse("http://www.shop.example/").unwrap());
        circuit(&socks.address).fetch(&request, Via::Tor, limits, &[], soon()).await.unwrap_err()
    }

    #[tokio::test]
    async fn without_tor_nothing_goes_out() {
        let shop = Shop::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let mut circuit = circuit(&Socks::nobody().await);
        let error =
            circuit.fetch(&Request::get(shop.url("/")), Via::Tor, &limits(), &[], soon()).await.unwrap_err();
        assert!(matches!(error, FetchError::Tor(_)), "{error:?}");
        assert_eq!((error.kind(), error.seen_bytes(), shop.connections().len()), ("tor", false, 0));
    }

    #[tokio::test]
    async fn a_port_that_lies_or_breaks_off_is_tor_away() {
        for manner in [
            Manner::TakesNoAuth,
            Manner::RefusesMethods,
            Manner::RefusesPassword,
            Manner::SpeaksHttp,
            Manner::HangsUpAtOnce,
            Manner::HangsUpAfterRequest,
        ] {
            let error = through(manner, &limits()).await;
            assert!(matches!(error, FetchError::Tor(_)), "{manner:?}: {error:?}");
            assert!(matches!(error.verdict(), Verdict::Later(_)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_greeting_is_tor_away_long_before_the_connect_limit() {
        let started = Instant::now();
        let error = through(Manner::StallsAtOnce, &limits()).await;
        assert!(matches!(error, FetchError::Tor(_)), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn a_circuit_that_does_not_answer_is_a_timeout_without_a_byte() {
        let error = through(Manner::StallsReply, &FetchLimits { connect: SHORT, ..limits() }).await;
        assert!(matches!(error, FetchError::ConnectTimeout { seen: false, .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_reply_is_no_verdict_on_the_shop() {
        for (code, verdict) in [
            (0x01, Verdict::RetryElsewhere),
            (0x04, Verdict::RetryElsewhere),
            (0x06, Verdict::RetryElsewhere),
            (0xf0, Verdict::RetryElsewhere),
            (0xf6, Verdict::Never),
        ] {
            let error = through(Manner::Replies { connect: code, resolve: code }, &limits()).await;
            assert!(matches!(error, FetchError::Unreached { .. }), "{code:#04x}: {error:?}");
            assert_eq!((error.verdict(), error.seen_bytes()), (verdict, false), "{code:#04x}");
        }
        let refused = FetchError::Unreached { reply: SocksReply::General, reason: None };
        assert_eq!(
            refused.to_string(),
            "tor did not reach the shop: 0x01, general failure: refused port, policy or dead circuit"
        );
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_the_shops_is_refused() {
        let (pem, acceptor) = certified("evil.example");
        let shop = Shop::start(Some(acceptor), |_| async { None }).await;
        let socks = Socks::start(Manner::Forwards { to: shop.address }).await;
        let request = Request::get(Url::parse("https://www.shop.example/").unwrap());
        for roots in [None, Some(pem.as_str())] {
            let settings = settings(&socks.address, roots);
            let mut circuit = Circuit::new(1, 41, 1, settings);
            let error = circuit.fetch(&request, Via::Tor, &limits(), &[], soon()).await.unwrap_err();
            assert!(matches!(error, FetchError::Tls { seen: true, .. }), "{error:?}");
            assert_eq!((error.kind(), error.verdict()), ("tls", Verdict::RetryElsewhere));
        }
    }

    #[tokio::test]
    async fn what_is_not_http_is_a_protocol_error() {
        let error = get(&saying("SSH-2.0-OpenSSH_9.2\r\n\r\n").await, &limits()).await.unwrap_err();
        assert_eq!(error.kind(), "protocol", "{error:?}");
        let bad_chunk = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        let error = get(&saying(bad_chunk).await, &limits()).await.unwrap_err();
        assert_eq!(error.kind(), "protocol", "{error:?}");
    }

    #[tokio::test]
    async fn retry_after_is_told_beside_the_page() {
        let shop = Shop::start(None, |mut visitor| async move {
            visitor.request().await?;
            visitor.write("HTTP/1.1 429 No\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n").await?;
            visitor.request().await?;
            visitor.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
            Some(())
        })
        .await;
        let mut circuit = circuit("127.0.0.1:1");
        let request = Request::get(shop.url("/"));
        let page = circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
        assert_eq!((page.status, circuit.retry_after()), (429, Some(Duration::from_secs(7))));
        circuit.fetch(&request, Via::Direct, &limits(), &[], soon()).await.unwrap();
        assert_eq!(circuit.retry_after(), None);
    }
}
