//! The process half, on real processes, a real terminal, and as the first process of a container.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::bench::{BINARY, Bench, LIMIT, Run, kill_tree, make_executable, send};
use super::terminal::Terminal;

/// Tells each signal that it gets by its number, each on a line; the first line is `ready`, USR2 twice in a row ends it.
const RECEIVER: &str = "
import signal, sys
every = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print('ready', flush=True)
last = 0
while True:
    got = signal.sigwaitinfo(every).si_signo
    print(got, flush=True)
    if got == last == signal.SIGUSR2:
        sys.exit(9)
    last = got
";

/// Waits until a process is gone.
fn ends(pid: i32) {
    let deadline = Instant::now() + LIMIT;
    while is_running(pid) {
        assert!(Instant::now() < deadline, "{pid} still runs");
        thread::sleep(Duration::from_millis(2));
    }
}

fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// The number in a line like `pid 123` of what a program wrote.
fn pid_in(text: &str) -> i32 {
    text.split_whitespace().skip_while(|word| *word != "pid").nth(1).expect(text).parse().expect(text)
}

#[test]
fn all_forwardable_signals_arrive_one_for_one() {
    let bench = Bench::directory();
    let mut run = bench.start(["-q", "-n", "/all", "--", "python3", "-c", RECEIVER]).ready();
    let mut expected = "ready\n".to_owned();
    let forwardable = (1..=8).chain(10..=16).chain([18]).chain(20..=31).chain(libc::SIGRTMIN()..=64);
    let forwardable: Vec<i32> = forwardable.collect();
    // The 56 ordinary ones, and the terminal's own three.
    assert_eq!(forwardable.len(), 56 + 3);
    for number in &forwardable {
        run.signal(*number);
        expected += &number.to_string();
        expected.push('\n');
        run.says(&expected);
    }
    // Real-time signals queue, and stay in order.
    for _ in 0..20 {
        run.signal(libc::SIGRTMIN() + 3);
        expected += &(libc::SIGRTMIN() + 3).to_string();
        expected.push('\n');
    }
    run.says(&expected);
    assert!(run.is_running());
    for _ in 0..2 {
        run.signal(libc::SIGUSR2);
        expected += "12\n";
        run.says(&expected);
    }
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout()), (9, expected.as_str()));
}

#[test]
fn twenty_real_time_signals_at_once_all_arrive() {
    let bench = Bench::directory();
    let run = bench.start(["-q", "-n", "/queue", "--", "python3", "-c", RECEIVER]).ready();
    let pid = run.pid().to_string();
    let queued = Command::new("python3")
        .args(["-c", "import os, signal, sys\nfor _ in range(20): os.kill(int(sys.argv[1]), signal.SIGRTMIN + 5)", &pid])
        .status();
    assert!(queued.unwrap().success());
    run.says(&format!("ready\n{}", format!("{}\n", libc::SIGRTMIN() + 5).repeat(20)));
    run.signal(libc::SIGKILL);
    run.end();
}

#[test]
fn a_signal_ignored_when_we_started_is_passed_on_to_a_command_that_wants_it() {
    let bench = Bench::directory();
    let line = format!("trap '' HUP; exec {BINARY} -q -n /nohup -- python3 -c \"$0\"");
    let run = Run::start(bench.program("sh", ["-c", &line, RECEIVER])).ready();
    run.signal(libc::SIGHUP);
    run.says("ready\n1\n");
    run.signal(libc::SIGKILL);
    run.end();
}

#[test]
fn two_hundred_terms_right_after_the_start_are_not_lost() {
    let bench = Bench::directory();
    for start in 0..200 {
        // A group is there before anything is sent to it.
        let target = ["command", "group"][usize::from(start % 2 == 1)];
        let run = bench.start(["-q", "-n", "/start", "--forward-to", target, "--", "sleep", "1000"]);
        thread::sleep(Duration::from_micros(300 + start * 10));
        run.signal(libc::SIGTERM);
        assert_eq!(run.end().died_of(), libc::SIGTERM);
    }
    assert!(bench.queue("/start").is_empty());
}

