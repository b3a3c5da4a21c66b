//! A TCP proxy that looks at ZooKeeper's requests and loses what it was told to lose.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::bench::LIMIT;

/// Requests, by their numbers in ZooKeeper's protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The close of a session.
    Close = -11,
    /// The first on a connection, which asks for a session; ZooKeeper's number for what becomes of it.
    Connect = -10,
    Delete = 2,
    Sync = 9,
    List = 8,
    Create = 15,
}

/// What becomes of a request that is to be lost.
#[derive(Clone, Copy)]
pub enum Fate {
    /// It never reaches the server, and the connection ends.
    Eaten,
    /// The server gets it, and the connection ends before its reply.
    Unanswered,
    /// None: it only has to come before the next one in the list.
    Spared,
    /// It is the last thing that is heard: every connection stays open and silent.
    Silence,
}

/// Dropped, it accepts nobody any more.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    /// What to lose, first come first.
    losses: Mutex<Vec<(Request, Fate)>>,
    lost: AtomicUsize,
    is_over: AtomicBool,
    is_silent: AtomicBool,
}

impl Proxy {
    /// In front of a server; loses these requests, each once, in this order.
    pub fn start(upstream: &str, losses: &[(Request, Fate)]) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let losses = Mutex::new(losses.iter().rev().copied().collect());
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            losses,
            lost: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.is_over.load(Ordering::SeqCst) {
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

    /// Waits until so many requests were lost, or spared.
    pub fn loses(&self, number: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.lost() < number {
            assert!(Instant::now() < deadline, "only {} of {number} came", self.lost());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// How many requests were lost so far.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        _ = TcpStream::connect(self.address());
    }
}

impl Shared {
    fn connect(self: &Arc<Shared>, client: TcpStream, server: TcpStream) {
        let (mut from_server, mut to_client) = (server.try_clone().expect("a clone"), client.try_clone().expect("a clone"));
        let answers = thread::spawn(move || {
            _ = std::io::copy(&mut from_server, &mut to_client);
            _ = to_client.shutdown(Shutdown::Both);
        });
        let shared = Arc::clone(self);
        thread::spawn(move || {
            if let Some(Fate::Unanswered) = shared.forward(&client, &server) {
                // Ends when the answer finds nobody: then the request was carried out.
                _ = answers.join();
            }
            _ = client.shutdown(Shutdown::Both);
            _ = server.shutdown(Shutdown::Both);
        });
    }

    /// Forwards requests until one is to be lost, or the connection ends.
    fn forward(&self, mut client: &TcpStream, mut server: &TcpStream) -> Option<Fate> {
        let mut is_first = true;
        loop {
            let mut length = [0; 4];
            client.read_exact(&mut length).ok()?;
            if self.is_silent.load(Ordering::SeqCst) {
                // Reads on, and swallows it all.
                _ = std::io::copy(&mut client, &mut std::io::sink());
                return None;
            }
            let mut body = vec![0; u32::from_be_bytes(length) as usize];
            client.read_exact(&mut body).ok()?;
            // The first is the request for a session, which says no number.
            let kind = match std::mem::replace(&mut is_first, false) {
                true => Some(Request::Connect as i32),
                false => body.get(4..8).map(|kind| i32::from_be_bytes(kind.try_into().expect("four bytes"))),
            };
            let fate = self.fate_of(kind);
            match fate {
                Some(Fate::Eaten) => return fate,
                Some(Fate::Silence) => self.is_silent.store(true, Ordering::SeqCst),
                Some(Fate::Unanswered) => client.shutdown(Shutdown::Both).ok()?,
                Some(Fate::Spared) | None => {}
            }
            match fate {
                Some(Fate::Silence) => continue,
                _ => server.write_all(&[&length[..], &body].concat()).ok()?,
            }
            if let Some(Fate::Unanswered) = fate {
                return fate;
            }
        }
    }

    fn fate_of(&self, kind: Option<i32>) -> Option<Fate> {
        let mut losses = self.losses.lock().expect("not poisoned");
        match losses.last() {
            Some((request, fate)) if Some(*request as i32) == kind => {
                let fate = *fate;
                losses.pop();
                self.lost.fetch_add(1, Ordering::SeqCst);
                Some(fate)
            }
            Some(_) | None => None,
        }
    }
}
