//! Servers as a real ensemble has them: a leader that decides, and servers that follow it with a lag.
//!
//! What is promised is what ZooKeeper promises. One order of all writes; a write is answered by a server that has seen it, and
//! everything before it; reads are answered from what that server has seen, which may be old; a connection delivers in order,
//! in both directions; what one server passes on to the leader arrives in order. A session belongs to one server, and what
//! comes from another, or after it expired, is refused. Everything else may happen.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::random::Random;
use super::tree::{Change, Tree};
use crate::lock::{NodeName, SIDE_TREE, id_of};
use crate::store::ensemble::{Created, Lasting, Node, Operation, Refusal, SessionId, Stat, Transacted, Watched};

/// What may go wrong by itself, and how often. The default is that nothing does, and takes no time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// The longest a message is under way, one way.
    pub latency: Duration,
    /// The longest a server needs to see what was decided.
    pub lag: Duration,
    /// Of a thousand requests so many never arrive: the connection ends before.
    pub lost_requests: u64,
    /// Of a thousand answers so many never arrive.
    pub lost_answers: u64,
    /// Of a thousand requests so many reach their server, and stay there for a while before they are passed on.
    pub late_requests: u64,
    /// The longest such a while.
    pub late: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnectionId(u64);

pub enum Request {
    Create { prefix: String, data: Vec<u8>, lasting: Lasting },
    MakeDirectory(String),
    Delete { path: String, version: Option<i32> },
    Transact(Vec<Operation>),
    Sync,
    Children(String),
    Stat(String),
    Read(Vec<String>),
    Watch(String),
    Close,
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Request::Create { .. } => "a create",
            Request::MakeDirectory(_) => "a directory",
            Request::Delete { .. } => "a delete",
            Request::Transact(_) => "a transaction",
            Request::Sync => "a sync",
            Request::Children(_) => "a listing",
            Request::Stat(_) | Request::Read(_) => "a look",
            Request::Watch(_) => "a watch",
            Request::Close => "the end",
        })
    }
}

#[derive(Debug)]
pub enum Answer {
    Created(Created),
    Transacted(Transacted),
    Done,
    Children(Vec<String>),
    Stat(Option<Stat>),
    Nodes(Vec<Result<Node, Refusal>>),
    Watched(Watched),
}

/// No answer at all is the end of the connection.
type Reply = oneshot::Sender<Result<Answer, Refusal>>;
/// `None`: the session has expired.
type Opened = oneshot::Sender<Option<(ConnectionId, SessionId)>>;

pub struct Servers {
    pub faults: Faults,
    pub random: Random,
    began: Instant,
    session_timeout: Duration,
    /// The order of things that are to happen: by time, and of the same time as they were found out.
    events: BTreeMap<(Instant, u64), Event>,
    event_count: u64,
    /// Everything that was decided, in order: all of one transaction at once.
    log: Vec<Vec<Change>>,
    tree: Tree,
    members: Vec<Server>,
    sessions: BTreeMap<i64, Session>,
    connections: BTreeMap<ConnectionId, Connection>,
    session_count: i64,
    connection_count: u64,
    /// Without a leader nothing is decided until then.
    halted_until: Instant,
    /// What was removed by hand.
    removed: BTreeSet<String>,
    /// Who deleted what.
    deletions: BTreeMap<String, Deletion>,
    /// Clients that reach no server until then.
    cut_off_until: BTreeMap<u64, Instant>,
    /// What happened, if somebody wants to know.
    notes: Option<Vec<(Instant, String)>>,
}

struct Server {
    tree: Tree,
    /// How much of the log it has seen.
    seen: usize,
    /// When it will have seen what was decided last.
    seen_all: Instant,
    /// What it passes on to the leader, in order, and when that may arrive.
    queue: VecDeque<(Instant, ConnectionId, u64, Request)>,
    down_until: Instant,
    /// Cut off from the leader.
    apart_until: Instant,
    /// The sessions that it has heard of since it told the leader last.
    heard: BTreeSet<i64>,
    /// Whose answers wait until it has seen so much.
    waiting: Vec<(usize, ConnectionId, u64, Result<Answer, Refusal>)>,
}