#[test]
fn signals_go_to_the_command_alone_or_to_its_group() {
    let bench = Bench::directory();
    let family = "trap 'echo parent' USR1; sh -c 'trap \"echo child\" USR1; echo ready; while :; do sleep 0.02; done' & \
                  trap 'kill -KILL $!; exit' TERM; while :; do sleep 0.02; done";
    let run = bench.start(["-q", "-n", "/family", "--", "sh", "-c", family]).ready();
    run.signal(libc::SIGUSR1);
    run.says("parent");
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().stdout(), "ready\nparent\n");
    let run = bench.start(["-q", "-n", "/family", "--forward-to", "group", "--", "sh", "-c", family]).ready();
    run.signal(libc::SIGUSR1);
    run.says("parent");
    run.says("child");
    run.signal(libc::SIGTERM);
    run.end();
}

#[test]
fn keys_and_resizes_arrive_once_each() {
    let bench = Bench::directory();
    let mut terminal = Terminal::start(&bench, &[BINARY, "-q", "-n", "/keys", "--", "python3", "-c", RECEIVER]);
    terminal.shows("ready");
    for times in 1..=8 {
        for (keys, number) in [("\x03", libc::SIGINT), ("\x1c", libc::SIGQUIT)] {
            terminal.press(keys);
            terminal.shows_times(&format!("{number}\r\n"), times);
        }
        terminal.resize(100 + u32::try_from(times).unwrap());
        terminal.shows_times(&format!("{}\r\n", libc::SIGWINCH), times);
    }
    // What a process sends is behind anything that would have been sent twice.
    for times in 1..=2 {
        send(terminal.pid(), libc::SIGUSR2);
        // Two that wait for the same process are one.
        terminal.shows_times(&format!("{}\r\n", libc::SIGUSR2), times);
    }
    terminal.end();
    for number in [libc::SIGINT, libc::SIGQUIT, libc::SIGWINCH] {
        let shown = terminal.shown();
        // The terminal shows ^C and ^\\ itself, before what the command says.
        let lines = shown.lines().map(|line| line.trim_start_matches("^C").trim_start_matches("^\\"));
        assert_eq!(lines.filter(|line| *line == number.to_string()).count(), 8, "{number}: {shown:?}");
    }
}

/// An interactive shell that says `prompt>`.
fn shell(bench: &Bench) -> Terminal {
    let mut terminal = Terminal::start(bench, &["bash", "--norc", "-i"]);
    terminal.press("PS1='prom''pt> '\n");
    terminal.shows("prompt> ");
    terminal
}

#[test]
fn in_a_pipeline_and_in_the_background_a_shell_does_not_notice_us() {
    let bench = Bench::directory();
    let mut terminal = shell(&bench);
    terminal.press(&format!("{BINARY} -q -n /bg -- sleep 1000 &\n"));
    terminal.shows_times("prompt> ", 2);
    terminal.press("echo still he''re\n");
    terminal.shows("still here");
    bench.queue_reaches("/bg", 1);
    terminal.press("kill %1; wait; echo ended as $?\n");
    terminal.shows("ended as");
    // The neighbour has the terminal as well.
    terminal.press(&format!(
        "{BINARY} -q -n /pipe -- echo from us | (read a; echo go' 'on; read b </dev/tty; echo \"<$a> <$b>\")\n"
    ));
    terminal.shows("go on");
    terminal.press("typed\n");
    terminal.shows("<from us> <typed>");
    terminal.leaves();
    assert!(bench.queue("/bg").is_empty() && bench.queue("/pipe").is_empty());
}

#[test]
fn a_command_that_reads_the_terminal_in_the_background_is_stopped_and_fg_continues_it() {
    let bench = Bench::directory();
    for group in ["auto", "own"] {
        let mut terminal = shell(&bench);
        let command = "sh -c 'read x </dev/tty; echo \"read <$x>\"'";
        terminal.press(&format!("{BINARY} -q --group {group} -n /tin -- {command} &\n"));
        bench.queue_reaches("/tin", 1);
        terminal.shows_times("prompt> ", 2);
        terminal.press("\n");
        terminal.shows_times("prompt> ", 3);
        terminal.press("jobs; fg\n");
        terminal.shows(&format!("\n{BINARY} -q --group {group}"));
        terminal.press("typed\n");
        terminal.shows("read <typed>");
        terminal.leaves();
        assert!(bench.queue("/tin").is_empty());
    }
}

