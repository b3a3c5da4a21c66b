//! What used to happen under the old names and does not any more: a test each, named after it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::bench::{Bench, Run};
use super::names::{Old, normalised};

/// The script's options for a lock of this path.
fn script<'a>(lock: &'a str, command: &'a [&'a str]) -> Vec<&'a str> {
    [&["-n", lock, "-C", "c", "-l", "lock"], command].concat()
}

/// Says `ready`, and after a TERM or HUP goes on until a line comes.
const LINGERS: &str = "trap 'echo asked; read -r line; exit 7' TERM HUP; echo ready; while :; do sleep 0.01; done";

#[test]
fn a_term_to_the_script_unlocked_while_the_command_ran_on() {
    let old = Old::new();
    for signal in [libc::SIGTERM, libc::SIGHUP] {
        let mut run = old.start_script(&script("/x", &[LINGERS])).ready();
        run.signal(signal);
        run.says("asked\n");
        assert_eq!((old.bench.queue("/x").len(), run.is_running()), (1, true));
        run.write(b"\n");
        let ended = run.end();
        assert!(ended.code() == 7 && normalised(ended.stdout()).ends_with("asked\nUnlocked '/x/UUID__lock__N'\n"), "{ended:?}");
    }
    assert_eq!(old.bench.queue("/x"), Vec::<String>::new());
}

#[test]
fn a_term_to_the_script_ended_its_shell_while_what_the_shell_ran_ran_on() {
    let old = Old::new();
    let pipeline = format!("bash -c \"{LINGERS}\" | {{ trap '' TERM; cat; }}");
    let mut run = old.start_script(&script("/x", &[&pipeline])).ready();
    run.signal(libc::SIGTERM);
    run.says("asked\n");
    run.warns("left behind");
    assert_eq!((old.bench.queue("/x").len(), run.is_running()), (1, true));
    run.write(b"\n");
    assert_eq!(run.end().died_of(), libc::SIGTERM);
    assert_eq!(old.bench.queue("/x"), Vec::<String>::new());
}

#[test]
fn what_the_command_left_running_on_purpose_still_runs_on() {
    let old = Old::new();
    // The shell takes its standard input from what it starts in the background, not this one.
    let mut run = old.start_script(&script("/x", &["exec 3<&0; sh -c 'read -r line <&3; echo over' & true"]));
    run.says("\nUnlocked '/x/");
    assert_eq!(old.bench.queue("/x"), Vec::<String>::new());
    run.write(b"\n");
    let ended = run.end().good();
    assert!(normalised(ended.stdout()).ends_with("Unlocked '/x/UUID__lock__N'\nover\n"), "{ended:?}");
}

#[test]
fn a_term_to_the_waiting_script_left_a_contender_that_nobody_owned() {
    let old = Old::new();
    let node = old.take(&["lock", "/x"]);
    for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
        let waiter = old.start_script(&script("/x", &["-i", "60", "true"]));
        old.bench.queue_reaches("/x", 2);
        waiter.signal(signal);
        assert_eq!(waiter.end().died_of(), signal);
        assert_eq!(old.bench.queue("/x").len(), 1, "{signal}");
    }
    old.lockpick(&["unlock", &node]).good();
}

#[test]
fn an_int_or_quit_to_the_script_alone_was_dropped() {
    let old = Old::new();
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        let mut run = old.start_script(&script("/x", &["exec cat"]));
        // Once it is cat that says so: the shell before it ignores a QUIT.
        run.write(b"ready\n");
        let run = run.ready();
        run.signal(signal);
        assert_eq!(run.end().died_of(), signal);
    }
    assert_eq!(old.bench.queue("/x"), Vec::<String>::new());
}

#[test]
fn a_hup_or_quit_to_a_waiting_lockpick_left_its_node() {
    let old = Old::new();
    old.take(&["lock", "/x"]);
    for (signal, status) in [(libc::SIGHUP, None), (libc::SIGQUIT, None), (libc::SIGINT, Some(1)), (libc::SIGTERM, Some(1))] {
        let waiter = old.start_lockpick(&["-r", "60", "-p", "1", "lock", "/x"]);
        waiter.warns("Waiting to acquire lock");
        waiter.signal(signal);
        let ended = waiter.end();
        assert_eq!(ended.status.code(), status, "{ended:?}");
        assert!(status.is_some() || ended.died_of() == signal);
        assert_eq!(old.bench.queue("/x").len(), 1, "{signal}");
    }
}

