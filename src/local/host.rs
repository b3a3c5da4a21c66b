//! What tells this host from others, and this boot of it from the ones before.

use std::fs;

use nix::unistd::gethostname;

/// The host's name, in one line.
pub fn host() -> String {
    gethostname().unwrap_or_default().to_string_lossy().replace(char::is_control, "?")
}

/// The boot's random id.
pub fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim_end().to_owned()
}