/// How a node came to its end.
#[derive(Clone, Copy, Debug)]
pub struct Deletion {
    pub client: u64,
    pub at: Instant,
    /// Whether there was a marker for it.
    pub was_marked: bool,
}

struct Session {
    server: usize,
    heard: Instant,
    /// Nothing of it is accepted any more.
    has_ended: bool,
}

struct Connection {
    client: u64,
    session: SessionId,
    server: usize,
    /// Whether each end believes in it.
    is_open_here: bool,
    is_open_there: bool,
    /// When the last message of each direction arrives.
    up: Instant,
    down: Instant,
    /// Nothing gets through until then.
    silent_until: Instant,
    /// Its client stands still until then.
    frozen_until: Instant,
    pending: BTreeMap<u64, Reply>,
    request_count: u64,
    watches: Vec<(String, u64)>,
    /// How many requests the server has passed on to the leader, and how many of those were answered.
    passed_on: u64,
    answered: u64,
    /// Reads, and how many answers they stand behind: a connection is answered in the order of its requests.
    reads: Vec<(u64, u64, Request)>,
}

enum Event {
    /// A request reaches its server.
    Arrive(ConnectionId, u64, Request),
    /// What a server passed on first may reach the leader.
    PassOn(usize),
    /// A session is to be opened at a server, or resumed there.
    Open(u64, usize, Option<SessionId>, Opened),
    /// A server sees one more change.
    See(usize),
    Deliver(ConnectionId, u64, Result<Answer, Refusal>),
    /// The client crate sends pings by itself.
    Ping(ConnectionId),
    /// A server tells the leader whom it has heard.
    Tell(usize),
    Expire(SessionId),
    /// The server of a session that has ended hangs up.
    HangUp(ConnectionId),
}

impl Servers {
    pub fn new(count: usize, session_timeout: Duration, random: Random, faults: Faults) -> Servers {
        let now = Instant::now();
        let half_a_tick = session_timeout / 8;
        let server = || Server {
            tree: Tree::default(),
            seen: 0,
            seen_all: now,
            queue: VecDeque::new(),
            down_until: now,
            apart_until: now,
            heard: BTreeSet::new(),
            waiting: Vec::new(),
        };
        let tell = |server: usize| ((now + half_a_tick, server as u64), Event::Tell(server));
        Servers {
            faults,
            random,
            began: now,
            session_timeout,
            events: (0..count).map(tell).collect(),
            event_count: count as u64,
            log: Vec::new(),
            tree: Tree::default(),
            members: std::iter::repeat_with(server).take(count).collect(),
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            session_count: 0,
            connection_count: 0,
            halted_until: now,
            removed: BTreeSet::new(),
            deletions: BTreeMap::new(),
            cut_off_until: BTreeMap::new(),
            notes: None,
        }
    }

    pub fn session_timeout(&self) -> Duration {
        self.session_timeout
    }

    pub fn clock(&self) -> Duration {
        Instant::now() - self.began
    }

    /// Opens a session at a server, or resumes one there. Dropped: nobody is there.
    pub fn open(&mut self, client: u64, server: usize, resume: Option<SessionId>, opened: Opened) {
        let now = Instant::now();
        let is_away = self.members[server].down_until > now || self.halted_until > now;
        if !is_away && !self.goes_wrong(self.faults.lost_requests) {
            let cut_off_until = self.cut_off_until.get(&client).copied().unwrap_or(now);
            let arrives = (now + self.latency()).max(self.members[server].apart_until).max(cut_off_until);
            self.at(arrives, Event::Open(client, server, resume, opened));
        }
    }

    pub fn send(&mut self, connection: ConnectionId, request: Request, reply: Reply) {
        let latency = self.latency();
        let is_lost = self.goes_wrong(self.faults.lost_requests);
        let Some(open) = self.connections.get_mut(&connection).filter(|open| open.is_open_here) else { return };
        open.request_count += 1;
        let number = open.request_count;
        open.pending.insert(number, reply);
        if is_lost {
            return self.cut(connection);
        }
        open.up = open.up.max(open.silent_until).max(Instant::now() + latency);
        let up = open.up;
        self.at(up, Event::Arrive(connection, number, request));
    }

