//! What a store promises, each promise once and on every store; and what `acquire` makes of it, by a clock of its own.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::{Future, pending, poll_fn, ready};
use std::pin::pin;
use std::task::Poll;
use std::thread;
use std::time::{Duration, SystemTime};

use syncd_spawn::lock::{
    AbsolutePath, AcquireError, Claim, Contender, Entry, Expected, Happening, Identifier, Lifetime, Limit, LockPath, Loss,
    Mode, NodeName, Owner, Ownership, Patience, Place, Queue, Reading, Removal, Reports, Store, StoreError, acquire,
};
use syncd_spawn::store::{Directory, Memory, MemoryEnsemble, Root, Servers, ZooKeeper};
use tokio::runtime::Builder;
use tokio::time::{Instant, sleep, timeout};

use super::bench::{Bench, LIMIT};

/// Less than any look that makes up for a missed wake-up.
const AT_ONCE: Duration = Duration::from_secs(5);
/// How long nothing must happen.
const WINDOW: Duration = Duration::from_millis(200);

/// A place of its own for one test, which anybody can come to.
trait Site {
    type Store: Store;

    /// Comes there as somebody else.
    async fn open(&self) -> Self::Store;

    /// Deletes the empty directory of a lock, as an operator would.
    fn delete(&self, lock: &LockPath);
}

/// A place that can be changed without a store.
trait Outside: Site + Sync {
    fn bench(&self) -> &Bench;
}

struct OnZooKeeper(Bench);

struct OnDirectory(Bench);

impl Site for OnZooKeeper {
    type Store = ZooKeeper;

    async fn open(&self) -> ZooKeeper {
        let servers = Servers::parse(self.0.servers()).unwrap();
        ZooKeeper::connect(servers, chroot(&self.0), Limit::Never, LIMIT).await.unwrap()
    }

    fn delete(&self, lock: &LockPath) {
        apart(|| self.0.remove(lock.as_path().as_str()));
    }
}

impl Site for OnDirectory {
    type Store = Directory;

    async fn open(&self) -> Directory {
        let root = Root::parse(self.0.servers().strip_prefix("file:").unwrap()).unwrap();
        Directory::new(root, chroot(&self.0))
    }

    fn delete(&self, lock: &LockPath) {
        self.0.remove(lock.as_path().as_str());
    }
}

impl Site for MemoryEnsemble {
    type Store = Memory;

    async fn open(&self) -> Memory {
        self.connect(Limit::Never, LIMIT).await.unwrap()
    }

    fn delete(&self, lock: &LockPath) {
        MemoryEnsemble::delete(self, lock);
    }
}

impl Outside for OnZooKeeper {
    fn bench(&self) -> &Bench {
        &self.0
    }
}

impl Outside for OnDirectory {
    fn bench(&self) -> &Bench {
        &self.0
    }
}

fn chroot(bench: &Bench) -> AbsolutePath {
    AbsolutePath::parse(bench.chroot()).unwrap()
}

/// Not on this thread, which has a runtime already.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn run(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { timeout(LIMIT, test).await.expect("it ends") });
}

