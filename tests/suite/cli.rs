//! The contract of the command line, as far as it needs no lock.

use std::fs;
use std::os::unix::ffi::OsStringExt;

use super::bench::{BINARY, Bench, Run, on_every_store};

/// The lines that must run as typed, one after the other, where `localhost` and `h` have a server at 2181.
const AS_TYPED: &str = r#"
syncd-spawn -l wlock -- cmd args
syncd-spawn -n /test -C 'test' -l rlock sleep 5
syncd-spawn -s localhost:2181 -c /test -i "test lock1" rlock /mylock
syncd-spawn -s localhost:2181 -c /devops -i "test lock1" rlock /mylock
syncd-spawn list /mylock -s h:2181
"#;

#[test]
fn what_must_run_as_typed_runs_as_typed() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let server = super::zookeeper::Server::prepare(2181);
    fs::write(place.join("hosts"), "127.0.0.1 localhost h\n::1 localhost\n").unwrap();
    fs::create_dir(place.join("bin")).unwrap();
    std::os::unix::fs::symlink(BINARY, place.join("bin/syncd-spawn")).unwrap();
    std::os::unix::fs::symlink("/bin/echo", place.join("bin/cmd")).unwrap();
    fs::write(
        place.join("script"),
        format!(
            "set -e\nmount --bind {place}/hosts /etc/hosts\nip link set lo up\n{server} >{place}/log 2>&1 & server=$!\n\
             trap 'kill -9 $server' EXIT\nPATH={place}/bin:$PATH\nunset SYNCD_SPAWN_SERVERS SYNCD_SPAWN_CHROOT\n{AS_TYPED}",
            place = place.display(),
            server = server.command_line(),
        ),
    )
    .unwrap();
    let bench = Bench::on("unused:1");
    let script = place.join("script");
    let ended = Run::start(bench.program("unshare", ["-rmn", "sh", script.to_str().unwrap()])).finish().good();
    let lines: Vec<&str> = ended.stdout().lines().collect();
    let [args, in_test, in_devops, listed] = lines[..] else { panic!("{ended:?}") };
    assert_eq!(args, "args");
    assert!(in_test.starts_with("/mylock/") && in_test.ends_with("__rlock__0000000000"), "{in_test}");
    assert_eq!(listed, format!("'test lock1' {in_devops}"));
    assert!(ended.stderr.contains("Got lock on /cmd\nRunning your command cmd args\nUnlocked '/cmd/"), "{}", ended.stderr);
    assert!(ended.stderr.contains("Got lock on /test\nRunning your command sleep 5\nUnlocked '/test/"), "{}", ended.stderr);
}

/// Nothing listens there: what must be refused before anything is connected is refused, not tried.
fn nowhere() -> Bench {
    Bench::on("127.0.0.1:1")
}