    pub fn is_open(&self, connection: ConnectionId) -> bool {
        self.connections.get(&connection).is_some_and(|open| open.is_open_here)
    }

    /// The client is no longer interested; what it sent goes its way.
    pub fn abandon(&mut self, connection: ConnectionId) {
        if let Some(open) = self.connections.get_mut(&connection) {
            open.is_open_here = false;
            open.pending.clear();
        }
    }

    /// Has everything happen whose time has come, and says when there will be more.
    pub fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(next) = self.events.first_entry() {
            if next.key().0 > now {
                return Some(next.key().0);
            }
            let event = next.remove();
            self.happen(event);
        }
        None
    }

    fn at(&mut self, when: Instant, event: Event) {
        self.event_count += 1;
        self.events.insert((when, self.event_count), event);
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.push((Instant::now(), text()));
        }
    }

    fn latency(&mut self) -> Duration {
        self.random.up_to(self.faults.latency)
    }

    fn goes_wrong(&mut self, of_a_thousand: u64) -> bool {
        self.random.below(1000) < of_a_thousand
    }

    /// The leader decides what a server passed on first, unless they are apart, or there is no leader.
    fn pass_on(&mut self, server: usize) {
        let Server { queue, apart_until, .. } = &mut self.members[server];
        let Some((arrives, ..)) = queue.front() else { return };
        let when = (*arrives).max(*apart_until).max(self.halted_until);
        if when > Instant::now() {
            return self.at(when, Event::PassOn(server));
        }
        let (_, connection, number, request) = queue.pop_front().expect("just seen");
        self.decide(connection, number, request);
        self.at(Instant::now(), Event::PassOn(server));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(connection, number, request) => self.arrive(connection, number, request),
            Event::PassOn(server) => self.pass_on(server),
            Event::Open(client, server, resume, opened) => self.decide_session(client, server, resume, opened),
            Event::See(server) => self.see(server),
            Event::Deliver(connection, number, answer) => {
                let Some(open) = self.connections.get_mut(&connection) else { return };
                if let Some(reply) = open.pending.remove(&number) {
                    _ = reply.send(answer);
                }
            }
            Event::Ping(connection) => self.ping(connection),
            Event::Tell(server) => self.tell(server),
            Event::HangUp(connection) => self.cut(connection),
            Event::Expire(session) => self.expire_if_due(session),
        }
    }

    fn arrive(&mut self, connection: ConnectionId, number: u64, request: Request) {
        let Some(open) = self.connections.get(&connection).filter(|open| open.is_open_there) else { return };
        let (server, session) = (open.server, open.session);
        if self.members[server].down_until > Instant::now() {
            return;
        }
        self.hear(session, server);
        let open = self.connections.get_mut(&connection).expect("just seen");
        match request {
            Request::Create { .. }
            | Request::MakeDirectory(_)
            | Request::Delete { .. }
            | Request::Transact(_)
            | Request::Sync
            | Request::Close => {
                open.passed_on += 1;
                let late = match self.goes_wrong(self.faults.late_requests) {
                    true => self.random.up_to(self.faults.late),
                    false => Duration::ZERO,
                };
                let when = Instant::now() + self.latency() + late;
                let queue = &mut self.members[server].queue;
                queue.push_back((when, connection, number, request));
                if queue.len() == 1 {
                    self.at(when, Event::PassOn(server));
                }
            }
            Request::Watch(_) | Request::Children(_) | Request::Stat(_) | Request::Read(_) => {
                if open.answered < open.passed_on {
                    return open.reads.push((open.passed_on, number, request));
                }
                self.read(connection, number, request);
            }
        }
    }

    fn read(&mut self, connection: ConnectionId, number: u64, request: Request) {
        let Some(open) = self.connections.get_mut(&connection) else { return };
        let tree = &self.members[open.server].tree;
        let answer = match request {
            Request::Watch(path) => match tree.stat(&path) {
                None => Ok(Answer::Watched(Watched::Gone)),
                Some(_) => return open.watches.push((path, number)),
            },
            Request::Children(path) => tree.children(&path).map(Answer::Children),
            Request::Stat(path) => Ok(Answer::Stat(tree.stat(&path))),
            Request::Read(paths) => Ok(Answer::Nodes(paths.iter().map(|path| tree.read(path)).collect())),
            Request::Create { .. }
            | Request::MakeDirectory(_)
            | Request::Delete { .. }
            | Request::Transact(_)
            | Request::Sync
            | Request::Close => {
                unreachable!("the leader decides those")
            }
        };
        self.answer(connection, number, answer);
    }

    /// An answer is on its way, after those that left before.
    fn answer(&mut self, connection: ConnectionId, number: u64, answer: Result<Answer, Refusal>) {
        let is_lost = self.goes_wrong(self.faults.lost_answers);
        let latency = self.latency();
        let Some(open) = self.connections.get_mut(&connection) else { return };
        if is_lost {
            return self.cut(connection);
        }
        open.down = open.down.max(open.silent_until).max(Instant::now() + latency);
        let down = open.down;
        self.at(down, Event::Deliver(connection, number, answer));
    }

    fn decide(&mut self, connection: ConnectionId, number: u64, request: Request) {
        let Some(open) = self.connections.get(&connection) else { return };
        let (client, server, session) = (open.client, open.server, open.session);
        // It has moved to another server, or is no more: the server hangs up.
        let is_valid = self.sessions.get(&session.0).is_some_and(|session| !session.has_ended && session.server == server);
        if !is_valid {
            self.note(|| format!("{request} of session {session} at server {server} is refused"));
            return self.cut(connection);
        }
        let answer = match request {
            Request::Create { prefix, data, lasting } => {
                let create = Operation::CreateNext { prefix, data, lasting };
                match self.transact(vec![create], session, client) {
                    (Transacted::Done(mut paths), zxid) => {
                        Ok(Answer::Created(Created { path: paths.pop().expect("it makes one"), zxid }))
                    }
                    (Transacted::Refused { why, .. }, _) => Err(why),
                }
            }
            Request::MakeDirectory(path) => {
                for change in self.tree.directories(&path) {
                    self.write(vec![change]);
                }
                Ok(Answer::Done)
            }
            Request::Delete { path, version } => {
                match self.transact(vec![Operation::Delete { path, version }], session, client).0 {
                    Transacted::Done(_) => Ok(Answer::Done),
                    Transacted::Refused { why, .. } => Err(why),
                }
            }
            Request::Transact(operations) => Ok(Answer::Transacted(self.transact(operations, session, client).0)),
            Request::Close => {
                let is_lost = self.goes_wrong(self.faults.lost_answers);
                let reply = self.connections.get_mut(&connection).and_then(|open| open.pending.remove(&number));
                self.end(session);
                if let Some(reply) = reply.filter(|_| !is_lost) {
                    _ = reply.send(Ok(Answer::Done));
                }
                return;
            }
            Request::Sync => Ok(Answer::Done),
            Request::Children(_) | Request::Stat(_) | Request::Read(_) | Request::Watch(_) => {
                unreachable!("a server answers those itself")
            }
        };
        // A refusal is a decision too: it is answered in the order of all.
        self.members[server].waiting.push((self.log.len(), connection, number, answer));
        self.answer_waiting(server);
    }

    /// Decides all of it or nothing; says what came of it, and its number if it was written.
    fn transact(&mut self, operations: Vec<Operation>, session: SessionId, client: u64) -> (Transacted, u64) {
        let mut after = self.tree.clone();
        let (mut changes, mut paths) = (Vec::new(), Vec::new());
        for (at, operation) in operations.into_iter().enumerate() {
            match after.change(operation, session) {
                Ok(change) => changes.extend(change.inspect(|change| after.apply(change, 0))),
                Err(why) => return (Transacted::Refused { at, why }, 0),
            }
        }
        for change in &changes {
            match change {
                Change::Create { path, .. } => paths.push(path.clone()),
                Change::Delete(path) => {
                    let deletion = Deletion { client, at: Instant::now(), was_marked: self.is_marked(path) };
                    self.deletions.insert(path.clone(), deletion);
                }
                Change::Set { .. } => {}
            }
        }
        (Transacted::Done(paths), self.write(changes))
    }

    fn is_marked(&self, path: &str) -> bool {
        let Some((root, rest)) = path[1..].split_once('/') else { return false };
        let id =
            rest.rsplit_once('/').and_then(|(_, name)| NodeName::parse(name)).and_then(|name| id_of(&name).map(str::to_owned));
        id.is_some_and(|id| self.tree.stat(&format!("/{root}/{SIDE_TREE}/{id}")).is_some())
    }

    fn write(&mut self, changes: Vec<Change>) -> u64 {
        for change in &changes {
            self.note(|| change.to_string());
        }
        self.log.push(changes);
        let zxid = self.log.len() as u64;
        for change in &self.log[self.log.len() - 1] {
            self.tree.apply(change, zxid);
        }
        for server in 0..self.members.len() {
            let lag = self.random.up_to(self.faults.lag);
            let Server { seen_all, apart_until, down_until, .. } = &mut self.members[server];
            *seen_all = (*seen_all).max(Instant::now() + lag).max(*apart_until).max(*down_until);
            let when = *seen_all;
            self.at(when, Event::See(server));
        }
        zxid
    }

    fn see(&mut self, server: usize) {
        let Server { tree, seen, apart_until, down_until, .. } = &mut self.members[server];
        let when = (*apart_until).max(*down_until);
        if when > Instant::now() {
            return self.at(when, Event::See(server));
        }
        let Some(changes) = self.log.get(*seen) else { return };
        *seen += 1;
        let mut fired = Vec::new();
        for change in changes {
            tree.apply(change, *seen as u64);
            let (path, watched) = match change {
                Change::Delete(path) => (path, Watched::Gone),
                Change::Set { path, .. } => (path, Watched::There),
                Change::Create { .. } => continue,
            };
            for (id, open) in self.connections.iter_mut().filter(|(_, open)| open.server == server && open.is_open_there) {
                let ended = open.watches.extract_if(.., |(of, _)| of == path);
                fired.extend(ended.map(|(_, number)| (*id, number, watched)));
            }
        }
        for (connection, number, watched) in fired {
            self.answer(connection, number, Ok(Answer::Watched(watched)));
        }
        self.answer_waiting(server);
    }

    fn answer_waiting(&mut self, server: usize) {
        let Server { waiting, seen, .. } = &mut self.members[server];
        let ready: Vec<_> = waiting.extract_if(.., |(zxid, ..)| *zxid <= *seen).collect();
        for (_, connection, number, answer) in ready {
            self.answer(connection, number, answer);
            let Some(open) = self.connections.get_mut(&connection) else { continue };
            open.answered += 1;
            let answered = open.answered;
            let next: Vec<_> = open.reads.extract_if(.., |(behind, ..)| *behind <= answered).collect();
            for (_, number, request) in next {
                self.read(connection, number, request);
            }
        }
    }

    fn decide_session(&mut self, client: u64, server: usize, resume: Option<SessionId>, opened: Opened) {
        let now = Instant::now();
        if self.members[server].down_until > now || self.halted_until > now {
            return;
        }
        let session = match resume {
            None => {
                self.session_count += 1;
                let session = SessionId(self.session_count);
                self.sessions.insert(session.0, Session { server, heard: now, has_ended: false });
                self.at(now + self.session_timeout, Event::Expire(session));
                session
            }
            Some(session) => match self.sessions.get_mut(&session.0) {
                Some(known) if !known.has_ended => {
                    (known.server, known.heard) = (server, now);
                    // The server that takes it over closes what it had before of that session.
                    for open in self.connections.values_mut() {
                        if open.session == session && open.server == server {
                            open.is_open_there = false;
                        }
                    }
                    session
                }
                Some(_) | None => {
                    _ = opened.send(None);
                    return;
                }
            },
        };
        self.connection_count += 1;
        let connection = ConnectionId(self.connection_count);
        self.note(|| format!("client {client}: session {session} at server {server}, {connection:?}"));
        let open = Connection {
            client,
            session,
            server,
            is_open_here: true,
            is_open_there: true,
            up: now,
            down: now,
            silent_until: now,
            frozen_until: now,
            pending: BTreeMap::new(),
            request_count: 0,
            watches: Vec::new(),
            passed_on: 0,
            answered: 0,
            reads: Vec::new(),
        };
        self.connections.insert(connection, open);
        self.at(now + self.session_timeout / 3, Event::Ping(connection));
        if opened.send(Some((connection, session))).is_err() {
            self.abandon(connection);
        }
    }

    fn ping(&mut self, connection: ConnectionId) {
        let now = Instant::now();
        let Some(open) = self.connections.get(&connection) else { return };
        let is_heard = open.is_open_there && open.silent_until.max(open.frozen_until) <= now;
        let (session, server, is_alive) = (open.session, open.server, open.is_open_here);
        if is_heard && is_alive && self.members[server].down_until <= now {
            self.hear(session, server);
        }
        if is_alive {
            self.at(now + self.session_timeout / 3, Event::Ping(connection));
        }
    }

    fn hear(&mut self, session: SessionId, server: usize) {
        self.members[server].heard.insert(session.0);
    }

    /// Twice a tick, as long as they are not apart; the leader counts from when it is told.
    fn tell(&mut self, server: usize) {
        let now = Instant::now();
        let Server { heard, apart_until, down_until, .. } = &mut self.members[server];
        let when = (*apart_until).max(*down_until).max(self.halted_until);
        if when <= now {
            for session in std::mem::take(heard) {
                if let Some(session) = self.sessions.get_mut(&session).filter(|session| session.server == server) {
                    session.heard = now;
                }
            }
        }
        let half_a_tick = self.session_timeout / 8;
        self.at(when.max(now + half_a_tick), Event::Tell(server));
    }

    fn expire_if_due(&mut self, id: SessionId) {
        let now = Instant::now();
        let Some(session) = self.sessions.get(&id.0).filter(|session| !session.has_ended) else { return };
        // A new leader counts from its own beginning.
        let due = session.heard.max(self.halted_until) + self.session_timeout;
        match due <= now {
            true => self.end(id),
            false => self.at(due, Event::Expire(id)),
        }
    }

    /// The leader ends a session, and with it what is bound to it.
    fn end(&mut self, id: SessionId) {
        self.note(|| format!("session {id} has ended"));
        if let Some(session) = self.sessions.get_mut(&id.0) {
            session.has_ended = true;
        }
        let bound = self.tree.bound_to(id).into_iter().map(Change::Delete).collect();
        self.write(bound);
        // Its servers see it first, and tell whoever watches what went with it.
        let lost: Vec<_> = self.connections.iter().filter(|(_, open)| open.session == id).map(|(id, _)| *id).collect();
        for connection in lost {
            let when = Instant::now() + self.random.up_to(self.faults.lag) + self.latency();
            self.at(when, Event::HangUp(connection));
        }
    }
}