#[test]
fn a_usr1_or_alrm_to_a_waiting_lockpick_ended_it_and_left_its_node() {
    let old = Old::new();
    let node = old.take(&["lock", "/x"]);
    let waiter = old.start_lockpick(&["-r", "60", "-p", "1", "lock", "/x"]);
    waiter.warns("Waiting to acquire lock");
    waiter.signal(libc::SIGUSR1);
    waiter.signal(libc::SIGALRM);
    old.lockpick(&["unlock", &node]).good();
    let ended = waiter.end().good();
    assert_eq!(normalised(ended.stdout()), "/x/UUID__lock__N\n");
}

#[test]
fn an_int_that_was_ignored_from_the_beginning_ended_a_waiting_lockpick() {
    let old = Old::new();
    let node = old.take(&["lock", "/x"]);
    let lockpick = old.path().join("lockpick").display().to_string();
    // As the shell of a script starts what it puts into the background.
    let mut words = vec!["-c", "trap '' INT; exec \"$0\" \"$@\"", &lockpick];
    words.extend(["-s", old.bench.servers(), "-c", old.bench.chroot(), "-r", "60", "-p", "1", "lock", "/x"]);
    let waiter = Run::start(old.bench.program("sh", words));
    waiter.warns("Waiting to acquire lock");
    waiter.signal(libc::SIGINT);
    old.lockpick(&["unlock", &node]).good();
    waiter.end().good();
}

#[test]
fn a_kill_of_a_waiting_lockpick_left_its_node() {
    let old = Old::new();
    let node = old.take(&["lock", "/x"]);
    let mut killed = old.start_lockpick(&["-r", "60", "-p", "1", "lock", "/x"]);
    killed.warns("Waiting to acquire lock");
    killed.kill();
    let waiter = old.start_lockpick(&["-r", "60", "-p", "1", "lock", "/x"]);
    // The one who waits now finds who is dead: the holder's and his own are left.
    waiter.warns("nobody lives who could work under it");
    old.bench.queue_reaches("/x", 2);
    old.bench.remove(&node);
    waiter.end().good();
}

#[test]
fn a_signal_right_after_the_create_left_the_node() {
    let old = Old::new();
    old.take(&["lock", "/x"]);
    for _ in 0..5 {
        // The server has it; whether we know that yet is anybody's guess.
        let waiter = old.start_lockpick(&["lock", "/x"]);
        old.bench.queue_reaches("/x", 2);
        waiter.signal(libc::SIGTERM);
        assert_eq!(waiter.end().code(), 1);
        assert_eq!(old.bench.queue("/x").len(), 1);
    }
}

/// Says so when it goes.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_contender_that_vanished_while_it_was_listed_failed_the_run_and_left_its_node() {
    let old = &Old::new();
    let node = old.take(&["-i", "first", "rlock", "/x"]);
    let is_over = &AtomicBool::new(false);
    thread::scope(|scope| {
        // Whatever happens, they come to an end.
        let over = Over(is_over);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let nodes: Vec<String> =
                    (0..5).map(|_| old.bench.run(["rlock", "/x"]).good().stdout().trim_end().to_owned()).collect();
                let mut unlock = vec!["unlock"];
                unlock.extend(nodes.iter().map(String::as_str));
                old.bench.run(unlock).good();
            }
        });
        let waiter = old.start_lockpick(&["-r", "6", "-p", "1", "wlock", "/x"]);
        for _ in 0..20 {
            let listed = old.lockpick(&["list", "/x"]).good();
            assert!(listed.stdout().starts_with(&format!("'first' {node}\n")), "{listed:?}");
        }
        let ended = waiter.end().failed(1, "Failed to acquire lock within timeout!");
        drop(over);
        assert!(ended.stderr.contains(&format!("'first' {node}")), "{}", ended.stderr);
    });
    assert_eq!(old.bench.queue("/x").len(), 1);
}

