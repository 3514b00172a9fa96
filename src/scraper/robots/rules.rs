//! What a robots.txt says to us (RFC 9309). Pure: bytes in, a verdict on a URL out, with the line it rests on.
//!
//! * The groups whose user agent is [`TOKEN`] count, all of them together; if there is none, those for `*` (2.2.1).
//! * The rule that matches with the most octets decides; between equals, `allow` (2.2.2). Without a match all is allowed.
//! * `*` is any number of characters, `$` at the end is the end (2.2.3).
//! * Compared is a normal form: what needs no percent-encoding has none, what does has it in upper case. An encoded `/`
//!   or `?` is not a plain one in a path, and is in a query, where it needs no encoding (RFC 3986, 3.4).
//! * Lines that say nothing known are passed over and end no group.
//!
//! Own code rather than a crate: the last releases of those for Rust are of 2020 to 2023 (`robots_txt`, `robotstxt`,
//! `robotparser`, `texting_robots`), and none tells the line of a rule, which is what an operator and a shop talk about.

use url::Url;

/// Our product token: what a robots.txt calls us. The `User-Agent` header is a browser's and does not have it.
pub const TOKEN: &str = "glaneur";
/// What comes after it is not read: the least that the RFC allows (2.5).
pub const BYTES_MAX: usize = 500 * 1024;
/// Of a URL, so much is compared. Longer ones are no shop's; with the limit on the file it bounds the work of a verdict.
const TARGET_BYTES_MAX: usize = 2 * 1024;
/// Of a rule, as it is shown to people.
const SHOWN_CHARS_MAX: usize = 200;

/// The rules that hold for us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// From 1.
    pub line: usize,
    /// As it was written, but not endlessly.
    pub text: String,
    allows: bool,
    pattern: Pattern,
}

/// A pattern in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// What stands between the stars.
    pieces: Vec<Vec<u8>>,
    /// `$` at the end.
    is_whole: bool,
    octets: usize,
}

impl Rules {
    pub fn parse(bytes: &[u8]) -> Self {
        let whole = bytes.len() <= BYTES_MAX;
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(BYTES_MAX)]);
        let mut lines: Vec<&str> = lines(&text);
        if !whole {
            lines.pop(); // It may be the half of a rule.
        }
        let mut ours = Gathered::default();
        let mut anyones = Gathered::default();
        let mut is_among_agents = false;
        for (number, line) in (1..).zip(lines) {
            match Line::read(line) {
                Line::Agent(agent) => {
                    if !is_among_agents {
                        (ours.is_open, anyones.is_open) = (false, false);
                    }
                    is_among_agents = true;
                    match agent {
                        Agent::Us => ours.open(),
                        Agent::Anyone => anyones.open(),
                        Agent::Other => {}
                    }
                }
                Line::Rule { allows, path } => {
                    is_among_agents = false;
                    // An empty path matches nothing.
                    if let Some(pattern) = Pattern::read(path) {
                        let text = line.trim().chars().take(SHOWN_CHARS_MAX).collect();
                        let rule = Rule { line: number, text, allows, pattern };
                        anyones.add(&rule);
                        ours.add(&rule);
                    }
                }
                Line::Other => {}
            }
        }
        Self(if ours.is_there { ours.rules } else { anyones.rules })
    }

    /// The rule that forbids `url`, if one does.
    pub fn forbid(&self, url: &Url) -> Option<&Rule> {
        if url.path() == "/robots.txt" {
            return None;
        }
        let target = normal(&url[url::Position::BeforePath..url::Position::AfterQuery], Marks::Plain);
        let is_cut = TARGET_BYTES_MAX < target.len();
        let target = &target[..target.len().min(TARGET_BYTES_MAX)];
        let matches = self.0.iter().filter(|rule| rule.pattern.matches(target, is_cut));
        let decides = matches.max_by_key(|rule| (rule.pattern.octets, rule.allows))?;
        (!decides.allows).then_some(decides)
    }
}

/// The rules for one agent, from all groups that name it.
#[derive(Debug, Default)]
struct Gathered {
    rules: Vec<Rule>,
    is_open: bool,
    is_there: bool,
}

impl Gathered {
    fn open(&mut self) {
        (self.is_open, self.is_there) = (true, true);
    }

    fn add(&mut self, rule: &Rule) {
        if self.is_open {
            self.rules.push(rule.clone());
        }
    }
}