/// What somebody does to them.
impl Servers {
    /// Ends a connection: answers under way are lost, and of the requests under way those that have not yet arrived.
    pub fn cut(&mut self, connection: ConnectionId) {
        self.note(|| format!("{connection:?} is cut"));
        if let Some(open) = self.connections.get_mut(&connection) {
            (open.is_open_here, open.is_open_there) = (false, false);
            open.pending.clear();
            open.watches.clear();
        }
    }

    /// The connections that a client has.
    pub fn connections(&self) -> Vec<ConnectionId> {
        self.connections.iter().filter(|(_, open)| open.is_open_here).map(|(id, _)| *id).collect()
    }

    /// Nothing gets through on a connection for a time, neither way; afterwards it all does.
    pub fn silence(&mut self, connection: ConnectionId, time: Duration) {
        if let Some(open) = self.connections.get_mut(&connection) {
            open.silent_until = Instant::now() + time;
        }
    }

    /// A client reaches no server for a time.
    pub fn cut_off(&mut self, client: u64, time: Duration) {
        let until = Instant::now() + time;
        self.cut_off_until.insert(client, until);
        for open in self.connections.values_mut().filter(|open| open.client == client) {
            open.silent_until = open.silent_until.max(until);
        }
    }

    /// A client stands still for a time.
    pub fn freeze(&mut self, client: u64, time: Duration) {
        for open in self.connections.values_mut().filter(|open| open.client == client) {
            open.frozen_until = Instant::now() + time;
        }
    }

