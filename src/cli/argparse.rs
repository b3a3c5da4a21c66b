//! The command line as Python's argparse reads it, as far as lockpick's needs it: options anywhere, long names abbreviated,
//! short ones in clusters, and the same complaints in the same order. Positionals take one word each.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// An option with its two names.
pub struct Opt {
    pub short: &'static str,
    pub long: &'static str,
    pub takes: Takes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    Value,
}

pub struct Grammar {
    pub options: &'static [Opt],
    pub positionals: &'static [&'static str],
}

/// What was read: an option by its long name, or a positional by its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Item {
    pub name: &'static str,
    pub value: OsString,
}

/// Why an item, or the whole line, is not usable; or that no more is to be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop<E> {
    Complaint(String),
    /// Said by whoever takes the items.
    Asked(E),
}

/// What a word is, before anybody knows what it is for.
enum Word {
    Argument,
    Option(Typed),
    /// Looks like an option, and is none.
    Unknown,
    Dashes,
}

struct Typed {
    option: &'static Opt,
    /// The short or the long name.
    by: &'static str,
    explicit: Option<OsString>,
}

impl Opt {
    fn names(&self) -> [&'static str; 2] {
        [self.short, self.long]
    }

    /// In complaints.
    fn display(&self) -> String {
        self.names().join("/")
    }
}

impl Grammar {
    /// Reads the words and hands over each item in the order in which argparse acts on them. `take` answers with what is wrong
    /// with a value.
    pub fn read<E>(&self, words: &[OsString], take: impl FnMut(Item) -> Result<(), Stop<E>>) -> Result<(), Stop<E>> {
        let kinds = self.classify(words).map_err(Stop::Complaint)?;
        let mut reading = Reading { grammar: self, words, kinds, take, positionals: 0, extras: Vec::new() };
        reading.read()?;
        let missing = &self.positionals[reading.positionals..];
        if !missing.is_empty() {
            return Err(Stop::Complaint(format!("the following arguments are required: {}", missing.join(", "))));
        }
        if !reading.extras.is_empty() {
            return Err(Stop::Complaint(format!("unrecognized arguments: {}", reading.extras.join(" "))));
        }
        Ok(())
    }

    fn classify(&self, words: &[OsString]) -> Result<Vec<Word>, String> {
        let mut is_over = false;
        words
            .iter()
            .map(|word| match (is_over, word.as_bytes()) {
                (true, _) => Ok(Word::Argument),
                (false, b"--") => {
                    is_over = true;
                    Ok(Word::Dashes)
                }
                (false, _) => self.word(word),
            })
            .collect()
    }

    fn word(&self, word: &OsStr) -> Result<Word, String> {
        let bytes = word.as_bytes();
        if bytes.first() != Some(&b'-') || bytes == b"-" {
            return Ok(Word::Argument);
        }
        let (name, explicit) = match bytes.iter().position(|byte| *byte == b'=') {
            Some(equals) => (&bytes[..equals], Some(&bytes[equals + 1..])),
            None => (bytes, None),
        };
        let typed = |option, by, explicit: Option<&[u8]>| {
            let explicit = explicit.map(|bytes| OsStr::from_bytes(bytes).to_owned());
            Word::Option(Typed { option, by, explicit })
        };
        if let Some((option, by)) = self.named(|by| by.as_bytes() == name).next() {
            return Ok(typed(option, by, explicit));
        }
        if name.starts_with(b"--") {
            let matching: Vec<_> = self.named(|by| by.as_bytes().starts_with(name)).collect();
            match matching[..] {
                [] => {}
                [(option, by)] => return Ok(typed(option, by, explicit)),
                _ => {
                    let could: Vec<_> = matching.iter().map(|(_, by)| *by).collect();
                    return Err(format!("ambiguous option: {} could match {}", word.display(), could.join(", ")));
                }
            }
        } else if let Some((option, by)) = self.named(|by| bytes.starts_with(by.as_bytes())).next() {
            return Ok(typed(option, by, Some(&bytes[2..])));
        }
        let is_argument = is_negative_number(bytes) || bytes.contains(&b' ');
        Ok(if is_argument { Word::Argument } else { Word::Unknown })
    }

