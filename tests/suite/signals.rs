//! Signals: passed on while the command runs, obeyed while we wait, and never a node left behind.

use std::os::unix::process::CommandExt;
use std::thread;
use std::time::Duration;

use super::bench::{BINARY, Bench, Run, on_every_store, type_until_taken};
use super::zookeeper::Server;

/// A command that counts its signals: prints each on its own line until it gets USR2.
/// For dash: bash, by itself, loses an INT that comes as its foreground child ends (3 of 1500 under load).
const COUNTER: &str = r#"for s in HUP INT QUIT TERM USR1 ALRM WINCH RTMIN+2; do trap "echo $s" $s; done; \
trap 'exit 3' USR2; echo ready; while :; do sleep 0.05; done"#;

on_every_store!(
    a_standard_error_that_nobody_reads_makes_nobody_deaf,
    signals_are_passed_on_one_for_one_and_the_lock_is_kept,
    the_lock_is_kept_until_the_command_has_cleaned_up_after_term,
    a_command_ended_by_a_signal_that_we_were_sent_lets_us_die_of_it_too,
    a_stopped_job_that_is_ended_by_a_signal_dies_of_it_as_a_whole,
    while_waiting_the_four_that_ask_for_an_end_take_our_node_out,
    a_signal_that_was_ignored_when_we_started_is_no_request,
    a_term_or_int_at_any_moment_of_a_hundred_short_runs_leaves_an_empty_queue,
    kill_after_kills_a_command_that_ignores_term,
    ctrl_c_at_a_terminal_reaches_the_command_once,
    ctrl_c_while_waiting_stops_the_script_that_called_us,
    ctrl_z_stops_the_job_and_fg_continues_it,
);

fn signals_are_passed_on_one_for_one_and_the_lock_is_kept(bench: &Bench) {
    let run = bench.start(["-q", "-n", "/on", "--", "sh", "-c", COUNTER]).ready();
    let rtmin = libc::SIGRTMIN();
    let signals = [
        (libc::SIGHUP, "HUP"),
        (libc::SIGINT, "INT"),
        (libc::SIGQUIT, "QUIT"),
        (libc::SIGTERM, "TERM"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGALRM, "ALRM"),
        (libc::SIGWINCH, "WINCH"),
        (rtmin + 2, "RTMIN+2"),
    ];
    let mut expected = "ready\n".to_owned();
    for (number, name) in signals.into_iter().chain(signals) {
        run.signal(number);
        expected.extend([name, "\n"]);
        run.says(&expected);
    }
    assert_eq!(bench.queue("/on").len(), 1, "the lock is kept");
    run.signal(libc::SIGUSR2);
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout()), (3, expected.as_str()));
    assert!(bench.queue("/on").is_empty());
}

fn the_lock_is_kept_until_the_command_has_cleaned_up_after_term(bench: &Bench) {
    // A shell's read ends when a signal comes.
    let slow = "trap 'echo asked' TERM; echo ready; until read line; do :; done; echo cleaned; exit 5";
    let mut run = bench.start(["-q", "-n", "/slow", "--", "sh", "-c", slow]).ready();
    let waiter = bench.hold(["-n", "/slow"]).waits();
    run.signal(libc::SIGTERM);
    run.says("asked\n");
    // A second one shortens nothing.
    run.signal(libc::SIGTERM);
    run.says("asked\nasked\n");
    assert!(run.is_running() && bench.queue("/slow").len() == 2);
    assert!(!waiter.stdout().contains("ready"));
    run.write(b"\n");
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout()), (5, "ready\nasked\nasked\ncleaned\n"));
    waiter.ready().finish().good();
}

