//! The judge: whether what the commands wrote down and how their runs ended is what a lock promises.
//!
//! He sees nothing of the program but that. Each command writes a line when it enters and one when it leaves, each with one write
//! to the end of one file, so the lines stand in the order in which things happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use super::bench::Ended;

/// The command of a contender: its log, its number, its exit status, and what it does on TERM.
///
/// TERM means nothing to it until it has entered, and from the moment on at which it leaves; before the first line it may be ended
/// by it, and then it never entered.
const COMMAND: &str = r#"trap '' TERM; log=$0 number=$1
note() { echo "$1 $number $SYNCD_SPAWN_LOCK_TYPE $SYNCD_SPAWN_LOCK_NODE $SYNCD_SPAWN_FENCING_TOKEN $$" >>"$log"; }
note enter; trap "$3" TERM; sleep 0.04; trap '' TERM; note leave; exit $2"#;

/// What a contender is to do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub number: u32,
    /// `lock`, `rlock` or `wlock`.
    pub kind: &'static str,
    /// How long it waits at the most.
    pub patience: Option<Duration>,
    /// How long after its start it gets TERM.
    pub term: Option<Duration>,
    pub on_term: OnTerm,
    /// How long after its start it is killed, and who with it.
    pub kill: Option<(Duration, Victim)>,
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The wrapper, whose command lives on and leaves as if nothing had happened.
    Wrapper,
    /// The wrapper and its command. `killed NUMBER` stands in the log before it is done.
    All,
}

/// What the command does on TERM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTerm {
    CleanUp,
    Ignore,
}

/// What became of it.
#[derive(Debug)]
pub struct Outcome {
    pub plan: Plan,
    pub ended: Ended,
}

impl Outcome {
    /// That of a turn which somebody else took and left.
    pub fn of_turn(plan: Plan) -> Outcome {
        let status = plan.status().cast_signed() << 8;
        ended(plan, status)
    }
}

impl Plan {
    /// One that enters and leaves, and is not disturbed.
    pub fn calm(number: u32, kind: &'static str) -> Plan {
        Plan { number, kind, patience: None, term: None, on_term: OnTerm::Ignore, kill: None }
    }

    /// With which status its command ends by itself.
    fn status(&self) -> u32 {
        self.number % 100
    }

    /// With which status its command ends after it has cleaned up.
    fn cleaned_up(&self) -> u32 {
        100 + self.number % 20
    }

    /// The program's arguments.
    pub fn arguments(&self, lock: &str, log: &Path) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["-vv", "--release-timeout", "2m", "-n", lock, "-l", self.kind].map(str::to_owned).into();
        if let Some(patience) = self.patience {
            arguments.extend(["-t".to_owned(), humantime::format_duration(patience).to_string().replace(' ', "")]);
        }
        if let Some((_, Victim::Wrapper)) = self.kill {
            arguments.push("--pdeathsig=none".to_owned());
        }
        arguments.extend(["--", "sh", "-c", COMMAND].map(str::to_owned));
        let on_term = match self.on_term {
            OnTerm::CleanUp => format!("trap '' TERM; sleep 0.05; note leave; exit {}", self.cleaned_up()),
            OnTerm::Ignore => String::new(),
        };
        arguments.extend([log.display().to_string(), self.number.to_string(), self.status().to_string(), on_term]);
        arguments
    }
}

/// How many of them entered.
pub fn entered(log: &str) -> usize {
    log.lines().filter(|line| line.starts_with("enter ")).count()
}

/// The nodes of those who entered.
pub fn nodes(log: &str) -> BTreeSet<&str> {
    log.lines().filter_map(|line| line.strip_prefix("enter ")?.split(' ').nth(2)).collect()
}