/// Makes of each promise a test on every store, and of each that needs somebody outside one on every store that has it.
macro_rules! promises {
    (of_every_store: $($name:ident),+; from_outside: $($outside:ident),+ $(;)?) => {
        mod on_zookeeper {
            use super::{Bench, OnZooKeeper};
            $(#[test] fn $name() { super::run(super::$name(&OnZooKeeper(Bench::zookeeper()))); })+
            $(#[test] fn $outside() { super::run(super::$outside(&OnZooKeeper(Bench::zookeeper()))); })+
        }
        mod on_directory {
            use super::{Bench, OnDirectory};
            $(#[test] fn $name() { super::run(super::$name(&OnDirectory(Bench::directory()))); })+
            $(#[test] fn $outside() { super::run(super::$outside(&OnDirectory(Bench::directory()))); })+
        }
        mod on_memory {
            $(#[test] fn $name() { super::run(super::$name(&super::MemoryEnsemble::default())); })+
        }
    };
}

promises! {
    of_every_store:
        whoever_enters_stands_at_the_end_once_and_the_directory_is_made,
        sequence_and_token_grow_with_everybody_who_enters,
        the_token_grows_though_the_directory_was_emptied_or_deleted,
        whoever_gave_up_before_entering_leaves_nothing,
        whoever_gives_up_while_entering_is_in_or_has_left_nothing,
        everybody_sees_the_same_queue_first_come_first,
        a_directory_that_is_missing_is_no_lock_and_one_that_is_empty_is,
        an_identifier_is_read_as_the_bytes_that_were_given,
        what_is_read_comes_in_the_order_asked_and_what_has_vanished_is_missing,
        since_is_when_it_entered,
        whoever_lives_is_owned_and_is_not_removed_as_an_orphan,
        gone_returns_at_once_where_there_is_no_node,
        gone_waits_while_the_node_is_there_and_returns_when_it_is_removed,
        everybody_who_waits_for_the_same_node_is_told,
        lost_waits_while_our_node_is_there_and_returns_when_it_is_removed,
        what_only_reads_may_be_dropped_at_any_point,
        leave_removes_one_node_and_then_finds_nothing,
        leave_removes_the_version_that_was_read_and_no_other;
    from_outside:
        strangers_stand_apart,
        gone_and_lost_notice_an_operator,
        a_node_that_was_written_meanwhile_is_not_removed;
}

fn path(text: &str) -> LockPath {
    LockPath::parse(text).unwrap()
}

fn claim(mode: Mode) -> Claim {
    Claim::new(mode, Lifetime::Spawned, Identifier::default())
}

/// The same of somebody who stands behind it.
fn owned(mode: Mode) -> Claim {
    let (host, boot, command) = ("some.host".to_owned(), "some boot".to_owned(), "some command".to_owned());
    claim(mode).owned_by(Owner { host, boot, pid: Some(4711), started: SystemTime::UNIX_EPOCH, command })
}

fn nobody() -> NodeName {
    NodeName::parse(&format!("{}0000000000", claim(Mode::Lock).prefix())).unwrap()
}

async fn enter(store: &impl Store, lock: &LockPath, claim: &Claim) -> Place {
    match store.enter(lock, claim, pending()).await.unwrap() {
        Entry::In(place) => place,
        Entry::GaveUp => panic!("nobody gave up"),
    }
}

async fn leave(store: &impl Store, lock: &LockPath, name: &NodeName) {
    assert_eq!(store.leave(lock, name, Expected::Anything).await.unwrap(), Removal::Removed);
}

/// Everybody in the lock's directory; nobody where it is missing.
async fn lost(store: &impl Store, lock: &LockPath, name: &NodeName) -> Result<Loss, StoreError> {
    store.lost(lock, name, Lifetime::Spawned, &mut |doubt| panic!("{doubt:?}")).await
}

async fn queue(store: &impl Store, lock: &LockPath) -> Vec<NodeName> {
    match store.contenders(lock).await {
        Ok(queue) => queue.contenders().to_vec(),
        Err(StoreError::NoLock(_)) => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

async fn read(store: &impl Store, lock: &LockPath, name: &NodeName) -> Contender {
    let readings = store.read(lock, std::slice::from_ref(name)).await.unwrap();
    match &readings[..] {
        [Reading::There(contender)] => contender.clone(),
        other => panic!("{other:?}"),
    }
}

async fn whoever_enters_stands_at_the_end_once_and_the_directory_is_made(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/some/where/deep down");
    let mut expected = Vec::new();
    for mode in [Mode::Lock, Mode::Read, Mode::Write, Mode::Read, Mode::Lock, Mode::Write] {
        for claim in [Claim { lifetime: Lifetime::Explicit, ..claim(mode) }, claim(mode), owned(mode)] {
            let store = if expected.len() % 3 == 0 { &theirs } else { &ours };
            let place = enter(store, &lock, &claim).await;
            assert!(place.name.as_str().starts_with(&claim.prefix()), "{}", place.name);
            assert_eq!(place.name.kind(), mode.kind());
            expected.push(place.name);
            assert_eq!(queue(&ours, &lock).await, expected);
        }
    }
    assert!(ours.contenders(&lock).await.unwrap().strangers().is_empty());
}

async fn sequence_and_token_grow_with_everybody_who_enters(site: &impl Site) {
    let stores = [site.open().await, site.open().await];
    let locks = [path("/one"), path("/two")];
    let (mut sequences, mut tokens) = ([Vec::new(), Vec::new()], Vec::new());
    for number in 0..12 {
        let which = usize::from(number % 3 == 0);
        let place = enter(&stores[number % 2], &locks[which], &claim(Mode::Read)).await;
        sequences[which].push(place.name.sequence());
        tokens.push(place.token);
        if number % 4 == 1 {
            // The number of one that has left is not given to another.
            leave(&stores[number % 2], &locks[which], &place.name).await;
        }
    }
    assert!(tokens.is_sorted_by(|earlier, later| earlier < later), "{tokens:?}");
    for sequences in sequences {
        assert!(sequences.len() >= 4 && sequences.is_sorted_by(|earlier, later| earlier < later), "{sequences:?}");
    }
}

async fn the_token_grows_though_the_directory_was_emptied_or_deleted(site: &impl Site) {
    let store = site.open().await;
    let lock = path("/again/and again");
    let mut tokens = Vec::new();
    for round in 0..6 {
        let place = enter(&store, &lock, &claim(Mode::Write)).await;
        tokens.push(place.token);
        leave(&store, &lock, &place.name).await;
        if round % 2 == 1 {
            site.delete(&lock);
        }
    }
    assert!(tokens.is_sorted_by(|earlier, later| earlier < later), "{tokens:?}");
}

async fn whoever_gave_up_before_entering_leaves_nothing(site: &impl Site) {
    let store = site.open().await;
    let lock = path("/given up");
    assert!(matches!(store.enter(&lock, &claim(Mode::Lock), ready(())).await.unwrap(), Entry::GaveUp));
    assert_eq!(queue(&store, &lock).await, []);
    let place = enter(&store, &lock, &claim(Mode::Lock)).await;
    assert!(matches!(store.enter(&lock, &claim(Mode::Lock), ready(())).await.unwrap(), Entry::GaveUp));
    assert_eq!(queue(&store, &lock).await, [place.name]);
}

async fn whoever_gives_up_while_entering_is_in_or_has_left_nothing(site: &impl Site) {
    let (store, other) = (site.open().await, site.open().await);
    let lock = path("/giving up");
    let polls = [0, 1, 2, 3, 5, 8, 20, 50, 100, 200, 400, 800, 1600, 3200, 6400];
    let claims = [claim, owned];
    for (polls, claim) in claims.into_iter().flat_map(|claim| polls.map(|polls| (polls, claim))) {
        let mut left = polls;
        let give_up = poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        });
        match store.enter(&lock, &claim(Mode::Lock), give_up).await.unwrap() {
            Entry::In(place) => {
                assert_eq!(queue(&other, &lock).await, std::slice::from_ref(&place.name));
                leave(&store, &lock, &place.name).await;
            }
            Entry::GaveUp => assert_eq!(queue(&other, &lock).await, [], "after {polls} polls"),
        }
    }
}

async fn everybody_sees_the_same_queue_first_come_first(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/both");
    let entering = async |store| {
        let mut places = Vec::new();
        for _ in 0..15 {
            places.push(enter(store, &lock, &claim(Mode::Write)).await);
        }
        places
    };
    let (one, two) = tokio::join!(entering(&ours), entering(&theirs));
    assert!(one.is_sorted_by_key(|place| place.name.sequence()) && two.is_sorted_by_key(|place| place.name.sequence()));
    let seen = queue(&ours, &lock).await;
    assert_eq!(queue(&theirs, &lock).await, seen);
    assert!(seen.is_sorted_by(|earlier, later| earlier.sequence() < later.sequence()), "{seen:?}");
    let mut places: Vec<Place> = one.into_iter().chain(two).collect();
    places.sort_by_key(|place| place.token);
    let names: Vec<NodeName> = places.into_iter().map(|place| place.name).collect();
    assert_eq!(names, seen, "tokens grow as sequences do");
}

async fn a_directory_that_is_missing_is_no_lock_and_one_that_is_empty_is(site: &impl Site) {
    let store = site.open().await;
    let lock = path("/nowhere/yet");
    for _ in 0..2 {
        let missing = store.contenders(&lock).await;
        assert!(matches!(&missing, Err(StoreError::NoLock(named)) if *named == lock), "{missing:?}");
        let place = enter(&store, &lock, &claim(Mode::Lock)).await;
        leave(&store, &lock, &place.name).await;
        assert!(store.contenders(&lock).await.unwrap().contenders().is_empty());
        site.delete(&lock);
    }
}

async fn an_identifier_is_read_as_the_bytes_that_were_given(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/identifiers");
    for bytes in [
        Vec::new(),
        b"test lock1".to_vec(),
        b"it's \xff\n\xc3\xa9\0".to_vec(),
        (0..=255).collect(),
        vec![0xfe; Identifier::LONGEST],
    ] {
        let claim = Claim { identifier: Identifier(bytes.clone()), ..claim(Mode::Read) };
        let place = enter(&ours, &lock, &claim).await;
        for store in [&ours, &theirs] {
            assert!(read(store, &lock, &place.name).await.identifier.0 == bytes, "{} bytes", bytes.len());
        }
    }
}

async fn what_is_read_comes_in_the_order_asked_and_what_has_vanished_is_missing(site: &impl Site) {
    let store = site.open().await;
    let lock = path("/order");
    assert!(matches!(store.read(&lock, &[nobody()]).await.unwrap()[..], [Reading::Missing]), "the directory is missing");
    let mut names = Vec::new();
    for number in 0..5 {
        let claim = Claim { identifier: Identifier(vec![number]), ..claim(Mode::Read) };
        names.push(enter(&store, &lock, &claim).await.name);
    }
    leave(&store, &lock, &names[3]).await;
    let asked = [4, 3, 0, 2, 1, 0].map(|number| names[number].clone());
    let mut readings = store.read(&lock, &asked).await.unwrap();
    assert!(matches!(readings.remove(1), Reading::Missing));
    let read: Vec<_> = readings
        .into_iter()
        .map(|reading| match reading {
            Reading::There(contender) => contender.identifier.0[0],
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read, [4, 0, 2, 1, 0]);
    assert!(store.read(&lock, &[]).await.unwrap().is_empty());
}

async fn whoever_lives_is_owned_and_is_not_removed_as_an_orphan(site: &impl Site) {
    let lock = LockPath::parse("/lock").unwrap();
    let (first, second, other) = (site.open().await, site.open().await, site.open().await);
    let us =
        Owner { host: "h1".to_owned(), boot: String::new(), pid: Some(7), started: SystemTime::now(), command: String::new() };
    let owned = enter(&first, &lock, &claim(Mode::Read).owned_by(us)).await.name;
    let raw = enter(&second, &lock, &Claim::new(Mode::Read, Lifetime::Explicit, Identifier::default())).await.name;
    let owners = other.owners(&lock, &[owned.clone(), raw, nobody()]).await.unwrap();
    assert!(matches!(owners[..], [Ownership::Owned(_), Ownership::Unknown, Ownership::Unknown]), "{owners:?}");
    let readings = other.read(&lock, std::slice::from_ref(&owned)).await.unwrap();
    let [Reading::There(Contender { version, .. })] = readings[..] else { panic!("it is there") };
    assert_eq!(other.leave(&lock, &owned, Expected::Orphaned(version)).await.unwrap(), Removal::Changed);
    assert_eq!(other.contenders(&lock).await.unwrap().contenders().len(), 2);
}

async fn since_is_when_it_entered(site: &impl Site) {
    /// The kernel stamps files by a clock that ticks, and that stands still while the core that keeps it does.
    const TICK: Duration = Duration::from_secs(1);
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/since");
    let before = SystemTime::now() - TICK;
    let place = enter(&ours, &lock, &claim(Mode::Lock)).await;
    let after = SystemTime::now() + TICK;
    let since = read(&theirs, &lock, &place.name).await.since;
    assert!((before..=after).contains(&since), "{since:?} is not from {before:?} to {after:?}");
}

async fn gone_returns_at_once_where_there_is_no_node(site: &impl Site) {
    let store = site.open().await;
    let lock = path("/gone");
    let gone = async |name: &NodeName| timeout(AT_ONCE, store.gone(&lock, name)).await.expect("at once").unwrap();
    gone(&nobody()).await;
    let place = enter(&store, &lock, &claim(Mode::Lock)).await;
    gone(&nobody()).await;
    leave(&store, &lock, &place.name).await;
    gone(&place.name).await;
}

async fn gone_waits_while_the_node_is_there_and_returns_when_it_is_removed(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/watched");
    for lifetime in [Lifetime::Spawned, Lifetime::Explicit] {
        let place = enter(&ours, &lock, &Claim { lifetime, ..claim(Mode::Lock) }).await;
        let mut gone = pin!(theirs.gone(&lock, &place.name));
        let bustle = async {
            for _ in 0..10 {
                let other = enter(&theirs, &lock, &claim(Mode::Read)).await;
                read(&ours, &lock, &place.name).await;
                leave(&theirs, &lock, &other.name).await;
            }
            sleep(WINDOW).await;
        };
        tokio::select! {
            biased;
            gone = &mut gone => panic!("it is there: {gone:?}"),
            () = bustle => {}
        }
        let (gone, ()) = tokio::join!(timeout(AT_ONCE, gone), leave(&ours, &lock, &place.name));
        gone.expect("it is woken").unwrap();
    }
}

async fn everybody_who_waits_for_the_same_node_is_told(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/herd");
    let place = enter(&ours, &lock, &claim(Mode::Write)).await;
    let gone = |store| timeout(AT_ONCE, <_ as Store>::gone(store, &lock, &place.name));
    let (one, two, three, ()) =
        tokio::join!(gone(&theirs), gone(&theirs), gone(&ours), async { leave(&ours, &lock, &place.name).await });
    for told in [one, two, three] {
        told.expect("it is woken").unwrap();
    }
}

async fn lost_waits_while_our_node_is_there_and_returns_when_it_is_removed(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/lost");
    let place = enter(&ours, &lock, &claim(Mode::Lock)).await;
    let mut told = pin!(lost(&ours, &lock, &place.name));
    let bustle = async {
        for _ in 0..5 {
            let other = enter(&theirs, &lock, &claim(Mode::Write)).await;
            leave(&theirs, &lock, &other.name).await;
        }
        sleep(WINDOW).await;
    };
    tokio::select! {
        biased;
        told = &mut told => panic!("it is there: {told:?}"),
        () = bustle => {}
    }
    let (told, ()) = tokio::join!(timeout(AT_ONCE, told), leave(&theirs, &lock, &place.name));
    assert_eq!(told.expect("it is woken").unwrap(), Loss::Removed);
}

async fn what_only_reads_may_be_dropped_at_any_point(site: &impl Site) {
    /// Long enough for any answer on the slowest store, mostly.
    const MOMENT: Duration = Duration::from_millis(20);
    /// Polls it so many times, and drops it.
    async fn abandon(polls: usize, future: impl Future) {
        let mut future = pin!(future);
        let mut left = polls;
        let polled = poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            future.as_mut().poll(context).map(drop)
        });
        _ = timeout(MOMENT, polled).await;
    }
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/dropped");
    let claim = Claim { identifier: Identifier(b"still here".to_vec()), ..claim(Mode::Write) };
    let first = enter(&ours, &lock, &claim).await.name;
    let second = enter(&theirs, &lock, &claim.renewed()).await.name;
    let names = [first.clone(), second.clone()];
    for polls in 0..5 {
        for name in &names {
            abandon(polls, ours.gone(&lock, name)).await;
            abandon(polls, ours.contenders(&lock)).await;
            abandon(polls, ours.read(&lock, &names)).await;
            abandon(polls, lost(&ours, &lock, &first)).await;
        }
    }
    for store in [&ours, &theirs] {
        assert_eq!(queue(store, &lock).await, names);
        assert_eq!(read(store, &lock, &second).await.identifier.0, b"still here");
    }
    let (gone, ()) = tokio::join!(timeout(AT_ONCE, ours.gone(&lock, &second)), leave(&theirs, &lock, &second));
    gone.expect("it is woken").unwrap();
    leave(&ours, &lock, &first).await;
}

async fn leave_removes_one_node_and_then_finds_nothing(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/leave");
    assert_eq!(ours.leave(&lock, &nobody(), Expected::Anything).await.unwrap(), Removal::Missing);
    let mut names = Vec::new();
    for lifetime in [Lifetime::Explicit, Lifetime::Spawned, Lifetime::Explicit] {
        names.push(enter(&ours, &lock, &Claim { lifetime, ..claim(Mode::Read) }).await.name);
    }
    let middle = names.remove(1);
    leave(&theirs, &lock, &middle).await;
    assert_eq!(queue(&ours, &lock).await, names);
    for expected in [Expected::Anything, Expected::Version(0)] {
        assert_eq!(ours.leave(&lock, &middle, expected).await.unwrap(), Removal::Missing);
    }
    assert_eq!(queue(&ours, &lock).await, names);
}

async fn leave_removes_the_version_that_was_read_and_no_other(site: &impl Site) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/version");
    let name = enter(&ours, &lock, &claim(Mode::Lock)).await.name;
    let version = read(&theirs, &lock, &name).await.version;
    let other = Expected::Version(version.wrapping_add(1));
    assert_eq!(theirs.leave(&lock, &name, other).await.unwrap(), Removal::Changed);
    assert_eq!(queue(&theirs, &lock).await, std::slice::from_ref(&name));
    assert_eq!(theirs.leave(&lock, &name, Expected::Version(version)).await.unwrap(), Removal::Removed);
    assert_eq!(queue(&theirs, &lock).await, []);
}

async fn strangers_stand_apart(site: &impl Outside) {
    let store = site.open().await;
    let lock = path("/strangers");
    let mut expected = Vec::new();
    for stranger in ["z", "x__READ__0000000001", "0000000000", "a__lock__1"] {
        apart(|| site.bench().plant(&format!("{lock}/{stranger}"), "not ours"));
        expected.push(enter(&store, &lock, &claim(Mode::Lock)).await.name);
    }
    let queue = store.contenders(&lock).await.unwrap();
    assert_eq!(queue.contenders(), expected);
    assert_eq!(queue.strangers(), ["0000000000", "a__lock__1", "x__READ__0000000001", "z"]);
}

async fn gone_and_lost_notice_an_operator(site: &impl Outside) {
    let (ours, theirs) = (site.open().await, site.open().await);
    let lock = path("/operator");
    let name = enter(&ours, &lock, &claim(Mode::Lock)).await.name;
    let remove = async {
        // Both are armed, or will see it at their first look.
        tokio::task::yield_now().await;
        apart(|| site.bench().remove(&lock.node(&name).to_string()));
    };
    let (gone, told, ()) =
        tokio::join!(timeout(AT_ONCE, theirs.gone(&lock, &name)), timeout(AT_ONCE, lost(&ours, &lock, &name)), remove);
    gone.expect("it is woken").unwrap();
    told.expect("it is woken").unwrap();
    assert_eq!(ours.leave(&lock, &name, Expected::Anything).await.unwrap(), Removal::Missing);
}

async fn a_node_that_was_written_meanwhile_is_not_removed(site: &impl Outside) {
    let store = site.open().await;
    let lock = path("/written");
    let name = enter(&store, &lock, &claim(Mode::Lock)).await.name;
    let read_before = read(&store, &lock, &name).await;
    let node = lock.node(&name).to_string();
    apart(|| {
        site.bench().remove(&node);
        site.bench().plant(&node, "another");
        if !site.bench().is_directory() {
            let path = format!("{}{node}", site.bench().chroot());
            site.bench().admin(async move |client| client.set_data(&path, b"another again", None).await);
        }
    });
    let expected = Expected::Version(read_before.version);
    assert_eq!(store.leave(&lock, &name, expected).await.unwrap(), Removal::Changed);
    assert_eq!(queue(&store, &lock).await, [name]);
}

/// What `acquire` asks of a store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Contenders,
    Gone,
    Leave,
}

/// A store that lists more than it has, and refuses one thing.
struct Odd {
    memory: Memory,
    listed_too: Vec<&'static str>,
    refused: Option<Verb>,
}

impl Odd {
    async fn new(listed_too: &[&'static str], refused: Option<Verb>) -> Odd {
        Odd { memory: memory().await, listed_too: listed_too.to_vec(), refused }
    }

    fn may(&self, verb: Verb) -> Result<(), StoreError> {
        match self.refused == Some(verb) {
            true => Err(StoreError::Refused { place: "memory".to_owned(), what: "it".to_owned(), cause: "odd".to_owned() }),
            false => Ok(()),
        }
    }
}

impl Store for Odd {
    async fn enter(&self, lock: &LockPath, claim: &Claim, give_up: impl Future<Output = ()>) -> Result<Entry, StoreError> {
        self.memory.enter(lock, claim, give_up).await
    }

    async fn contenders(&self, lock: &LockPath) -> Result<Queue, StoreError> {
        self.may(Verb::Contenders)?;
        let queue = self.memory.contenders(lock).await?;
        Ok(Queue::new(queue.contenders().iter().map(NodeName::as_str).chain(self.listed_too.iter().copied())))
    }

    async fn read(&self, lock: &LockPath, names: &[NodeName]) -> Result<Vec<Reading>, StoreError> {
        self.memory.read(lock, names).await
    }

    async fn gone(&self, lock: &LockPath, name: &NodeName) -> Result<(), StoreError> {
        self.may(Verb::Gone)?;
        self.memory.gone(lock, name).await
    }

    async fn leave(&self, lock: &LockPath, name: &NodeName, expected: Expected) -> Result<Removal, StoreError> {
        self.may(Verb::Leave)?;
        self.memory.leave(lock, name, expected).await
    }
}

/// One attempt to acquire a lock, and what was told meanwhile.
struct Attempt<'a, S> {
    store: &'a S,
    lock: &'a LockPath,
    limit: Limit,
    around: &'a [NodeName],
    reports: Reports,
    told: RefCell<Vec<(u128, String)>>,
    started: Instant,
}

impl<'a, S: Store> Attempt<'a, S> {
    fn at(store: &'a S, lock: &'a LockPath) -> Attempt<'a, S> {
        let (reports, told) = (Reports::Predecessor { every: Duration::from_secs(1) }, RefCell::default());
        Attempt { store, lock, limit: Limit::Never, around: &[], reports, told, started: Instant::now() }
    }

    fn within(store: &'a S, lock: &'a LockPath, limit: Duration) -> Attempt<'a, S> {
        Attempt { limit: Limit::At(Instant::now() + limit), ..Attempt::at(store, lock) }
    }

    fn once(store: &'a S, lock: &'a LockPath) -> Attempt<'a, S> {
        Attempt { limit: Limit::Once(Instant::now() + LIMIT), ..Attempt::at(store, lock) }
    }

    async fn acquires(&self) -> Result<Place, AcquireError> {
        self.acquires_until(pending()).await
    }

    /// A report every second.
    async fn acquires_until(&self, stop: impl Future<Output = ()>) -> Result<Place, AcquireError> {
        let mut observer = |happening: Happening<'_>| {
            let text = match happening {
                Happening::Waiting { predecessor, reading, ahead, .. } => {
                    let who = match reading {
                        Reading::There(contender) => contender.identifier.to_string(),
                        other => format!("{other:?}"),
                    };
                    format!("behind {} {who}, {ahead}", predecessor.sequence().number())
                }
                Happening::Queued { queue, readings, .. } => {
                    let who = |(name, reading): (&NodeName, &Reading)| match reading {
                        Reading::There(contender) => format!("{} {}", name.sequence().number(), contender.identifier),
                        other => format!("{other:?}"),
                    };
                    queue.contenders().iter().zip(readings).map(who).collect::<Vec<_>>().join(", ")
                }
                Happening::Evicted { node, .. } => format!("evicted {}", node.name.sequence().number()),
                Happening::NearlyUsedUp { .. } => "nearly used up".to_owned(),
                Happening::LeftBehind { error } => error.to_string(),
                Happening::GivenUp { .. } => "given up".to_owned(),
            };
            self.told.borrow_mut().push((self.started.elapsed().as_millis(), text));
        };
        let mut stop = pin!(stop);
        let patience = Patience::new(self.limit, stop.as_mut());
        let claim = Claim { identifier: Identifier(b"me".to_vec()), ..claim(Mode::Write) };
        acquire(self.store, self.lock, claim, self.around, patience, self.reports, &mut observer).await
    }

    fn told(&self) -> Vec<(u128, String)> {
        self.told.borrow().clone()
    }
}

