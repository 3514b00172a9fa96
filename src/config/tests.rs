use super::reader::Report;
use super::*;

const URL: &str = "[webhooks]\nproduct_url = \"none\"\n";

fn with(text: &str) -> Result<Config, Vec<String>> {
    parse("c.toml", &format!("{URL}{text}")).map_err(|found| found.iter().map(Problem::to_string).collect())
}

/// The only problem of `text`, which is given with its line numbers.
fn problem(text: &str) -> String {
    let mut found = parse("c.toml", text).expect_err(text);
    assert_eq!(found.len(), 1, "{text}: {found:#?}");
    found.remove(0).to_string()
}

#[test]
fn the_shipped_file_refuses_and_names_the_key() {
    assert!(problem("").starts_with("c.toml:1:1: missing key `webhooks.product_url`"));
    let message = problem(DEFAULT);
    assert!(message.starts_with("c.toml:"), "{message}");
    assert!(message.contains("missing key `webhooks.product_url`"), "{message}");
}

#[test]
fn a_line_is_enough_and_the_rest_are_the_defaults() {
    let config = with("").unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.webhooks.product_url, ProductUrl::None);
    assert_eq!(config.webhooks.patience, Duration::from_secs(3 * 86_400));
    assert_eq!(config.ledger.path, PathBuf::from("glaneur.db"));
    assert_eq!(config.batches.window, 2 * config.tor.circuits);
    assert_eq!(config.catalogue, None);
    assert!(config.enabled_sites().is_empty());
    assert_eq!(config.sites.keys().collect::<Vec<_>>(), ["cocooncenter", "drakkars", "pharmagdd"]);
    let named = DEFAULT
        .replace("# product_url = \"http://127.0.0.1:5678/webhook/produit\"", "product_url = \"none\"");
    assert_eq!(parse("c.toml", &named).unwrap(), config);
}

#[test]
fn config_toml_lists_every_key_that_is_read() {
    let mut report = Report::default();
    let everything = format!(
        "{URL}[sites.x]\nbase = \"http://x.test\"\n[sites.x.search]\nurl = \"/{{ean}}\"\nlinks = \"css:a\"\n"
    );
    check::read("c.toml", &everything, &mut report).unwrap();
    let known = report.known.borrow();
    assert!(known.contains("server.listen") && known.contains("sites.*.search.html_at"), "{known:?}");
    for name in known.iter().filter(|name| !name.contains(".fields.")) {
        let key = name.rsplit('.').next().unwrap_or(name);
        let mut lines = DEFAULT.lines().map(|line| line.trim_start_matches(['#', ' ', '[']));
        let is_listed = |line: &str| {
            line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
                || line.contains(&format!("{key} = "))
                || line.contains(&format!(".{key}]"))
        };
        assert!(key == "*" || lines.any(is_listed), "config.toml does not list {name}");
    }
}

#[test]
fn every_mistake_is_reported_at_once_where_it_was_made() {
    let found = parse(
        "my.toml",
        r#"[server]
listen = "0.0.0.0:8080"
header_timeout = 20
produts_max = 3
language = "frr"
allow_from = 3

[tor]
age_max = "20m"
circuits = 0
  socks = "localhost:9050"

[ledger]
url = "postgres://db/x"
[webhook]
"#,
    )
    .unwrap_err();
    let found: Vec<String> = found.iter().map(Problem::to_string).collect();
    let starts = [
        "my.toml:2:10: `server.listen`: 0.0.0.0:8080 can be reached from other machines",
        "my.toml:3:18: `server.header_timeout`: expected a duration such as \"20s\", found integer",
        "my.toml:4:1: unknown key `produts_max` in [server]; did you mean `products_max`?",
        "my.toml:5:12: `server.language`: \"frr\" is not \"fr\" or \"en\"; did you mean \"fr\"?",
        "my.toml:6:14: `server.allow_from`: expected a list of addresses or networks",
        "my.toml:9:11: `tor.age_max`: \"20m\" is out of range: 1s to 590s",
        "my.toml:10:12: `tor.circuits`: 0 is out of range: 1 to 512",
        "my.toml:11:11: `tor.socks`: \"localhost:9050\" is not an address and port",
        "my.toml:14:7: `ledger.url`: PostgreSQL is not supported",
        "my.toml:15:2: unknown key `webhook`; did you mean `webhooks`?",
    ];
    for start in starts {
        assert!(found.iter().any(|line| line.starts_with(start)), "{start}\n{found:#?}");
    }
    assert_eq!(found.len(), starts.len() + 1, "and the missing product_url: {found:#?}");
    assert!(found[1].contains("`server.token_file` or `server.allow_from`"), "{}", found[1]);
}

