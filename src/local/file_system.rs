//! File systems that other hosts may share.

use nix::sys::statfs::fstatfs;

use super::dir::Dir;

/// Whether nobody but this host sees this directory; if not, or nobody can tell, why.
pub fn check_file_system(dir: &Dir) -> Result<(), String> {
    // The kernel's type differs by architecture; the numbers have 32 bits on all of them.
    let number = fstatfs(dir.fd()).map_err(|errno| format!("its file system cannot be told: {errno}"))?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the upper half is empty")]
    match shared_file_system(number.filesystem_type().0 as u32) {
        Some(name) => {
            Err(format!("{} is on {name}, which other hosts may share without seeing our locks", dir.path().display()))
        }
        None => Ok(()),
    }
}

/// File systems that another host may have mounted too, or that a program answers for; after the list of GNU coreutils.
fn shared_file_system(number: u32) -> Option<&'static str> {
    Some(match number {
        0x0000_6969 => "NFS",
        0x0000_517b | 0xfe53_4d42 | 0xff53_4d42 => "SMB",
        0x0102_1997 => "9p",
        0x6573_5546 => "FUSE",
        0x00c3_6400 => "Ceph",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x7375_7245 => "Coda",
        0x0000_564c => "NCP",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0xaad7_aaea => "PanFS",
        0x2003_0528 => "OrangeFS",
        0x6163_6673 => "ACFS",
        0xa501_fcf5 => "VxFS",
        0x0130_11a8 => "IBRIX",
        0xbeef_dead => "StorNext",
        0x786f_4256 => "a folder of VirtualBox",
        0xbacb_acbc => "a folder of VMware",
        0x7c7c_6673 => "a folder of Parallels",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_other_hosts_share_is_known_by_its_number() {
        for (name, number) in [("NFS", 0x6969), ("SMB", 0xff53_4d42), ("9p", 0x0102_1997), ("FUSE", 0x6573_5546)] {
            assert_eq!(shared_file_system(number), Some(name));
        }
        let local = [("ext4", 0xef53), ("tmpfs", 0x0102_1994), ("overlay", 0x794c_7630), ("xfs", 0x5846_5342)];
        for (name, number) in local.into_iter().chain([("btrfs", 0x9123_683e), ("zfs", 0x2fc1_2fc1), ("ramfs", 0x8584_58f6)]) {
            assert_eq!(shared_file_system(number), None, "{name}");
        }
    }
}