    /// Everything that was cut off, down or silent is back, and nothing goes wrong any more.
    pub fn heal(&mut self) {
        let now = Instant::now();
        self.faults = Faults { latency: self.faults.latency, ..Faults::default() };
        self.halted_until = now;
        self.cut_off_until.clear();
        for server in &mut self.members {
            (server.apart_until, server.down_until) = (now, now);
        }
        for open in self.connections.values_mut() {
            open.silent_until = now;
        }
        for server in 0..self.members.len() {
            self.at(now, Event::Tell(server));
            self.at(now, Event::PassOn(server));
            self.members[server].seen_all = now;
            while self.members[server].seen < self.log.len() {
                self.see(server);
            }
        }
    }

    /// Whether a session of this client has ended, by itself or by its client's doing.
    pub fn has_lost_a_session(&self, client: u64) -> bool {
        let mut sessions = self.connections.values().filter(|open| open.client == client).map(|open| open.session.0);
        sessions.any(|session| self.sessions[&session].has_ended)
    }

    /// A server dies, and is back after a time.
    pub fn crash(&mut self, server: usize, time: Duration) {
        let down_until = &mut self.members[server].down_until;
        *down_until = (*down_until).max(Instant::now() + time);
        let lost: Vec<_> = self.connections.iter().filter(|(_, open)| open.server == server).map(|(id, _)| *id).collect();
        for connection in lost {
            self.cut(connection);
        }
    }