#[test]
fn the_strict_grade_needs_the_control_port() {
    let message = problem(&format!("{URL}[tor]\nbinding = \"strict\"\n"));
    assert!(
        message.starts_with("c.toml:4:11: `tor.binding`: \"strict\" needs the control port"),
        "{message}"
    );
    assert!(message.contains("`tor.control`"), "{message}");
    let config = with("[tor]\nbinding = \"strict\"\ncontrol = \"127.0.0.1:9051\"\n").unwrap();
    assert_eq!(config.tor.binding, Binding::Strict);
    assert_eq!(with("").unwrap().tor.binding, Binding::Credentials);
}

#[test]
fn syntax_errors_are_placed_and_do_not_hide_the_rest() {
    let found = parse("c.toml", "[server]\nlisten = 127.0.0.1:80\nbody_timeout = 3\n[tor\n").unwrap_err();
    assert!(found.iter().any(|p| p.line == 2), "{found:#?}");
    assert!(found.iter().any(|p| (p.line, p.column) == (3, 16)), "{found:#?}");
    assert!(found.iter().any(|p| p.line == 4), "{found:#?}");
    assert!(found.iter().all(|p| !p.message.contains("product_url")), "{found:#?}");
    assert!(parse("c.toml", "a = 1\na = 2\n").unwrap_err().iter().any(|p| p.line == 2));
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(parse("c.toml", &deep).is_err());
    assert!(parse("c.toml", "\0\u{feff}é = [").is_err());
}

#[test]
fn columns_count_characters() {
    assert!(
        problem("[webhooks]\nproduct_url = \"none\"\nsecret_file = \"é\"  \n[log]\nlevel = \"é\"\n")
            .contains(":5:9:")
    );
    assert!(
        problem("webhooks = { product_url = \"none\", secret_file = \"ééé\", hots = [] }\n")
            .contains("c.toml:1:57:")
    );
}

#[test]
fn a_listener_beyond_loopback_wants_a_token_or_addresses() {
    let listen = "[server]\nlisten = \"0.0.0.0:8080\"\n";
    assert!(with(listen).is_err());
    assert!(with(&format!("{listen}token_file = \"t\"\n")).is_ok());
    let config = with(&format!("{listen}allow_from = [\"192.0.2.7\", \"10.1.2.3/8\"]\n")).unwrap();
    assert_eq!(config.server.allow_from[1].to_string(), "10.0.0.0/8");
    assert!(config.server.allow_from[0].contains(&"192.0.2.7".parse::<std::net::IpAddr>().unwrap()));
    assert!(with("[server]\nlisten = \"[::1]:8080\"\n").is_ok());
}

#[test]
fn ledger_urls_are_sqlite_paths() {
    let path = |url: &str| with(&format!("[ledger]\nurl = \"{url}\"\n")).map(|config| config.ledger.path);
    assert_eq!(path("sqlite:x.db"), Ok(PathBuf::from("x.db")));
    assert_eq!(path("sqlite:/var/lib/x.db"), Ok(PathBuf::from("/var/lib/x.db")));
    assert_eq!(path("sqlite:///var/lib/x.db"), Ok(PathBuf::from("/var/lib/x.db")));
    for url in ["sqlite:", "sqlite::memory:", "postgres://x", "mysql://x", "x.db"] {
        assert!(path(url).is_err(), "{url}");
    }
}

