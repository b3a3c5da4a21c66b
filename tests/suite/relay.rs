//! A TCP relay that can be slow in one direction, and can cut what goes through it.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// How long a client waits for a server that is not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Dropped, it cuts everything and accepts nobody any more.
pub struct Relay {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    /// How late arrives what goes upstream, in milliseconds.
    delay: AtomicU64,
    is_over: AtomicBool,
    connections: Mutex<HashMap<u64, [TcpStream; 2]>>,
}

impl Relay {
    /// In front of a server.
    pub fn start(upstream: &str) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            delay: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for (number, client) in (0..).zip(listener.incoming().map_while(Result::ok)) {
                if accepting.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                thread::spawn(move || {
                    if let Some(server) = shared.reach() {
                        shared.connect(number, client, server);
                    }
                });
            }
        });
        Relay { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on what goes upstream arrives this much later, and in order.
    pub fn slow(&self, delay: Duration) {
        let delay = delay.as_millis().try_into().expect("a short time");
        self.shared.delay.store(delay, Ordering::SeqCst);
    }

    /// Ends every connection; new ones are accepted. What is on its way upstream is lost.
    pub fn cut(&self) {
        for (_, ends) in self.shared.connections().drain() {
            ends.iter().for_each(hang_up);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        _ = TcpStream::connect(self.address());
        self.cut();
    }
}

impl Shared {
    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<u64, [TcpStream; 2]>> {
        self.connections.lock().expect("not poisoned")
    }

    /// The server, unless it does not come for a while. A client that is hung up on thinks worse of it than one that waits.
    fn reach(&self) -> Option<TcpStream> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline && !self.is_over.load(Ordering::SeqCst) {
            match TcpStream::connect(&self.upstream) {
                Ok(server) => return Some(server),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
        None
    }

    fn connect(self: &Arc<Shared>, number: u64, client: TcpStream, server: TcpStream) {
        let twin = |stream: &TcpStream| stream.try_clone().expect("a clone");
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("a socket");
        }
        self.connections().insert(number, [twin(&client), twin(&server)]);
        let (mut from_server, mut to_client) = (twin(&server), twin(&client));
        thread::spawn(move || {
            _ = std::io::copy(&mut from_server, &mut to_client);
            hang_up(&to_client);
            hang_up(&from_server);
        });
        let (late, due) = mpsc::channel::<(Instant, Vec<u8>)>();
        let mut to_server = server;
        thread::spawn(move || {
            for (time, bytes) in due {
                thread::sleep(time.saturating_duration_since(Instant::now()));
                if to_server.write_all(&bytes).is_err() {
                    return;
                }
            }
            hang_up(&to_server);
        });
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length @ 1..) = (&client).read(&mut buffer) {
                let delay = Duration::from_millis(shared.delay.load(Ordering::SeqCst));
                if late.send((Instant::now() + delay, buffer[..length].to_vec())).is_err() {
                    break;
                }
            }
            drop(late);
            shared.connections().remove(&number);
        });
    }
}

fn hang_up(stream: &TcpStream) {
    // One that has ended already is as good.
    _ = stream.shutdown(Shutdown::Both);
}