#[test]
fn ctrl_z_stops_a_command_in_a_group_of_its_own_too() {
    let bench = Bench::directory();
    for group in ["same", "own"] {
        let mut terminal = shell(&bench);
        terminal.press(&format!("{BINARY} -q --group {group} -n /job -- sh -c 'echo rea''dy; cat; echo do''ne'\n"));
        terminal.shows("ready");
        // Once cat is there: a shell that is just starting it with vfork cannot be stopped.
        terminal.press("first\n");
        terminal.shows("first\r\nfirst\r\n");
        terminal.press("\x1a");
        terminal.shows("Stopped");
        terminal.types("fg\n", &format!("prompt> fg\r\n{BINARY}"));
        terminal.press("hello\n");
        terminal.shows("hello\r\nhello\r\n");
        terminal.press("\x04");
        terminal.shows("done");
        terminal.types("echo back a''gain\n", "back again");
        terminal.leaves();
        assert!(bench.queue("/job").is_empty());
    }
}

#[test]
fn a_script_stops_on_ctrl_c_in_the_middle_and_reads_the_terminal_afterwards() {
    let bench = Bench::directory();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    for group in ["auto", "own"] {
        let line = format!("{BINARY} -q --group {group} -n /script --");
        fs::write(&script, format!("{line} true\nread x\necho \"<$x>\"\n{line} sleep 1000\necho went on\n")).unwrap();
        let mut terminal = Terminal::start(&bench, &["bash", script.to_str().unwrap()]);
        terminal.press("typed\n");
        terminal.shows("<typed>");
        bench.queue_reaches("/script", 1);
        let deadline = Instant::now() + LIMIT;
        let sleeps = || {
            let wrapper = children(terminal.pid()).into_iter().next()?;
            let command = children(wrapper).into_iter().next()?;
            fs::read_to_string(format!("/proc/{command}/comm")).ok().filter(|name| name == "sleep\n")
        };
        while sleeps().is_none() {
            assert!(Instant::now() < deadline, "{:?}", terminal.shown());
        }
        terminal.press("\x03");
        terminal.end();
        assert!(!terminal.shown().contains("went on"), "{group}: {:?}", terminal.shown());
        assert!(bench.queue("/script").is_empty());
    }
}

fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_hang_up_ends_the_command_and_the_lock() {
    let bench = Bench::directory();
    let mut terminal = Terminal::start(&bench, &[BINARY, "-q", "-n", "/hup", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    terminal.shows("ready");
    send(terminal.pid(), libc::SIGHUP);
    terminal.hang_up();
    terminal.end();
    assert!(bench.queue("/hup").is_empty());
}

#[test]
fn what_a_command_leaves_behind_is_ended_and_named_before_the_lock_goes() {
    let bench = Bench::directory();
    for daemon in ["sleep 1000 &", "setsid sleep 1000 &", "(setsid sleep 1000 & setsid sleep 1000 &) &"] {
        let ended = bench.run(["-n", "/left", "--", "sh", "-c", &format!("{daemon} exit 3")]);
        assert_eq!(ended.code(), 3, "{ended:?}");
        // By the name that it has just then, which may be the shell's yet.
        let named = ended.stderr.split("left behind: ").nth(1).unwrap_or_else(|| panic!("{daemon}: {}", ended.stderr));
        let pid: i32 = named.split(['(', ')']).nth(1).unwrap().parse().unwrap();
        assert!(!is_running(pid));
        assert!(ended.stderr.find("left behind") < ended.stderr.find("Unlocked"), "{}", ended.stderr);
    }
}

#[test]
fn whoever_forks_while_its_parent_ends_does_not_escape() {
    let bench = Bench::directory();
    for round in 0..60 {
        // A length that nobody else sleeps.
        let length = format!("{}.{round}", 100_000 + std::process::id());
        let daemons = format!("(setsid sleep {length} & setsid sleep {length} &) & exit 3");
        let ended = bench.run(["-q", "-n", "/escape", "--", "sh", "-c", &daemons]);
        assert_eq!(ended.code(), 3, "{ended:?}");
        let sleeping = fs::read_dir("/proc").unwrap().flatten().filter(|entry| {
            fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == format!("sleep\0{length}\0").into_bytes())
        });
        let sleeping: Vec<_> = sleeping.map(|entry| entry.file_name()).collect();
        assert!(sleeping.is_empty(), "round {round}: {sleeping:?}");
    }
}

#[test]
fn an_orphan_whose_first_thread_has_ended_is_no_dead_one() {
    let bench = Bench::directory();
    let threads = "
import ctypes, os, threading, time
threading.Thread(target=lambda: time.sleep(1000)).start()
print('pid', os.getpid(), flush=True)
ctypes.CDLL(None).pthread_exit(None)
";
    let line = "python3 -c \"$0\" & while ! grep -q '^State:.Z' /proc/$!/status; do sleep 0.02; done; exit 4";
    let ended = bench.run(["-n", "/threads", "--", "sh", "-c", line, threads]);
    assert_eq!(ended.code(), 4, "{ended:?}");
    assert!(ended.stderr.contains("left behind: python3 ("), "{}", ended.stderr);
    assert!(fs::read_dir(format!("/proc/{}", pid_in(ended.stdout()))).is_err());
}

#[test]
fn kill_after_counts_while_orphans_are_waited_for_too() {
    let bench = Bench::directory();
    let orphan = "(trap '' TERM; echo pid; while :; do sleep 0.05; done) & exit 4";
    let run = bench.start(["-n", "/late", "--orphans", "wait", "-k", "200ms", "--", "sh", "-c", orphan]);
    run.warns("left behind");
    run.says("pid");
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().code(), 4);
}