#[test]
fn the_limit_started_again_at_each_predecessor() {
    let old = Old::new();
    let first = old.take(&["lock", "/x"]);
    let second = old.bench.hold(["-n", "/x"]).waits();
    let started = Instant::now();
    let third = old.start_lockpick(&["-r", "5", "-p", "1", "lock", "/x"]);
    third.warns("Waiting to acquire lock");
    old.lockpick(&["unlock", &first]).good();
    let second = second.ready();
    let ended = third.end().failed(1, "Failed to acquire lock within timeout!");
    // One line a second at the most, and none at the limit.
    assert!((1..=4).contains(&ended.stderr.matches("Waiting to acquire lock").count()), "{}", ended.stderr);
    assert!(started.elapsed() >= Duration::from_secs(5));
    second.finish().good();
}

#[test]
fn a_retry_sleep_of_nothing_was_a_traceback_and_hung() {
    let old = Old::new();
    old.take(&["-p", "0", "lock", "/x"]);
    for nothing in ["0", "-1"] {
        let ended = old.lockpick(&["-p", nothing, "lock", "/x"]).failed(1, "Failed to acquire lock within timeout!");
        assert_eq!(ended.stderr.lines().count(), 2, "{}", ended.stderr);
    }
}

#[test]
fn debug_text_was_mixed_into_the_node_and_the_lock_was_left() {
    let old = Old::new();
    let ended = old.script(&script("/x", &["-d", "echo $DEBUG"])).good();
    assert_eq!(normalised(ended.stdout()), "Running your command echo $DEBUG\nyes\nUnlocked '/x/UUID__lock__N'\n");
    assert!(ended.stderr.contains("] DEBUG lockpick: "), "{}", ended.stderr);
    let mut with_variable = old.script_command(&script("/x", &["true"]));
    with_variable.env("DEBUG", "1");
    let ended = Run::start(with_variable).finish().good();
    assert_eq!(normalised(ended.stdout()), "Running your command true\nUnlocked '/x/UUID__lock__N'\n");
    assert_eq!(ended.stderr, "Got lock on /x\n");
    assert_eq!(old.bench.queue("/x"), Vec::<String>::new());
}

#[test]
fn a_noout_in_the_environment_lost_the_node_and_the_lock_was_left() {
    let old = Old::new();
    let mut run = old.script_command(&script("/x", &["echo out"]));
    run.env("NOOUT", "1");
    let ended = Run::start(run).finish().good();
    assert_eq!(normalised(ended.stdout()), "Running your command echo out\nout\nUnlocked '/x/UUID__lock__N'\n");
    assert_eq!(old.bench.queue("/x"), Vec::<String>::new());
}

#[test]
fn the_content_was_evaluated() {
    let old = Old::new();
    for content in ["it's", "$(touch evaluated)", "'; touch evaluated; : '", "`touch evaluated`", "*", "-v"] {
        let command = "cat /proc/$PPID/cmdline >/dev/null; echo \"$SYNCD_SPAWN_LOCK_NODE\"; read -r line";
        let mut run = old.script_command(&["-n", "/x", "-C", content, "-l", "lock", command]);
        run.current_dir(old.path());
        let mut run = Run::start(run);
        run.says("\n/x/");
        let queue = old.bench.queue_reaches("/x", 1);
        assert_eq!(old.bench.data(&format!("/x/{}", queue[0])), content.as_bytes());
        run.write(b"\n");
        run.finish().good();
        assert!(!old.path().join("evaluated").exists(), "{content}");
    }
}

#[test]
fn double_blanks_in_the_content_left_the_lock() {
    let old = Old::new();
    let ended = old.script(&["-n", "/x", "-C", "two  blanks ", "-l", "lock", "true"]).good();
    assert!(ended.stdout().contains("\nUnlocked '/x/"), "{ended:?}");
    assert_eq!(old.bench.queue("/x"), Vec::<String>::new());
}

#[test]
fn an_exec_or_an_assignment_in_the_command_left_the_lock() {
    let old = Old::new();
    for (command, code) in [
        ("exec true", 0),
        ("exit 3", 3),
        ("trap - EXIT; exec sh -c 'exit 4'", 4),
        ("CONTENT=other LOCKPATH=/other; true", 0),
        ("unset CONTENT; LOCKPATH=; false", 1),
    ] {
        let ended = old.script(&script("/x", &[command]));
        let last = ended.stdout().lines().last().unwrap_or_default().to_owned();
        assert!(ended.code() == code && last.starts_with("Unlocked '/x/"), "{command}: {ended:?}");
        assert_eq!(old.bench.queue("/x"), Vec::<String>::new(), "{command}");
    }
}