enum Agent {
    Us,
    Anyone,
    Other,
}

enum Line<'a> {
    Agent(Agent),
    Rule { allows: bool, path: &'a str },
    Other,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Self {
        let said = line.split('#').next().unwrap_or_default();
        let Some((key, value)) = said.split_once(':') else { return Self::Other };
        let (key, value) = (key.trim(), value.trim());
        if key.eq_ignore_ascii_case("user-agent") {
            // "glaneur/1.0" is us as well: the token ends where its characters do.
            let is_of_token = |c: char| c.is_ascii_alphabetic() || matches!(c, '-' | '_');
            let token = value.split(|c| !is_of_token(c)).next().unwrap_or_default();
            return Self::Agent(match token {
                "" if value == "*" || value.starts_with("* ") => Agent::Anyone,
                token if token.eq_ignore_ascii_case(TOKEN) => Agent::Us,
                _ => Agent::Other,
            });
        }
        let allows = key.eq_ignore_ascii_case("allow");
        if allows || key.eq_ignore_ascii_case("disallow") {
            return Self::Rule { allows, path: value };
        }
        Self::Other
    }
}

/// Lines end with LF, CR or both.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\r', '\n']) {
        lines.push(&rest[..end]);
        rest = rest[end..].strip_prefix("\r\n").unwrap_or(&rest[end + 1..]);
    }
    lines.push(rest);
    lines
}

impl Pattern {
    fn read(path: &str) -> Option<Self> {
        if path.is_empty() {
            return None;
        }
        let (path, is_whole) = match path.strip_suffix('$') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let normal = normal(path, Marks::Stars);
        let pieces: Vec<Vec<u8>> = normal.split(|byte| *byte == b'*').map(<[u8]>::to_vec).collect();
        Some(Self { octets: normal.len() + usize::from(is_whole), pieces, is_whole })
    }

    /// `is_cut`: the target goes on, so nothing matches its end.
    fn matches(&self, target: &[u8], is_cut: bool) -> bool {
        let [first, rest @ ..] = self.pieces.as_slice() else { return false };
        let Some(mut left) = target.strip_prefix(first.as_slice()) else { return false };
        let (middle, last) = match (rest, self.is_whole) {
            ([], true) => return left.is_empty() && !is_cut,
            ([middle @ .., last], true) => (middle, Some(last)),
            (middle, false) => (middle, None),
        };
        // The leftmost place of each leaves most room for the next.
        for piece in middle {
            let Some(at) = find(left, piece) else { return false };
            left = &left[at + piece.len()..];
        }
        last.is_none_or(|last| left.ends_with(last) && !is_cut)
    }
}

fn find(text: &[u8], piece: &[u8]) -> Option<usize> {
    if piece.is_empty() {
        return Some(0);
    }
    text.windows(piece.len()).position(|window| window == piece)
}

/// What `*` is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Marks {
    /// A character like others, to be encoded.
    Plain,
    /// A mark, which is kept.
    Stars,
}

/// The normal form of a path with its query.
fn normal(text: &str, marks: Marks) -> Vec<u8> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let bytes = text.as_bytes();
    let mut normal = Vec::with_capacity(bytes.len());
    let (mut at, mut in_query) = (0, false);
    while let Some(&byte) = bytes.get(at) {
        let encoded = (byte == b'%').then(|| hex(bytes.get(at + 1..at + 3)?)).flatten();
        let octet = encoded.unwrap_or(byte);
        at += if encoded.is_some() { 3 } else { 1 };
        let is_plain = match octet {
            b'*' => encoded.is_none() && marks == Marks::Stars,
            b'/' | b'?' => encoded.is_none() || in_query,
            _ => octet.is_ascii_alphanumeric() || b"-._~!&'()+,;=:@".contains(&octet),
        };
        in_query |= octet == b'?' && encoded.is_none();
        if is_plain {
            normal.push(octet);
        } else {
            normal.extend([b'%', HEX[usize::from(octet >> 4)], HEX[usize::from(octet & 15)]]);
        }
    }
    normal
}