#[test]
fn a_daemon_that_ignores_term_is_killed_after_its_grace_and_the_lock_kept_until_then() {
    let bench = Bench::directory();
    let daemon = "setsid sh -c 'trap \"\" TERM; echo pid $$; while :; do sleep 0.05; done' & read line";
    let mut run = bench.start(["-n", "/daemon", "--grace", "3s", "--", "sh", "-c", daemon]);
    run.says("pid ");
    let waiter = bench.hold(["-n", "/daemon"]).waits();
    run.write(b"\n");
    run.warns("left behind");
    let pid = pid_in(&run.stdout());
    assert!(is_running(pid) && !waiter.stdout().contains("ready"));
    run.end().good();
    assert!(!is_running(pid));
    waiter.ready().finish().good();
}

#[test]
fn a_stopped_orphan_is_continued_so_that_it_can_end() {
    let bench = Bench::directory();
    let stopped = "sh -c 'trap \"echo bye; exit\" TERM; kill -STOP $$; sleep 1000' & \
                   until grep -q '^State:.T' /proc/$!/status; do sleep 0.02; done";
    let ended = bench.run(["-n", "/stopped", "--", "sh", "-c", stopped]).good();
    assert_eq!(ended.stdout(), "bye\n");
}

#[test]
fn orphans_that_go_on_forking_are_ended_too() {
    let bench = Bench::directory();
    let storm = "storm() { trap '' TERM; while :; do sleep 0.01 & done; }; storm & storm & sleep 0.1";
    let ended = bench.run(["-q", "-n", "/storm", "--grace", "100ms", "--", "bash", "-c", storm]);
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(bench.queue("/storm").is_empty());
}

#[test]
fn orphans_may_be_waited_for() {
    let bench = Bench::directory();
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let waits = format!("while [ ! -e {} ]; do sleep 0.02; done; echo orphan ends", go.display());
    let run = bench.start(["-n", "/wait", "--orphans", "wait", "--", "sh", "-c", &format!("({waits}) & exit 4")]);
    run.warns("left behind");
    assert_eq!(bench.queue("/wait").len(), 1);
    fs::write(&go, "").unwrap();
    let ended = run.end();
    assert_eq!((ended.code(), ended.stdout()), (4, "orphan ends\n"));
    // A signal while they are waited for reaches them.
    fs::remove_file(&go).unwrap();
    let run = bench.start(["-n", "/wait", "--orphans", "wait", "--", "sh", "-c", &format!("({waits}) & exit 4")]);
    run.warns("left behind");
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().code(), 4);
    assert!(bench.queue("/wait").is_empty());
}

