//! `[sites.NAME]` → [`Recipe`]: every selector, pattern and path is compiled here, so that a recipe that was read works.

use std::time::Duration;

use super::HostRule;
use super::check::{MIB, VIA, bytes, header_value, small};
use super::raw::{Entry, Node, Table, Value, merge};
use super::reader::{Refusal, Report, Section, USER, http_url, non_empty, text};
use crate::markup::{JsonPath, Pattern};
use crate::model::page::Method;
use crate::recipe::{
    Answer, Blocks, Body, Cleaning, EAN, Field, LinkSource, Marker, OnBlock, Recipe, Rule, Search, Source,
};

/// Reads all shops; `every_site` lies under each of them.
pub(super) fn sites(report: &Report, every_site: Option<&Node>, sites: &Table) -> Vec<Recipe> {
    // Without it every shop would seem to lack what it holds.
    if let Some(Node { at, value }) = every_site
        && !matches!(value, Value::Table(_))
    {
        report.problem(*at, format!("`every_site`: expected a table, found {}", value.type_name()));
        return Vec::new();
    }
    let every_site = every_site.map(|node| known_only(report, node));
    let every_site = every_site.as_ref();
    let mut recipes = Vec::with_capacity(sites.0.len());
    for (position, entry) in sites.0.iter().enumerate() {
        let fields = every_site.and_then(|node| table_of(node)?.get("fields")).cloned();
        let node = match every_site {
            Some(base) => merge(without_fields(base), entry.node.clone(), &mut Vec::new(), |path| {
                path.is_empty() || path.len() == 1 && path[0] == "blocks"
            }),
            None => entry.node.clone(),
        };
        let Value::Table(mut table) = node.value else {
            let found = entry.node.value.type_name();
            report.problem(entry.node.at, format!("`sites.{}`: expected a table, found {found}", entry.key));
            continue;
        };
        // A shop with no field of its own still yields the schema.org product.
        if table.get("fields").is_none() {
            table.0.extend(fields);
        }
        if !is_site_name(&entry.key) {
            report.problem(
                entry.key_at,
                format!("`sites.{}`: the name of a shop is 1 to 40 of a-z, 0-9, - and _", entry.key),
            );
        }
        // What is missing is reported at the shop's own name, also where the table was only implied.
        let section = Section::new(report, format!("sites.{}", entry.key), entry.key_at, &table);
        recipes.extend(site(section, entry, position));
    }
    recipes
}

/// What every shop may share: its address and its search are its own, and `via` is never a default.
const SHARED: [&str; 11] = [
    "unverified",
    "rate",
    "adaptive",
    "pause",
    "robots",
    "concurrency",
    "hedge",
    "candidates_max",
    "blocks",
    "on_block",
    "fields",
];

/// `[every_site]` without the keys that do not belong there, which are reported once and not for each shop.
fn known_only(report: &Report, node: &Node) -> Node {
    let mut node = node.clone();
    if let Value::Table(table) = &mut node.value {
        let section = Section::new(report, "every_site", node.at, table);
        for key in SHARED {
            section.entry(key);
        }
        section.finish();
        table.0.retain(|entry| SHARED.contains(&entry.key.as_str()));
    }
    node
}

fn table_of(node: &Node) -> Option<&Table> {
    match &node.value {
        Value::Table(table) => Some(table),
        _ => None,
    }
}

fn without_fields(node: &Node) -> Node {
    let mut node = node.clone();
    if let Value::Table(table) = &mut node.value {
        table.0.retain(|entry| entry.key != "fields");
    }
    node
}

