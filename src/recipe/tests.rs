//! The three shops of October 2025 on pages with their structures, then what strangers may send.

use crate::markup::{Limits, Unreadable, VALUE_BYTES_MAX};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::extract::{Extracted, Match, check, extract};
use super::search::candidates;
use super::*;
use crate::model::page::{End, Page};

/// Patient: what is tested with it is not the clock, and test machines are busy.
const LIMITS: Limits = Limits { time_max: Duration::from_secs(60), depth_max: 512, nodes_max: 200_000 };

/// The shipped recipes, with `text` laid over them.
fn shop(name: &str, text: &str) -> Arc<Recipe> {
    let text = format!("[webhooks]\nproduct_url = \"none\"\n{text}");
    crate::config::parse("c.toml", &text).unwrap().sites[name].clone()
}

fn page(url: &str, body: impl Into<Vec<u8>>) -> Page {
    let url = Url::parse(url).unwrap();
    Page {
        url,
        status: 200,
        content_type: Some("text/html; charset=utf-8".into()),
        bytes: body.into(),
        end: End::Framed,
    }
}

fn gtin(text: &str) -> Gtin {
    Gtin::parse(text).unwrap()
}

fn urls(found: Result<Vec<Url>, RecipeError>) -> Vec<String> {
    found.unwrap().iter().map(Url::to_string).collect()
}

fn field(extracted: &Extracted, name: &str) -> Value {
    extracted.fields.get(name).cloned().unwrap_or(Value::Null)
}

const COCOON: &str = r##"<!DOCTYPE html><html><head><title>Crème X | Cocooncenter</title>
<script type="application/ld+json">{"@context": "https://schema.org", "@type": "Product", "name": "Crème &amp; X",
 "offers": {"@type": "Offer", "price": 14.9, "priceCurrency": "EUR"}}</script></head><body>
<h1> Crème
 X 50ml </h1><span itemprop="gtin13">0748322148474</span>
<div itemprop="description"><p>Une crème.</p><p>Très <b>douce</b>.</p></div>
<div class="longcompo"><p>Aqua, Glycerin</p></div><div id="type_info_prio_6_1"><p>Appliquer le soir.</p></div>
<span class="bvseo-ratingValue">4,5</span><span class="bvseo-reviewCount">12</span>
<div id="bvseo-reviewsSection">
 <div class="bvseo-review"><span itemprop="author"><span itemprop="name">Marie</span></span><span itemprop="ratingValue">5</span>
  <span itemprop="name">Parfait</span><span itemprop="description">J'adore.</span></div>
 <div class="bvseo-review"><span itemprop="name">Paul</span><meta itemprop="ratingValue" content="3"><span itemprop="name">Moyen</span>
  <span itemprop="description">Bof.</span></div>
</div></body></html>"##;

#[test]
fn cocooncenter_is_searched_by_form_and_answers_html_in_json() {
    let shop = shop("cocooncenter", "");
    let request = shop.search_request(&gtin("748322148474"));
    assert_eq!(
        (request.method, request.url.as_str()),
        (Method::Post, "https://www.cocooncenter.com/index/search/searchVue")
    );
    assert_eq!(request.headers, [("X-Requested-With".to_owned(), "XMLHttpRequest".to_owned())]);
    let (kind, body) = request.body.unwrap();
    assert_eq!(
        (kind.as_str(), body.as_slice()),
        ("application/x-www-form-urlencoded", &b"recherche=0748322148474"[..])
    );

    let html = r#"<a href="/c/cremes.html">Rayon</a><a href="/creme-x/p1.html?a=1#avis">X</a> <a href="/aide">Aide</a>
        <a href="https://www.cocooncenter.com/creme-x/p1.html?a=1">X encore</a><a href="http://www.cocooncenter.com/p2.html">2</a>
        <a href="https://evil.example/p.html">mal</a><a href="javascript:x.html">js</a><a href="p3.html">3</a><a href="/p4.html">4</a>"#;
    let answer = json!({"nb_total": 5, "vue": html}).to_string();
    let answer = page("https://www.cocooncenter.com/index/search/searchVue", answer);
    let expected = ["/creme-x/p1.html?a=1", "/p2.html", "/index/search/p3.html"]
        .map(|path| format!("https://www.cocooncenter.com{path}"));
    assert_eq!(urls(candidates(&shop, &answer, &LIMITS)), expected);
    for empty in [r#"{"nb_total": 0, "vue": ""}"#, r#"{"nb_total": 0, "vue": null}"#] {
        assert!(urls(candidates(&shop, &page("https://www.cocooncenter.com/", empty), &LIMITS)).is_empty());
    }
}

