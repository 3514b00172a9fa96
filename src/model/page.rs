//! What is asked of a shop and what came back: the words that recipes and circuits share.

use url::Url;

/// How requests of a shop, or of one step, leave the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Via {
    /// Through a Tor circuit; names are resolved at the exit.
    #[default]
    Tor,
    /// Over the open network: never a default, announced at the start.
    Direct,
}

/// The two methods that searches and pages need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    #[default]
    Get,
    Post,
}

/// One request to a shop, complete but for what the client adds (Host, Accept-Encoding, User-Agent).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    /// Names are valid header names; checked when the recipe was read.
    pub headers: Vec<(String, String)>,
    /// Content type and bytes.
    pub body: Option<(String, Vec<u8>)>,
}

impl Request {
    /// A plain GET of a page.
    pub fn get(url: Url) -> Self {
        Self { method: Method::Get, url, headers: Vec::new(), body: None }
    }
}

/// One answer, after redirects and content decoding, before charset decoding.
#[derive(Clone, Debug)]
pub struct Page {
    /// Where it came from in the end.
    pub url: Url,
    pub status: u16,
    pub content_type: Option<String>,
    pub bytes: Vec<u8>,
    pub end: End,
}

/// How the end of a body was known. An exit that dies looks like a clean end of stream, so a body without a length
/// is only as good as what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By Content-Length or the last chunk.
    Framed,
    /// By the end of the connection: doubtful until the content proves to be whole.
    Closed,
}
