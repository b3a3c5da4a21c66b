//! `install`: the program copies itself.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::bench::{BINARY, Bench, Run};

fn nowhere() -> Bench {
    Bench::on("127.0.0.1:1")
}

#[test]
fn the_running_program_is_copied_whole_and_says_where() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let typed = format!("umask 077; exec {BINARY} install {}", place.display());
    let ended = Run::start(nowhere().program("sh", ["-c", &typed])).finish().good();
    let copy = place.join("syncd-spawn");
    assert_eq!((ended.stdout(), ended.stderr.as_str()), (format!("{}\n", copy.display()).as_str(), ""));
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(fs::read(&copy).unwrap() == fs::read(BINARY).unwrap());
    assert_eq!(fs::read_dir(place).unwrap().count(), 1);
    let version = Run::start(nowhere().program(copy.to_str().unwrap(), ["--version"])).finish().good();
    assert!(version.stdout().starts_with("syncd-spawn "));
}

#[test]
fn links_are_the_old_names_and_everything_that_was_there_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    fs::write(place.join("syncd-spawn"), "old").unwrap();
    fs::write(place.join("lockpick"), "old").unwrap();
    symlink("/nonexistent", place.join("syncd_spawn")).unwrap();
    let was = fs::metadata(place.join("syncd-spawn")).unwrap().ino();
    for _ in 0..2 {
        let ended = nowhere().run(["install", "--links", place.to_str().unwrap()]).good();
        let names = ["syncd-spawn", "lockpick", "syncd_spawn"].map(|name| format!("{}\n", place.join(name).display()));
        assert_eq!(ended.stdout(), names.concat());
        for name in ["lockpick", "syncd_spawn"] {
            assert_eq!(fs::read_link(place.join(name)).unwrap().to_str(), Some("syncd-spawn"));
        }
        assert_eq!(fs::read_dir(place).unwrap().count(), 3);
    }
    // Another file: who runs the old one, or reads it, has it whole.
    assert_ne!(fs::metadata(place.join("syncd-spawn")).unwrap().ino(), was);
    let help = Run::start(nowhere().program(place.join("lockpick").to_str().unwrap(), ["-h"])).finish().good();
    assert!(help.stdout().starts_with("usage: lockpick "));
}

#[test]
fn what_cannot_be_installed_is_named_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let missing = place.join("missing");
    nowhere().run(["install", missing.to_str().unwrap()]).failed(125, "missing/syncd-spawn: No such file or directory");
    fs::create_dir(place.join("syncd-spawn")).unwrap();
    nowhere().run(["install", place.to_str().unwrap()]).failed(125, "syncd-spawn: Is a directory");
    assert_eq!(fs::read_dir(place).unwrap().count(), 1);
    nowhere().run(["install"]).failed(125, "<DIR>");
    nowhere().run(["-n", "/x", "install", "/tmp"]).failed(125, "to run a command of that name write -- install");
    let full = Run::start(nowhere().program(
        "unshare",
        [
            "-rm",
            "sh",
            "-c",
            &format!("mount -t tmpfs -o size=64k none {0} && {BINARY} install {0}; s=$?; ls -A {0}; exit $s", place.display()),
        ],
    ));
    let ended = full.finish().failed(125, "No space left on device");
    assert_eq!(ended.stdout(), "");
}

#[test]
fn a_command_of_that_name_is_run_behind_two_dashes() {
    let directory = tempfile::tempdir().unwrap();
    symlink("/bin/echo", directory.path().join("install")).unwrap();
    let mut run = Bench::directory().command(["-q", "--", "install", "x"]);
    run.env("PATH", directory.path());
    assert_eq!(Run::start(run).finish().good().stdout(), "x\n");
}