    fn named(&self, is_it: impl Fn(&'static str) -> bool) -> impl Iterator<Item = (&'static Opt, &'static str)> {
        let names = self.options.iter().flat_map(|option| option.names().map(|by| (option, by)));
        names.filter(move |(_, by)| is_it(by))
    }
}

fn is_negative_number(bytes: &[u8]) -> bool {
    let digits = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_digit);
    match bytes[1..].iter().position(|byte| *byte == b'.') {
        Some(dot) => digits(&bytes[1..=dot]) && digits(&bytes[dot + 2..]) && bytes.len() > dot + 2,
        None => digits(&bytes[1..]),
    }
}

struct Reading<'a, T> {
    grammar: &'a Grammar,
    words: &'a [OsString],
    kinds: Vec<Word>,
    take: T,
    /// How many were taken.
    positionals: usize,
    extras: Vec<String>,
}

impl<E, T: FnMut(Item) -> Result<(), Stop<E>>> Reading<'_, T> {
    fn read(&mut self) -> Result<(), Stop<E>> {
        let is_option = |kind: &Word| matches!(kind, Word::Option(_) | Word::Unknown);
        let mut at = 0;
        while let Some(ahead) = self.kinds[at..].iter().position(is_option) {
            let next = at + ahead;
            let after = if ahead == 0 { at } else { self.take_positionals(at)? };
            if after > at {
                at = after;
                continue;
            }
            self.leave_over(at..next);
            at = self.take_option(next)?;
        }
        let end = self.take_positionals(at)?;
        self.leave_over(end..self.words.len());
        Ok(())
    }

    fn leave_over(&mut self, range: std::ops::Range<usize>) {
        self.extras.extend(self.words[range].iter().map(|word| word.display().to_string()));
    }

    fn take_positionals(&mut self, mut at: usize) -> Result<usize, Stop<E>> {
        while let Some(name) = self.grammar.positionals.get(self.positionals) {
            let skip = |mut at: usize| {
                while let Some(Word::Dashes) = self.kinds.get(at) {
                    at += 1;
                }
                at
            };
            let word = skip(at);
            let Some(Word::Argument) = self.kinds.get(word) else {
                break;
            };
            at = skip(word + 1);
            self.positionals += 1;
            (self.take)(Item { name, value: self.words[word].clone() }).map_err(|stop| of(stop, name))?;
        }
        Ok(at)
    }

    /// Takes an option, or a cluster of them, and its value.
    fn take_option(&mut self, at: usize) -> Result<usize, Stop<E>> {
        let Word::Option(Typed { option, by, explicit }) = &self.kinds[at] else {
            self.leave_over(at..at + 1);
            return Ok(at + 1);
        };
        let (mut option, mut explicit) = (*option, explicit.clone());
        let mut taken = Vec::new();
        let end = loop {
            match (explicit, option.takes) {
                (Some(value), Takes::Value) => {
                    taken.push((option, value));
                    break at + 1;
                }
                (Some(rest), Takes::Nothing) => {
                    taken.push((option, OsString::new()));
                    let short = rest.as_bytes().first().map(|letter| [b'-', *letter]);
                    let next = short.filter(|_| !by.starts_with("--"));
                    let next = next.and_then(|short| self.grammar.named(|by| by.as_bytes() == short).next());
                    let Some((next, _)) = next else {
                        let text = format!("ignored explicit argument {}", repr(&rest));
                        return Err(of(Stop::Complaint(text), &option.display()));
                    };
                    option = next;
                    explicit = Some(OsStr::from_bytes(&rest.as_bytes()[1..]).to_owned()).filter(|rest| !rest.is_empty());
                }
                (None, Takes::Nothing) => {
                    taken.push((option, OsString::new()));
                    break at + 1;
                }
                (None, Takes::Value) => {
                    let (Some(value), Some(Word::Argument)) = (self.words.get(at + 1), self.kinds.get(at + 1)) else {
                        return Err(of(Stop::Complaint("expected one argument".to_owned()), &option.display()));
                    };
                    taken.push((option, value.clone()));
                    break at + 2;
                }
            }
        };
        for (option, value) in taken {
            (self.take)(Item { name: option.long, value }).map_err(|stop| of(stop, &option.display()))?;
        }
        Ok(end)
    }
}

