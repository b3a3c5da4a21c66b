//! Parses, runs, prints the one error, and leaves; nothing else leaves the process.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::panic;
use std::process;
use std::thread;

use syncd_spawn::cli::{self, Answer};
use syncd_spawn::command::{self, Request};
use syncd_spawn::error::Error;
use syncd_spawn::exit::{self, Leave};
use syncd_spawn::report::{self, Verbosity};
use syncd_spawn::supervise::{Inherited, Signals, die_of, stdout_was_closed};

fn main() {
    // Before the first thread, and before anything that a signal could interrupt.
    let inherited = Inherited::take_over();
    quiet_panics_elsewhere();
    let words: Vec<_> = std::env::args_os().collect();
    let dialect = cli::dialect(words.first().map(OsString::as_os_str));
    report::speak(dialect);
    if stdout_was_closed() {
        report::stdout_was_closed();
    }
    let parsed = cli::parse(dialect, words);
    report::start_log(parsed.as_ref().map_or(Verbosity::Verbose(0), |request| request.verbosity));
    let result = match parsed {
        Ok(request) => run(request, inherited),
        Err(Answer::Help(text)) => match report::answer(text) {
            // A reader that has seen enough is no failure.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::system("cannot write to standard output")(error)),
            Ok(()) | Err(_) => Ok(exit::Result::Done),
        },
        Err(Answer::Usage(text)) => Err(Error::Usage(text)),
        Err(Answer::Verbatim { stdout, stderr, result }) => {
            report::verbatim(&stderr);
            _ = report::answer(stdout);
            Ok(result)
        }
    };
    let result = result.unwrap_or_else(|error| {
        report::error(&error, error.hint().as_deref());
        exit::Result::Failed
    });
    match result.leave(dialect) {
        Leave::With(status) => process::exit(status.into()),
        Leave::BySignal(signal) => {
            die_of(signal);
            process::exit(exit::signal_status(signal).into())
        }
    }
}

fn run(request: Request, inherited: Inherited) -> Result<exit::Result, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("cannot start the runtime"))?;
    let result = runtime.block_on(async {
        let signals = Signals::listen(inherited).map_err(Error::system("cannot listen for signals"))?;
        command::run(request, signals).await
    });
    // A thread that hangs in the network must not keep us.
    runtime.shutdown_background();
    result
}

/// A panic of the client's thread is a lost connection, and is treated as one; only our own is worth a message.
fn quiet_panics_elsewhere() {
    panic::set_hook(Box::new(|info| {
        if thread::current().name() == Some("main") {
            report::line(format_args!("syncd-spawn: {info}"));
        } else {
            tracing::debug!("{info}");
        }
    }));
}