#[test]
fn the_command_found_what_was_the_scripts_in_its_shell() {
    let old = Old::new();
    let shown = "echo \"<$LOCKPATH$NODE$LOCKTYPE$RETRIES$CONTENT>\" $# $SYNCD_SPAWN_LOCK_PATH $SYNCD_SPAWN_LOCK_NODE";
    let ended = old.script(&script("/x", &[shown])).good();
    let lines = normalised(ended.stdout());
    assert_eq!(lines.lines().nth(1), Some("<> 0 /x /x/UUID__lock__N"), "{lines}");
    let ended = old.script(&script("/x", &["return 5"])).failed(2, "return: can only");
    assert!(ended.stdout().contains("\nUnlocked '/x/"), "{ended:?}");
}

/// Callers depend on it under the old name; the native form is the one without.
#[test]
fn arguments_lost_their_quoting() {
    let old = Old::new();
    let ended = old.script(&script("/x", &["echo", "c;echo X"])).good();
    assert!(ended.stdout().contains("\nc\nX\nUnlocked"), "{ended:?}");
    assert_eq!(old.bench.run(["-q", "--", "echo", "c;echo X", "*"]).good().stdout(), "c;echo X *\n");
}

#[test]
fn a_lock_type_that_only_contained_one_deleted_the_node_and_ran_the_command_without_a_lock() {
    let old = Old::new();
    let node = old.take(&["-i", "c", "lock", "/x"]);
    for lock_type in ["unlock", "rlocks", "xwlock", "lock "] {
        let ended = old.script(&["-n", &node, "-C", "c", "-l", lock_type, "echo ran"]);
        assert!(ended.code() == 1 && !ended.stdout().contains("ran\n"), "{ended:?}");
    }
    assert_eq!(old.bench.queue("/x").len(), 1);
}

#[test]
fn unlock_deleted_whatever_it_was_given() {
    let old = Old::new();
    old.bench.plant("/x/stranger", "data");
    let node = old.take(&["lock", "/y"]);
    old.lockpick(&["unlock", &node]).good();
    for path in ["/x/stranger", "/y", "/x"] {
        let ended = old.lockpick(&["unlock", path]);
        assert!(ended.code() == 1 && ended.stderr.contains("ERROR lockpick: "), "{ended:?}");
    }
    assert_eq!(old.bench.tree(), ["", "/x", "/x/stranger", "/y"]);
}

#[test]
fn an_empty_identifier_could_not_be_verified() {
    let old = Old::new();
    let node = old.take(&["-i", "its", "lock", "/x"]);
    old.lockpick(&["-i", "", "unlock", &node]).failed(1, "ERROR lockpick: Identifier mistmatch, got 'its'");
    old.lockpick(&["unlock", &node]).good();
    let nobodys = old.take(&["lock", "/x"]);
    old.lockpick(&["-i", "its", "unlock", &nobodys]).failed(1, "Identifier mistmatch, got ''");
    old.lockpick(&["-i", "", "unlock", &nobodys]).good();
}

#[test]
fn a_lock_was_held_together_with_readers() {
    let old = Old::new();
    old.take(&["rlock", "/x"]);
    old.lockpick(&["-r", "0", "lock", "/x"]).failed(1, "Failed to acquire lock within timeout!");
    old.take(&["rlock", "/x"]);
}

#[test]
fn list_was_in_no_order_showed_strangers_and_died_of_a_missing_path() {
    let old = Old::new();
    let nodes: Vec<String> = (0..12).map(|number| old.take(&["-i", &number.to_string(), "rlock", "/x"])).collect();
    old.bench.plant("/x/stranger", "");
    let listed = old.lockpick(&["list", "/x"]).good();
    let expected: Vec<_> = nodes.iter().enumerate().map(|(number, node)| format!("'{number}' {node}\n")).collect();
    assert_eq!(listed.stdout(), expected.concat());
    assert!(listed.stderr.contains("WARNING lockpick: /x/stranger is no contender"), "{}", listed.stderr);
    let ended = old.lockpick(&["list", "/missing"]);
    assert_eq!(normalised(&ended.failed(1, "").stderr), "[TIME] ERROR lockpick: Lock /missing does not exist!\n");
}