fn is_site_name(name: &str) -> bool {
    (1..=40).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

fn site(section: Section<'_>, entry: &Entry, position: usize) -> Option<Recipe> {
    let base = section
        .opt("base", "a URL such as \"https://www.shop.example\"", |node| Ok(http_url(non_empty(node)?)?));
    if base.is_none() && section.at("base") == section.at {
        section.missing("base", "a URL such as \"https://www.shop.example\"");
    }
    let via = section.opt_choice("via", &VIA).unwrap_or_default();
    let search = match section.section("search") {
        Some(search) => read_search(search, via, base.as_ref()),
        None => {
            if section.at("search") == section.at {
                section.missing("search", "a table that says how to search");
            }
            None
        }
    };
    let fields = section.section("fields").map(|fields| read_fields(&fields, true));
    let recipe = Recipe {
        name: entry.key.clone(),
        title: section.opt_text("title", "text").unwrap_or_else(|| entry.key.clone()),
        enabled: section.flag_or("enabled", false),
        position,
        // A stand-in; the problem has been reported.
        base: base.clone().unwrap_or_else(|| url::Url::parse("http://stand.in").expect("a URL")),
        hosts: section.opt_list("hosts", "hosts", |node| Ok(HostRule::parse(text(node)?)?)),
        via,
        unverified: section.flag("unverified"),
        rate: section.rate("rate"),
        adaptive: section.flag("adaptive"),
        pause: section.duration("pause", Duration::ZERO..=Duration::from_secs(600)),
        robots: section.flag("robots"),
        concurrency: small(&section, "concurrency", 1..=64) as usize,
        hedge: section.flag("hedge"),
        candidates_max: small(&section, "candidates_max", 1..=20) as usize,
        headers: headers(&section),
        blocks: section.section("blocks").map(blocks).unwrap_or_default(),
        on_block: section.choice("on_block", &[("end", OnBlock::End), ("wait", OnBlock::Wait)]),
        search: search?,
        fields: fields.unwrap_or_default(),
    };
    section.finish();
    base.map(|_| recipe)
}

fn blocks(section: Section<'_>) -> Blocks {
    let blocks = Blocks {
        status: section.list("status", "numbers such as 403", |node| match node.value {
            Value::Integer(status @ 100..=599) => Ok(u16::try_from(status)?),
            Value::Integer(other) => Err(format!("{other} is out of range: 100 to 599").into()),
            _ => Err(Refusal::Type),
        }),
        markers: section.list("markers", "texts", |node| Ok(Marker::new(non_empty(node)?)?)),
        redirect: section.list("redirect", "patterns", |node| Ok(Pattern::parse(non_empty(node)?)?)),
        small_bytes: bytes(&section, "small", 0..=MIB),
    };
    section.finish();
    blocks
}

fn headers(section: &Section<'_>) -> Vec<(String, String)> {
    let mut headers = Vec::new();
    for (entry, value) in section.pairs("headers").unwrap_or_default() {
        let name = format!("{}.{}", section.name("headers"), entry.key);
        if http::HeaderName::try_from(entry.key.as_str()).is_err() {
            section.report.problem(entry.key_at, format!("`{name}`: not the name of a header"));
        }
        if OWN_HEADERS.iter().any(|own| entry.key.eq_ignore_ascii_case(own)) {
            section.report.problem(entry.key_at, format!("`{name}`: this header is set by the client"));
        }
        if let Err(refusal) = header_value(&value) {
            section.refuse(&name, &entry.node, "text", refusal);
        }
        headers.push((entry.key.clone(), value));
    }
    headers
}

/// Those that frame the message or decide how it is read.
const OWN_HEADERS: [&str; 6] =
    ["host", "content-length", "transfer-encoding", "connection", "accept-encoding", "content-type"];

fn read_search(
    section: Section<'_>,
    via: crate::model::page::Via,
    base: Option<&url::Url>,
) -> Option<Search> {
    let url = section.text("url", "a path such as \"/search?q={ean}\"");
    if let Some(Err(error)) = base.map(|base| base.join(&url.replace(EAN, "0000000000000"))) {
        section.problem("url", format!("`{}`: \"{url}\" is not a URL: {error}", section.name("url")));
    }
    let form = section.pairs("form");
    let json = section.opt_text("json", "text");
    if let Some(json) = &json {
        let tried: Result<serde_json::Value, _> = serde_json::from_str(&json.replace(EAN, "0000000000000"));
        if let Err(error) = tried {
            section.problem("json", format!("`{}`: not JSON: {error}", section.name("json")));
        }
    }
    if form.is_some() && json.is_some() {
        section.problem("json", format!("`{}`: a search sends either a form or JSON", section.name("json")));
    }
    let body = match (form, json) {
        (Some(form), _) => {
            Some(Body::Form(form.into_iter().map(|(entry, value)| (entry.key.clone(), value)).collect()))
        }
        (None, Some(json)) => Some(Body::Json(json)),
        (None, None) => None,
    };
    let default_method = if body.is_some() { Method::Post } else { Method::Get };
    let method = section
        .opt_choice("method", &[("get", Method::Get), ("post", Method::Post)])
        .unwrap_or(default_method);
    if body.is_some() && method == Method::Get {
        section
            .problem("method", format!("`{}`: a GET sends neither a form nor JSON", section.name("method")));
    }
    let has_ean = url.contains(EAN)
        || match &body {
            Some(Body::Form(pairs)) => pairs.iter().any(|(_, value)| value.contains(EAN)),
            Some(Body::Json(text)) => text.contains(EAN),
            None => false,
        };
    if !has_ean && !section.report.is_partial {
        section.problem("url", format!("`{}`: nothing of the search contains {EAN}", section.name("url")));
    }
    let links = section.one_or_more("links", "a source such as \"css:a.product\"", |node| {
        Ok(LinkSource::parse(text(node)?)?)
    });
    let answer = answer(&section, &links);
    let search = Search {
        via: section.opt_choice("via", &VIA).unwrap_or(via),
        method,
        url,
        headers: headers(&section),
        body,
        answer,
        links,
        include: section.one_or_more("include", "a pattern", |node| Ok(Pattern::parse(non_empty(node)?)?)),
        exclude: section.one_or_more("exclude", "a pattern", |node| Ok(Pattern::parse(non_empty(node)?)?)),
        strip_query: section.flag_or("strip_query", false),
    };
    section.finish();
    Some(search)
}

fn answer(section: &Section<'_>, links: &[LinkSource]) -> Answer {
    let html_at =
        section.opt("html_at", "a path such as \"data.html\"", |node| Ok(JsonPath::parse(non_empty(node)?)?));
    let is_json = section.opt_choice("answer", &[("html", false), ("json", true)]);
    let answer = match (is_json, html_at) {
        (Some(false), Some(_)) => {
            let (html_at, answer) = (section.name("html_at"), section.name("answer"));
            section.problem("html_at", format!("`{html_at}` is for `{answer} = \"json\"`"));
            Answer::Html
        }
        (_, Some(path)) => Answer::HtmlInJson(path),
        (Some(true), None) => Answer::Json,
        (_, None) => Answer::Html,
    };
    if links.is_empty() && section.at("links") == section.at {
        section.missing("links", "a source such as \"css:a.product\"");
    }
    let wrong = links.iter().any(|link| match link {
        LinkSource::Css { .. } => answer == Answer::Json,
        LinkSource::Json(_) => answer == Answer::Html,
    });
    if wrong {
        let message = match answer {
            Answer::Html => "json: wants `answer = \"json\"`",
            Answer::Json | Answer::HtmlInJson(_) => {
                "css: wants HTML; say with `html_at` where in the JSON it is"
            }
        };
        // The links may be the shipped ones, under an answer that the user wrote.
        let written = ["links", "html_at", "answer"].into_iter().find(|key| section.at(key).text == USER);
        section.problem(written.unwrap_or("links"), format!("`{}`: {message}", section.name("links")));
    }
    answer
}

/// Keys that [`Recipe::site_object`] writes itself.
const OWN_FIELDS: [&str; 6] = ["site", "ean", "url", "used_replacement", "original_ean", "verified"];

fn read_fields(section: &Section<'_>, may_list: bool) -> Vec<Field> {
    let mut fields = Vec::new();
    for entry in section.entries() {
        let path = section.name(&entry.key);
        if may_list && OWN_FIELDS.contains(&entry.key.as_str()) {
            section
                .report
                .problem(entry.key_at, format!("`{path}`: this key is always there and not a field"));
        }
        let rule = match &entry.node.value {
            Value::Text(_) | Value::List(_) => {
                let one = Table(vec![Entry { key: "from".into(), ..entry.clone() }]);
                let section = Section::new(section.report, &path, entry.node.at, &one);
                value_rule(&section)
            }
            Value::Table(table) => {
                let section = Section::new(section.report, &path, entry.node.at, table);
                let rule = if may_list && table.get("list").is_some() {
                    list_rule(&section)
                } else {
                    value_rule(&section)
                };
                section.finish();
                rule
            }
            _ => {
                let expected = "a source, a list of sources or a table";
                section.refuse(&path, &entry.node, expected, Refusal::Type);
                continue;
            }
        };
        fields.push(Field { name: entry.key.clone(), rule });
    }
    fields
}

const SOURCE: &str = "a source such as \"css:h1\"";

fn value_rule(section: &Section<'_>) -> Rule {
    let from = section.one_or_more("from", SOURCE, |node| Ok(Source::parse(text(node)?)?));
    if section.at("from") == section.at
        && from.is_empty()
        && section.entries().iter().all(|entry| entry.key != "from")
    {
        section.missing("from", SOURCE);
    }
    let mut clean = section
        .one_or_more("clean", "a cleaning such as \"price\"", |node| Ok(Cleaning::parse(text(node)?)?));
    if clean.is_empty() {
        clean.push(Cleaning::Text);
    }
    Rule::Value { from, clean }
}

fn list_rule(section: &Section<'_>) -> Rule {
    let list = section.one_or_more("list", SOURCE, |node| {
        let source = Source::parse(text(node)?)?;
        if !source.gives_items() {
            return Err(format!(
                "\"{source}\" gives texts; a list is made of elements (css:) or objects (jsonld:)"
            )
            .into());
        }
        Ok(source)
    });
    let each = section.section("each").map(|each| read_fields(&each, false)).unwrap_or_default();
    if each.is_empty() {
        section.missing("each", "a table of fields");
    }
    Rule::List { list, each }
}