async fn memory() -> Memory {
    MemoryEnsemble::default().open().await
}

/// In a time that passes only where everybody waits for it.
fn run_timeless(test: impl Future<Output = ()>) {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test);
}

async fn holds(store: &impl Store, lock: &LockPath, identifier: &str) -> NodeName {
    let claim = Claim { identifier: Identifier(identifier.as_bytes().to_vec()), ..claim(Mode::Write) };
    enter(store, lock, &claim).await.name
}

#[test]
fn a_free_lock_is_ours_at_once_whatever_the_limit() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        for attempt in
            [Attempt::at(&store, &lock), Attempt::once(&store, &lock), Attempt::within(&store, &lock, Duration::from_millis(1))]
        {
            let place = attempt.acquires().await.unwrap();
            assert_eq!((attempt.started.elapsed(), attempt.told()), (Duration::ZERO, Vec::new()));
            leave(&store, &lock, &place.name).await;
        }
    });
}

#[test]
fn one_look_is_over_at_once_behind_somebody_and_leaves_nothing() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let holder = holds(&store, &lock, "holder").await;
        let attempt = Attempt::once(&store, &lock);
        let error = attempt.acquires().await.unwrap_err();
        let behind = lock.node(&holder);
        assert!(matches!(&error, AcquireError::TimedOut { behind: Some(node), .. } if *node == behind), "{error}");
        assert_eq!((attempt.started.elapsed(), attempt.told()), (Duration::ZERO, Vec::new()));
        assert_eq!(queue(&store, &lock).await, [holder]);
    });
}