#[test]
fn orphans_may_be_left() {
    let bench = Bench::directory();
    let leaves = "setsid sleep 1000 >/dev/null 2>&1 & echo pid $!";
    let ended = bench.run(["-q", "-n", "/leave", "--orphans", "leave", "--", "sh", "-c", leaves]).good();
    let pid = pid_in(ended.stdout());
    assert!(is_running(pid) && bench.queue("/leave").is_empty());
    kill_tree(pid);
}

#[test]
fn a_child_that_we_had_before_is_left_alone() {
    let bench = Bench::directory();
    let line = format!("sleep 1000 >/dev/null 2>&1 & echo pid $!; exec {BINARY} -q -n /before -- true");
    let ended = Run::start(bench.program("sh", ["-c", &line])).finish().good();
    let pid = pid_in(ended.stdout());
    assert!(is_running(pid));
    kill_tree(pid);
}

#[test]
fn kill_after_kills_the_whole_tree() {
    let bench = Bench::directory();
    let stubborn = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo pid $$; while :; do sleep 0.05; done' & \
                    while :; do sleep 0.05; done";
    let run = bench.start(["-n", "/tree", "-k", "200ms", "--", "sh", "-c", stubborn]);
    run.says("pid ");
    run.signal(libc::SIGTERM);
    let pid = pid_in(&run.stdout());
    assert_eq!(run.end().code(), 137);
    assert!(!is_running(pid));
}

#[test]
fn a_lost_lock_stops_the_whole_tree_or_is_only_told() {
    let bench = Bench::directory();
    let family = "setsid sh -c 'trap \"\" TERM; echo pid $$; while :; do sleep 0.05; done' & read x; exit 6";
    let run = bench.start(["-n", "/lost", "--grace", "200ms", "--", "sh", "-c", family]);
    run.says("pid ");
    let pid = pid_in(&run.stdout());
    let node = bench.queue("/lost").remove(0);
    bench.remove(&format!("/lost/{node}"));
    run.end().failed(123, "was removed while the command runs: stopping it");
    assert!(!is_running(pid));
    let mut run = bench.start(["-n", "/lost", "--on-lost", "ignore", "--", "sh", "-c", "echo ready; read x; exit 6"]).ready();
    let node = bench.queue("/lost").remove(0);
    bench.remove(&format!("/lost/{node}"));
    run.warns("goes on without the lock");
    run.write(b"\n");
    run.end().failed(6, "was gone before it was released");
}

#[test]
fn a_lost_lock_stops_a_command_that_proc_does_not_show_too() {
    let bench = Bench::directory();
    let line = format!("mount -t tmpfs none /proc && exec {BINARY} -n /hidden -- sh -c 'echo ready; exec sleep 1000'");
    let run = Run::start(bench.program("unshare", ["-rm", "sh", "-c", &line])).ready();
    let node = bench.queue("/hidden").remove(0);
    bench.remove(&format!("/hidden/{node}"));
    run.end().failed(123, "was removed while the command runs: stopping it");
}

#[test]
fn a_command_does_not_outlive_a_wrapper_that_was_killed() {
    let bench = Bench::directory();
    let run = bench.start(["-q", "-n", "/killed", "--", "sh", "-c", "echo pid $$; exec sleep 1000"]);
    run.says("pid ");
    run.signal(libc::SIGKILL);
    ends(pid_in(&run.stdout()));
    run.end();
    let asks = ["-q", "-n", "/killed", "--pdeathsig", "USR1", "--", "sh", "-c"];
    let tells = "trap 'echo told; exit' USR1; echo pid $$; while :; do sleep 0.02; done";
    let run = bench.start(asks.into_iter().chain([tells]));
    run.says("pid ");
    run.signal(libc::SIGKILL);
    run.says("told");
    run.end();
    let none = ["-q", "-n", "/killed", "--pdeathsig", "none", "--", "sh", "-c", "echo pid $$; exec sleep 1000 >/dev/null 2>&1"];
    let run = bench.start(none);
    run.says("pid ");
    let pid = pid_in(&run.stdout());
    run.signal(libc::SIGKILL);
    run.end();
    assert!(is_running(pid));
    // And the lock is kept as long as it runs.
    bench.run(["--no-wait", "-n", "/killed", "true"]).failed(124, "");
    kill_tree(pid);
    bench.run(["-q", "-n", "/killed", "true"]).good();
}

