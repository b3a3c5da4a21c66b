//! A TCP proxy that looks at ZooKeeper's requests, and does to them what networks and servers do: it loses them or their
//! answers, with or without a reset; holds everything up, or one answer; is slow; or hangs up now and then.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use syncd_spawn::store::Random;

use super::bench::LIMIT;
use super::wire::{self, Operation};

pub use super::wire::Request;

/// What becomes of a request that is to be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never reaches the server, and the connection ends.
    Eaten,
    /// The server gets it, and the connection ends before its reply.
    Unanswered,
    /// None: it only has to come before the next one in the list.
    Spared,
    /// Its reply stays in the server until another request comes on this connection, or another connection: servers from
    /// 3.6.0 to 3.8.0 do it now and then (ZOOKEEPER-4537).
    HeldBack,
    /// From it on nothing gets through this way.
    Blackhole(Direction),
}

/// What the client sees of the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Fin,
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// Dropped, it accepts nobody any more, and delivers nothing that it still has.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// What to lose, the first one last.
    losses: Vec<(Request, Fate)>,
    ending: Ending,
    chance: Option<Random>,
    lost: usize,
    accepted: usize,
    /// By direction.
    is_blackhole: [bool; 2],
    delay: [Duration; 2],
    /// The kinds of what was asked for.
    flights: Vec<Vec<i32>>,
    /// Whether nothing was asked for since the last answer.
    is_answered: bool,
    is_over: bool,
}

/// Between one client and the server.
struct Connection {
    /// For what goes to the client; none once it was hung up on.
    client: Mutex<Option<TcpStream>>,
    server: TcpStream,
    held_back: Mutex<Option<i32>>,
    /// Hung up on at the request of this number.
    doom: Option<(usize, Fate, Ending)>,
}

impl Proxy {
    /// In front of a server; loses these requests, each once, in this order.
    pub fn start(upstream: &str, losses: &[(Request, Fate)]) -> Proxy {
        Proxy::start_with(upstream, losses, Ending::Fin)
    }

    /// The same with connections that end like this.
    pub fn start_with(upstream: &str, losses: &[(Request, Fate)], ending: Ending) -> Proxy {
        Proxy::run(upstream, losses, ending, None)
    }

    /// Hangs up on one connection in ten, before or after it forwarded one of its first requests, by FIN or by RST.
    pub fn chaos(upstream: &str, seed: u64) -> Proxy {
        Proxy::run(upstream, &[], Ending::Fin, Some(Random(seed)))
    }

    fn run(upstream: &str, losses: &[(Request, Fate)], ending: Ending, chance: Option<Random>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let state = State {
            losses: losses.iter().rev().copied().collect(),
            ending,
            chance,
            lost: 0,
            accepted: 0,
            is_blackhole: [false; 2],
            delay: [Duration::ZERO; 2],
            flights: Vec::new(),
            is_answered: true,
            is_over: false,
        };
        let shared = Arc::new(Shared { upstream: upstream.to_owned(), state: Mutex::new(state), changed: Condvar::default() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.state().is_over {
                    return;
                }
                if let Ok(server) = TcpStream::connect(&accepting.upstream) {
                    accepting.connect(client, server);
                }
            }
        });
        Proxy { port, shared }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many requests were lost so far.
    pub fn lost(&self) -> usize {
        self.shared.state().lost
    }

    /// The kinds of the requests, each time those that left before an answer came; but for those that nobody waits for: they keep
    /// a session alive, take a watch back, or wake a server up that keeps an answer back.
    pub fn flights(&self) -> Vec<Vec<i32>> {
        self.shared.state().flights.clone()
    }

    /// Waits until this was asked for, and answered, and nothing after it.
    pub fn answers(&self, flight: &[i32]) {
        self.shared.wait_until(|state| state.is_answered && state.flights.last().is_some_and(|last| last == flight));
    }

    /// Waits until so many requests were lost.
    pub fn loses(&self, requests: usize) {
        self.shared.wait_until(|state| state.lost >= requests);
    }

    /// Waits until a client connects that was not there yet.
    pub fn is_tried_again(&self) {
        let accepted = self.shared.state().accepted;
        self.shared.wait_until(|state| state.accepted > accepted);
    }