fn hex(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match digits {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line that forbids `target` by this file.
    fn forbids(text: &str, target: &str) -> Option<usize> {
        let url = Url::parse("https://www.shop.example").unwrap().join(target).unwrap();
        Rules::parse(text.as_bytes()).forbid(&url).map(|rule| rule.line)
    }

    fn matches(pattern: &str, target: &str) -> bool {
        forbids(&format!("User-agent: *\nDisallow: {pattern}\n"), target).is_some()
    }

    #[test]
    fn the_example_of_the_rfc_for_groups() {
        const TEXT: &str = "User-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n\n\
            User-Agent: foobot\nDisallow:/\nAllow:/example/page.html\nAllow:/example/allowed.gif\n\n\
            User-Agent: barbot\nUser-Agent: bazbot\nDisallow: /example/page.html\n\n\
            User-Agent: quxbot\n";
        let of = |token: &str, target: &str| forbids(&TEXT.replace(token, TOKEN), target);
        assert_eq!(of("nobody", "/example/page.html"), Some(3), "anyone");
        assert_eq!(of("nobody", "/a/b.gif"), Some(2));
        assert_eq!(of("nobody", "/a/b.gif?c"), None);
        assert_eq!(of("nobody", "/publications/"), None);
        assert_eq!(of("foobot", "/example/page.html"), None);
        assert_eq!(of("foobot", "/example/allowed.gif"), None);
        assert_eq!(of("foobot", "/"), Some(7));
        for token in ["barbot", "bazbot"] {
            assert_eq!(of(token, "/example/page.html"), Some(13), "{token}: two agents, one group");
            assert_eq!(of(token, "/example/other.html"), None, "{token}: the group of anyone does not count");
        }
        assert_eq!(of("quxbot", "/example/page.html"), None, "an empty group is a group");
    }

    #[test]
    fn the_example_of_the_rfc_for_the_longest_match() {
        let text = "User-Agent: glaneur\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n";
        assert_eq!(forbids(text, "/example/page/"), None);
        assert_eq!(forbids(text, "/example/page/disallowed.gif"), Some(3));
        let equal = "User-agent: *\nDisallow: /page\nAllow: /page\n";
        assert_eq!(forbids(equal, "/page"), None, "between equals, allow");
        let reversed = "User-agent: *\nAllow: /page\nDisallow: /page\n";
        assert_eq!(forbids(reversed, "/page"), None, "in any order");
        assert_eq!(forbids("User-agent: *\nAllow: /p\nDisallow: /\n", "/page"), None);
        assert_eq!(forbids("User-agent: *\nAllow: /$\nDisallow: /\n", "/page"), Some(3));
        assert_eq!(forbids("User-agent: *\nAllow: /$\nDisallow: /\n", "/"), None);
    }

    #[test]
    fn groups_of_the_same_agent_are_one_and_names_have_no_case() {
        let text = "user-agent: Other\ndisallow: /a\n\nUSER-AGENT: GLANEUR\nDISALLOW: /b\n\n\
            User-agent: *\nDisallow: /c\n\nUser-agent: glaneur/2.0 (+https://x.example)\nDisallow: /d\n";
        for (target, line) in [("/a", None), ("/b", Some(5)), ("/c", None), ("/d", Some(11))] {
            assert_eq!(forbids(text, target), line, "{target}");
        }
        for other in ["glaneurs", "glan", "my-glaneur", "glaneur-news", "*bot", "* bot x"] {
            let text = format!("User-agent: {other}\nDisallow: /\n");
            assert_eq!(forbids(&text, "/").is_some(), other.starts_with("* "), "{other}");
        }
    }

    #[test]
    fn other_lines_end_no_group_and_belong_to_none() {
        let text = "Disallow: /early\nUser-agent: glaneur\nSitemap: https://x.example/s.xml\nUser-agent: bot\n\
            Crawl-delay: 5\nnonsense\nDisallow: /a # for a reason\n # a comment\nAllow:\nDisallow:\nDisallow: /b\n";
        assert_eq!(forbids(text, "/early"), None);
        assert_eq!(forbids(text, "/a"), Some(7));
        assert_eq!(forbids(text, "/b"), Some(11), "an empty rule matches nothing");
        assert_eq!(forbids(text, "/c"), None);
    }

    #[test]
    fn stars_and_the_end_are_special() {
        for (pattern, yes, no) in [
            ("/fish", "/fish.html /fish/salmon /fishheads?id=1", "/Fish /catfish /?id=fish"),
            ("/fish*", "/fish.html /fish", "/catfish"),
            ("/fish/", "/fish/?id=1 /fish/salmon", "/fish /fish.html"),
            ("/*.php", "/index.php /a/b.php?c=d /a/b.php/", "/ /windows.PHP"),
            ("/*.php$", "/index.php /a/b.php /a.php/b.php", "/a.php?x /a.php/ /a.php5"),
            ("/fish*.php", "/fish.php /fishheads/cat.php?p", "/Fish.PHP"),
            ("*/cart", "/fr/cart /cart", "/fr/basket"),
            ("/a*b*c$", "/abc /a-b-c /abbcc", "/ab /abcd /acb"),
            ("/$", "/", "/a"),
            ("*", "/ /a", ""),
            ("/a$b", "/a$b /a%24b", "/a /ab"),
        ] {
            for target in yes.split_whitespace() {
                assert!(matches(pattern, target), "{pattern} {target}");
            }
            for target in no.split_whitespace() {
                assert!(!matches(pattern, target), "not {pattern} {target}");
            }
        }
        assert!(!matches("/ab*bc$", "/abc"), "two pieces share no character");
        assert!(!matches("/*ab*b", "/xab"));
    }

    #[test]
    fn the_examples_of_the_rfc_for_encodings() {
        for (pattern, target) in [
            ("/foo/bar?baz=quz", "/foo/bar?baz=quz"),
            ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar"),
            ("/foo/bar?baz=https%3A%2F%2Ffoo.bar", "/foo/bar?baz=https://foo.bar"),
            ("/foo/bar/ツ", "/foo/bar/%E3%83%84"),
            ("/foo/bar/%E3%83%84", "/foo/bar/%E3%83%84"),
            ("/foo/bar/%e3%83%84", "/foo/bar/ツ"),
            ("/foo/bar/%62%61%7A", "/foo/bar/baz"),
            ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html"),
            ("/path/foo-%24", "/path/foo-$"),
        ] {
            assert!(matches(pattern, target), "{pattern} {target}");
        }
        assert!(!matches("/path/foo-%2A", "/path/foo-bar"), "an encoded star is a star");
        assert!(!matches("/a%2Fb", "/a/b"), "an encoded slash parts no path");
        assert!(matches("/100%", "/100%25"), "what is no encoding is a character");
    }

    #[test]
    fn robots_txt_itself_is_always_allowed() {
        assert_eq!(forbids("User-agent: *\nDisallow: /\n", "/robots.txt"), None);
    }

    #[test]
    fn lines_end_as_they_may_and_a_mark_at_the_begin_is_none() {
        for text in [
            "User-agent: *\r\nDisallow: /a\r\n",
            "User-agent: *\rDisallow: /a",
            "\u{feff}User-agent: *\nDisallow: /a\n",
            "User-agent : *\n\tDisallow\t:\t/a\t\n",
        ] {
            assert_eq!(forbids(text, "/a"), Some(2), "{text:?}");
        }
    }

    #[test]
    fn what_comes_after_the_limit_is_not_read_nor_the_rule_that_it_cuts() {
        let begin = "User-agent: *\nDisallow: /a\n";
        let cut = "Disallow: /bcd\n";
        let filler = BYTES_MAX - begin.len() - cut.len() + 3;
        let text = format!("{begin}{}\n{cut}Disallow: /e\n", "#".repeat(filler - 1));
        assert_eq!(forbids(&text, "/a"), Some(2));
        assert_eq!(forbids(&text, "/b"), None, "its half would forbid more than it does");
        assert_eq!(forbids(&text, "/e"), None);
    }

    #[test]
    fn what_is_no_robots_txt_forbids_nothing() {
        for bytes in [b"".as_slice(), b"<!DOCTYPE html><html>: /</html>", &[0xff, 0xfe, 0, 0x3a], b":\n::\n"]
        {
            assert_eq!(Rules::parse(bytes), Rules::default());
        }
    }

    #[test]
    fn a_hostile_file_costs_little_and_a_long_url_is_compared_as_far_as_it_goes() {
        let line = format!("Disallow: /{}b\n", "a*".repeat(2_000));
        let text = format!("User-agent: *\n{}", line.repeat(BYTES_MAX / line.len()));
        let long = format!("/{}", "a".repeat(1_000_000));
        let began = std::time::Instant::now();
        assert_eq!(forbids(&text, &long), None);
        let shown = "User-agent: *\nDisallow: /aaa\nAllow: /*a$\n";
        assert_eq!(forbids(shown, &long), Some(2), "its end is not seen");
        // It would be hours without the limits.
        assert!(began.elapsed() < std::time::Duration::from_secs(30), "{:?}", began.elapsed());
    }
}