/// Runs a line in which the program is the first process of a PID namespace.
fn as_first(bench: &Bench, arguments: &[&str]) -> Run {
    let unshare = ["-rpf", "--mount-proc", BINARY];
    Run::start(bench.program("unshare", unshare.iter().chain(arguments)))
}

#[test]
fn as_the_first_process_it_reaps_and_passes_on_and_leaves_with_128_and_the_number() {
    let bench = Bench::directory();
    // Each of the twenty is orphaned, and ends after its parent. It goes on until all have, and none is left to be reaped.
    let orphans = "echo pid $PPID; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do (sleep 0.0$i &) ; done; \
                   while grep -qsE '^(Name:.sleep|State:.Z)' /proc/[0-9]*/status; do sleep 0.02; done; exit 7";
    let ended = as_first(&bench, &["-q", "-n", "/first", "--", "sh", "-c", orphans]).finish();
    assert_eq!((ended.code(), ended.stdout()), (7, "pid 1\n"), "{ended:?}");
    let run = as_first(&bench, &["-q", "-n", "/first", "--", "sh", "-c", "echo ready; exec sleep 1000"]).ready();
    // unshare itself does not pass signals on; its child is the first process in there.
    send(children(run.pid())[0], libc::SIGTERM);
    assert_eq!(run.end().code(), 143);
    assert!(bench.queue("/first").is_empty());
    let holder = bench.hold(["-n", "/first"]).ready();
    let waiter = as_first(&bench, &["-n", "/first", "true"]).waits();
    send(children(waiter.pid())[0], libc::SIGINT);
    assert_eq!(waiter.end().code(), 130);
    holder.finish().good();
}

#[test]
fn not_the_first_process_it_adopts_orphans_all_the_same() {
    let bench = Bench::directory();
    // What a shell was told of its parent at its start is out of date; the kernel is asked.
    let orphan = "echo wrapper $PPID; (sh -c 'until grep \"^PPid:.$0$\" /proc/$$/status; do sleep 0.02; done' $PPID &)";
    let ended = bench.run(["-q", "-n", "/adopts", "--orphans", "wait", "--", "sh", "-c", orphan]).good();
    let word = |name: &str| ended.stdout().split_whitespace().skip_while(|word| *word != name).nth(1).unwrap().to_owned();
    assert_eq!(word("PPid:"), word("wrapper"));
}