    /// A server is cut off from its leader for a time: it answers reads from what it has seen.
    pub fn part(&mut self, server: usize, time: Duration) {
        let apart_until = &mut self.members[server].apart_until;
        *apart_until = (*apart_until).max(Instant::now() + time);
    }

    /// There is no leader for a time, so every server hangs up. What the old one had not decided may be lost, or be decided by
    /// the next.
    pub fn halt(&mut self, time: Duration) {
        self.halted_until = self.halted_until.max(Instant::now() + time);
        for server in &mut self.members {
            server.queue.retain(|_| self.random.below(2) == 0);
        }
        for connection in self.connections() {
            self.cut(connection);
        }
    }

    /// The leader ends a session though its client is there, as it does when its clock jumps.
    pub fn expire_one(&mut self, client: u64) {
        let session = self.connections.values().filter(|open| open.client == client).map(|open| open.session).next_back();
        if let Some(session) = session {
            self.end(session);
        }
    }

    /// Somebody deletes a node by hand.
    pub fn remove(&mut self, path: &str) {
        if let Ok(change) = self.tree.deletion(path, None) {
            self.write(vec![change]);
            self.removed.insert(path.to_owned());
        }
    }

    /// Writes down what happens from now on, for [`take_notes`](Servers::take_notes).
    pub fn write_notes(&mut self) {
        self.notes = Some(Vec::new());
    }

    pub fn take_notes(&mut self) -> Vec<(Instant, String)> {
        self.notes.take().unwrap_or_default()
    }

    pub fn was_removed(&self, path: &str) -> bool {
        self.removed.contains(path)
    }

    /// What was removed by hand.
    pub fn removed(&self) -> impl Iterator<Item = &str> {
        self.removed.iter().map(String::as_str)
    }

    /// Which client deleted it, if one did.
    pub fn deletion(&self, path: &str) -> Option<Deletion> {
        self.deletions.get(path).copied()
    }

    /// Every node that was ever made with this data.
    pub fn made(&self, data: &[u8]) -> Vec<&str> {
        let made = self.log.iter().flatten().filter_map(|change| match change {
            Change::Create { path, data: made, .. } if made == data => Some(path.as_str()),
            Change::Create { .. } | Change::Delete(_) | Change::Set { .. } => None,
        });
        made.collect()
    }

    /// What the leader knows.
    pub fn children(&self, path: &str) -> Vec<String> {
        self.tree.children(path).unwrap_or_default()
    }

    pub fn data(&self, path: &str) -> Option<Vec<u8>> {
        self.tree.read(path).ok().map(|node| node.data)
    }
}