#[test]
fn a_limit_ends_the_wait_when_it_is_reached_and_leaves_nothing() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let holder = holds(&store, &lock, "holder").await;
        let attempt = Attempt::within(&store, &lock, Duration::from_millis(2500));
        let error = attempt.acquires().await.unwrap_err();
        assert_eq!(error.to_string(), format!("not acquired in time: /l, behind /l/{holder}"));
        assert_eq!(attempt.started.elapsed(), Duration::from_millis(2500));
        assert_eq!(attempt.told(), [0, 1000, 2000].map(|at| (at, "behind 0 holder, 1".to_owned())));
        assert_eq!(queue(&store, &lock).await, [holder]);
    });
}

#[test]
fn whoever_wants_to_read_of_the_whole_queue_reads_of_it_at_every_interval_whoever_is_in_front() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let (first, _) = (holds(&store, &lock, "first").await, holds(&store, &lock, "second").await);
        let reports = Reports::Queue { every: Duration::from_secs(1) };
        let attempt = Attempt { reports, ..Attempt::within(&store, &lock, Duration::from_secs(3)) };
        let (ended, ()) = tokio::join!(attempt.acquires(), async {
            sleep(Duration::from_millis(1500)).await;
            leave(&store, &lock, &first).await;
        });
        assert!(matches!(ended, Err(AcquireError::TimedOut { .. })));
        let expected = [(1000, "0 first, 1 second, 2 me"), (2000, "1 second, 2 me")];
        assert_eq!(attempt.told(), expected.map(|(at, text)| (at, text.to_owned())));
    });
}