#[test]
fn cocooncenter_page_gives_every_field() {
    let shop = shop("cocooncenter", "");
    let url = "https://www.cocooncenter.com/creme-x/p1.html";
    let extracted = extract(&shop, &page(url, COCOON), &LIMITS).unwrap();
    let (url, ean) = (Url::parse(url).unwrap(), "0748322148474");
    let found = Found { ean, url: &url, original_ean: None, verified: true };
    assert_eq!(
        Value::Object(shop.site_object(found, &extracted)),
        json!({"site": "Cocooncenter", "ean": ean, "url": url.as_str(), "titre": "Crème X 50ml", "prix": "14.90€",
            "ean_verif": ean, "description": "Une crème.\nTrès douce.", "composition": "Aqua, Glycerin",
            "conseils": "Appliquer le soir.", "note": "4.5/5", "nb_avis": "12", "avis_clients": [
                {"auteur": "Marie", "note": "5/5", "titre": "Parfait", "avis": "J'adore."},
                {"auteur": "Paul", "note": "3/5", "titre": "Moyen", "avis": "Bof."}]})
    );
    let keys: Vec<String> = shop.site_object(found, &extracted).keys().take(3).cloned().collect();
    assert_eq!(keys, ["site", "ean", "url"]);
    assert_eq!(check(&gtin("748322148474"), &extracted, false), Match::Verified);
    assert_eq!(check(&gtin("3701129820322"), &extracted, true), Match::Other(gtin(ean)));
    let other =
        COCOON.replace("Une crème.", "").replace("itemprop=\"description\"", "id=\"type_info_prio_11_1\"");
    let extracted = extract(&shop, &page(url.as_str(), other), &LIMITS).unwrap();
    assert_eq!(field(&extracted, "description"), "Très douce.");
}

