//! Bytes → text → tree, under limits.
//!
//! The page comes from a stranger through an exit that may be a second one. What the parser may cost is bounded by
//! feeding it in pieces: between two of them the clock, the depth and the number of nodes are looked at. Every walk
//! over the tree looks at the same clock.

use std::borrow::Cow;
use std::cell::Cell;
use std::ops::Deref;
use std::sync::LazyLock;
use std::time::Instant;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::Encoding;
use html5ever::driver::ParseOpts;
use html5ever::tendril::{StrTendril, TendrilSink};
use html5ever::tree_builder::TreeBuilderOpts;
use scraper::{ElementRef, Html, HtmlTreeSink, Node, Selector};

use super::{Limits, Pattern, Unreadable};

/// Bytes between two looks at the clock. 171 KB of nested tags take half a second, so a piece takes milliseconds.
const CHUNK_BYTES: usize = 4096;

/// The same below [`DEEP`], where one `<p>` may make the parser reopen hundreds of elements.
const CHUNK_BYTES_DEEP: usize = 256;
const DEEP: usize = 64;

/// Elements of a walk between two looks at the clock.
const STEPS: u32 = 64;

/// How much of a page is searched for its own word about its charset; the standard says 1024.
const CHARSET_BYTES: usize = 4096;

/// Bytes → text: by BOM, header, `<meta>`, then by looking at it. Never fails; what is broken becomes U+FFFD.
pub fn decode<'b>(bytes: &'b [u8], content_type: Option<&str>) -> Cow<'b, str> {
    if let Some((encoding, length)) = Encoding::for_bom(bytes) {
        return encoding.decode_without_bom_handling(&bytes[length..]).0;
    }
    // What reads as UTF-8 is UTF-8, whatever the header claims: by chance it hardly ever does.
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.contains(['\0', '\u{1b}'])
    {
        return Cow::Borrowed(text);
    }
    let declared = content_type.and_then(declared).or_else(|| {
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(CHARSET_BYTES)]);
        let tag = META_CHARSET.find(&start)?;
        // A page whose `<meta>` could be read is not UTF-16 (standard, "prescan a byte stream").
        Encoding::for_label(tag.as_bytes()).map(Encoding::output_encoding)
    });
    match declared {
        Some(encoding) if encoding != encoding_rs::UTF_8 || is_mostly_utf8(bytes) => {
            encoding.decode_without_bom_handling(bytes).0
        }
        _ => {
            let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
            detector.feed(bytes, true);
            let utf8 = if is_mostly_utf8(bytes) { Utf8Detection::Allow } else { Utf8Detection::Deny };
            let encoding = match utf8 {
                Utf8Detection::Allow => encoding_rs::UTF_8,
                Utf8Detection::Deny => detector.guess(None, utf8),
            };
            encoding.decode_without_bom_handling(bytes).0
        }
    }
}

static META_CHARSET: LazyLock<Pattern> = LazyLock::new(|| {
    Pattern::parse(r#"(?i)<meta[^>]{0,500}?charset\s*=\s*["']?\s*([a-z0-9_:.-]+)"#).expect("a pattern")
});

static HTML_END: LazyLock<Pattern> = LazyLock::new(|| Pattern::parse("(?i)</html").expect("a pattern"));

/// Whether a page that ended with its connection has its end.
pub(crate) fn is_whole(html: &str) -> bool {
    HTML_END.is_match(html)
}

fn declared(content_type: &str) -> Option<&'static Encoding> {
    let lower = content_type.to_ascii_lowercase();
    let label = lower.split_once("charset=")?.1;
    Encoding::for_label(label.split(';').next()?.trim().trim_matches(['"', '\'']).as_bytes())
}

/// Whether more than half of what is not ASCII is valid: one broken byte does not make a page Latin-1.
fn is_mostly_utf8(bytes: &[u8]) -> bool {
    let (mut valid, mut broken) = (0_usize, 0_usize);
    for chunk in bytes.utf8_chunks() {
        valid += chunk.valid().bytes().filter(|byte| *byte >= 0xc0).count();
        broken += usize::from(!chunk.invalid().is_empty());
    }
    valid >= broken && valid > 0
}

/// Until when, and how many steps until the next look.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    limits: Limits,
    steps: Cell<u32>,
}

impl Clock {
    pub fn start(limits: &Limits) -> Self {
        Self { start: Instant::now(), limits: *limits, steps: Cell::new(0) }
    }

