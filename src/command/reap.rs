//! `reap`, and what every call that contends does of it: removes what dead runs of this host left.

mod agenda;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet, hash_map};
use std::convert::Infallible;
use std::ffi::OsString;
use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use self::agenda::{Agenda, Look};
use super::{Address, Context, LOOK_TIMEOUT, Unless, WaitLimit};
use crate::clock::date;
use crate::error::Error;
use crate::exit;
use crate::journal::{Age, Dead, Entry, Family, Journal, KEEP, Life, Seen, StateDir};
use crate::local::{News, Trouble, Watch, Watches, elsewhere, errno};
use crate::lock::{AbsolutePath, Expected, Limit, LockPath, NodeName, NodePath, Queue, Removal, Store, StoreError};
use crate::report;
use crate::store::{Servers, ZooKeeper};

/// The kernel takes many milliseconds to take back a watch, and our end waits for it; who gets in sooner than that is to be spared
/// them.
const WATCH_AFTER: Duration = Duration::from_millis(50);
/// How long who has come to his turn waits for the answer to a removal of his.
const TO_FINISH: Duration = Duration::from_millis(250);

/// Removes what the dead left in all of the journal's queues.
///
/// Nothing of ours is at stake, so a signal ends it at any point.
///
/// # Errors
/// The journal cannot be read, or nobody reads what was removed.
pub async fn reap(
    state_dir: &StateDir,
    wait: WaitLimit,
    release_timeout: Duration,
    context: &mut Context<'_>,
) -> Result<exit::Result, Error> {
    let Some(journal) = Journal::open(state_dir).map_err(Error::Journal)? else {
        if let StateDir::Named(path) = state_dir {
            warn!("{} is not there: nothing is left of anybody", path.display());
        }
        return Ok(exit::Result::Done);
    };
    let journal = Arc::new(journal);
    let mut told = Told::default();
    let everything = find(Arc::clone(&journal), Look::AT_ALL, |_| true).await.map_err(Error::Journal)?;
    let mut is_clean = true;
    let mut groups = BTreeMap::<(String, String), Vec<Entry>>::new();
    for (name, life) in everything {
        match life {
            Ok(Life::Dead(dead)) => {
                let at = (dead.entry.servers.to_string(), dead.entry.chroot.to_string());
                // Its flock is given up until it is its turn: whoever waits somewhere else may want to look after it meanwhile.
                groups.entry(at).or_default().push(dead.entry);
            }
            Ok(Life::Living) => info!("{name}: somebody lives"),
            Ok(Life::Gone | Life::Elsewhere) => {}
            other => {
                is_clean &= other.is_ok();
                told.tell(&journal, &name, &other);
            }
        }
    }
    for group in groups.into_values() {
        let within = match wait {
            WaitLimit::Within(time) => time,
            WaitLimit::Never | WaitLimit::Once => LOOK_TIMEOUT,
        };
        let reaped = reap_group(&journal, group, within, release_timeout);
        let (removed, trouble) = match context.unless_asked_to_end(reaped).await? {
            Unless::Done(reaped) => reaped,
            Unless::AskedToEnd(signal) => return Ok(exit::Result::Interrupted(signal)),
        };
        let nodes: Vec<String> = removed.iter().map(NodePath::to_string).chain([String::new()]).collect();
        match report::answer(nodes.join("\n")) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(exit::Result::Interrupted(libc::SIGPIPE)),
            Err(error) => return Err(Error::System { what: "cannot write to standard output what was removed", error }),
        }
        for text in trouble {
            is_clean = false;
            report::error(&text, None);
        }
    }
    Ok(if is_clean { exit::Result::Done } else { exit::Result::Failed })
}

