//! The log as native journald entries: one datagram for each event, its fields as fields of the entry.
//!
//! The protocol is systemd's "Native Journal Protocol" (systemd.io/JOURNAL_NATIVE_PROTOCOL): `KEY=value` lines, or for
//! values with line breaks the key, a 64-bit little-endian length and the bytes. Events are small and their values are
//! cut at [`VALUE_BYTES_MAX`], so that an entry always fits into a datagram and no file has to be passed.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::event;

const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value of an entry. A datagram may have about 200 KiB (`net.core.wmem_default`), and no event has more than
/// ten fields from outside.
const VALUE_BYTES_MAX: usize = 8 << 10;

/// How long an event may hold up whoever tells it when journald does not read: one that works makes room within
/// milliseconds, and a thread of the daemon has better things to do than to wait for one that does not.
const SEND_WITHIN: Duration = Duration::from_millis(100);
/// After an event that was not taken in time, so long nobody waits again: all that is told meanwhile is dropped and counted.
const SILENCE: Duration = Duration::from_secs(5);

/// Whether standard error is the journal's: systemd names its device and inode (systemd.exec(5), `JOURNAL_STREAM`).
pub fn is_behind_stderr() -> bool {
    let named = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.is_ok_and(|stderr| named == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Sends what the program says to journald.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Until when nothing is sent.
    silence: Mutex<Option<Instant>>,
    /// Events that were not sent, and that nobody was told of yet.
    dropped: AtomicU64,
}

impl Journal {
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(SEND_WITHIN))?;
        let (silence, dropped) = (Mutex::default(), AtomicU64::new(0));
        Ok(Self { socket, path: path.into(), silence, dropped })
    }

    fn send_or_drop(&self, entry: &Entry) {
        let silence = *self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lost = 1;
        if silence.is_none_or(|until| until <= Instant::now()) {
            let before = self.dropped.swap(0, Ordering::Relaxed);
            let told = if before == 0 { Ok(()) } else { self.send(&Entry::of_dropped(before)) };
            lost = if told.is_ok() { 1 } else { before + 1 };
            match told.and_then(|()| self.send(entry)) {
                Ok(()) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let until = Instant::now() + SILENCE;
                    *self.silence.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
                }
                Err(_) => {}
            }
        }
        self.dropped.fetch_add(lost, Ordering::Relaxed);
    }

    fn send(&self, entry: &Entry) -> io::Result<()> {
        match self.socket.send(&entry.0) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // Where journald is gone systemd brings it back on the same path.
                self.socket.connect(&self.path)?;
                self.socket.send(&entry.0)?;
            }
            sent => drop(sent?),
        }
        Ok(())
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        entry.put_head(*event.metadata().level(), event.metadata().target());
        event.record(&mut entry);
        self.send_or_drop(&entry);
    }
}

/// The syslog priorities (syslog(3)); `info` is 6, as `journalctl -p` and everyone else has it.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    }
}

/// One entry in the journal's own form.
#[derive(Default)]
struct Entry(Vec<u8>);

impl Entry {
    /// The event `log_dropped`, which cannot be told through the layer that is telling another one.
    fn of_dropped(events: u64) -> Self {
        let mut entry = Self::default();
        entry.put_head(Level::WARN, "glaneur");
        entry.put("MESSAGE", "journald did not take events: dropped");
        entry.put("MESSAGE_ID", &event::message_id("log_dropped"));
        entry.put("EVENT", "log_dropped");
        entry.put("EVENTS", &events.to_string());
        entry
    }

    fn put_head(&mut self, level: Level, target: &str) {
        self.put("PRIORITY", priority(level));
        self.put("SYSLOG_IDENTIFIER", "glaneur");
        self.put("TARGET", target);
    }