    pub fn check(&self) -> Result<(), Unreadable> {
        if self.start.elapsed() > self.limits.time_max {
            return Err(Unreadable::TooSlow(self.limits.time_max));
        }
        Ok(())
    }

    /// One step of a walk; looks at the time now and then.
    pub fn step(&self) -> Result<(), Unreadable> {
        self.steps.set(self.steps.get() + 1);
        if self.steps.get() < STEPS {
            return Ok(());
        }
        self.steps.set(0);
        self.check()
    }
}

/// Any node of the tree that `scraper` builds.
pub(crate) type NodeOf<'d> = <ElementRef<'d> as Deref>::Target;

/// A parsed page. Not `Send`: it lives and dies inside one function.
#[derive(Debug)]
pub(crate) struct Document<'c> {
    html: Html,
    pub clock: &'c Clock,
}

impl<'c> Document<'c> {
    /// Parses `text` with scripting off, so that what is in `<noscript>` is there.
    pub fn parse(text: &str, clock: &'c Clock) -> Result<Self, Unreadable> {
        let tree_builder = TreeBuilderOpts { scripting_enabled: false, ..TreeBuilderOpts::default() };
        let opts = ParseOpts { tree_builder, ..ParseOpts::default() };
        let mut parser = html5ever::parse_document(HtmlTreeSink::new(Html::new_document()), opts);
        let mut rest = text;
        let mut depth = 0;
        while !rest.is_empty() {
            let want = if depth > DEEP { CHUNK_BYTES_DEEP } else { CHUNK_BYTES };
            let (piece, after) = rest.split_at(rest.floor_char_boundary(want));
            rest = after;
            parser.process(StrTendril::from_slice(piece));
            clock.check()?;
            let mut html = parser.tokenizer.sink.sink.0.borrow_mut();
            // A page of errors would else cost 24 bytes for each of its own.
            html.errors.clear();
            depth = check_size(&html, &clock.limits)?;
        }
        let html = parser.finish();
        check_size(&html, &clock.limits)?;
        clock.check()?;
        Ok(Self { html, clock })
    }

    pub fn root(&self) -> NodeOf<'_> {
        self.html.tree.root()
    }

    /// The elements below `scope`, in the order of the page. One walk serves every search of the whole page.
    pub fn elements<'d>(&'d self, scope: NodeOf<'d>) -> Result<Vec<ElementRef<'d>>, Unreadable> {
        let mut elements = Vec::new();
        for node in scope.descendants().skip(1) {
            self.clock.step()?;
            elements.extend(ElementRef::wrap(node));
        }
        Ok(elements)
    }

    /// Those of `elements` that match, at most `max`; `scope` is what `:scope` stands for, if not the page.
    pub fn select<'d>(
        &self,
        elements: &[ElementRef<'d>],
        selector: &Selector,
        scope: Option<ElementRef<'d>>,
        max: usize,
    ) -> Result<Vec<ElementRef<'d>>, Unreadable> {
        self.find(elements, max, |element| selector.matches_with_scope(&element, scope))
    }

    /// Those of `elements` that `is_wanted` accepts, at most `max`.
    pub fn find<'d>(
        &self,
        elements: &[ElementRef<'d>],
        max: usize,
        is_wanted: impl Fn(ElementRef<'d>) -> bool,
    ) -> Result<Vec<ElementRef<'d>>, Unreadable> {
        let mut found = Vec::new();
        for element in elements {
            self.clock.step()?;
            if is_wanted(*element) {
                found.push(*element);
                if found.len() >= max {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The text of `element` as a reader sees it, cut at `bytes_max`: no scripts, and a line break where a block
    /// (or, with [`Breaks::All`], any element) begins or ends.
    pub fn text(
        &self,
        element: ElementRef<'_>,
        breaks: Breaks,
        bytes_max: usize,
    ) -> Result<String, Unreadable> {
        let mut text = String::new();
        let mut node = *element;
        loop {
            self.clock.step()?;
            let mut child = None;
            match node.value() {
                Node::Text(part) => {
                    text.push_str(&part[..part.floor_char_boundary(bytes_max.saturating_sub(text.len()))]);
                }
                Node::Element(inner) => {
                    let is_hidden = matches!(inner.name(), "script" | "style" | "template");
                    if !is_hidden || node.id() == element.id() {
                        child = node.first_child();
                        breaks.around(inner.name(), &mut text);
                    }
                }
                _ => {}
            }
            if text.len() >= bytes_max {
                return Ok(text);
            }
            // Up until there is a next sibling, closing what is left behind.
            let mut next = child;
            while next.is_none() {
                if let Node::Element(inner) = node.value() {
                    breaks.around(inner.name(), &mut text);
                }
                if node.id() == element.id() {
                    return Ok(text);
                }
                next = node.next_sibling();
                let Some(parent) = node.parent() else { return Ok(text) };
                if next.is_none() {
                    node = parent;
                }
            }
            if let Some(next) = next {
                node = next;
            }
        }
    }
}

/// The value of an attribute. `scraper`'s own `attr` looks the name up among all interned ones at each call, which a
/// search over a whole page pays for at each element.
pub(crate) fn attribute<'d>(element: ElementRef<'d>, name: &str) -> Option<&'d str> {
    element.value().attrs().find(|(written, _)| *written == name).map(|(_, value)| value)
}

/// Where a text is broken into lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breaks {
    Blocks,
    All,
}