/// Removes what these left, who are all of the same servers and chroot: what was removed, and what went wrong.
///
/// # Cancellation
/// May be dropped: what was not done is left to somebody else.
async fn reap_group(
    journal: &Arc<Journal>,
    group: Vec<Entry>,
    within: Duration,
    release_timeout: Duration,
) -> (Vec<NodePath>, Vec<String>) {
    let (mut removed, mut trouble) = (Vec::new(), Vec::new());
    let Some(Entry { servers, chroot, .. }) = group.first().cloned() else { return (removed, trouble) };
    let until = Instant::now().checked_add(within).unwrap_or_else(|| Instant::now() + LOOK_TIMEOUT);
    let place = servers.to_string();
    let store = match ZooKeeper::connect(servers, chroot, Limit::At(until), release_timeout).await {
        Ok(store) => store,
        Err(error) => return (removed, vec![error.to_string()]),
    };
    let is_removing = Cell::new(false);
    let clearing = async {
        let mut listings = Listings::default();
        for entry in group {
            let cleared = clear_again(journal, &entry, &store, &mut listings, &mut removed, &is_removing).await;
            trouble.extend(cleared.err());
        }
    };
    if timeout_at(until, clearing).await.is_err() {
        trouble.push(StoreError::Unreachable { place, cause: "no answer in time".to_owned() }.to_string());
    }
    store.close().await;
    (removed, trouble)
}

/// The queues of a store as they were when all who are being cleared up after were dead. Of many who had no node one listing tells.
#[derive(Default)]
struct Listings(HashMap<LockPath, Queue>);

impl Listings {
    /// The nodes of one of the dead.
    async fn of<S: Store>(&mut self, store: &S, entry: &Entry) -> Result<Vec<NodeName>, String> {
        let queue = match self.0.entry(entry.lock.clone()) {
            hash_map::Entry::Occupied(listing) => listing.into_mut(),
            hash_map::Entry::Vacant(none) => match store.contenders(&entry.lock).await {
                Ok(queue) => none.insert(queue),
                Err(StoreError::NoLock(_)) => none.insert(Queue::default()),
                Err(error) => return Err(error.to_string()),
            },
        };
        Ok(queue.contenders().iter().filter(|name| entry.family.has(name)).cloned().collect())
    }
}

/// Removes what one of the dead left in his lock's directory, and then his entry, unless that is to be kept.
///
/// # Cancellation
/// May be dropped: what was not done is left to somebody else.
async fn clear(
    store: &ZooKeeper,
    dead: Dead,
    listings: &mut Listings,
    removed: &mut Vec<NodePath>,
    is_removing: &Cell<bool>,
) -> Result<Age, String> {
    let Entry { lock, family, host, pid, since, .. } = dead.entry.clone();
    let names = listings.of(store, &dead.entry).await?;
    let is_found = !names.is_empty();
    for name in &names {
        is_removing.set(true);
        let node = lock.node(name);
        match store.leave(&lock, name, Expected::Anything).await.map_err(|error| error.to_string())? {
            Removal::Removed => {
                let since = date(since);
                warn!("removed {node}: nobody lives who could work under it (pid {pid} on {host} since {since})");
                removed.push(node);
            }
            // Somebody else did it.
            Removal::Missing | Removal::Changed | Removal::LeftToSession => {}
        }
    }
    let struck = match is_found {
        true => dead.strike().map(|()| Age::Over),
        false => dead.strike_unless_young(&Seen::now()).inspect(|age| match age {
            Age::Young => info!("{lock} has no node of {family}…, whose owner is dead: looking again later"),
            Age::Over => info!("{lock} never had a node of {family}…, whose owner is dead"),
        }),
    };
    is_removing.set(false);
    let age = struck.map_err(|trouble| trouble.to_string())?;
    if let (false, Age::Over) = (is_found, age) {
        // Somebody may have removed the node who knows nothing of what its owner told of itself.
        store.forget(family.as_str()).await.map_err(|error| error.to_string())?;
    }
    Ok(age)
}

/// The same for one of the dead whose flock was given up meanwhile: whoever has it now looks after it.
///
/// # Cancellation
/// As [`clear`].
async fn clear_again(
    journal: &Arc<Journal>,
    entry: &Entry,
    store: &ZooKeeper,
    listings: &mut Listings,
    removed: &mut Vec<NodePath>,
    is_removing: &Cell<bool>,
) -> Result<(), String> {
    let found = find(Arc::clone(journal), Look::at(&entry.family), |_| true).await;
    for (_, life) in found.map_err(|trouble| trouble.to_string())? {
        match life {
            Ok(Life::Dead(dead)) => clear(store, *dead, listings, removed, is_removing).await.map(drop)?,
            Ok(Life::Living | Life::Gone | Life::Elsewhere | Life::Foreign { .. } | Life::Garbled(_) | Life::Stranger) => {}
            Err(trouble) => return Err(trouble.to_string()),
        }
    }
    Ok(())
}

