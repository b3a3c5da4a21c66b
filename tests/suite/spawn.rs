//! What the command gets, and what becomes of its end.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::process::Stdio;

use uuid::Uuid;

use super::bench::{BINARY, Bench, Run, make_executable, on_every_store};

on_every_store!(
    arguments_environment_and_directory_arrive_untouched,
    all_exit_codes_pass,
    however_long_a_time_is_nothing_of_ours_overflows,
    a_good_command_is_silent_but_for_three_lines_on_standard_error,
    the_lock_is_held_while_the_command_runs_and_gone_when_it_has_ended,
    a_lock_without_a_name_is_named_after_the_command,
    two_unicode_forms_of_a_name_are_two_locks,
    the_command_knows_its_lock_and_a_token_that_grows,
    inner_runs_know_their_own_lock_and_refuse_one_that_an_outer_run_holds,
    a_megabyte_of_random_bytes_passes_through_unchanged,
    a_command_that_cannot_be_run_leaves_with_126_or_127_and_no_node,
    a_script_without_an_interpreter_line_is_run_by_sh,
    the_command_runs_with_the_signal_state_that_we_were_given,
    nothing_of_ours_is_open_in_the_command_but_what_stands_for_the_lock,
    a_lock_taken_away_stops_the_command_and_leaves_with_123,
    a_command_that_does_not_stop_when_its_lock_is_lost_is_killed_after_its_grace,
);