#[test]
fn a_limit_that_has_passed_before_leaves_nothing_either() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let error = Attempt::within(&store, &lock, Duration::ZERO).acquires().await.unwrap_err();
        assert!(matches!(error, AcquireError::TimedOut { behind: None, .. }), "{error}");
        let once = Attempt { limit: Limit::Once(Instant::now()), ..Attempt::at(&store, &lock) };
        let error = once.acquires().await.unwrap_err();
        assert!(matches!(error, AcquireError::NoAnswer(_)), "{error}");
        assert_eq!(queue(&store, &lock).await, []);
    });
}

#[test]
fn without_a_limit_we_wait_for_a_day_and_longer() {
    run_timeless(async {
        /// Between two reports, so that their order does not matter.
        const LONG: Duration = Duration::from_millis(24 * 3600 * 1000 + 500);
        let (store, lock) = (memory().await, path("/l"));
        let holder = holds(&store, &lock, "holder").await;
        let attempt = Attempt { around: &[nobody()], ..Attempt::at(&store, &lock) };
        let (place, ()) = tokio::join!(attempt.acquires(), async {
            sleep(LONG).await;
            leave(&store, &lock, &holder).await;
        });
        assert_eq!(attempt.started.elapsed(), LONG);
        assert_eq!(queue(&store, &lock).await, [place.unwrap().name]);
        assert_eq!(attempt.told().len(), 24 * 3600 + 1, "one at once, and one a second");
    });
}