/// All that was not as it should have been.
pub fn objections(log: &str, outcomes: &[Outcome]) -> Vec<String> {
    let mut objections = Vec::new();
    let mut runs = BTreeMap::<u32, u32>::new();
    let mut inside = BTreeMap::<u32, Entry>::new();
    let (mut newest, mut newest_exclusive) = (0, 0);
    let mut killed = BTreeSet::new();
    for line in log.lines() {
        if let Some(number) = line.strip_prefix("killed ").and_then(|number| number.parse::<u32>().ok()) {
            // It may write a line yet, but nobody waits for it any more.
            inside.remove(&number);
            killed.insert(number);
            continue;
        }
        let Some((is_enter, entry)) = parse(line) else {
            objections.push(format!("not a line of ours: {line:?}"));
            continue;
        };
        if !is_enter {
            if inside.remove(&entry.number).is_none() && !killed.contains(&entry.number) {
                objections.push(format!("left but was not inside: {line}"));
            }
            continue;
        }
        *runs.entry(entry.number).or_default() += 1;
        for other in inside.values().filter(|other| other.is_exclusive || entry.is_exclusive) {
            objections.push(format!("entered beside {}: {line}", other.number));
        }
        if entry.token <= if entry.is_exclusive { newest } else { newest_exclusive } {
            objections.push(format!("its token is older than that of one who had it before: {line}"));
        }
        newest = newest.max(entry.token);
        if entry.is_exclusive {
            newest_exclusive = newest_exclusive.max(entry.token);
        }
        if !killed.contains(&entry.number) {
            inside.insert(entry.number, entry);
        }
    }
    objections.extend(inside.keys().map(|number| format!("{number} entered and never left")));
    let mut started = BTreeSet::new();
    for outcome in outcomes {
        started.insert(outcome.plan.number);
        let runs = runs.get(&outcome.plan.number).copied().unwrap_or(0);
        objections.extend(objection_to(outcome, runs));
    }
    let strangers = runs.keys().filter(|number| !started.contains(number));
    objections.extend(strangers.map(|number| format!("nobody awaited the end of {number}")));
    objections
}

/// What is wrong with how it ended, given how often its command ran.
fn objection_to(outcome: &Outcome, runs: u32) -> Option<String> {
    let Outcome { plan, ended } = outcome;
    let is_cut_off = ended.stderr.lines().any(|line| line.starts_with("syncd-spawn: cannot reach "));
    if ended.status.signal() == Some(libc::SIGKILL) && plan.kill.is_some() && runs <= 1 {
        return None;
    }
    let expected = match (ended.status.code().and_then(|code| u32::try_from(code).ok()), ended.status.signal()) {
        (Some(code), _) if code == plan.status() => Some(1),
        (Some(code), _) if code == plan.cleaned_up() && plan.on_term == OnTerm::CleanUp && plan.term.is_some() => Some(1),
        (Some(124), _) if plan.patience.is_some() => Some(0),
        (Some(125), _) if is_cut_off => Some(0),
        (None, Some(libc::SIGTERM)) if plan.term.is_some() => Some(0),
        (_, _) => None,
    };
    match expected {
        Some(expected) if expected == runs => None,
        Some(_) => Some(format!("its command ran {runs} times: {outcome:?}")),
        None => Some(format!("it had no reason to end like this, its command having run {runs} times: {outcome:?}")),
    }
}

struct Entry {
    number: u32,
    is_exclusive: bool,
    token: u64,
}

/// Whether it entered, and who.
fn parse(line: &str) -> Option<(bool, Entry)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [what, number, kind, node, token, pid] = words[..] else { return None };
    let is_enter = match what {
        "enter" => true,
        "leave" => false,
        _ => return None,
    };
    let is_exclusive = match kind {
        "lock" | "wlock" => true,
        "rlock" => false,
        _ => return None,
    };
    if !node.starts_with('/') || pid.parse::<u32>().is_err() {
        return None;
    }
    Some((is_enter, Entry { number: number.parse().ok()?, is_exclusive, token: token.parse().ok()? }))
}

/// A log from `enter NUMBER KIND TOKEN` and `leave NUMBER`, and the outcomes of those in it, all as planned.
fn case(steps: &str) -> (String, Vec<Outcome>) {
    let mut known = BTreeMap::new();
    let mut log = String::new();
    for step in steps.split(", ") {
        let words: Vec<&str> = step.split(' ').collect();
        let number: u32 = words[1].parse().expect("a number");
        if words[0] == "killed" {
            writeln!(log, "{step}").expect("a string");
            continue;
        }
        if let [_, _, kind, token] = words[..] {
            known.insert(number, (kind, token));
        }
        let (kind, token) = known[&number];
        writeln!(log, "{} {number} {kind} /x/y__lock__1 {token} 1", words[0]).expect("a string");
    }
    let outcomes = known.keys().map(|number| ended(Plan::calm(*number, "lock"), (*number).cast_signed() << 8));
    (log, outcomes.collect())
}

/// With a status as `wait` tells it.
fn ended(plan: Plan, status: i32) -> Outcome {
    let status = std::process::ExitStatus::from_raw(status);
    Outcome { plan, ended: Ended { status, cpu: Duration::ZERO, stdout: Vec::new(), stderr: String::new() } }
}