fn all_exit_codes_pass(bench: &Bench) {
    for code in 0..=255 {
        let ended = bench.run(["-q", "-n", "/codes", "--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(ended.code(), code);
    }
    assert!(bench.queue("/codes").is_empty());
}

fn however_long_a_time_is_nothing_of_ours_overflows(bench: &Bench) {
    let longest = "18000000000000000000";
    for option in ["-t", "-p", "-k", "--grace", "--release-timeout"] {
        let free = bench.run([option, longest, "-n", "/long", "--", "sh", "-c", "exit 7"]);
        assert_eq!((free.code(), free.stderr.contains("panicked")), (7, false), "{option}: {free:?}");
        let holder = bench.hold(["-n", "/long"]).ready();
        let waiter = bench.hold(["-n", "/long", option, longest]).waits();
        holder.finish().good();
        waiter.ready().finish().good();
        assert!(bench.queue("/long").is_empty());
    }
}

fn a_good_command_is_silent_but_for_three_lines_on_standard_error(bench: &Bench) {
    let ended = bench.run(["-n", "/test", "-C", "test", "-l", "rlock", "echo", "hello  you"]).good();
    assert_eq!(ended.stdout(), "hello  you\n");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    let [got, running, unlocked] = lines[..] else { panic!("{lines:?}") };
    assert_eq!((got, running), ("Got lock on /test", "Running your command echo hello  you"));
    let node = unlocked.strip_prefix("Unlocked '/test/").and_then(|rest| rest.strip_suffix("'")).expect(unlocked);
    assert!(node.len() == 32 + "__rlock__0000000000".len() && node.ends_with("__rlock__0000000000"), "{node}");
    let quiet = bench.run(["-q", "-n", "/test", "echo", "hello"]).good();
    assert_eq!((quiet.stdout(), quiet.stderr.as_str()), ("hello\n", ""));
}

fn the_lock_is_held_while_the_command_runs_and_gone_when_it_has_ended(bench: &Bench) {
    let holder = bench.hold(["-n", "/db", "-i", "me", "-l", "wlock"]).ready();
    let queue = bench.queue("/db");
    assert_eq!(queue.len(), 1);
    assert_eq!(bench.data(&format!("/db/{}", queue[0])), b"me");
    holder.finish().good();
    assert!(bench.queue("/db").is_empty());
    assert_eq!(bench.tree(), ["", "/db"], "nothing else is left in the tree");
}

fn a_lock_without_a_name_is_named_after_the_command(bench: &Bench) {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("backup");
    make_executable(&script, b"#!/bin/sh\necho $SYNCD_SPAWN_LOCK_PATH \"$@\"\n");
    let ended = bench.run([script.as_os_str(), "--all".as_ref(), "-l".as_ref(), "list".as_ref()]).good();
    assert_eq!(ended.stdout(), "/backup --all -l list\n");
}

fn two_unicode_forms_of_a_name_are_two_locks(bench: &Bench) {
    let (composed, decomposed) = ("/caf\u{e9}", "/cafe\u{301}");
    let holder = bench.hold(["-n", composed]).ready();
    let other = bench.hold(["--no-wait", "-n", decomposed]).ready();
    assert_eq!((bench.queue(composed).len(), bench.queue(decomposed).len()), (1, 1));
    holder.finish().good();
    other.finish().good();
}

fn the_command_knows_its_lock_and_a_token_that_grows(bench: &Bench) {
    let show = "echo $SYNCD_SPAWN_LOCK_PATH $SYNCD_SPAWN_LOCK_NODE $SYNCD_SPAWN_LOCK_TYPE $SYNCD_SPAWN_FENCING_TOKEN";
    let mut tokens = Vec::new();
    for (lock_type, mark) in [("lock", "__lock__"), ("rlock", "__rlock__"), ("wlock", "__lock__")] {
        let ended = bench.run(["-n", "/a/b/", "-l", lock_type, "--", "sh", "-c", show]).good();
        let words: Vec<&str> = ended.stdout().split_whitespace().collect();
        let [path, node, shown_type, token] = words[..] else { panic!("{words:?}") };
        assert_eq!((path, shown_type), ("/a/b", lock_type));
        assert!(node.starts_with("/a/b/") && node.contains(mark), "{node}");
        tokens.push(token.parse::<u64>().expect(token));
        // The sequence starts again when the directory is deleted; the token does not.
        bench.remove("/a/b");
    }
    assert!(tokens.is_sorted_by(|earlier, later| earlier < later), "{tokens:?}");
}

fn inner_runs_know_their_own_lock_and_refuse_one_that_an_outer_run_holds(bench: &Bench) {
    let binary = BINARY;
    let inner = |node| ["-q", "-n", "/outer", "--", binary, "-q", "-n", node, "-t", "30", "--", "printenv"];
    let ended = bench.run(inner("/inner").into_iter().chain(["SYNCD_SPAWN_LOCK_PATH"])).good();
    assert_eq!(ended.stdout(), "/inner\n");
    bench.run(inner("/outer").into_iter().chain(["HOME"])).failed(125, "is held by a run around this one");
    // Twice around, and readers that do not wait for each other.
    let deep = ["-q", "-n", "/outer", "--", binary, "-q", "-n", "/middle", "--", binary, "-n", "/outer", "-t", "30", "true"];
    bench.run(deep).failed(125, "is held by a run around this one");
    let readers = ["-q", "-n", "/r", "-l", "rlock", "--", binary, "-q", "-n", "/r", "-l", "rlock", "--", "echo", "both"];
    assert_eq!(bench.run(readers).good().stdout(), "both\n");
    for lock in ["/outer", "/inner", "/middle", "/r"] {
        assert!(bench.queue(lock).is_empty(), "{lock}");
    }
}

fn arguments_environment_and_directory_arrive_untouched(bench: &Bench) {
    let bench = bench.with_variable("ODD", OsString::from_vec(b"a\xffb\nc".to_vec())).with_variable("EMPTY", "");
    let words: Vec<OsString> = [b"a b".to_vec(), b"\xff\n'\"$x*".to_vec(), Vec::new(), b"--".to_vec(), b"-n".to_vec()]
        .into_iter()
        .map(OsString::from_vec)
        .collect();
    let command = ["-q", "-n", "/args", "--", "sh", "-c", "printf '%s\\0' \"$@\" \"$ODD\" \"${EMPTY-unset}\" \"$PWD\"", "sh"];
    let mut run = bench.command(command.iter().map(OsString::from).chain(words.clone()));
    run.current_dir("/usr");
    let ended = Run::start(run).finish().good();
    let mut expected: Vec<u8> = words.iter().flat_map(|word| [word.as_encoded_bytes(), b"\0"].concat()).collect();
    expected.extend_from_slice(b"a\xffb\nc\0\0/usr\0");
    assert_eq!(ended.stdout, expected);
}

fn a_megabyte_of_random_bytes_passes_through_unchanged(bench: &Bench) {
    let bytes: Vec<u8> = std::iter::repeat_with(|| Uuid::new_v4().into_bytes()).take(1 << 16).flatten().collect();
    assert_eq!(bytes.len(), 1 << 20);
    let mut child = bench.command(["-q", "-n", "/pipe", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert!(output.stdout == bytes, "the bytes were changed");
}

fn a_command_that_cannot_be_run_leaves_with_126_or_127_and_no_node(bench: &Bench) {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    fs::write(&plain, "no program").unwrap();
    let orphan = directory.path().join("orphan");
    make_executable(&orphan, b"#!/no/such/interpreter\n");
    for (command, code) in [
        ("no-such-command-anywhere", 127),
        ("/no/such/file", 127),
        (orphan.to_str().unwrap(), 127),
        (plain.to_str().unwrap(), 126),
        ("/usr", 126),
        ("/etc/passwd/x", 127),
    ] {
        bench.run(["-n", "/exec", "--", command]).failed(code, &format!("cannot run {command}: "));
    }
    bench.run(["-n", "/exec", "--", ""]).failed(127, "cannot run ");
    assert!(bench.queue("/exec").is_empty());
}

fn a_script_without_an_interpreter_line_is_run_by_sh(bench: &Bench) {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    make_executable(&script, b"echo $# $1\n");
    let ended = bench.run([script.as_os_str(), "a b".as_ref(), "c".as_ref()]).good();
    assert_eq!(ended.stdout(), "2 a b\n");
}

fn the_command_runs_with_the_signal_state_that_we_were_given(bench: &Bench) {
    let state = "grep -E '^Sig(Blk|Ign)' /proc/self/status";
    for given in [":", "trap '' USR1 PIPE CHLD", "trap '' HUP INT QUIT TERM TSTP"] {
        let script = format!("{given}; {state}; exec {BINARY} -q -n /mask -- {state}");
        let ended = Run::start(bench.program("sh", ["-c", &script])).finish().good();
        let lines: Vec<&str> = ended.stdout().lines().collect();
        let [blocked, ignored, blocked_there, ignored_there] = lines[..] else { panic!("{lines:?}") };
        assert_eq!((blocked_there, ignored_there), (blocked, ignored), "{given}");
    }
}

fn nothing_of_ours_is_open_in_the_command_but_what_stands_for_the_lock(bench: &Bench) {
    let ended = bench.run(["-q", "-n", "/fds", "--", "sh", "-c", "ls /proc/$$/fd"]).good();
    let plainly = bench.program("sh", ["-c", "ls /proc/$$/fd"]).stdin(Stdio::piped()).output().unwrap();
    let plainly = String::from_utf8(plainly.stdout).unwrap();
    let ours: Vec<&str> = ended.stdout().lines().filter(|fd| !plainly.lines().any(|plain| plain == *fd)).collect();
    assert_eq!(ours, ["50"]);
}

fn a_lock_taken_away_stops_the_command_and_leaves_with_123(bench: &Bench) {
    let holder = bench.start(["-n", "/lost", "--", "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"]);
    let holder = holder.ready();
    let node = bench.queue("/lost").remove(0);
    bench.remove(&format!("/lost/{node}"));
    holder.end().failed(123, "was removed while the command runs");
    assert!(bench.queue("/lost").is_empty());
}

fn a_command_that_does_not_stop_when_its_lock_is_lost_is_killed_after_its_grace(bench: &Bench) {
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let holder = bench.start(["-n", "/lost", "--", "sh", "-c", stubborn]).ready();
    let node = bench.queue("/lost").remove(0);
    bench.remove(&format!("/lost/{node}"));
    holder.end().failed(123, "was removed while the command runs");
}