#[test]
fn a_node_that_was_removed_under_a_running_command_was_never_noticed() {
    let old = Old::new();
    let run = old.start_script(&script("/x", &["echo ready; exec sleep 1000"])).ready();
    let node = format!("/x/{}", old.bench.queue("/x")[0]);
    old.lockpick(&["unlock", &node]).good();
    let ended = run.end().failed(1, "was removed while the command runs: stopping it");
    assert!(ended.stdout().ends_with(&format!("ready\nCouldn't unlock '{node}'\n")), "{ended:?}");
}

#[test]
fn an_unlock_that_failed_was_a_success() {
    let old = Old::new();
    for (command, code) in [("read -r line", 1), ("read -r line; exit 3", 3)] {
        let mut run = old.start_script(&script("/x", &[command]));
        let node = format!("/x/{}", old.bench.queue_reaches("/x", 1)[0]);
        // Somebody's node below it keeps it.
        old.bench.plant(&format!("{node}/child"), "");
        run.write(b"\n");
        let ended = run.end();
        assert!(ended.code() == code && ended.stdout().ends_with(&format!("Couldn't unlock '{node}'\n")), "{ended:?}");
        assert!(ended.stderr.contains(&format!("\nhint: lockpick -s {}", old.bench.servers())), "{}", ended.stderr);
        old.bench.remove(&format!("{node}/child"));
        old.bench.remove(&node);
    }
}

/// To the byte under the old name, where somebody may read it; the native form leaves standard output to the command.
#[test]
fn the_scripts_own_lines_were_on_the_commands_standard_output() {
    let old = Old::new();
    let ended = old.script(&script("/x", &["echo out"])).good();
    assert_eq!(normalised(ended.stdout()), "Running your command echo out\nout\nUnlocked '/x/UUID__lock__N'\n");
    assert_eq!(ended.stderr, "Got lock on /x\n");
    assert_eq!(old.bench.run(["-n", "/x", "echo", "out"]).good().stdout(), "out\n");
}

#[test]
fn the_usage_said_that_retries_are_infinite() {
    let ended = Old::new().script(&["-h"]);
    assert!(
        ended.stdout().contains("retry acquiring lock, default is 3\n") && !ended.stdout().contains("infinite"),
        "{ended:?}"
    );
}

#[test]
fn an_identifier_that_is_not_ascii_was_an_error() {
    let old = Old::new();
    let node = old.take(&["-i", "Schloß \u{1f512}", "lock", "/x"]);
    assert_eq!(old.lockpick(&["list", "/x"]).good().stdout(), format!("'Schloß \u{1f512}' {node}\n"));
    old.lockpick(&["-i", "Schloß \u{1f512}", "unlock", &node]).good();
}

#[test]
fn a_server_that_is_not_there_was_a_traceback() {
    let nowhere = Old::on(&Bench::on("127.0.0.1:1"));
    thread::scope(|scope| {
        let started = Instant::now();
        let list = scope.spawn(|| nowhere.lockpick(&["list", "/x"]));
        let ended = nowhere.script(&script("/x", &["echo ran"])).failed(1, "\nCouldn't lock '/x': \n");
        let lines = "\
[TIME] WARNING lockpick: cannot reach 127.0.0.1:1: connection refused; trying on
[TIME] ERROR lockpick: cannot reach 127.0.0.1:1: connection refused
";
        assert_eq!(normalised(&ended.stderr), format!("{lines}Couldn't lock '/x':\n"));
        assert_eq!(ended.stdout(), "");
        assert_eq!(normalised(&list.join().unwrap().failed(1, "").stderr), lines);
        // As long as before, and however short the limit for the lock.
        assert!(started.elapsed() >= Duration::from_secs(15));
    });
}

#[test]
fn a_node_that_is_the_root_was_a_usage_error_of_lockpick() {
    let ended =
        Old::new().script(&script("/", &["echo ran"])).failed(1, "it names no lock, only the root\nCouldn't lock '': \n");
    assert_eq!(ended.stdout(), "");
}