    fn put(&mut self, key: &str, value: &str) {
        let value = &value[..value.floor_char_boundary(VALUE_BYTES_MAX)];
        self.0.extend(key.bytes());
        if value.contains('\n') {
            self.0.push(b'\n');
            self.0.extend((value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend(value.bytes());
        self.0.push(b'\n');
    }

    fn put_field(&mut self, field: &Field, value: &str) {
        if field.name() == "event" {
            self.put("MESSAGE_ID", &event::message_id(value));
        }
        // Underscores at the start are the journal's own; no field of an event has one.
        self.put(&field.name().to_ascii_uppercase().replace('.', "_"), value);
    }
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{value:?}"); // Writing to a string does not fail.
        self.put_field(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    /// What journald would get of what `say` says.
    fn sent(say: impl FnOnce()) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = tracing_subscriber::registry().with(Journal::at(&path).unwrap());
        tracing::subscriber::with_default(journal, say);
        let mut entry = vec![0; 256 << 10];
        let length = journald.recv(&mut entry).unwrap();
        entry.truncate(length);
        entry
    }

    #[test]
    fn a_journald_that_does_not_read_holds_nobody_up_and_hears_later_how_much_it_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let registry = tracing_subscriber::registry();
        let guard = tracing::subscriber::set_default(registry.with(Journal::at(&path).unwrap()));
        // Far more than fit into the socket's queue (`net.unix.max_dgram_qlen`, 10 to some hundred).
        let tell = || crate::telemetry::Event::WatchdogResumed { part: "test" }.emit();
        let begin = Instant::now();
        for _ in 0..5_000 {
            tell();
        }
        assert!(begin.elapsed() < 10 * SEND_WITHIN, "held up for {:?}", begin.elapsed());
        let over = Instant::now() + SILENCE;
        while let Some(rest) = over.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(rest);
        }
        journald.set_nonblocking(true).unwrap();
        let read = || {
            let mut entry = vec![0; 64 << 10];
            let length = journald.recv(&mut entry).ok()?;
            Some(text(&entry[..length]))
        };
        let taken = std::iter::from_fn(read).count();
        tell();
        let told: Vec<_> = std::iter::from_fn(read).collect();
        assert_eq!(told.len(), 2, "the count, and the event itself: {told:?}");
        assert!(told[0].contains(&format!("\nEVENTS={}\n", 5_000 - taken)), "{} of {taken}", told[0]);
        drop(guard);
    }

    #[test]
    fn what_was_dropped_is_told_as_the_catalogue_says() {
        let told = text(&Entry::of_dropped(3).0);
        let known = event::Event::ALL.iter().find(|event| event.name == "log_dropped").unwrap();
        assert!(told.contains(&format!("MESSAGE={}\n", known.message)), "{told}");
        assert!(told.contains(&format!("MESSAGE_ID={}\n", known.message_id())), "{told}");
        assert_eq!((known.level, known.fields), ("WARN", &["events"][..]));
    }

    fn text(entry: &[u8]) -> String {
        String::from_utf8_lossy(entry).into_owned()
    }

    #[test]
    fn an_event_arrives_with_its_fields_and_the_id_of_its_kind() {
        let entry = text(&sent(|| {
            crate::telemetry::Event::BatchRepeated { batch_id: "019a-1", by: "key" }.emit();
        }));
        let id = event::message_id("batch_repeated");
        for line in [
            "PRIORITY=6",
            "SYSLOG_IDENTIFIER=glaneur",
            "MESSAGE=submit was a repeat",
            "EVENT=batch_repeated",
            "BATCH_ID=019a-1",
            "BY=key",
            &format!("MESSAGE_ID={id}"),
        ] {
            assert!(entry.lines().any(|written| written == line), "{line} is not in {entry}");
        }
    }

    #[test]
    fn a_value_from_outside_cannot_forge_a_field_and_is_cut() {
        let detail = format!("x\nPRIORITY=0\n{}", "é".repeat(VALUE_BYTES_MAX));
        let entry = sent(|| crate::telemetry::Event::LedgerLost { detail: &detail }.emit());
        // The key alone on its line, then the length, then that many bytes whatever they are.
        let at = entry.windows(8).position(|bytes| bytes == b"\nDETAIL\n").unwrap() + 8;
        let (length, value) = entry[at..].split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        assert!(value.starts_with(b"x\nPRIORITY=0\n") && length <= VALUE_BYTES_MAX, "{length}");
        assert_eq!(value[length..], *b"\n", "nothing follows it");
        assert!(text(&entry[..at]).lines().any(|line| line == "PRIORITY=3"));
    }

    #[test]
    fn numbers_and_absent_fields_are_written_plainly() {
        let entry = text(&sent(|| {
            let (status, path, field, detail, peer) = (400, "/api/scrape", None, "no", "127.0.0.1");
            crate::telemetry::Event::RequestRefused { status, path, field, detail, peer }.emit();
        }));
        assert!(entry.contains("\nSTATUS=400\n") && !entry.contains("FIELD"), "{entry}");
    }
}
