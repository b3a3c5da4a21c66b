//! One connection to one server, on a thread of its own.
//!
//! The client crate can spin without yielding, panic on a hostile answer, and declare a session expired by its own clock; so
//! it never runs where signals and commands are handled, it is given one server and one connection at a time, and what
//! it does after a connection is lost is not waited for: the thread ends, and a new one resumes the session. A thread that
//! hangs or panics looks the same from outside.

use std::future::Future;
use std::pin::Pin;
use std::thread;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tracing::debug;
use zookeeper_client::{Client, Error, SessionId, SessionInfo, SessionState};

use crate::store::servers::Server;

/// The longer it is the fewer pings are sent; nothing of ours ends with the session. Servers grant 40 s at most by default.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// Closing is a courtesy: the server does the same when the session times out.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// For finding out why a server could not be spoken to.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

pub const THREAD_NAME: &str = "zookeeper";

enum Message {
    Ask(Request),
    Close,
}

type Request = Box<dyn FnOnce(Client) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// Dropped, it is abandoned: the connection ends, and the session may be resumed elsewhere.
pub struct Session {
    messages: mpsc::UnboundedSender<Message>,
    ended: oneshot::Receiver<()>,
    info: SessionInfo,
    server: Server,
}

/// Why a session could not be opened.
pub enum OpenError {
    /// The server itself said that the session to resume has expired: nothing of it can happen any more.
    Expired,
    Failed(String),
}

/// Why a request has no result.
pub enum Failure {
    /// The server's own answer: it did nothing.
    Said(Error),
    /// Connection closed, reset or silent: the request may have been carried out, or may yet be.
    InDoubt(String),
}

impl Session {
    /// Opens a session, or resumes one, at this one server.
    ///
    /// # Cancellation
    /// May be dropped; a session that comes up nevertheless is closed again.
    pub async fn open(server: &Server, resume: Option<SessionInfo>, within: Duration) -> Result<Session, OpenError> {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (opened, opening) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let address = server.clone();
        thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(opened.send(Err(OpenError::Failed(reason(&error))))),
                };
                runtime.block_on(serve(&address, resume, within, opened, inbox));
                runtime.shutdown_background();
                drop(end);
            })
            .map_err(|error| OpenError::Failed(format!("cannot start a thread: {error}")))?;
        // The thread keeps the time itself; this one is for a thread that hangs.
        match timeout(within + PROBE_TIMEOUT + PROBE_TIMEOUT, opening).await {
            Ok(Ok(Ok(info))) => Ok(Session { messages, ended, info, server: server.clone() }),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(OpenError::Failed(
                "the client ended unexpectedly (an answer that is no ZooKeeper's, or no descriptors left)".to_owned(),
            )),
            Err(_) => Err(OpenError::Failed(format!("no answer in {}", humantime::format_duration(within)))),
        }
    }

    pub fn id(&self) -> SessionId {
        self.info.id()
    }

    /// What it takes to resume this session elsewhere.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Has the client asked, on its own thread, and waits for the answer as long as the connection lasts.
    ///
    /// # Cancellation
    /// May be dropped, but what was sent is sent: a write that was dropped may be carried out.
    pub async fn call<T, F>(&self, request: impl FnOnce(Client) -> F + Send + 'static) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
    {
        let (mut reply, answer) = oneshot::channel();
        let request: Request = Box::new(move |client| {
            Box::pin(async move {
                tokio::select! {
                    result = request(client) => drop(reply.send(result)),
                    () = reply.closed() => {}
                }
            })
        });
        if self.messages.send(Message::Ask(request)).is_err() {
            return Err(Failure::InDoubt("the connection was lost".to_owned()));
        }
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if is_definite(&error) => Err(Failure::Said(error)),
            Ok(Err(error)) => Err(Failure::InDoubt(error.to_string())),
            Err(_) => Err(Failure::InDoubt("the connection was lost".to_owned())),
        }
    }

    /// Whether its thread has ended, because the connection was lost.
    pub fn is_over(&self) -> bool {
        self.messages.is_closed()
    }

    /// Closes the session, as far as that takes no time worth waiting for.
    pub async fn close(self) {
        _ = self.messages.send(Message::Close);
        _ = timeout(CLOSE_TIMEOUT, self.ended).await;
    }
}

async fn serve(
    server: &Server,
    resume: Option<SessionInfo>,
    within: Duration,
    opened: oneshot::Sender<Result<SessionInfo, OpenError>>,
    mut inbox: mpsc::UnboundedReceiver<Message>,
) {
    let resumes = resume.is_some();
    let client = match connect(server, resume, within).await {
        Ok(client) => client,
        Err(error) => {
            _ = opened.send(Err(error));
            return;
        }
    };
    let mut state = client.state_watcher();
    let is_wanted = opened.send(Ok(client.session().clone())).is_ok();
    let requests = LocalSet::new();
    let conversation = requests.run_until(async {
        if !is_wanted {
            return if resumes { End::Abandoned } else { End::Closed };
        }
        loop {
            tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    Some(Message::Ask(request)) => drop(tokio::task::spawn_local(request(client.clone()))),
                    Some(Message::Close) => return End::Closed,
                    None => return End::Abandoned,
                },
                state = state.changed() => if state != SessionState::SyncConnected {
                    debug!("connection to {server}: {state}");
                    return End::Abandoned;
                },
            }
        }
    });
    match conversation.await {
        End::Abandoned => {}
        End::Closed => {
            drop(requests);
            drop(client);
            let closed = async { while !state.changed().await.is_terminated() {} };
            _ = timeout(CLOSE_TIMEOUT, closed).await;
        }
    }
}

enum End {
    Closed,
    Abandoned,
}

async fn connect(server: &Server, resume: Option<SessionInfo>, within: Duration) -> Result<Client, OpenError> {
    let mut connector = Client::connector().with_session_timeout(SESSION_TIMEOUT).with_fail_eagerly();
    let resumes = resume.is_some();
    if let Some(info) = resume {
        connector = connector.with_session(info);
    }
    let error = match timeout(within, connector.connect(&server.to_string())).await {
        Ok(Ok(client)) => return Ok(client),
        Ok(Err(Error::SessionExpired)) if resumes => return Err(OpenError::Expired),
        Ok(Err(Error::NoHosts)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer in {}", humantime::format_duration(within))),
    };
    Err(OpenError::Failed(cause(server, error).await))
}

/// The client keeps the reason of a failed connect to itself; so the server is tried once more without it.
async fn cause(server: &Server, error: Option<String>) -> String {
    match timeout(PROBE_TIMEOUT, TcpStream::connect((server.host.as_str(), server.port))).await {
        Ok(Err(error)) => reason(&error),
        Err(_) => "no answer".to_owned(),
        Ok(Ok(_)) => error.unwrap_or_else(|| "it closed the connection (no ZooKeeper, or too many connections?)".to_owned()),
    }
}

fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => String::new(),
    }
}

/// Whether this error is the server's own answer, so that nothing was changed. Anything else means "perhaps".
fn is_definite(error: &Error) -> bool {
    matches!(
        error,
        Error::NoNode
            | Error::NoAuth
            | Error::InvalidAcl
            | Error::NodeExists
            | Error::BadVersion
            | Error::NotEmpty
            | Error::NoChildrenForEphemerals
            | Error::QuotaExceeded
            | Error::Throttled
            | Error::BadArguments(_)
            | Error::MarshallingError
            | Error::Unimplemented
            | Error::NotReadOnly
            | Error::AuthFailed
    )
}