#[test]
fn whoever_is_stopped_leaves_nothing() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let holder = holds(&store, &lock, "holder").await;
        for millis in [0, 1, 1500] {
            let attempt = Attempt::within(&store, &lock, Duration::from_secs(2));
            let error = attempt.acquires_until(sleep(Duration::from_millis(millis))).await.unwrap_err();
            assert!(matches!(error, AcquireError::Stopped(_)), "{error}");
            assert_eq!(attempt.started.elapsed(), Duration::from_millis(millis));
            assert_eq!(queue(&store, &lock).await, std::slice::from_ref(&holder));
        }
    });
}

#[test]
fn whoever_is_evicted_queues_again_at_the_end_under_a_new_name() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let holder = holds(&store, &lock, "holder").await;
        let attempt = Attempt::at(&store, &lock);
        let mut names = HashSet::new();
        let (place, later) = tokio::join!(attempt.acquires(), async {
            sleep(Duration::from_millis(300)).await;
            let evicted = queue(&store, &lock).await.remove(1);
            let later = holds(&store, &lock, "later").await;
            leave(&store, &lock, &evicted).await;
            // It is noticed with the next change.
            leave(&store, &lock, &holder).await;
            sleep(Duration::from_millis(300)).await;
            names.extend(queue(&store, &lock).await);
            names.insert(evicted);
            leave(&store, &lock, &later).await;
            later
        });
        let place = place.unwrap();
        assert_eq!((later.sequence().number(), place.name.sequence().number()), (2, 3));
        assert_eq!(names.len(), 3, "{names:?}");
        let prefixes: HashSet<_> = names.iter().map(|name| name.as_str().split("__").next().unwrap().to_owned()).collect();
        assert_eq!(prefixes.len(), 3, "a name is never used twice");
        let told = attempt.told();
        let expected = [(0, "behind 0 holder, 1"), (300, "evicted 1"), (300, "behind 2 later, 1")];
        assert_eq!(told, expected.map(|(at, text)| (at, text.to_owned())));
    });
}

