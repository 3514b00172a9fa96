//! Content codings undone: gzip, br and zstd, never further than a limit.
//!
//! Promise: whatever the bytes are, decoding holds no more than `bytes_max` of what came out (and a window of at most
//! 16 MB), and stops there: a bomb of 100 MB costs as much as a page of `bytes_max`.
//!
//! Deliberately absent: several codings in a row and any coding that was not asked for. No shop needs them, and each
//! is one more way to hide a bomb.

use flate2::bufread::GzDecoder;
use std::io::{self, ErrorKind, Read};

/// What a request says it takes. Kept beside [`Coding::named`], which must know each of them.
pub const ACCEPT_ENCODING: &str = "gzip, br, zstd";

/// The largest window a zstd frame may ask for, 8 MB: what RFC 9659 lets a server use for HTTP.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body was packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    Brotli,
    Zstd,
}

impl Coding {
    /// Reads the values of every `Content-Encoding` header of an answer.
    pub fn named<'a>(values: impl Iterator<Item = &'a str>) -> Result<Self, DecodeError> {
        let mut found = Self::Identity;
        for name in values.flat_map(|value| value.split(',')).map(str::trim) {
            let coding = match name.to_ascii_lowercase().as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => Self::Gzip,
                "br" => Self::Brotli,
                "zstd" => Self::Zstd,
                _ => return Err(DecodeError::Unknown { name: name.chars().take(32).collect() }),
            };
            if found != Self::Identity {
                return Err(DecodeError::Several);
            }
            found = coding;
        }
        Ok(found)
    }

    /// Undoes the coding. Blocking work: hand it to a thread that may block.
    pub fn decode(self, packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, DecodeError> {
        // Some servers name a coding on an answer without a body.
        if packed.is_empty() {
            return Ok(Vec::new());
        }
        match self {
            Self::Identity if bytes_max < packed.len() => {
                Err(DecodeError::TooLarge { limit_bytes: bytes_max })
            }
            Self::Identity => Ok(packed.to_vec()),
            Self::Gzip => gunzip(packed, bytes_max),
            Self::Brotli => {
                let mut plain = Vec::new();
                let reader = brotli_decompressor::Decompressor::new(packed.chain(Cut), BROTLI_BUFFER_BYTES);
                read_capped(reader, &mut plain, bytes_max)?;
                Ok(plain)
            }
            Self::Zstd => {
                let mut reader = zstd::stream::read::Decoder::new(packed).map_err(DecodeError::of)?;
                reader.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(DecodeError::of)?;
                let mut plain = Vec::new();
                read_capped(reader, &mut plain, bytes_max)?;
                Ok(plain)
            }
        }
    }
}

/// Input buffer of the brotli decoder; its own default.
const BROTLI_BUFFER_BYTES: usize = 4096;

/// What comes after the last byte for a decoder that calls a body cut short and a corrupt one by the same name, and
/// that reads on only if it needs more.
struct Cut;