#[test]
fn the_judge_has_nothing_against_a_good_run() {
    let (log, outcomes) = case(
        "enter 1 lock 10, leave 1, enter 2 rlock 12, enter 3 rlock 11, leave 2, leave 3, enter 4 wlock 13, leave 4, enter 5 rlock 14, leave 5",
    );
    assert_eq!(objections(&log, &outcomes), Vec::<String>::new());
    assert_eq!((entered(&log), nodes(&log).len()), (5, 1));
    let (log, outcomes) =
        case("enter 1 lock 10, killed 1, enter 2 lock 11, killed 3, leave 2, enter 3 lock 12, enter 4 lock 13, leave 4");
    assert_eq!(objections(&log, &outcomes), Vec::<String>::new());
}

#[test]
fn the_judge_objects_to_what_a_lock_must_not_do() {
    for (steps, objection) in [
        ("enter 1 lock 10, enter 2 wlock 11, leave 1, leave 2", "entered beside 1: enter 2"),
        ("enter 1 rlock 10, enter 2 wlock 11, leave 1, leave 2", "entered beside 1: enter 2"),
        ("enter 1 lock 10, enter 2 rlock 11, leave 1, leave 2", "entered beside 1: enter 2"),
        ("enter 1 lock 11, leave 1, enter 2 wlock 10, leave 2", "its token is older"),
        ("enter 1 lock 11, leave 1, enter 2 wlock 11, leave 2", "its token is older"),
        ("enter 1 rlock 11, leave 1, enter 2 wlock 10, leave 2", "its token is older"),
        ("enter 1 lock 11, leave 1, enter 2 rlock 10, leave 2", "its token is older"),
        ("enter 1 lock 10, leave 1, enter 1 lock 11, leave 1", "its command ran 2 times"),
        ("enter 1 lock 10", "1 entered and never left"),
        ("enter 1 lock 10, leave 1, leave 1", "left but was not inside"),
        ("enter 1 lock 10, enter 2 lock 11, killed 1, leave 2", "entered beside 1: enter 2"),
        ("enter 1 lock 10, killed 2, enter 2 lock 11, leave 1", "entered beside 1: enter 2"),
    ] {
        let (log, outcomes) = case(steps);
        let objections = objections(&log, &outcomes);
        assert!(objections.len() == 1 && objections[0].contains(objection), "{steps}: {objections:?}");
    }
    let (log, outcomes) = case("enter 1 lock 10, leave 1");
    assert_eq!(objections(&log, &[]), ["nobody awaited the end of 1"]);
    assert_eq!(objections(&log.replace("10", "ten"), &[]).len(), 2);
    assert_eq!(objections("", &outcomes).len(), 1);
}

#[test]
fn the_judge_objects_to_an_end_without_a_reason() {
    let calm = Plan::calm(1, "lock");
    let asked = Plan { term: Some(Duration::ZERO), on_term: OnTerm::CleanUp, ..calm.clone() };
    let struck = Plan { kill: Some((Duration::ZERO, Victim::All)), ..calm.clone() };
    let hasty = Plan { patience: Some(Duration::ZERO), ..calm.clone() };
    let (died, cleaned_up, late, ours) = (libc::SIGTERM, 101 << 8, 124 << 8, 125 << 8);
    // What is fine after how many runs of the command.
    for (plan, status, runs) in [
        (&calm, 1 << 8, Some(1)),
        (&calm, 2 << 8, None),
        (&calm, 0, None),
        (&calm, died, None),
        (&calm, late, None),
        (&calm, cleaned_up, None),
        (&calm, ours, None),
        (&calm, libc::SIGKILL, None),
        (&asked, died, Some(0)),
        (&asked, cleaned_up, Some(1)),
        (&asked, late, None),
        (&hasty, late, Some(0)),
        (&hasty, 1 << 8, Some(1)),
        (&hasty, ours, None),
    ] {
        for ran in 0..3 {
            let objection = objection_to(&ended(plan.clone(), status), ran);
            assert_eq!(objection.is_none(), runs == Some(ran), "{objection:?}");
        }
    }
    let may_have_run = [0, 1, 2].map(|ran| objection_to(&ended(struck.clone(), libc::SIGKILL), ran).is_none());
    assert_eq!(may_have_run, [true, true, false]);
    let mut cut_off = ended(calm, ours);
    cut_off.ended.stderr = "syncd-spawn: cannot reach 127.0.0.1:1: no answer".to_owned();
    assert_eq!((objection_to(&cut_off, 0), objection_to(&cut_off, 1).is_some()), (None, true));
}