#[test]
fn descriptors_pass_through_and_we_keep_no_copy() {
    let bench = Bench::directory();
    let (mut reader, writer) = std::io::pipe().unwrap();
    // The command writes to descriptor 7, closes it and goes on: whoever reads sees the end.
    let line = format!("exec 7>&1 >/dev/null; exec {BINARY} -q -n /fds -- sh -c 'echo seven >&7; exec 7>&-; exec cat'");
    let mut child = bench.program("sh", ["-c", &line]).stdin(Stdio::piped()).stdout(writer).spawn().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "seven\n");
    assert!(child.try_wait().unwrap().is_none());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn closed_standard_streams_are_closed_in_the_command_too_and_open_ones_as_they_were() {
    let bench = Bench::directory();
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    for closed in ["<&-", ">&-", "2>&-", "<&- 2>&-", ""] {
        // It tells which of its streams are open, into a file whose descriptor is none of theirs.
        let ask = "exec 9>\"$0\"; for fd in 0 1 2; do if [ -e /proc/$$/fd/$fd ]; then echo $fd >&9; fi; done";
        let line = format!("exec {BINARY} -q -n /streams -- sh -c '{ask}' {} {closed}", out.display());
        Run::start(bench.program("sh", ["-c", &line])).finish().good();
        let wrapped = fs::read_to_string(&out).unwrap();
        let plainly = format!("exec sh -c '{ask}' {} {closed}", out.display());
        Run::start(bench.program("sh", ["-c", &plainly])).finish().good();
        assert_eq!(wrapped, fs::read_to_string(&out).unwrap(), "{closed}");
    }
    // Nobody made them non-blocking, which their other owners would notice.
    let flags = "grep flags: /proc/$$/fdinfo/0 /proc/$$/fdinfo/1 /proc/$$/fdinfo/2 | sed 's/.*://'";
    let plainly = bench.program("sh", ["-c", flags]).stdin(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let wrapped = bench.run(["-q", "-n", "/streams", "--", "sh", "-c", flags]).good();
    assert_eq!(wrapped.stdout(), String::from_utf8(plainly.stdout).unwrap());
}

#[test]
fn whoever_is_listened_for_is_the_command() {
    let bench = Bench::directory();
    let line = format!("LISTEN_PID=$$ LISTEN_FDS=1 exec {BINARY} -q -n /listen -- sh -c 'echo $LISTEN_PID $$'");
    let ended = Run::start(bench.program("sh", ["-c", &line])).finish().good();
    let (told, pid) = ended.stdout().trim_end().split_once(' ').unwrap();
    assert_eq!(told, pid);
    let other = format!("LISTEN_PID=1 exec {BINARY} -q -n /listen -- printenv LISTEN_PID");
    assert_eq!(Run::start(bench.program("sh", ["-c", &other])).finish().good().stdout(), "1\n");
}

#[test]
fn the_command_starts_where_we_were_and_we_keep_no_directory_busy() {
    let bench = Bench::directory();
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    make_executable(&script, b"#!/bin/sh\necho ready\npwd\nread x\n");
    let mut command = bench.command(["-q", "-n", "/cwd", "./script"]);
    command.current_dir(&directory);
    let run = Run::start(command).ready();
    run.says(directory.path().to_str().unwrap());
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", run.pid())).unwrap().to_str(), Some("/"));
    run.finish();
}

#[test]
fn limits_mask_of_modes_and_niceness_are_inherited() {
    let bench = Bench::directory();
    let show = "umask; ulimit -n; ulimit -c; nice; cat /proc/self/oom_score_adj";
    let line = format!("umask 027; ulimit -n 300; {show}; exec nice -n 3 {BINARY} -q -n /limits -- sh -c '{show}'");
    let ended = Run::start(bench.program("sh", ["-c", &line])).finish().good();
    let lines: Vec<&str> = ended.stdout().lines().collect();
    let (before, after) = lines.split_at(5);
    assert_eq!((before[0], before[1], before[3]), ("0027", "300", "0"));
    assert_eq!((after[0], after[1], after[2], after[3], after[4]), (before[0], before[1], before[2], "3", before[4]));
}

#[test]
fn how_to_leave_after_a_signal_can_be_chosen() {
    let bench = Bench::directory();
    let own = ["-q", "-n", "/leave", "--signal-exit"];
    let kill = ["--", "sh", "-c", "kill -TERM $$"];
    assert_eq!(bench.run(own.into_iter().chain(["code"]).chain(kill)).code(), 143);
    assert_eq!(bench.run(own.into_iter().chain(["auto"]).chain(kill)).code(), 143);
    assert_eq!(bench.run(own.into_iter().chain(["raise"]).chain(kill)).died_of(), libc::SIGTERM);
    let run = bench.start(own.into_iter().chain(["code", "--", "sh", "-c", "echo ready; exec sleep 1000"])).ready();
    run.signal(libc::SIGTERM);
    assert_eq!(run.end().code(), 143);
}

#[test]
fn what_stands_for_the_lock_is_passed_on_unless_it_is_to_be_closed() {
    let open = ["-q", "-n", "/heir", "--", "sh", "-c", "readlink /proc/$$/fd/50 || echo none"];
    for bench in [Bench::directory(), Bench::zookeeper()] {
        let (file, heir) = (bench.file("/heir").unwrap_or(bench.state_dir()), bench.run(open).good());
        assert!(Path::new(heir.stdout()).starts_with(file), "{heir:?}");
        let closed = ["-q", "-n", "/heir", "--close"].into_iter().chain(open[3..].iter().copied());
        assert_eq!(bench.run(closed).good().stdout(), "none\n");
    }
    // A lock that is bound to a session needs none.
    let ephemeral = ["--ephemeral"].into_iter().chain(open);
    assert_eq!(Bench::zookeeper().run(ephemeral).good().stdout(), "none\n");
}