#[test]
fn bad_input_is_refused_with_125_before_anything_is_connected() {
    let bench = nowhere();
    for (arguments, complaint) in [
        (&["-n", "", "true"][..], "it is empty"),
        (&["-n", "a", "true"], "it does not start with /"),
        (&["-n", "/a//b", "true"], "it has an empty segment"),
        (&["-n", "/a/../b", "true"], "it has a segment \"..\""),
        (&["-n", "/", "true"], "it names no lock"),
        (&["-n", "/a\u{1}", "true"], "at position 3"),
        (&["-n", "/\u{1f600}", "true"], "at position 2"),
        (&["-c", "/", "lock", "/zookeeper/x"], "the lock /zookeeper/x is not usable: /zookeeper is reserved"),
        (&["-c", "/", "-n", "/zookeeper", "true"], "/zookeeper is reserved"),
        (&["-c", "/", "--", "zookeeper"], "/zookeeper is reserved"),
        (&["-c", "/", "list", "/zookeeper/quota"], "/zookeeper is reserved"),
        (&["-c", "/", "unlock", "/x/00__lock__0000000001", "/zookeeper/00__lock__0000000001"], "/zookeeper is reserved"),
        (&["-c", "/", "unlock", "--if-dead", "/zookeeper"], "/zookeeper is reserved"),
        (&["-c", "/x", "lock", "/.syncd-spawn"], "\"/.syncd-spawn\" is reserved"),
        (&["list", "/x/00__lock__0000000001"], "its last part is a contender's node"),
        (&["unlock", "/x"], "its last part is no contender's node"),
        (&["-l", "mutex", "true"], "invalid value 'mutex' for '--lock-type <TYPE>'"),
        (&["-s", "h:0", "true"], "\"0\" is no port"),
        (&["-s", "", "true"], "it names no server"),
        (&["-s", "zk://u:p@h", "true"], "credentials do not belong into a connection string"),
        (&["-s", "h/a", "-c", "/b", "true"], "--servers ends in the chroot /a and --chroot says /b"),
        (&["-s", "h/zookeeper", "true"], "the chroot /zookeeper is not usable"),
        (&["-c", "/.syncd-spawn/x", "true"], "/.syncd-spawn is reserved"),
        (&["list", "/y", "-n", "/x"], "-n belongs to a command that is run"),
        (&["-s", "file:relative", "true"], "file:///ABSOLUTE/DIR"),
        (&["-c", "b", "true"], "it does not start with /"),
        (&["-t", "soon", "true"], "'soon' for '--timeout <DURATION>'"),
        (&["-t", "-1", "true"], "invalid value '-1' for '--timeout <DURATION>'"),
        (&["-r", "-1", "true"], "invalid value '-1' for '--retry-count <COUNT>'"),
        (&["-E", "-1", "true"], "invalid value '-1' for '--conflict-exit-code <STATUS>'"),
        (&["-t", "-1s", "true"], "unexpected argument '-1' found\n\nUsage"),
        (&["-p", "0", "true"], "it must be more than nothing"),
        (&["-t", "1", "--no-wait", "true"], "both say how long to wait"),
        (&["-E", "256", "true"], "256"),
        (
            &["--timout", "5s", "true"],
            "unexpected argument '--timout' found\n\n  tip: a similar argument exists: '--timeout'\n\n",
        ),
        (&["--nod", "/a", "true"], "unexpected argument '--nod' found\n\n  tip: a similar argument exists: '--node'\n\n"),
        (&["--long", "list", "/a"], "tip: 'list --long' exists"),
        (&["-n", "/x", "list", "/y"], "--node belongs to a command that is run"),
        (&["--ephemeral", "lock", "/y"], "--ephemeral belongs to a command that is run"),
        (&["list", "/y", "--ephemeral"], "--ephemeral belongs to a command that is run"),
        (&["-l", "rlock", "unlock", "/y/00__lock__0000000001"], "--lock-type belongs to a command that is run"),
        (&["install"], "the following required arguments were not provided:\n  <DIR>"),
        (&["man"], "to run a command of that name write --"),
        (&["-n", "/x", "reap"], "to run a command of that name write -- reap"),
        (&["reap", "-s", "h"], "--servers means nothing to reap"),
        (&["-c", "/x", "reap"], "--chroot means nothing to reap"),
        (&["reap", "/x"], "unexpected argument '/x'"),
        (&["install", "-s", "h", "/"], "--servers means nothing to install"),
        (&["--state-dir", "/x", "list", "/y"], "--state-dir means nothing to list"),
        (&["unlock", "--state-dir", "/x", "/y/00__lock__0000000001"], "--state-dir means nothing to unlock"),
        (&["--state-dir", "x", "true"], "it does not start with /"),
        (&["unlock"], "<NODE>..."),
        (&["list", "/a", "/b"], "unexpected argument '/b'"),
        (&[], "no command was given"),
        (&["--", "/"], "name one with --node"),
    ] {
        let ended = bench.run(arguments);
        assert_eq!((ended.code(), ended.stdout()), (125, ""), "{arguments:?}");
        assert!(
            ended.stderr.starts_with("syncd-spawn: ") && ended.stderr.contains(complaint),
            "{arguments:?}: {}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("cannot reach"), "{arguments:?} was tried");
    }
}

#[test]
fn a_bad_site_default_is_named_where_it_means_something_and_is_nothing_where_it_does_not() {
    for (variable, value, arguments, complaint) in [
        ("TIMEOUT", "foo", &["true"][..], "invalid value 'foo' for 'SYNCD_SPAWN_TIMEOUT': expected number"),
        ("TIMEOUT", "foo", &["list", "/x"], "invalid value 'foo' for 'SYNCD_SPAWN_TIMEOUT'"),
        ("TIMEOUT", "foo", &["-t", "foo", "true"], "invalid value 'foo' for '--timeout <DURATION>'"),
        ("TIMEOUT", "foo", &["--grace", "bar", "true"], "invalid value 'bar' for '--grace <DURATION>'"),
        ("GRACE", "-1", &["true"], "invalid value '-1' for 'SYNCD_SPAWN_GRACE'"),
        ("ON_LOST", "foo", &["true"], "invalid value 'foo' for 'SYNCD_SPAWN_ON_LOST': it is none of stop, ignore"),
        ("RETRY_COUNT", "x", &["true"], "invalid value 'x' for 'SYNCD_SPAWN_RETRY_COUNT'"),
        ("STATE_DIR", "x", &["true"], "invalid value 'x' for 'SYNCD_SPAWN_STATE_DIR'"),
        ("STATE_DIR", "x", &["unlock", "--if-dead", "/x"], "invalid value 'x' for 'SYNCD_SPAWN_STATE_DIR'"),
        ("SERVERS", "h:0", &["list", "/x"], "invalid value 'h:0' for 'SYNCD_SPAWN_SERVERS'"),
        ("CHROOT", "/b", &["-s", "h/a", "-c", "/b", "true"], "--servers ends in the chroot /a and --chroot says /b"),
        ("SERVERS", "h/a", &["true"], "SYNCD_SPAWN_SERVERS ends in the chroot /a and SYNCD_SPAWN_CHROOT says"),
        ("ABANDON_AFTER", "6s", &["true"], "SYNCD_SPAWN_ABANDON_AFTER 6s is too short for --grace 5s"),
    ] {
        let ended = nowhere().with_variable(format!("SYNCD_SPAWN_{variable}"), value).run(arguments);
        assert!(ended.code() == 125 && ended.stderr.contains(complaint), "{complaint}: {ended:?}");
    }
    let bytes = std::ffi::OsString::from_vec(b"5\xff".to_vec());
    let ended = nowhere().with_variable("SYNCD_SPAWN_TIMEOUT", bytes).run(["true"]);
    ended.failed(125, "invalid value for 'SYNCD_SPAWN_TIMEOUT': it is not UTF-8");
    let bench = Bench::directory().with_variable("SYNCD_SPAWN_GRACE", "foo").with_variable("SYNCD_SPAWN_PDEATHSIG", "foo");
    let node = bench.run(["lock", "/x"]).good();
    bench.with_variable("SYNCD_SPAWN_STATE_DIR", "x").run(["list", "/x"]).good();
    bench.run(["unlock", node.stdout().trim_end()]).good();
    bench.run(["--grace", "1", "--pdeathsig", "TERM", "true"]).good();
    bench.with_variable("SYNCD_SPAWN_SERVERS", "h:0").run(["reap"]).good();
    bench.run(["--help"]).good();
}

on_every_store!(
    the_first_word_that_is_no_option_is_the_command_and_after_two_dashes_nothing_is_ours,
    log_lines_have_lockpicks_form,
    closed_standard_streams_do_no_harm,
    an_answer_that_cannot_be_written_is_an_error,
);

fn the_first_word_that_is_no_option_is_the_command_and_after_two_dashes_nothing_is_ours(bench: &Bench) {
    let ended = bench.run(["-q", "echo", "-n", "x", "--no-such-option", "-l", "list"]).good();
    assert_eq!(ended.stdout(), "x --no-such-option -l list");
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/echo", directory.path().join("list")).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
    let mut run = bench.command(["-q", "--", "list", "--", "/x"]);
    run.env("PATH", path);
    assert_eq!(Run::start(run).finish().good().stdout(), "-- /x\n");
    assert_eq!(bench.tree(), ["", "/echo", "/list"]);
}

#[test]
fn help_and_version_go_to_standard_output() {
    let bench = nowhere();
    let help = bench.run(["--help"]).good();
    for word in ["--release-timeout", "Exit status:", "SYNCD_SPAWN_FENCING_TOKEN", "123", "[env: SYNCD_SPAWN_SERVERS="] {
        assert!(help.stdout().contains(word), "{word}");
    }
    assert_eq!(bench.run(["--version"]).good().stdout(), concat!("syncd-spawn ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(bench.run(["list", "--help"]).good().stdout().contains("<LOCK_PATH>"));
}

#[test]
fn site_defaults_come_from_the_environment_and_the_command_line_wins() {
    let bench = Bench::zookeeper()
        .with_variable("SYNCD_SPAWN_IDENTIFIER", "site")
        .with_variable("SYNCD_SPAWN_TIMEOUT", "1h")
        .with_variable("SYNCD_SPAWN_CONFLICT_EXIT_CODE", "9")
        // A Kubernetes Service called zookeeper sets such names.
        .with_variable("ZOOKEEPER_PORT", "tcp://10.0.0.1:2181")
        .with_variable("SYNCD_SPAWN_RETRY_COUNT", "")
        .with_variable("SYNCD_SPAWN_NODE", "/not-read")
        .with_variable("SYNCD_SPAWN_LOCK_TYPE", "nonsense");
    let node = bench.run(["lock", "/env"]).good();
    assert_eq!(bench.data(node.stdout().trim_end()), b"site");
    bench.run(["-r", "0", "lock", "/env"]).failed(9, "not acquired in time");
    bench.run(["--no-wait", "-E", "8", "-n", "/env", "true"]).failed(8, "not acquired in time");
    bench.run(["unlock", node.stdout().trim_end()]).good();
    let own = bench.run(["-i", "own", "lock", "/env"]).good();
    assert_eq!(bench.data(own.stdout().trim_end()), b"own");
    bench.run(["unlock", own.stdout().trim_end()]).failed(1, "belongs to 'own'");
}

#[test]
fn without_an_identifier_the_node_names_the_ci_job_or_who_we_are() {
    let bench = Bench::zookeeper();
    let node = bench.run(["rlock", "/who"]).good();
    let who = String::from_utf8(bench.data(node.stdout().trim_end())).unwrap();
    let (user, rest) = who.split_once('@').expect(&who);
    assert!(
        !user.is_empty() && rest.rsplit_once(':').is_some_and(|(host, pid)| !host.is_empty() && pid.parse::<u32>().is_ok())
    );
    let job = bench.with_variable("CI_JOB_URL", "https://gitlab.example/job/1");
    let node = job.run(["rlock", "/who"]).good();
    assert_eq!(job.data(node.stdout().trim_end()), b"https://gitlab.example/job/1");
}

#[test]
fn the_default_chroot_is_devops_and_one_in_the_connection_string_replaces_it() {
    let bench = Bench::zookeeper();
    let at = |servers: String, chroot: Option<&str>| {
        let mut command = bench.command(["-q", "-n", "/x", "--", "true"]);
        command.env_remove("SYNCD_SPAWN_CHROOT").env("SYNCD_SPAWN_SERVERS", servers);
        if let Some(chroot) = chroot {
            command.args(["-c", chroot]);
        }
        Run::start(command).finish()
    };
    at(format!("zk://{}{}/in-string/", bench.servers(), bench.chroot()), None).good();
    assert_eq!(bench.tree(), ["", "/in-string", "/in-string/x"]);
    // A site's default gives way to what is typed; two that are typed must agree.
    let mut command = bench.command(["-q", "-n", "/y", "-s", &format!("{}{}/typed", bench.servers(), bench.chroot()), "true"]);
    command.env("SYNCD_SPAWN_CHROOT", "/site");
    Run::start(command).finish().good();
    assert!(bench.tree().contains(&"/typed/y".to_owned()));
    let name = format!("default-{}", bench.chroot().trim_start_matches('/'));
    let mut command = bench.command(["lock", &format!("/{name}")]);
    command.env_remove("SYNCD_SPAWN_CHROOT");
    let node = Run::start(command).finish().good();
    let path = format!("/devops{}", node.stdout().trim_end());
    bench.admin(async move |client| {
        client.delete(&path, None).await?;
        client.delete(&format!("/devops/{name}"), None).await
    });
}

#[test]
fn several_servers_may_be_named_and_one_that_is_down_is_passed_over() {
    let bench = Bench::zookeeper();
    for _ in 0..4 {
        let several = bench.through(&format!("127.0.0.1:1, [::1]:1,{} ", bench.servers()));
        assert_eq!(several.run(["-q", "-n", "/several", "echo", "ran"]).good().stdout(), "ran\n");
    }
}

fn log_lines_have_lockpicks_form(bench: &Bench) {
    bench.run(["lock", "/log"]).good();
    let ended = bench.run(["--no-wait", "-v", "-n", "/log", "true"]);
    assert_eq!(ended.code(), 124);
    bench.plant("/log/stranger", "");
    let ended = bench.run(["list", "/log"]).good();
    let line = ended.stderr.trim_end();
    let (time, text) = line.strip_prefix('[').unwrap().split_once("] ").unwrap();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00 00:00:00,000");
    assert_eq!(text, "WARNING syncd-spawn: /log/stranger is no contender: nobody waits for it");
}

fn closed_standard_streams_do_no_harm(bench: &Bench) {
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"] {
        let line = format!("exec {BINARY} -n /closed -- sh -c 'exit 6' {closed}");
        let ended = Run::start(bench.program("sh", ["-c", &line])).finish();
        assert_eq!(ended.code(), 6, "{closed}: {ended:?}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = bench.command(["-n", "/closed", "no-such-command-anywhere"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(127));
    assert!(bench.queue("/closed").is_empty());
}

fn an_answer_that_cannot_be_written_is_an_error(bench: &Bench) {
    let shell = |line: &str| Run::start(bench.program("sh", ["-c", &format!("exec {BINARY} {line}")])).finish();
    let node = bench.run(["lock", "/full"]).good();
    let place = tempfile::tempdir().unwrap();
    let install = format!("install {}", place.path().display());
    for (stdout, why) in [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")] {
        for line in ["list /full", "rlock /other", "--help", "--version", "list --help", &install] {
            shell(&format!("{line} {stdout}")).failed(125, why);
        }
        assert!(bench.queue("/other").is_empty(), "it has no name that anybody knows");
        // Nothing to say is said all the same.
        bench.run(["-q", "-n", "/free", "true"]).good();
        for line in ["list /free", "reap", "-q -n /free true"] {
            shell(&format!("{line} {stdout}")).good();
        }
    }
    bench.run(["unlock", node.stdout().trim_end()]).good();
}