impl Breaks {
    fn around(self, name: &str, text: &mut String) {
        if self == Self::All || is_block(name) {
            text.push('\n');
        }
    }
}

fn check_size(html: &Html, limits: &Limits) -> Result<usize, Unreadable> {
    if html.tree.values().len() > limits.nodes_max {
        return Err(Unreadable::TooLarge(limits.nodes_max));
    }
    // The youngest node is about as deep as what is open.
    let depth = html.tree.nodes().next_back().map_or(0, |node| node.ancestors().count());
    if depth > limits.depth_max {
        return Err(Unreadable::TooDeep(limits.depth_max));
    }
    Ok(depth)
}

fn is_block(name: &str) -> bool {
    const BLOCKS: [&str; 37] = [
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "br",
        "caption",
        "dd",
        "div",
        "dl",
        "dt",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "legend",
        "li",
        "main",
        "nav",
        "ol",
        "option",
        "p",
        "pre",
        "section",
        "table",
        "td",
        "th",
        "tr",
        "ul",
    ];
    BLOCKS.binary_search(&name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charsets_are_found_where_pages_say_them() {
        let latin = b"<meta charset=iso-8859-1><p>caf\xe9 \x80";
        assert!(decode(latin, None).contains("caf\u{e9} \u{20ac}"));
        assert!(decode(b"caf\xe9", Some("text/html; charset=\"ISO-8859-15\"")).contains("café"));
        assert!(
            decode(b"<p>Cr\xe8me hydratante \xe0 l'alo\xe9 v\xe9ra, prot\xe8ge l'\xe9t\xe9", None)
                .contains("Crème hydratante à l'aloé")
        );
        assert_eq!(decode("\u{feff}é".as_bytes(), Some("text/html; charset=latin1")), "é");
        assert_eq!(decode(b"\xff\xfea\0b\0", None), "ab");
    }

    #[test]
    fn charset_lies_are_seen_through() {
        assert_eq!(decode("é".as_bytes(), Some("text/html; charset=iso-8859-1")), "é");
        assert!(
            decode("crème brûlée \u{e9}".as_bytes(), Some("text/html; charset=nonsense")).contains("crème")
        );
        // Says UTF-8, is Latin-1; and a page of UTF-8 with one broken byte.
        assert!(decode(b"cr\xe8me br\xfbl\xe9e", Some("text/html; charset=utf-8")).contains("crème"));
        assert!(
            decode(b"cr\xc3\xa8me br\xc3\xbbl\xc3\xa9e \xff", Some("text/html; charset=utf-8"))
                .contains("crème brûlée")
        );
        assert!(decode(b"<meta charset=utf-16><p>cr\xe8me", None).contains("<p>"));
    }

    #[test]
    fn blocks_are_sorted() {
        assert!(["br", "address", "ul", "p", "td", "h6"].into_iter().all(is_block) && !is_block("span"));
    }

    #[test]
    fn what_is_in_noscript_is_there() {
        let limits =
            Limits { time_max: std::time::Duration::from_secs(5), depth_max: 512, nodes_max: 10_000 };
        let clock = Clock::start(&limits);
        let page =
            Document::parse("<noscript><img src=a></noscript><p>a<script>b</script><br>c<b>d</b>", &clock)
                .unwrap();
        let elements = page.elements(page.root()).unwrap();
        let select = |css| page.select(&elements, &Selector::parse(css).unwrap(), None, 10).unwrap();
        assert_eq!(select("img").len(), 1);
        let p = select("p")[0];
        assert_eq!(page.text(p, Breaks::Blocks, 100).unwrap(), "\na\n\ncd\n");
        assert_eq!(page.text(p, Breaks::Blocks, 3).unwrap(), "\na\n");
    }
}