/// Looks at entries; those that are wanted and dead come with their flock.
///
/// # Cancellation
/// May be dropped: the flocks are given up.
async fn find(
    journal: Arc<Journal>,
    look: Look,
    is_wanted: impl Fn(&Entry) -> bool + Send + 'static,
) -> Result<Vec<(String, Result<Life, Trouble>)>, Trouble> {
    // A disk may take its time, and signals none.
    let looked = elsewhere(move || {
        let (families, strangers) = match &look {
            Look::AtAllBut(_) => journal.names()?,
            Look::At { suspects, nodeless } => (suspects.union(nodeless).cloned().collect(), Vec::new()),
        };
        let no_entry = |name| (name, Ok(Life::Stranger));
        let looked = families
            .into_iter()
            .map(|family| (family.to_string(), journal.look(&family, |entry| look.wants(entry) && is_wanted(entry))));
        Ok(looked.chain(strangers.into_iter().map(no_entry)).collect())
    });
    let ended = || Trouble::said("to read the journal", "the thread that reads it has ended");
    let looked = looked.map_err(|error| Trouble::new("to start a thread", errno(&error)))?;
    looked.await.unwrap_or_else(|_| Err(ended()))
}

/// What was said once.
#[derive(Default)]
struct Told(HashSet<String>);

impl Told {
    /// Why something could not be done, which is tried again.
    fn tell_trouble(&mut self, text: &str) {
        if self.0.insert(text.to_owned()) {
            info!("{text}; trying on");
        }
    }

    /// Why an entry is left alone.
    fn tell(&mut self, journal: &Journal, name: &str, life: &Result<Life, Trouble>) {
        if !self.0.insert(name.to_owned()) {
            return;
        }
        let path = journal.path().join(name);
        match life {
            Ok(Life::Garbled(error)) => warn!("{} is no entry of the journal: {error}; left alone", path.display()),
            Ok(Life::Stranger) => info!("{} is no entry of the journal; left alone", path.display()),
            Ok(Life::Foreign { user }) => info!("{} belongs to user {user}; left alone", path.display()),
            Ok(Life::Living | Life::Dead(_) | Life::Gone | Life::Elsewhere) => {}
            Err(trouble) => warn!("{trouble}"),
        }
    }
}

/// Where somebody waits.
#[derive(Clone)]
struct Site {
    servers: Servers,
    chroot: AbsolutePath,
    /// The lock's, below no chroot.
    directory: AbsolutePath,
}

impl Site {
    /// Whether what this tells of is in a queue there, ours or another one.
    fn has(&self, entry: &Entry) -> bool {
        entry.is_at(&self.servers, &self.chroot)
    }

    /// Whether it may be in ours: servers have many names, and a chroot may be said with the lock. The node's name, which nobody
    /// else's begins like, is to be looked for.
    fn may_have(&self, entry: &Entry) -> bool {
        entry.directory() == self.directory
    }
}

/// Removes what the dead left of one store's queues, for somebody who waits there.
///
/// By a connection of its own: a removal also takes out what our own requests may have left, and who waits does not want to
/// lose his place by it. It is made only when somebody is dead.
pub struct Reaper {
    state_dir: StateDir,
    site: Site,
    /// Since when those were looked for in vain who may be in our queue.
    strangers: HashMap<Family, Instant>,
    told: Told,
    agenda: Agenda,
    /// Whether something was asked for that is not told and written down yet.
    is_removing: Rc<Cell<bool>>,
}

impl Reaper {
    /// None for a directory, where the kernel itself tells who is dead.
    pub fn new(state_dir: &StateDir, address: &Address, lock: &LockPath) -> Option<Reaper> {
        let Address::ZooKeeper { servers, chroot } = address else { return None };
        let (servers, chroot, state_dir) = (servers.clone(), chroot.clone(), state_dir.clone());
        let directory = chroot.join(lock.as_path());
        let agenda = Agenda::new(Instant::now());
        Some(Reaper {
            state_dir,
            site: Site { servers, chroot, directory },
            strangers: HashMap::new(),
            told: Told::default(),
            agenda,
            is_removing: Rc::default(),
        })
    }