#[test]
fn pharmagdd_answers_json_with_unknown_names() {
    let shop = shop("pharmagdd", "");
    let request = shop.search_request(&gtin("3701129820322"));
    assert_eq!((request.method, request.body), (Method::Get, None));
    assert_eq!(request.url.as_str(), "https://www.pharma-gdd.com/fr/search/autocomplete?s=3701129820322");
    let answer = r#"{"length": 2, "variant_12": {"href": "/fr/a", "label": "A"}, "brand_3": {"href": "/fr/marque"}, "variant_4": {"href": "/fr/b"}}"#;
    let answer = page(request.url.as_str(), answer);
    let expected = ["https://www.pharma-gdd.com/fr/a", "https://www.pharma-gdd.com/fr/b"];
    assert_eq!(urls(candidates(&shop, &answer, &LIMITS)), expected);
    assert!(urls(candidates(&shop, &page(request.url.as_str(), r#"{"length": 0}"#), &LIMITS)).is_empty());
}

#[test]
fn pharmagdd_page_gives_every_field() {
    let html = r#"<html><head><script type="application/ld+json">{"@context": "https://schema.org", "@graph": [{"@type": "WebSite"},
        {"@type": "Product", "name": "Gel Y", "description": "<p>Un gel.</p>", "aggregateRating": {"ratingValue": "4.8", "reviewCount": 31}}]}</script></head>
        <body><span data-js-product-price>9,<sup>90</sup> €</span><span data-js-product-reference>3701129820322</span>
        <span data-js-custom-code>ACL123</span><a class="brand" href="/m"> Marque </a>
        <div id="Composition"><div class="text">Aqua.</div></div><div id="usages"><div class="text">Matin et soir.</div></div>
        <div class="flip-card"><i data-icon="star"></i><i data-icon="star"></i><i data-icon="star"></i><i data-icon="star"></i><i data-icon="star-empty"></i>
          <p>Très bien, conseillé par mon pharmacien.</p><span class="date">le 12/10/2025</span><span>par Marie D.</span></div>
        <div class="flip-card"><p></p></div></body></html>"#;
    let extracted =
        extract(&shop("pharmagdd", ""), &page("https://www.pharma-gdd.com/fr/a", html), &LIMITS).unwrap();
    assert_eq!(
        Value::Object(extracted.fields.clone()),
        json!({"titre": "Gel Y", "prix": "9.90€", "ean_verif": "3701129820322", "reference": "3701129820322",
            "code_custom": "ACL123", "marque": "Marque", "description": "Un gel.", "composition": "Aqua.",
            "conseils": "Matin et soir.", "note": "4.8/5", "nb_avis": "31", "avis_clients": [
                {"auteur": "Marie D.", "note": "4/5", "avis": "Très bien, conseillé par mon pharmacien.", "date": "12/10/2025"}]})
    );
    assert_eq!(check(&gtin("3701129820322"), &extracted, false), Match::Verified);
}

#[test]
fn drakkars_is_searched_at_a_service_of_another_host() {
    let shop = shop("drakkars", "");
    let request = shop.search_request(&gtin("3665606002802"));
    assert_eq!(request.url.host_str(), Some("eu1-search.doofinder.com"));
    assert!(request.url.query().unwrap().ends_with("query=3665606002802"));
    let page_url = |path: &str| Url::parse(&format!("https://www.pharmaciedesdrakkars.com{path}")).unwrap();
    assert!(shop.allows(&request.url) && !shop.is_page(&request.url) && shop.is_page(&page_url("/x")));
    assert!(!shop.allows(&Url::parse("https://other.example/").unwrap()));
    assert!(
        !shop.allows(&Url::parse("http://www.pharmaciedesdrakkars.com/").unwrap()),
        "no step down to http"
    );
    let answer = r#"{"total": 3, "results": [{"link": "https://www.pharmaciedesdrakkars.com/c/soins"},
        {"link": "https://www.pharmaciedesdrakkars.com/p/1?src=doofinder#x"}, {"link": "/p/2?y"}]}"#;
    let answer = page(request.url.as_str(), answer);
    let expected = ["https://www.pharmaciedesdrakkars.com/p/1", "https://www.pharmaciedesdrakkars.com/p/2"];
    assert_eq!(urls(candidates(&shop, &answer, &LIMITS)), expected);
}