/// A complaint names what it is about.
fn of<E>(stop: Stop<E>, name: &str) -> Stop<E> {
    match stop {
        Stop::Complaint(text) => Stop::Complaint(format!("argument {name}: {text}")),
        Stop::Asked(asked) => Stop::Asked(asked),
    }
}

/// As Python shows a string.
pub fn repr(value: &OsStr) -> String {
    let text = value.to_string_lossy();
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut shown = String::from(quote);
    for character in text.chars() {
        match character {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            _ if character == quote => shown.extend(['\\', quote]),
            _ if character.is_control() => _ = write!(shown, "\\x{:02x}", u32::from(character)),
            _ => shown.push(character),
        }
    }
    shown.push(quote);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAMMAR: Grammar = Grammar {
        options: &[
            Opt { short: "-v", long: "--verbose", takes: Takes::Nothing },
            Opt { short: "-c", long: "--count", takes: Takes::Value },
            Opt { short: "-r", long: "--retry-count", takes: Takes::Value },
            Opt { short: "-p", long: "--retry-sleep", takes: Takes::Value },
        ],
        positionals: &["action", "path"],
    };

    /// The items as `name=value`, or the complaint.
    fn read(line: &[&str]) -> Result<String, String> {
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        let mut items = Vec::new();
        let read = GRAMMAR.read::<()>(&words, |Item { name, value }| {
            items.push(format!("{name}={}", value.display()));
            Ok(())
        });
        match read {
            Ok(()) => Ok(items.join(" ")),
            Err(Stop::Complaint(text)) => Err(text),
            Err(Stop::Asked(())) => unreachable!("nobody asks"),
        }
    }

    #[test]
    fn what_argparse_takes_is_taken_as_it_takes_it() {
        for (line, items) in [
            (&["lock", "/x"][..], "action=lock path=/x"),
            (&["-v", "lock", "-c", "1", "/x", "-v"], "--verbose= action=lock --count=1 path=/x --verbose="),
            (&["lock", "/x", "--count=1", "--cou", "2", "--c=3"], "action=lock path=/x --count=1 --count=2 --count=3"),
            (&["-vvc1", "lock", "/x"], "--verbose= --verbose= --count=1 action=lock path=/x"),
            (&["-vc", "1", "-c=2", "lock", "/x"], "--verbose= --count=1 --count=2 action=lock path=/x"),
            (&["-c", "-1", "-c", "-.5", "-c", "", "lock", "/x"], "--count=-1 --count=-.5 --count= action=lock path=/x"),
            (&["-c", "-x y", "-c", "-", "lock", "/x"], "--count=-x y --count=- action=lock path=/x"),
            (&["--", "lock", "-v"], "action=lock path=-v"),
            (&["lock", "--", "/x"], "action=lock path=/x"),
            (&["lock", "--retry-c", "1", "", "--verb"], "action=lock --retry-count=1 path= --verbose="),
        ] {
            assert_eq!(read(line).as_deref(), Ok(items), "{line:?}");
        }
    }

    #[test]
    fn what_argparse_refuses_is_refused_in_its_words() {
        for (line, complaint) in [
            (&[][..], "the following arguments are required: action, path"),
            (&["lock", "-q"], "the following arguments are required: path"),
            (&["lock", "/x", "y", "-q", "z"], "unrecognized arguments: y -q z"),
            (&["lock", "/x", "-c"], "argument -c/--count: expected one argument"),
            (&["-c", "-v", "lock", "/x"], "argument -c/--count: expected one argument"),
            (&["-c", "--", "lock", "/x"], "argument -c/--count: expected one argument"),
            (&["--re", "1"], "ambiguous option: --re could match --retry-count, --retry-sleep"),
            (&["--retry=1"], "ambiguous option: --retry=1 could match --retry-count, --retry-sleep"),
            (&["-vx"], "argument -v/--verbose: ignored explicit argument 'x'"),
            (&["--verbose=it's"], "argument -v/--verbose: ignored explicit argument \"it's\""),
            (&["--verbose="], "argument -v/--verbose: ignored explicit argument ''"),
        ] {
            assert_eq!(read(line), Err(complaint.to_owned()), "{line:?}");
        }
    }
}
