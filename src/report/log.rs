//! Log lines, in lockpick's form: `[2018-07-25 19:09:53,095] WARNING syncd-spawn: text`.

use std::fmt::{self, Write};

use chrono::Local;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::set_global_default;
use tracing::{Event, Level, Metadata, Subscriber};

use super::{dialect, line};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Errors only.
    Quiet,
    /// Warnings too. More `-v` add information, debugging, and then what the client library says.
    Verbose(u8),
}

impl Verbosity {
    fn shows(self, metadata: &Metadata<'_>) -> bool {
        let is_ours = metadata.target().starts_with("syncd_spawn");
        let most = match self {
            Verbosity::Quiet => Level::ERROR,
            Verbosity::Verbose(0) => Level::WARN,
            Verbosity::Verbose(1) => Level::INFO,
            Verbosity::Verbose(_) => Level::DEBUG,
        };
        match self {
            Verbosity::Quiet | Verbosity::Verbose(0..=2) if !is_ours => false,
            Verbosity::Quiet | Verbosity::Verbose(_) => *metadata.level() <= most,
        }
    }
}

/// Sends what is traced to standard error from here on.
pub fn start_log(verbosity: Verbosity) {
    // The first one stays; there is only one.
    _ = set_global_default(Log { verbosity });
}

struct Log {
    verbosity: Verbosity,
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.verbosity.shows(metadata)
    }

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            Level::ERROR => "ERROR",
            Level::WARN => "WARNING",
            Level::INFO => "INFO",
            Level::DEBUG | Level::TRACE => "DEBUG",
        };
        let mut text = Text::default();
        event.record(&mut text);
        let now = Local::now();
        let (date, millis) = (now.format("%Y-%m-%d %H:%M:%S"), now.timestamp_subsec_millis().min(999));
        line(format_args!("[{date},{millis:03}] {level} {}: {}", dialect().name(), text.0));
    }

    // Spans are the client library's; nothing of them is shown.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