#[test]
fn drakkars_page_gives_every_field() {
    let html = r#"<html><body><h1>Sirop Z</h1><span id="product_reference">Réf : 3665606002406</span>
        <div class="pdt-detail-price"><del>20,00 €</del><strong>17,50 €</strong></div><article class="desc-longue"><p>Un sirop.</p><p>Doux.</p></article>
        <div id="upcomposition">Miel</div><span class="fa-4x text-bold has-color-theme">97%</span>
        <p>Autre.</p><div class="avis"><div><h3><span>Avis du</span> pharmacien</h3></div><div><p>À prendre le soir.</p><p>Non.</p></div></div>
        <script type="application/ld+json">{"@type": "Product", "name": "Z", "review": {"@type": "Review", "author": {"@type": "Person", "name": "Luc"},
          "reviewRating": {"ratingValue": 4}, "reviewBody": "Bon goût", "datePublished": "2025-09-01"}}</script></body></html>"#;
    let extracted =
        extract(&shop("drakkars", ""), &page("https://www.pharmaciedesdrakkars.com/p/1", html), &LIMITS)
            .unwrap();
    assert_eq!(
        Value::Object(extracted.fields.clone()),
        json!({"titre": "Sirop Z", "prix": "17.50€", "ean_verif": "3665606002406", "reference": "Réf : 3665606002406",
            "description": "Un sirop. Doux.", "composition": "Miel", "conseils_pharmacien": "À prendre le soir.",
            "pourcentage_reco": "97%", "avis_clients": [{"auteur": "Luc", "note": "4/5", "avis": "Bon goût", "date": "2025-09-01"}]})
    );
    // What its search really did: another product.
    assert_eq!(check(&gtin("3665606002802"), &extracted, false), Match::Other(gtin("3665606002406")));
}

