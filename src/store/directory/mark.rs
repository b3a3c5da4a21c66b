//! A number that only grows, kept in the name of an empty file.
//!
//! A rename is whole or not at all, and needs no room on a full disk. And where nobody may touch what others own, everybody
//! has a mark of his own: the highest of them counts.

use nix::errno::Errno;
use nix::unistd::geteuid;

use super::HIDDEN;
use crate::local::{Dir, Trouble};

/// The highest number among these names.
pub fn highest(names: &[String]) -> Option<u64> {
    names.iter().filter_map(|name| parse(name)).map(|(_, number)| number).max()
}

/// Keeps this number, which is higher than all of them. The caller has passed the turnstile.
pub fn advance(dir: &Dir, names: &[String], number: u64) -> Result<(), Trouble> {
    let us = geteuid().as_raw();
    let new = format!("{HIDDEN}{us}.{number:010}");
    let mut ours: Vec<&String> = names.iter().filter(|name| parse(name).is_some_and(|(user, _)| user == us)).collect();
    ours.sort_by_key(|name| parse(name));
    if let Some(last) = ours.pop()
        && dir.rename(last, &new).is_ok()
    {
        // There is more than one only where somebody put them there.
        return ours.iter().try_for_each(|name| dir.remove(name).map(drop));
    }
    match dir.create(&new, 0o666) {
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(dir.trouble("to make", &new, errno)),
    }
}

/// Whose it is, and its number.
fn parse(name: &str) -> Option<(u32, u64)> {
    let (user, number) = name.strip_prefix(HIDDEN)?.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(user) && is_number(number)).then_some(())?;
    Some((user.parse().ok()?, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_mark_counts_whoever_made_it() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(highest(&names(&[])), None);
        assert_eq!(highest(&names(&["x", ".syncd-spawn.new.0", ".syncd-spawn.0.", ".syncd-spawn.0.+1"])), None);
        let marks = names(&[".syncd-spawn.0.0000000041", ".syncd-spawn.1000.0000000042", ".syncd-spawn.7.0000000009"]);
        assert_eq!(highest(&marks), Some(42));
        assert_eq!(highest(&names(&[".syncd-spawn.0.18446744073709551615"])), Some(u64::MAX));
    }
}