impl Read for Cut {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

/// Members that follow one another are one body; what follows the last and is no member is padding, as browsers see it.
fn gunzip(packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, DecodeError> {
    let mut plain = Vec::new();
    let mut rest = packed;
    loop {
        let mut member = GzDecoder::new(rest);
        read_capped(&mut member, &mut plain, bytes_max)?;
        rest = member.into_inner();
        if !rest.starts_with(&[0x1f, 0x8b]) {
            return Ok(plain);
        }
    }
}

/// Appends all of `reader` to `plain`, which may not grow beyond `bytes_max`.
fn read_capped(reader: impl Read, plain: &mut Vec<u8>, bytes_max: usize) -> Result<(), DecodeError> {
    let room = bytes_max.saturating_sub(plain.len()) as u64;
    // One byte more than there is room for tells a body that fits exactly from one that does not.
    reader.take(room + 1).read_to_end(plain).map_err(DecodeError::of)?;
    if bytes_max < plain.len() {
        return Err(DecodeError::TooLarge { limit_bytes: bytes_max });
    }
    Ok(())
}

/// Why a body could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("unknown content coding {name:?}")]
    Unknown { name: String },
    #[error("several content codings in a row")]
    Several,
    #[error("decoded body larger than {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("coded body ends too early")]
    Cut,
    #[error("undo the content coding")]
    Corrupt(#[source] io::Error),
}

impl DecodeError {
    fn of(source: io::Error) -> Self {
        if source.kind() == ErrorKind::UnexpectedEof { Self::Cut } else { Self::Corrupt(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::{ACCEPT_ENCODING, Coding, DecodeError};
    use flate2::write::GzEncoder;
    use std::io::Write;

    const PAGE: &[u8] = b"<html><body>Cr\xc3\xa8me, cr\xc3\xa8me, cr\xc3\xa8me</body></html>";
    /// `PAGE` as brotli packs it; the crate that decodes cannot encode.
    const PAGE_BR: &[u8] = &[
        0x1b, 0x2f, 0x00, 0xf8, 0x1d, 0x09, 0x76, 0x6c, 0xc5, 0x36, 0xec, 0x3d, 0xa4, 0x1e, 0x1a, 0x6b, 0x43,
        0x95, 0x20, 0x72, 0xc3, 0xc5, 0x52, 0xd6, 0x84, 0x14, 0x22, 0x4c, 0x3e, 0xda, 0x01, 0x4e, 0x80, 0x31,
        0x89, 0x17, 0x43, 0xfc, 0xf4, 0x45, 0xc2, 0x01,
    ];

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn packed() -> [(Coding, Vec<u8>); 3] {
        [
            (Coding::Gzip, gzip(PAGE)),
            (Coding::Brotli, PAGE_BR.to_vec()),
            (Coding::Zstd, zstd::encode_all(PAGE, 3).unwrap()),
        ]
    }

    #[test]
    fn each_coding_that_is_offered_is_undone() {
        for (coding, bytes) in packed() {
            assert_eq!(coding.decode(&bytes, PAGE.len()).unwrap(), PAGE, "{coding:?}");
        }
        for name in ACCEPT_ENCODING.split(", ") {
            assert!(Coding::named([name].into_iter()).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_body_cut_anywhere_is_told_from_a_whole_one() {
        for (coding, bytes) in packed() {
            for length in 1..bytes.len() {
                let cut = coding.decode(&bytes[..length], 1 << 20);
                assert!(matches!(cut, Err(DecodeError::Cut)), "{coding:?} at {length}: {cut:?}");
            }
        }
    }

    #[test]
    fn one_byte_over_the_limit_is_refused() {
        for (coding, bytes) in packed() {
            let over = coding.decode(&bytes, PAGE.len() - 1);
            assert!(matches!(over, Err(DecodeError::TooLarge { .. })), "{coding:?}: {over:?}");
        }
    }

    #[test]
    fn a_bomb_of_100_mb_is_never_unpacked() {
        let zeros = vec![0; 1 << 20];
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        (0..100).for_each(|_| encoder.write_all(&zeros).unwrap());
        let bomb = encoder.finish().unwrap();
        let over = Coding::Gzip.decode(&bomb, 2 << 20);
        assert!(matches!(over, Err(DecodeError::TooLarge { limit_bytes: 2_097_152 })), "{over:?}");
        // And a chain of small members is one body, with one limit.
        let chain = gzip(&zeros).repeat(3);
        assert!(matches!(Coding::Gzip.decode(&chain, 2 << 20), Err(DecodeError::TooLarge { .. })));
        assert_eq!(Coding::Gzip.decode(&chain, 3 << 20).unwrap().len(), 3 << 20);
    }

    #[test]
    fn a_zstd_window_beyond_8_mb_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(27).unwrap();
        encoder.write_all(PAGE).unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(matches!(Coding::Zstd.decode(&bytes, 1 << 20), Err(DecodeError::Corrupt(_))));
    }

    #[test]
    fn padding_after_gzip_is_ignored_and_rubbish_is_not_gzip() {
        let mut padded = gzip(PAGE);
        padded.extend_from_slice(&[0; 16]);
        assert_eq!(Coding::Gzip.decode(&padded, 1 << 20).unwrap(), PAGE);
        for coding in [Coding::Gzip, Coding::Brotli, Coding::Zstd] {
            let rubbish = coding.decode(b"\xff\xff<html>not packed at all</html>", 1 << 20);
            assert!(matches!(rubbish, Err(DecodeError::Corrupt(_))), "{coding:?}: {rubbish:?}");
        }
    }

    #[test]
    fn several_and_unknown_codings_are_errors() {
        let named = |values: &[&'static str]| Coding::named(values.iter().copied());
        assert_eq!(named(&[]).unwrap(), Coding::Identity);
        assert_eq!(named(&["identity", " GZip "]).unwrap(), Coding::Gzip);
        assert!(matches!(named(&["gzip, br"]), Err(DecodeError::Several)));
        assert!(matches!(named(&["gzip", "gzip"]), Err(DecodeError::Several)));
        assert!(matches!(named(&["compress"]), Err(DecodeError::Unknown { name }) if name == "compress"));
    }

    #[test]
    fn an_empty_body_needs_no_coding() {
        assert_eq!(Coding::Zstd.decode(b"", 10).unwrap(), b"");
    }
}
