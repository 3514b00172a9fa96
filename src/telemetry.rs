//! The log: what happened, in words on a terminal, natively in the journal, and in JSON lines elsewhere.

pub mod catalogue;
pub mod event;
mod journal;

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::{Log, LogFormat, LogLevel};

pub use event::Event;
use journal::Journal;

/// Changes `log.level` of a running daemon.
#[derive(Debug)]
pub struct Level(reload::Handle<Targets, Registry>);

impl Level {
    pub fn set(&self, level: LogLevel) {
        // It fails only without a subscriber, which lives as long as the process.
        let _ = self.0.reload(targets(level));
    }
}

/// The libraries' own words only when something is wrong with them.
fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_target("glaneur", level).with_default(level.min(LevelFilter::WARN))
}

/// Sends all events to standard error, and panics after them.
pub fn init(log: &Log) -> Level {
    let (targets, level) = reload::Layer::new(targets(log.level));
    let registry = tracing_subscriber::registry().with(targets);
    match form(log.format) {
        Form::Journal(journal) => registry.with(journal).init(),
        Form::Json => {
            let layer =
                fmt::layer().json().flatten_event(true).with_target(false).with_writer(std::io::stderr);
            registry.with(layer.with_current_span(false).with_span_list(false)).init();
        }
        Form::Text => {
            let ansi = std::io::stderr().is_terminal();
            let layer = fmt::layer().compact().with_target(false).with_ansi(ansi);
            registry.with(layer.with_writer(std::io::stderr)).init();
        }
    }
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        Event::Panicked { detail: &panic_text(info.payload()), place: &place }.emit();
    }));
    Level(level)
}

enum Form {
    Text,
    Json,
    Journal(Journal),
}

fn form(format: LogFormat) -> Form {
    // Without a journal to speak to, lines on standard error reach whoever reads them.
    let journal = || Journal::open().map_or(Form::Json, Form::Journal);
    match format {
        LogFormat::Auto if std::io::stderr().is_terminal() => Form::Text,
        LogFormat::Auto if journal::is_behind_stderr() => journal(),
        LogFormat::Auto | LogFormat::Json => Form::Json,
        LogFormat::Text => Form::Text,
        LogFormat::Journal => journal(),
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