#[test]
fn a_shop_without_fields_yields_the_schema_org_product() {
    let shop = shop(
        "mine",
        "[sites.mine]\nbase = \"http://mine.test:81\"\n[sites.mine.search]\nurl = \"s/{ean}\"\njson = '{\"q\": \"{ean}\"}'\nlinks = \"css:a.p\"\n",
    );
    let request = shop.search_request(&gtin("00748322148474"));
    assert_eq!(request.url.as_str(), "http://mine.test:81/s/0748322148474");
    assert_eq!(request.body, Some(("application/json".into(), br#"{"q": "0748322148474"}"#.to_vec())));
    let html = r#"<meta property="og:title" content="T"><div itemscope itemtype="https://schema.org/Product">
        <meta itemprop="gtin13" content="0748322148474"><div itemprop="offers"><span itemprop="price" content="3.5">3,50</span></div></div>"#;
    let extracted = extract(&shop, &page("http://mine.test:81/p", html), &LIMITS).unwrap();
    assert_eq!(Value::Object(extracted.fields.clone()), json!({"titre": "T", "prix": "3.50€"}));
    let url = Url::parse("http://mine.test:81/p").unwrap();
    let found = Found { ean: "0748322148474", url: &url, original_ean: None, verified: true };
    assert_eq!(shop.site_object(found, &extracted)["ean_verif"], "0748322148474");
    assert_eq!((extracted.own_gtin.clone(), extracted.gtins.len()), (None, 1));
    assert_eq!(check(&gtin("748322148474"), &extracted, false), Match::Verified);
    assert_eq!(check(&gtin("3701129820322"), &extracted, true), Match::Other(gtin("0748322148474")));
    let bare = extract(&shop, &page("http://mine.test:81/p", ""), &LIMITS).unwrap();
    assert_eq!(check(&gtin("748322148474"), &bare, false), Match::NoGtin);
    assert_eq!(check(&gtin("748322148474"), &bare, true), Match::Unverified);
    let found = Found { ean: "1", url: &url, original_ean: Some("2"), verified: false };
    let expected = json!({"site": "mine", "ean": "1", "url": url.as_str(), "used_replacement": true, "original_ean": "2", "verified": false});
    assert_eq!(Value::Object(shop.site_object(found, &bare)), expected);
}

#[test]
fn a_visit_waits_for_tor_if_its_search_or_its_pages_go_through_it() {
    for (search, pages, waits_for) in [
        ("direct", "direct", Via::Direct),
        ("tor", "direct", Via::Tor),
        ("direct", "tor", Via::Tor),
        ("tor", "tor", Via::Tor),
    ] {
        let text = format!(
            "[sites.mine]\nbase = \"http://mine.test\"\nvia = \"{pages}\"\n[sites.mine.search]\nvia = \"{search}\"\n\
             url = \"s/{{ean}}\"\nlinks = \"css:a.p\"\n"
        );
        assert_eq!(shop("mine", &text).waits_for(), waits_for, "search {search}, pages {pages}");
    }
}

/// A card of "similar products", as a product of its own.
fn card(itemprop: &str, gtin: &str) -> String {
    format!(
        r#"<div {itemprop} itemscope itemtype="https://schema.org/Product"><span itemprop="name">Autre</span>
        <meta itemprop="gtin13" content="{gtin}"></div>"#
    )
}

#[test]
fn a_card_of_another_product_verifies_nothing() {
    let fields = "[sites.mine.fields]\ntitre = \"microdata:name\"\n";
    let ean_too = format!("{fields}ean_verif = \"microdata:gtin13\"\n");
    let shop_with = |fields: &str| {
        let search = "[sites.mine.search]\nurl = \"s/{ean}\"\nlinks = \"css:a.p\"\n";
        shop("mine", &format!("[sites.mine]\nbase = \"http://mine.test:81\"\n{search}{fields}"))
    };
    let (asked, page_is) = ("0748322148474", "3701129820322");
    let json_ld = format!(
        r#"<script type="application/ld+json">{{"@type": "Product", "name": "P", "gtin13": "{page_is}"}}</script>"#
    );
    let main = |heading: &str, inside: &str| {
        format!(
            r#"<div itemscope itemtype="http://schema.org/Product">{heading}<b itemprop="name">P</b>{inside}
            <span itemprop="gtin13">{page_is}</span></div>"#
        )
    };
    let (h1, loose) = ("<h1>P</h1>", format!(r#"<span itemprop="gtin13">{page_is}</span>"#));
    let (alone, related) = (card("", asked), card(r#"itemprop="isRelatedTo""#, asked));
    let other = Match::Other(gtin(page_is));
    for (what, html, expected) in [
        ("beside JSON-LD", format!("{json_ld}{alone}"), &other),
        ("before the main one", format!("{alone}{}", main(h1, "")), &other),
        ("after the main one", format!("{}{alone}", main(h1, "")), &other),
        ("nested in it", main(h1, &alone), &other),
        ("nested in it, without a heading", main("", &alone), &other),
        ("related to it", main("", &related), &other),
        (
            "in a list of it",
            main(h1, &format!("<ul itemprop=hasVariant>{}</ul>", loose.replace(page_is, asked))),
            &other,
        ),
        ("with the heading around both", format!("{h1}{alone}{}", main("", "")), &Match::NoGtin),
        ("beside a barcode in no product", format!("{alone}{loose}"), &Match::NoGtin),
    ] {
        for fields in [fields, &ean_too] {
            let extracted =
                extract(&shop_with(fields), &page("http://mine.test:81/p", html.clone()), &LIMITS);
            let extracted = extracted.unwrap();
            assert_eq!(check(&gtin(asked), &extracted, false), *expected, "{what}: {extracted:?}");
            let right = check(&gtin(page_is), &extracted, false);
            let clear = *expected != Match::NoGtin;
            assert_eq!(right == Match::Verified, clear, "{what}: {extracted:?}");
            if what.contains("main one") || what.contains("nested") {
                assert_eq!(field(&extracted, "titre"), "P", "{what}");
            }
            let neither = check(&gtin("3665606002406"), &extracted, true);
            assert!(matches!(neither, Match::Other(_)), "{what}: {neither:?}");
        }
    }
}

#[test]
fn what_was_cut_off_is_not_trusted() {
    let closed = |url: &str, body: &str| Page { end: End::Closed, ..page(url, body) };
    let (cocoon, gdd) = (shop("cocooncenter", ""), shop("pharmagdd", ""));
    let cut = &COCOON[..COCOON.len() - 10];
    assert!(extract(&cocoon, &closed("https://www.cocooncenter.com/x.html", COCOON), &LIMITS).is_ok());
    assert!(extract(&cocoon, &page("https://www.cocooncenter.com/x.html", cut), &LIMITS).is_ok());
    let error = extract(&cocoon, &closed("https://www.cocooncenter.com/x.html", cut), &LIMITS).unwrap_err();
    assert_eq!(error.kind(), "truncated");
    let half = r#"{"variant_1": {"href": "/a"}, "#;
    assert_eq!(
        candidates(&gdd, &closed("https://www.pharma-gdd.com/", half), &LIMITS).unwrap_err().kind(),
        "truncated"
    );
    assert_eq!(
        candidates(&gdd, &page("https://www.pharma-gdd.com/", half), &LIMITS).unwrap_err().kind(),
        "answer"
    );
    assert!(candidates(&gdd, &closed("https://www.pharma-gdd.com/", "{}"), &LIMITS).is_ok());
    for wrong in ["", "<html>Maintenance</html>", r#"{"other": 1}"#] {
        assert_eq!(
            candidates(&cocoon, &page("https://www.cocooncenter.com/", wrong), &LIMITS).unwrap_err().kind(),
            "answer"
        );
    }
}

/// Runs everything on `bytes` with a short limit and says how it ended and how long it took.
fn endure(bytes: &[u8], limits: &Limits) -> (Result<Extracted, Unreadable>, Duration) {
    let shop = shop("cocooncenter", "");
    let start = Instant::now();
    let result = extract(&shop, &page("https://www.cocooncenter.com/x.html", bytes), limits);
    (result, start.elapsed())
}

#[test]
fn a_bomb_ends_within_the_limit() {
    let limits = Limits { time_max: Duration::from_millis(300), ..LIMITS };
    let endless = Limits { depth_max: usize::MAX, nodes_max: usize::MAX, ..limits };
    let mb = 1 << 20;
    let attributes: String = (0..50_000).map(|n| format!(" a{n}=b")).collect();
    // Each `<p>` reopens every `<b>` before it.
    let formats: String = (0..40_000).map(|n| format!("<p><b a{n}></p>")).collect();
    let deep = "<div>".repeat(mb / 5);
    for (name, html, kinds) in [
        ("nested", deep.clone(), &["too_slow"][..]),
        ("attributes", format!("<a{attributes}{attributes}{attributes}>"), &["too_slow", "ok"]),
        ("formats", formats.clone(), &["too_slow"]),
        ("tables", "<table><a>".repeat(mb / 10), &["too_slow", "ok"]),
        ("selects", "<p>".repeat(mb / 3), &["too_slow", "ok"]),
    ] {
        let (result, took) = endure(html.as_bytes(), &endless);
        let kind = result.as_ref().map_or_else(Unreadable::kind, |_| "ok");
        assert!(kinds.contains(&kind), "{name}: {kind}");
        assert!(took < Duration::from_secs(3), "{name}: {took:?}");
    }
    assert_eq!(endure(deep.as_bytes(), &LIMITS).0, Err(Unreadable::TooDeep(512)));
    assert!(matches!(
        endure(formats.as_bytes(), &LIMITS).0,
        Err(Unreadable::TooDeep(_) | Unreadable::TooLarge(_))
    ));
    assert_eq!(endure("<p>".repeat(300_000).as_bytes(), &LIMITS).0, Err(Unreadable::TooLarge(200_000)));
}

#[test]
fn rubbish_gives_nothing_and_no_panic() {
    for bytes in [
        &b""[..],
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"<",
        b"</html>",
        b"\xff\xff\xff",
        b"&#0;&#x110000;<a\0b=\0>",
    ] {
        let (result, _) = endure(bytes, &LIMITS);
        assert!(result.unwrap().fields.is_empty(), "{bytes:?}");
    }
    let nested = format!("<script type=application/ld+json>{}</script>", "{\"a\":[".repeat(100_000));
    assert!(endure(nested.as_bytes(), &LIMITS).0.unwrap().fields.is_empty());
    let shop = shop("pharmagdd", "");
    let deep = "[".repeat(1 << 20);
    assert_eq!(
        candidates(&shop, &page("https://www.pharma-gdd.com/", deep), &LIMITS).unwrap_err().kind(),
        "answer"
    );
}

#[test]
fn a_page_that_repeats_itself_fits_into_a_webhook() {
    let text = "mot ".repeat(50_000);
    let html = format!(
        "<div itemprop=description>{}</div><div class=longcompo>{}</div>",
        format!("<p>{text}</p>").repeat(5),
        format!("<p>{text}").repeat(3)
    );
    let reviews = format!(
        "<div id=bvseo-reviewsSection>{}</div>",
        format!("<div class=bvseo-review><i itemprop=name>{}</i></div>", "x".repeat(60_000)).repeat(40)
    );
    let extracted = endure(format!("{html}{reviews}").as_bytes(), &LIMITS).0.unwrap();
    assert_eq!(field(&extracted, "description").as_str().map(str::len), Some(VALUE_BYTES_MAX));
    let size = serde_json::to_vec(&extracted.fields).unwrap().len();
    assert!(size < 2 * extract::EXTRACTED_BYTES_MAX, "{size}");
}

/// xorshift64*: enough to shuffle bytes, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }
}

#[test]
fn mutated_pages_never_panic() {
    let seed = std::env::var("GLANEUR_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_251_017);
    println!("GLANEUR_SEED={seed}");
    let mut dice = Dice(seed);
    let (cocoon, gdd) = (shop("cocooncenter", ""), shop("pharmagdd", ""));
    let answer =
        json!({"vue": "<a href=\"/a.html\">a</a>", "variant_1": {"href": "/fr/b"}, "n": 1.5e300}).to_string();
    let words: [&[u8]; 12] = [
        b"<script type=application/ld+json>",
        b"</script>",
        b"{\"@type\":\"Product\",\"gtin13\":",
        b"\0",
        b"\xff",
        b"&#x",
        b"<!--",
        b"</html>",
        "€".as_bytes(),
        b"<table><p>",
        b"1,2.3 4",
        b"\\u0000",
    ];
    let limits = Limits { time_max: Duration::from_millis(500), ..LIMITS };
    let start = Instant::now();
    let mut rounds = 0;
    while rounds < 3_000 && start.elapsed() < Duration::from_millis(2_500) {
        rounds += 1;
        let mut bytes =
            if dice.roll(3) == 0 { answer.clone().into_bytes() } else { COCOON.as_bytes().to_vec() };
        for _ in 0..=dice.roll(8) {
            let (at, to) = (dice.roll(bytes.len()), dice.roll(bytes.len()));
            match dice.roll(5) {
                0 => bytes[at] = dice.roll(256) as u8,
                1 => drop(bytes.drain(at.min(to)..at.max(to))),
                2 => drop(bytes.splice(at..at, words[dice.roll(words.len())].iter().copied())),
                3 => bytes.extend_from_within(at.min(to)..at.max(to)),
                _ => bytes.swap(at, to),
            }
            if bytes.is_empty() {
                bytes.push(b'<');
            }
        }
        let end = if dice.roll(4) == 0 { End::Closed } else { End::Framed };
        let answer = Page { end, ..page("https://www.cocooncenter.com/x.html", bytes) };
        let _ = candidates(&cocoon, &answer, &limits);
        let _ = candidates(&gdd, &answer, &limits);
        if let Ok(extracted) = extract(&cocoon, &answer, &limits) {
            // A mutation may make another valid barcode, never a match with one that is not on the page.
            let is_there = String::from_utf8_lossy(&answer.bytes).contains("3701129820322");
            assert!(is_there || check(&gtin("3701129820322"), &extracted, false) != Match::Verified);
        }
        let _ = cocoon.blocks.of_page(&answer, Expected::Page);
    }
    assert!(rounds > 100, "only {rounds} rounds");
}