fn a_command_ended_by_a_signal_that_we_were_sent_lets_us_die_of_it_too(bench: &Bench) {
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1] {
        let run = bench.start(["-n", "/die", "--", "sh", "-c", "echo ready; exec sleep 1000"]).ready();
        run.signal(number);
        assert_eq!(run.end().died_of(), number);
        assert!(bench.queue("/die").is_empty());
    }
    let killed = bench.run(["-n", "/die", "--", "sh", "-c", "kill -KILL $$"]).failed(137, "ended by signal 9 (out of memory?)");
    assert!(killed.stderr.contains("Unlocked"));
    let own = bench.run(["-n", "/die", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(own.code(), 143, "nobody sent it to us");
    assert!(bench.queue("/die").is_empty());
}

fn a_stopped_job_that_is_ended_by_a_signal_dies_of_it_as_a_whole(bench: &Bench) {
    for number in [libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1] {
        let mut command = bench.command(["-n", "/job", "--group=same", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
        command.process_group(0);
        let run = Run::start(command).ready();
        // As Ctrl-Z and a shell's kill %1 do it.
        run.signal_group(libc::SIGTSTP);
        run.stands_still();
        run.signal_group(number);
        run.signal_group(libc::SIGCONT);
        let ended = run.end();
        assert_eq!(ended.died_of(), number, "{ended:?}");
        assert!(!ended.stderr.contains("ended by signal"), "{ended:?}");
        assert!(bench.queue("/job").is_empty());
    }
}

fn while_waiting_the_four_that_ask_for_an_end_take_our_node_out(bench: &Bench) {
    let holder = bench.hold(["-n", "/wait"]).ready();
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        for arguments in [&["-n", "/wait", "--", "echo", "ran"][..], &["wlock", "/wait"]] {
            let waiter = bench.start(arguments).waits();
            assert_eq!(bench.queue("/wait").len(), 2);
            // The others mean nothing while there is no command.
            for meaningless in [libc::SIGUSR1, libc::SIGALRM, libc::SIGPIPE, libc::SIGRTMIN() + 1] {
                waiter.signal(meaningless);
            }
            waiter.signal(number);
            let ended = waiter.end();
            assert_eq!((ended.died_of(), ended.stdout()), (number, ""));
            assert_eq!(bench.queue("/wait").len(), 1);
        }
    }
    holder.finish().good();
}

fn a_signal_that_was_ignored_when_we_started_is_no_request(bench: &Bench) {
    let holder = bench.hold(["-n", "/nohup"]).ready();
    let nohup = format!("trap '' HUP; exec {BINARY} -n /nohup -- echo ran");
    let waiter = Run::start(bench.program("sh", ["-c", &nohup])).waits();
    waiter.signal(libc::SIGHUP);
    holder.finish().good();
    assert_eq!(waiter.end().good().stdout(), "ran\n");
}

fn a_term_or_int_at_any_moment_of_a_hundred_short_runs_leaves_an_empty_queue(bench: &Bench) {
    let started = std::time::Instant::now();
    bench.run(["-q", "-n", "/moment", "true"]).good();
    let whole = started.elapsed().max(Duration::from_millis(8));
    for moment in 0..100 {
        // Two in one queue, so that one often waits for the other.
        let runs: Vec<_> = (0..2).map(|_| bench.start(["-q", "-n", "/moment", "true"])).collect();
        thread::sleep(whole * moment / 66);
        for (run, number) in runs.iter().zip([libc::SIGTERM, libc::SIGINT]) {
            run.signal(if moment % 2 == 0 { number } else { libc::SIGTERM });
        }
        for run in runs {
            let ended = run.end();
            let is_fine = ended.status.success() || [libc::SIGTERM, libc::SIGINT].contains(&ended.died_of());
            assert!(is_fine && ended.stderr.is_empty(), "{ended:?}");
        }
    }
    assert_eq!(bench.queue("/moment"), Vec::<String>::new());
}

fn a_standard_error_that_nobody_reads_makes_nobody_deaf(bench: &Bench) {
    let holder = bench.hold(["-n", "/deaf"]).ready();
    let (_reader, writer) = std::io::pipe().unwrap();
    let mut waiter = bench.command(["-p", "1ms", "-n", "/deaf", "true"]).stderr(writer).spawn().unwrap();
    let queue = bench.queue_reaches("/deaf", 2);
    // It has written all that the pipe takes once it has used this much time.
    let deadline = std::time::Instant::now() + super::bench::LIMIT;
    let pid = waiter.id().cast_signed();
    while super::bench::cpu(pid).is_some_and(|cpu| cpu < Duration::from_millis(60)) && std::time::Instant::now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    super::bench::send(pid, libc::SIGTERM);
    while waiter.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < deadline, "it does not hear");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(bench.queue("/deaf"), queue[..1]);
    holder.finish().good();
}

fn kill_after_kills_a_command_that_ignores_term(bench: &Bench) {
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    let run = bench.start(["-n", "/stubborn", "-k", "300ms", "--", "sh", "-c", stubborn]).ready();
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().code(), 137);
    assert!(bench.queue("/stubborn").is_empty());
}