#[test]
fn whoever_is_evicted_notices_at_the_next_tick_and_gives_up_in_time() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let holder = holds(&store, &lock, "holder").await;
        let attempt = Attempt::within(&store, &lock, Duration::from_millis(2500));
        let (acquired, ()) = tokio::join!(attempt.acquires(), async {
            for at in [300, 1000] {
                sleep(Duration::from_millis(at)).await;
                let evicted = queue(&store, &lock).await.remove(1);
                leave(&store, &lock, &evicted).await;
            }
        });
        assert!(matches!(acquired, Err(AcquireError::TimedOut { .. })), "{acquired:?}");
        assert_eq!(attempt.started.elapsed(), Duration::from_millis(2500));
        let waits = "behind 0 holder, 1";
        let expected = [(0, waits), (1000, "evicted 1"), (1000, waits), (2000, "evicted 2"), (2000, waits)];
        assert_eq!(attempt.told(), expected.map(|(at, text)| (at, text.to_owned())));
        assert_eq!(queue(&store, &lock).await, [holder]);
    });
}

#[test]
fn whoever_loses_the_whole_directory_queues_again() {
    run_timeless(async {
        let (ensemble, lock) = (MemoryEnsemble::default(), path("/l"));
        let store = ensemble.open().await;
        holds(&store, &lock, "holder").await;
        let attempt = Attempt::at(&store, &lock);
        let (place, ()) = tokio::join!(attempt.acquires(), async {
            sleep(Duration::from_millis(1)).await;
            ensemble.delete(&lock);
        });
        assert_eq!(queue(&store, &lock).await, [place.unwrap().name]);
        assert_eq!(attempt.told().last().unwrap().1, "evicted 1");
    });
}