    /// Lets nothing through this way, connections open and ended alike, until it is healed: then it arrives late.
    pub fn blackhole(&self, direction: Direction) {
        self.shared.change(|state| state.is_blackhole[direction as usize] = true);
    }

    pub fn heal(&self) {
        self.shared.change(|state| state.is_blackhole = [false; 2]);
    }

    /// Makes each request or answer that goes this way later by this much, one after the other.
    pub fn delay(&self, direction: Direction, by: Duration) {
        self.shared.change(|state| state.delay[direction as usize] = by);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| state.is_over = true);
        _ = TcpStream::connect(self.address());
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
        // The lock is free again before this fails: the drop needs it.
        let is_late = {
            let waited = self.changed.wait_timeout_while(self.state(), LIMIT, |state| !is_so(state)).expect("not poisoned");
            waited.1.timed_out()
        };
        assert!(!is_late, "the proxy has not seen it");
    }

    /// Waits at a gate as long as it is shut; an error once the proxy is over.
    fn wait_while(&self, is_shut: impl Fn(&State) -> bool) -> Result<MutexGuard<'_, State>> {
        let state = self.changed.wait_while(self.state(), |state| is_shut(state) && !state.is_over).expect("not poisoned");
        if state.is_over { Err(Error::from(ErrorKind::ConnectionAborted)) } else { Ok(state) }
    }

    /// Keeps a frame as long as the way is closed, and then as long as the way is.
    fn pass(&self, direction: Direction) -> Result<()> {
        let delay = self.wait_while(|state| state.is_blackhole[direction as usize])?.delay[direction as usize];
        thread::sleep(delay);
        Ok(())
    }

    fn connect(self: &Arc<Shared>, client: TcpStream, server: TcpStream) {
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("a socket");
        }
        let connection = Arc::new(Connection {
            client: Mutex::new(Some(client.try_clone().expect("a clone"))),
            server,
            held_back: Mutex::default(),
            doom: self.state().chance.as_mut().and_then(doom),
        });
        self.change(|state| state.accepted += 1);
        let (shared, answering) = (Arc::clone(self), Arc::clone(&connection));
        let answers = thread::spawn(move || {
            _ = shared.answer(&answering);
            // An end takes the same way as what came before it.
            _ = shared.pass(Direction::ToClient);
            answering.hang_up(Ending::Fin);
        });
        let shared = Arc::clone(self);
        thread::spawn(move || {
            if let Ok(Fate::Unanswered) = shared.forward(&connection, client) {
                // Ends when the answer finds nobody: then the request was carried out.
                _ = answers.join();
            }
            _ = shared.pass(Direction::ToServer);
            _ = connection.server.shutdown(Shutdown::Both);
        });
    }

    /// Forwards requests until one is lost, or the connection ends.
    fn forward(&self, connection: &Connection, client: TcpStream) -> Result<Fate> {
        for number in 0.. {
            let frame = Frame::read(&client, number == 0)?;
            // Whatever comes gets an answer moving that was held back.
            self.change(|state| {
                *connection.held_back.lock().expect("not poisoned") = None;
                state.note(&frame);
            });
            let (fate, ending) = self.fate_of(&frame, connection.doom.filter(|(at, ..)| *at == number));
            match fate {
                Fate::Spared => {}
                Fate::Eaten => {
                    connection.end(client, ending);
                    return Ok(fate);
                }
                Fate::Unanswered => {
                    self.pass(Direction::ToServer)?;
                    connection.end(client, ending);
                    (&connection.server).write_all(&frame.bytes)?;
                    return Ok(fate);
                }
                Fate::HeldBack => *connection.held_back.lock().expect("not poisoned") = Some(frame.xid()),
                Fate::Blackhole(direction) => self.change(|state| state.is_blackhole[direction as usize] = true),
            }
            self.pass(Direction::ToServer)?;
            (&connection.server).write_all(&frame.bytes)?;
        }
        unreachable!("so many requests")
    }

    fn fate_of(&self, frame: &Frame, doom: Option<(usize, Fate, Ending)>) -> (Fate, Ending) {
        let mut state = self.state();
        let (fate, ending) = match (doom, state.losses.last()) {
            (Some((_, fate, ending)), _) => (fate, ending),
            (None, Some(&(request, fate))) if request.is_in(&frame.operations()) => {
                state.losses.pop();
                (fate, state.ending)
            }
            (None, _) => return (Fate::Spared, state.ending),
        };
        state.lost += 1;
        self.changed.notify_all();
        (fate, ending)
    }

    /// Forwards answers until the connection ends.
    fn answer(&self, connection: &Connection) -> Result<()> {
        let mut is_first = true;
        loop {
            let frame = Frame::read(&connection.server, is_first)?;
            is_first = false;
            let accepted = self.state().accepted;
            let is_held_back = || *connection.held_back.lock().expect("not poisoned") == Some(frame.xid());
            drop(self.wait_while(|state| state.accepted == accepted && is_held_back())?);
            self.pass(Direction::ToClient)?;
            self.change(|state| state.is_answered = true);
            match connection.client.lock().expect("not poisoned").as_mut() {
                Some(client) => client.write_all(&frame.bytes)?,
                None => return Ok(()),
            }
        }
    }
}