#[test]
fn hosts_are_hosts_with_or_without_a_port() {
    let rule = HostRule::parse("N8N.Example:5678").unwrap();
    assert_eq!(rule.to_string(), "n8n.example:5678");
    assert!(rule.allows(&Url::parse("http://n8n.example:5678/a?b=c").unwrap()));
    assert!(!rule.allows(&Url::parse("http://n8n.example/a").unwrap()));
    assert!(!rule.allows(&Url::parse("http://n8n.example.evil:5678/").unwrap()));
    let any = HostRule::parse("localhost").unwrap();
    assert!(any.allows(&Url::parse("https://localhost:5678/").unwrap()));
    let default = HostRule::parse("localhost:80").unwrap();
    assert!(default.allows(&Url::parse("http://localhost/").unwrap()));
    assert!(!default.allows(&Url::parse("https://localhost/").unwrap()));
    assert!(HostRule::parse("[::1]:80").unwrap().allows(&Url::parse("http://[::1]/").unwrap()));
    assert!(HostRule::parse("127.0.0.1").unwrap().allows(&Url::parse("http://127.0.0.1:9/").unwrap()));
    for (rule, url) in [
        ("n8n:5678", "http://n8n.:5678/"),
        ("n8n.:5678", "http://n8n:5678/"),
        ("bücher.example", "https://B%C3%BCcher.example./"),
        ("127.0.0.1", "http://2130706433/"),
    ] {
        assert!(HostRule::parse(rule).unwrap().allows(&Url::parse(url).unwrap()), "{rule} {url}");
    }
    for text in ["", " ", ".", "::1", "http://x", "x/y", "a@b", "x:99999", "x y"] {
        assert!(HostRule::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn product_url_is_a_url_or_none() {
    let url = |url: &str| {
        parse("c.toml", &format!("[webhooks]\nproduct_url = \"{url}\"\n")).map(|c| c.webhooks.product_url)
    };
    assert_eq!(url("http://h/x").unwrap().url().unwrap().as_str(), "http://h/x");
    assert_eq!(url("none").unwrap(), ProductUrl::None);
    assert!(url("ftp://h/x").is_err() && url("").is_err() && url("h/x").is_err());
    assert!(
        problem("[webhooks]\nproduct_url = 3\n").contains("expected the URL that product webhooks go to")
    );
}

#[test]
fn the_catalogue_is_asked_by_barcode() {
    let config = with("[catalogue]\nurl = \"http://c.test/rest?searchCriteria[value]={ean}\"\n").unwrap();
    let catalogue = config.catalogue.unwrap();
    let gtin = crate::model::Gtin::parse("748322148474").unwrap();
    assert_eq!(catalogue.url(&gtin).query(), Some("searchCriteria[value]=0748322148474"));
    let answer = serde_json::json!({"total_count": 2, "items": [{"name": "A"}]});
    assert_eq!((catalogue.via, catalogue.total.texts(&answer)), (Via::Direct, vec!["2".to_owned()]));
    assert!(with("[catalogue]\ntotal = \"a..b\"\n").unwrap_err()[0].contains("empty step"));
    assert!(with("[catalogue]\nurl = \"http://c.test/\"\n").is_err());
}

#[test]
fn two_lines_switch_a_shipped_shop_on() {
    let config = with("[sites.pharmagdd]\nenabled = true\n[sites.cocooncenter]\nenabled = true\nbase = \"http://c.test:8080\"\n").unwrap();
    let names: Vec<String> = config.enabled_sites().iter().map(|site| site.name.clone()).collect();
    assert_eq!(names, ["pharmagdd", "cocooncenter"], "the order of the user's file");
    let site = &config.sites["cocooncenter"];
    assert_eq!(site.base.as_str(), "http://c.test:8080/");
    assert_eq!(site.title, "Cocooncenter");
    assert_eq!((site.via, site.concurrency, site.candidates_max), (Via::Tor, 2, 3));
    assert_eq!(config.sites["pharmagdd"].concurrency, 1);
    assert!(site.fields.len() > 5);
}

#[test]
fn single_keys_of_a_shipped_recipe_can_be_replaced() {
    let config = with(
        "[every_site]\nrate = \"5/s\"\n[sites.drakkars]\nvia = \"direct\"\nfields.titre = \"css:h2\"\nsearch.url = \"/s?q={ean}\"\n",
    )
    .unwrap();
    let (site, shipped) = (&config.sites["drakkars"], with("").unwrap().sites["drakkars"].clone());
    assert_eq!(site.search.url, "/s?q={ean}");
    assert_eq!(site.search.links, shipped.search.links);
    assert_eq!((site.search.via, site.rate.count), (Via::Direct, 5));
    assert_eq!(site.fields.len(), shipped.fields.len());
    assert_ne!(site.fields, shipped.fields);
    assert_eq!(config.sites["pharmagdd"].rate.count, 20, "a shop's own rate stays");
}

#[test]
fn a_shop_of_ones_own_needs_a_base_and_a_search() {
    let config = with(
        "[sites.mine]\nbase = \"https://mine.test\"\n[sites.mine.search]\nurl = \"/s?q={ean}\"\nlinks = \"css:a.p\"\n",
    )
    .unwrap();
    let site = &config.sites["mine"];
    assert_eq!((site.title.as_str(), site.enabled), ("mine", false));
    assert!(site.fields.iter().any(|field| field.name == "prix"), "the schema.org product by default");
    let found = with("[sites.mine]\nenabled = true\n").unwrap_err();
    assert!(found.iter().any(|line| line.contains("missing key `sites.mine.base`")), "{found:#?}");
    assert!(found.iter().any(|line| line.contains("missing key `sites.mine.search`")), "{found:#?}");
}

#[test]
fn wrong_recipes_are_wrong_configurations() {
    let start = "[sites.mine]\nbase = \"https://mine.test\"\n[sites.mine.search]\nurl = \"/s?q={ean}\"\nlinks = \"css:a.p\"\n";
    for (text, part) in [
        ("include = \"(\"", "c.toml:8:11: `sites.mine.search.include`: pattern \"(\" does not compile"),
        ("answer = \"json\"", "css: wants HTML"),
        ("html_at = \"a\"\nanswer = \"html\"", "is for"),
        ("form = { q = 3 }", "`sites.mine.search.form.q`: expected text, found integer"),
        ("json = '{\"q\": {ean}'", "not JSON"),
        ("method = \"put\"", "\"put\" is not \"get\" or \"post\""),
        ("json = '[]'\nmethod = \"get\"", "a GET sends neither"),
        ("headers = { \"a b\" = \"c\" }", "not the name of a header"),
        ("headers = { Host = \"c\" }", "set by the client"),
        ("lnks = \"css:a\"", "did you mean `links`?"),
        (
            "[sites.mine.fields]\ntitre = \"h1\"",
            "c.toml:9:9: `sites.mine.fields.titre.from`: \"h1\" is not a source",
        ),
        ("[sites.mine.fields]\ntitre = \"css:h1[\"", "does not parse"),
        ("[sites.mine.fields]\nurl = \"css:h1\"", "always there"),
        (
            "[sites.mine.fields]\nprix = { from = \"css:b\", clean = [\"prise\"] }",
            "\"prise\" is not a cleaning",
        ),
        ("[sites.mine.fields]\nprix = { form = \"css:b\" }", "did you mean `from`?"),
        ("[sites.mine.fields]\navis = { list = \"meta:x\", each = { a = \"css:b\" } }", "gives texts"),
        ("[sites.mine.fields]\navis = { list = \"css:x\" }", "missing key `sites.mine.fields.avis.each`"),
        ("[sites.\"My Shop\"]", "1 to 40 of a-z"),
        ("[sites.mine.blocks]\nstatus = [4030]\nmarkers = []", "4030 is out of range"),
    ] {
        let found = with(&format!("{start}{text}\n")).unwrap_err();
        assert!(found.iter().any(|line| line.contains(part)), "{text}\n{part}\n{found:#?}");
    }
}

#[test]
fn one_key_of_what_every_shop_shares_can_be_replaced() {
    let config = with("[every_site]\nblocks.status = [418]\nfields.titre = \"css:h6\"\n").unwrap();
    let blocks = &config.sites["pharmagdd"].blocks;
    assert_eq!((blocks.status.as_slice(), blocks.markers.len()), (&[418][..], 0));
}

#[test]
fn links_that_no_longer_fit_the_answer_are_placed_where_the_user_wrote() {
    let found = with("[sites.cocooncenter.search]\nanswer = \"json\"\nhtml_at = 3\n").unwrap_err();
    let links = found.iter().find(|line| line.contains("search.links`: css: wants HTML")).unwrap();
    assert!(links.starts_with("c.toml:5:11: "), "{found:#?}");
}

#[test]
fn what_a_shop_is_spared_is_shared_by_all_and_said_for_each() {
    let spared = |name: &str, text: &str| {
        let config = with(text).unwrap();
        let recipe = &config.sites[name];
        (recipe.pause, recipe.adaptive, recipe.robots)
    };
    assert_eq!(spared("drakkars", ""), (Duration::from_millis(500), true, true));
    let every = "[every_site]\npause = \"0s\"\nadaptive = false\n[sites.drakkars]\nrobots = false\n";
    assert_eq!(spared("drakkars", every), (Duration::ZERO, false, false));
    assert_eq!(spared("pharmagdd", every), (Duration::ZERO, false, true));
    for (text, part) in [
        ("pause = 3", "`sites.drakkars.pause`: expected a duration such as"),
        ("pause = \"1h\"", "\"1h\" is out of range: 0ms to 10m"),
        ("robots = \"yes\"", "`sites.drakkars.robots`: expected true or false"),
    ] {
        let found = with(&format!("[sites.drakkars]\n{text}\n")).unwrap_err();
        assert!(found[0].contains(part), "{found:#?}");
    }
}

#[test]
fn mutated_configurations_never_panic_and_are_placed() {
    let mut dice = 20_251_017_u64;
    let mut roll = |below: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize % below.max(1)
    };
    for _ in 0..150 {
        let mut text: Vec<char> = DEFAULT.chars().collect();
        for _ in 0..=roll(6) {
            let (at, to) = (roll(text.len()), roll(text.len()));
            match roll(3) {
                0 => text[at] = ['"', '[', ']', '=', '\n', '#', '0', 'é', '{', '\0'][roll(10)],
                1 => drop(text.drain(at.min(to)..at.max(to).min(at.min(to) + 40))),
                _ => text.swap(at, to),
            }
        }
        let text: String = text.into_iter().collect();
        let lines = text.lines().count();
        for problem in parse("c.toml", &text).unwrap_err() {
            assert!(problem.line <= lines + 1 && problem.line > 0 && problem.column > 0, "{problem}");
            assert!(problem.file == "c.toml", "{problem}");
        }
    }
}

#[test]
fn what_every_shop_shares_is_checked_once() {
    let found = with("[every_site]\nvia = \"direct\"\n").unwrap_err();
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("unknown key `via` in [every_site]"), "{found:#?}");
    assert!(
        problem("every_site = 3\n[webhooks]\nproduct_url = \"none\"\n")
            .contains("expected a table, found integer")
    );
}