    /// Looks into the journal again and again, and at once where the kernel tells that somebody died.
    ///
    /// # Cancellation
    /// May be dropped: what was not done is left to somebody else. That is the only end it has.
    pub async fn reap(&mut self, watches: &Watches) -> Infallible {
        let watch_from = Instant::now() + WATCH_AFTER;
        let mut watch = None;
        loop {
            let now = Instant::now();
            let look = self.agenda.take(now);
            if matches!(look, Look::AtAllBut(_)) && watch.is_none() && now >= watch_from {
                // The kernel may have none left; it is asked again, for others give theirs back.
                watch = self.watch(watches);
            }
            if let Err(text) = self.pass(look).await {
                self.told.tell_trouble(&text);
            }
            if now < watch_from {
                // Of what happens until then nobody tells.
                self.agenda.look_at_all(watch_from);
            }
            let news = async {
                match &watch {
                    Some(watch) => watch.news().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                news = news => match news {
                    Ok(News::Of(names)) => self.suspect(&names),
                    Ok(News::OfMany) => self.agenda.look_at_all(Instant::now()),
                    Err(_) => watch = None,
                },
                () = sleep_until(self.agenda.next()) => {}
            }
        }
    }

    fn watch<'w>(&self, watches: &'w Watches) -> Option<Watch<'w>> {
        Journal::open(&self.state_dir).ok()??.watch(watches).ok()
    }

    fn suspect(&mut self, names: &[OsString]) {
        let now = Instant::now();
        let families = names.iter().filter_map(|name| Family::parse(name.to_str()?));
        families.for_each(|family| self.agenda.suspect(family, now));
    }

    /// What lets [`Reaper::finish`] know.
    pub fn removing(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.is_removing)
    }

    /// Lets [`Reaper::reap`] tell and write down what it has just removed: the next one in line knows of it before its answer
    /// has come.
    ///
    /// # Cancellation
    /// As [`Reaper::reap`].
    pub async fn finish(mut reaping: Pin<&mut impl Future<Output = Infallible>>, is_removing: &Cell<bool>) {
        let finishing = poll_fn(|context| match reaping.as_mut().poll(context) {
            Poll::Ready(never) => match never {},
            Poll::Pending if is_removing.get() => Poll::Pending,
            Poll::Pending => Poll::Ready(()),
        });
        if is_removing.get() {
            _ = timeout(TO_FINISH, finishing).await;
        }
    }

    /// Looks at every entry once.
    ///
    /// # Cancellation
    /// As [`Reaper::reap`].
    pub async fn look_once(&mut self) -> Result<(), String> {
        self.pass(Look::AT_ALL).await
    }

    /// Looks at entries, and removes what the dead among them left.
    async fn pass(&mut self, look: Look) -> Result<(), String> {
        let is_at_all = matches!(look, Look::AtAllBut(_));
        let journal = Journal::open(&self.state_dir).map_err(|trouble| trouble.to_string())?.map(Arc::new);
        let (entries, cleared) = match &journal {
            Some(journal) => match self.look(journal, look).await {
                Ok((entries, found)) => (entries, self.clear_up(journal, found).await),
                Err(trouble) => (0, Err(trouble.to_string())),
            },
            None => (0, Ok(())),
        };
        if is_at_all {
            self.agenda.saw_all(entries, Instant::now());
        }
        cleared
    }

    /// Looks at entries: how many there are, and the dead among them.
    async fn look(&mut self, journal: &Arc<Journal>, look: Look) -> Result<(usize, Found), Trouble> {
        let is_in_vain = |since: &Instant| since.elapsed() > KEEP;
        let in_vain: HashSet<Family> =
            self.strangers.iter().filter(|(_, since)| is_in_vain(since)).map(|(family, _)| family.clone()).collect();
        let site = self.site.clone();
        let is_wanted = move |entry: &Entry| site.has(entry) || site.may_have(entry) && !in_vain.contains(&entry.family);
        let looked = find(Arc::clone(journal), look, is_wanted).await?;
        let entries = looked.len();
        let mut found = Found::default();
        for (name, life) in looked {
            let family = Family::parse(&name);
            match (life, family) {
                (Ok(Life::Dead(dead)), _) if self.site.has(&dead.entry) => found.ours.push(*dead),
                // Its flock is given up at once: it may be of a concern to others only, and our servers may take their time.
                (Ok(Life::Dead(dead)), _) => found.namesakes.push(dead.entry),
                (Ok(Life::Gone), Some(family)) => self.agenda.forget(&family),
                (Ok(Life::Elsewhere), Some(family)) if self.strangers.contains_key(&family) => self.agenda.forget(&family),
                (Ok(Life::Elsewhere), Some(family)) => self.agenda.clear_of_suspicion(&family),
                // By now that may only seem so.
                (Ok(Life::Living), _) => {}
                (other, _) => self.told.tell(journal, &name, &other),
            }
        }
        Ok((entries, found))
    }

    /// Removes what the dead left. What cannot be done is left to the next look at everything.
    async fn clear_up(&mut self, journal: &Arc<Journal>, found: Found) -> Result<(), String> {
        let Found { mut ours, namesakes } = found;
        if ours.is_empty() && namesakes.is_empty() {
            return Ok(());
        }
        // Those first that are more likely to stand in the way.
        ours.sort_by_key(|dead| dead.entry.dead.is_some());
        let Reaper { is_removing, agenda, site, strangers, .. } = self;
        let families = ours.iter().map(|dead| &dead.entry.family).chain(namesakes.iter().map(|entry| &entry.family));
        let mut to_forget: HashSet<Family> = families.cloned().collect();
        let clearing = async {
            let limit = Limit::Once(Instant::now() + LOOK_TIMEOUT);
            let connect = async |chroot: &AbsolutePath| {
                let connecting = ZooKeeper::connect(site.servers.clone(), chroot.clone(), limit, LOOK_TIMEOUT);
                connecting.await.map_err(|error| error.to_string())
            };
            let mut outcome = Ok(());
            if !ours.is_empty() {
                let store = connect(&site.chroot).await?;
                let mut listings = Listings::default();
                for dead in ours {
                    is_removing.set(false);
                    let (family, age) = (dead.entry.family.clone(), dead.entry.dead_for(&Seen::now()).unwrap_or_default());
                    let cleared = clear(&store, dead, &mut listings, &mut Vec::new(), is_removing).await;
                    if let Ok(Age::Young) = cleared {
                        to_forget.remove(&family);
                        agenda.saw_nodeless(family, age, Instant::now());
                    }
                    outcome = outcome.and(cleared.map(drop));
                }
                store.close().await;
            }
            for entry in namesakes {
                is_removing.set(false);
                let store = connect(&entry.chroot).await?;
                let mut listings = Listings::default();
                match listings.of(&store, &entry).await {
                    Ok(names) if names.is_empty() => {
                        let since = *strangers.entry(entry.family.clone()).or_insert_with(Instant::now);
                        to_forget.remove(&entry.family);
                        agenda.saw_nodeless(entry.family, since.elapsed(), Instant::now());
                    }
                    Ok(_) => {
                        let cleared = clear_again(journal, &entry, &store, &mut listings, &mut Vec::new(), is_removing).await;
                        outcome = outcome.and(cleared);
                    }
                    Err(text) => outcome = outcome.and(Err(text)),
                }
                store.close().await;
            }
            outcome
        };
        let cleared = timeout(LOOK_TIMEOUT, clearing).await;
        is_removing.set(false);
        for family in &to_forget {
            agenda.forget(family);
        }
        cleared.unwrap_or_else(|_| Err("what the dead left could not be removed in time".to_owned()))
    }
}

/// The dead that a look has found.
#[derive(Default)]
struct Found {
    /// Of our servers and chroot.
    ours: Vec<Dead>,
    /// Of our lock's path, at servers or in a chroot of another name.
    namesakes: Vec<Entry>,
}