/// Runs a line in a terminal of its own.
fn at_a_terminal(bench: &Bench, line: &str) -> Run {
    Run::start(bench.program("script", ["-qec", line, "/dev/null"]))
}

fn ctrl_c_at_a_terminal_reaches_the_command_once(bench: &Bench) {
    let counter = "trap \"echo int\" INT; trap \"exit 4\" USR1; echo ready; while :; do sleep 0.05; done";
    let mut terminal = at_a_terminal(bench, &format!("exec {BINARY} -q -n /tty -- sh -c '{counter}'"));
    terminal.says("ready");
    for presses in 1..=5 {
        terminal.write(b"\x03");
        let deadline = std::time::Instant::now() + super::bench::LIMIT;
        while terminal.stdout().matches("int\r\n").count() < presses {
            assert!(std::time::Instant::now() < deadline, "{}", terminal.stdout());
            thread::sleep(Duration::from_millis(5));
        }
    }
    // By now a second delivery of the last one would have come, too: the next signal is behind it.
    let wrapper = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", terminal.pid())).unwrap();
    let wrapper: i32 = wrapper.split_whitespace().next().unwrap().parse().unwrap();
    super::bench::send(wrapper, libc::SIGUSR1);
    let ended = terminal.end();
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert_eq!(ended.stdout().matches("int\r\n").count(), 5);
    assert!(bench.queue("/tty").is_empty());
}

fn ctrl_c_while_waiting_stops_the_script_that_called_us(bench: &Bench) {
    let holder = bench.hold(["-n", "/script"]).ready();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, format!("{BINARY} -n /script true\necho went on\n")).unwrap();
    let mut terminal = at_a_terminal(bench, &format!("bash {}", script.display()));
    terminal.says("Waiting to acquire lock");
    terminal.write(b"\x03");
    let ended = terminal.end();
    assert!(!ended.stdout().contains("went on"), "{ended:?}");
    assert_eq!(bench.queue("/script").len(), 1);
    holder.finish().good();
}

fn ctrl_z_stops_the_job_and_fg_continues_it(bench: &Bench) {
    let mut shell = Run::start(bench.program("script", ["-qec", "bash --norc -i", "/dev/null"]));
    shell.write(format!("PS1='prompt> '; {BINARY} -q -n /job -- sh -c 'echo rea''dy; cat; echo do''ne'\n").as_bytes());
    shell.says("ready");
    // Once cat is there: a shell that is just starting it with vfork cannot be stopped.
    shell.write(b"first\n");
    shell.says("first\r\nfirst\r\n");
    shell.write(b"\x1a");
    shell.says("Stopped");
    let continued = format!("prompt> fg\r\n{BINARY}");
    type_until_taken(&mut shell, |shell| shell.write(b"fg\n"), |shell| shell.stdout().contains(&continued));
    shell.write(b"hello\n");
    shell.says("hello\r\nhello\r\n");
    shell.write(b"\x04");
    shell.says("done");
    bench.queue_reaches("/job", 0);
    shell.write(b"exit\n");
    shell.end();
}

#[test]
fn signals_do_not_cut_a_release_short() {
    let mut server = Server::start("");
    let bench = Bench::on(&server.address());
    let mut holder = bench.start(["-n", "/release", "--", "sh", "-c", "echo ready; read x; exit 6"]).ready();
    server.kill();
    holder.write(b"\n");
    // The command has ended, and nobody is there to release the lock at.
    holder.warns("cannot reach");
    for number in [libc::SIGTERM, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        holder.signal(number);
    }
    assert!(server.restart());
    holder.end().failed(6, "Unlocked '/release/");
    assert!(bench.queue("/release").is_empty());
}
