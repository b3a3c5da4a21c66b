//! Who has a flock, as the kernel lists it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use nix::sys::stat::{major, minor};

/// The process that took the flock on this file, if it still has the file open: another one that inherited it keeps the flock,
/// too, and the kernel does not list that. `None` as well where we may not look.
pub fn taker(file: &File) -> Option<u32> {
    let metadata = file.metadata().ok()?;
    let pid = listed(&fs::read_to_string("/proc/locks").ok()?, metadata.dev(), metadata.ino())?;
    let opened = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let is_it = |path| fs::metadata(path).is_ok_and(|it| (it.dev(), it.ino()) == (metadata.dev(), metadata.ino()));
    opened.flatten().any(|entry| is_it(entry.path())).then_some(pid)
}

/// The process by `/proc/locks`, where a line is of a device and an inode, and those that wait have an arrow.
fn listed(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let place = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [_, "FLOCK", _, _, pid, at, ..] if at == place => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_took_a_flock_is_listed_and_who_waits_for_it_is_not_meant() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 fe:00:10141800 0 EOF\n2: -> FLOCK  ADVISORY  READ 8 fe:00:10141800 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 fe:01:10141800 0 EOF\n4: FLOCK  ADVISORY  WRITE 10 fe:00:10141800 0 EOF\n";
        let device = |minor| nix::sys::stat::makedev(0xfe, minor);
        assert_eq!(listed(locks, device(0), 10_141_800), Some(10));
        assert_eq!(listed(locks, device(1), 10_141_800), Some(9));
        assert_eq!(listed(locks, device(0), 1), None);
        assert_eq!(listed("no such list", device(0), 1), None);
    }
}