#[test]
fn a_predecessor_is_told_at_once_when_it_changes_and_at_every_tick() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let holder = holds(&store, &lock, "holder").await;
        let next = holds(&store, &lock, "next").await;
        let attempt = Attempt::at(&store, &lock);
        let (place, ()) = tokio::join!(attempt.acquires(), async {
            sleep(Duration::from_millis(2300)).await;
            leave(&store, &lock, &next).await;
            sleep(Duration::from_millis(1500)).await;
            leave(&store, &lock, &holder).await;
        });
        place.unwrap();
        let (before, after) = ("behind 1 next, 2", "behind 0 holder, 1");
        let expected = [(0, before), (1000, before), (2000, before), (2300, after), (3300, after)];
        assert_eq!(attempt.told(), expected.map(|(at, text)| (at, text.to_owned())));
        assert_eq!(attempt.started.elapsed(), Duration::from_millis(3800));
    });
}

#[test]
fn what_a_run_around_us_holds_is_not_waited_for() {
    run_timeless(async {
        let (store, lock) = (memory().await, path("/l"));
        let outer = holds(&store, &lock, "outer").await;
        let middle = holds(&store, &lock, "somebody").await;
        for limit in [Limit::Never, Limit::Once(Instant::now() + LIMIT), Limit::At(Instant::now() + LIMIT)] {
            let around = [nobody(), outer.clone()];
            let attempt = Attempt { limit, around: &around, ..Attempt::at(&store, &lock) };
            let error = attempt.acquires().await.unwrap_err();
            assert!(matches!(&error, AcquireError::Nested(node) if *node == lock.node(&outer)), "{error}");
            assert_eq!(attempt.started.elapsed(), Duration::ZERO);
            assert_eq!(queue(&store, &lock).await, [outer.clone(), middle.clone()]);
        }
    });
}

#[test]
fn where_the_numbers_are_used_up_nobody_enters() {
    run_timeless(async {
        let lock = path("/l");
        let store = Odd::new(&["x__rlock__-2147483648"], None).await;
        let error = Attempt::at(&store, &lock).acquires().await.unwrap_err();
        assert!(matches!(&error, AcquireError::UsedUp(named) if *named == lock), "{error}");
        assert_eq!(queue(&store.memory, &lock).await, []);
    });
}

#[test]
fn a_store_that_refuses_to_tell_is_an_error_that_leaves_nothing() {
    run_timeless(async {
        let lock = path("/l");
        for verb in [Verb::Contenders, Verb::Gone] {
            let store = Odd::new(&[], Some(verb)).await;
            let holder = holds(&store, &lock, "holder").await;
            let error = Attempt::at(&store, &lock).acquires().await.unwrap_err();
            assert!(matches!(error, AcquireError::Store(StoreError::Refused { .. })), "{error}");
            assert_eq!(queue(&store.memory, &lock).await, [holder]);
        }
    });
}

#[test]
fn what_cannot_be_taken_out_again_is_told() {
    run_timeless(async {
        let lock = path("/l");
        let store = Odd::new(&[], Some(Verb::Leave)).await;
        holds(&store, &lock, "holder").await;
        let attempt = Attempt::once(&store, &lock);
        assert!(matches!(attempt.acquires().await, Err(AcquireError::TimedOut { .. })));
        assert_eq!(attempt.told(), [(0, "memory refused it: odd".to_owned())]);
        assert_eq!(queue(&store.memory, &lock).await.len(), 2);
    });
}