impl State {
    /// Writes down that it was asked for.
    fn note(&mut self, request: &Frame) {
        const PING: i32 = 11;
        const REMOVE_WATCHES: i32 = 18;
        let wakes = |operation: &Operation| operation.is(Request::Exists) && operation.path == "/";
        if [PING, REMOVE_WATCHES].contains(&request.kind()) || request.operations().iter().any(wakes) {
            return;
        }
        if std::mem::take(&mut self.is_answered) {
            self.flights.push(Vec::new());
        }
        self.flights.last_mut().expect("one has begun").push(request.kind());
    }
}

impl Connection {
    /// Ends it for its client. A reset is sent when the last handle of a socket that does not linger is closed.
    fn end(&self, client: TcpStream, ending: Ending) {
        if ending == Ending::Reset {
            let socket = tokio::net::TcpSocket::from_std_stream(client.try_clone().expect("a clone"));
            socket.set_zero_linger().expect("a socket");
        }
        drop(client);
        self.hang_up(ending);
    }

    fn hang_up(&self, ending: Ending) {
        if let (Some(client), Ending::Fin) = (self.client.lock().expect("not poisoned").take(), ending) {
            _ = client.shutdown(Shutdown::Both);
        }
    }
}

/// A request or an answer, with its length before it.
struct Frame {
    bytes: Vec<u8>,
    is_first: bool,
}

impl Frame {
    /// The first of a connection asks for a session, or grants it, and has no header.
    fn read(mut from: &TcpStream, is_first: bool) -> Result<Frame> {
        let mut bytes = vec![0; 4];
        from.read_exact(&mut bytes)?;
        let length = u32::from_be_bytes(bytes[..].try_into().expect("four bytes"));
        bytes.resize(4 + length as usize, 0);
        from.read_exact(&mut bytes[4..])?;
        Ok(Frame { bytes, is_first })
    }

    fn number(&self, at: usize) -> Option<i32> {
        let bytes = self.bytes.get(at..at + 4).filter(|_| !self.is_first)?;
        Some(i32::from_be_bytes(bytes.try_into().expect("four bytes")))
    }

    /// What an answer has in common with its request.
    fn xid(&self) -> i32 {
        self.number(4).unwrap_or(i32::MIN)
    }

    fn kind(&self) -> i32 {
        self.number(8).unwrap_or(Request::Connect as i32)
    }

    /// What it asks for, if it is a request.
    fn operations(&self) -> Vec<Operation> {
        wire::operations(self.kind(), self.bytes.get(12..).unwrap_or_default())
    }
}

/// One connection in ten comes to a bad end, among the requests that a short one has.
fn doom(random: &mut Random) -> Option<(usize, Fate, Ending)> {
    let (is_doomed, number) = (random.below(10) == 0, random.index(5));
    let fate = [Fate::Eaten, Fate::Unanswered][random.index(2)];
    let ending = [Ending::Fin, Ending::Reset][random.index(2)];
    is_doomed.then_some((number, fate, ending))
}
