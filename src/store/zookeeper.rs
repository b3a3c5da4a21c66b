//! ZooKeeper itself: each connection to a server on a thread of its own.
//!
//! The client crate can spin without yielding, panic on a hostile answer, and declare a session expired by its own clock; so
//! it never runs where signals and commands are handled, it is given one server and one connection at a time, and what
//! it does after a connection is lost is not waited for: the thread ends, and a new one resumes the session. A thread that
//! hangs or panics looks the same from outside.

use std::future::Future;
use std::pin::{Pin, pin};
use std::thread;
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;
use tracing::debug;
use uuid::Uuid;
use zookeeper_client::{
    Acl, Acls, Client, CreateMode, CreateOptions, Error, EventType, MultiWriteError, MultiWriteResult, MultiWriter, Permission,
    SessionInfo, SessionState,
};

use super::ensemble::{
    self, Created, Failure, Lasting, Node, OpenError, Operation, Refusal, SessionId, Stat, Transacted, Watched,
};
use super::recipe::Recipe;
use super::servers::{Server, Servers};
use crate::clock;
use crate::lock::{AbsolutePath, Limit, StoreError};

/// The longer it is the fewer pings are sent, and the longer a lock that is bound to it outlasts an outage. Servers grant 40 s at
/// most by default.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);
/// For closing a session that nobody asked for.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// For finding out why a server could not be spoken to.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

const THREAD_NAME: &str = "zookeeper";
const PERSISTENT: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
/// Ensembles of 3.6.0 to 3.8.0 may hold an answer back until they hear the next request (ZOOKEEPER-4537, fixed in 3.8.1). So as
/// long as one is due, another one is sent this often.
const NUDGE: Duration = Duration::from_millis(200);

enum Message {
    Ask(Request),
    Close(Duration),
}

type Request = Box<dyn FnOnce(Client) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The queues of a ZooKeeper ensemble below a chroot.
pub type ZooKeeper = Recipe<Network>;

impl ZooKeeper {
    /// [`Recipe::open`] on these servers.
    pub async fn connect(
        servers: Servers,
        chroot: AbsolutePath,
        limit: Limit,
        release_timeout: Duration,
    ) -> Result<ZooKeeper, StoreError> {
        Recipe::open(Network { servers }, chroot, limit, release_timeout).await
    }
}

/// The servers of a connection string.
pub struct Network {
    servers: Servers,
}

impl ensemble::Ensemble for Network {
    type Session = Session;

    fn servers(&self) -> &Servers {
        &self.servers
    }

    async fn open(&self, server: &Server, resume: Option<&SessionInfo>, within: Duration) -> Result<Session, OpenError> {
        let (messages, inbox) = mpsc::unbounded_channel();
        let (opened, opening) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let (address, resume) = (server.clone(), resume.cloned());
        thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(move || {
                let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(opened.send(Err(OpenError::Failed(reason(&error))))),
                };
                let how = runtime.block_on(serve(&address, resume, within, opened, inbox));
                runtime.shutdown_background();
                _ = end.send(how);
            })
            .map_err(|error| OpenError::Failed(format!("cannot start a thread: {error}")))?;
        // The thread keeps the time itself; this one is for a thread that hangs.
        match timeout(within + PROBE_TIMEOUT + PROBE_TIMEOUT, opening).await {
            Ok(Ok(Ok((info, timeout)))) => Ok(Session { messages, ended, info, timeout, server: server.clone() }),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(OpenError::Failed(
                "the client ended unexpectedly (an answer that is no ZooKeeper's, or no descriptors left)".to_owned(),
            )),
            Err(_) => Err(OpenError::Failed(format!("no answer in {}", humantime::format_duration(within)))),
        }
    }

    fn random(&self) -> u128 {
        Uuid::new_v4().as_u128()
    }

    fn clock(&self) -> Duration {
        clock::now()
    }

    async fn reaches(&self, when: Duration) {
        clock::reaches(when).await;
    }
}

/// A connection, and the thread that has it.
pub struct Session {
    messages: mpsc::UnboundedSender<Message>,
    ended: oneshot::Receiver<End>,
    info: SessionInfo,
    /// As the server granted it.
    timeout: Duration,
    server: Server,
}

impl Session {
    /// Has the client asked, on its own thread, and waits for the answer as long as the connection lasts.
    async fn call<T, F>(&self, request: impl FnOnce(Client) -> F + Send + 'static) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
    {
        self.converse(async move |client: Client| nudging(&client.clone(), request(client)).await).await
    }

    /// The same for an exchange in which nothing is due at times.
    async fn converse<T, F>(&self, request: impl FnOnce(Client) -> F + Send + 'static) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + 'static,
    {
        let (mut reply, answer) = oneshot::channel();
        let request: Request = Box::new(move |client| {
            Box::pin(async move {
                tokio::select! {
                    biased;
                    result = request(client) => drop(reply.send(result)),
                    () = reply.closed() => {}
                }
            })
        });
        self.messages.send(Message::Ask(request)).map_err(|_| lost())?;
        answer.await.map_err(|_| lost())?.map_err(|error| failure(&error))
    }
}

impl ensemble::Session for Session {
    type Key = SessionInfo;

    fn id(&self) -> SessionId {
        SessionId(self.info.id().0)
    }

    fn key(&self) -> SessionInfo {
        self.info.clone()
    }

    fn server(&self) -> &Server {
        &self.server
    }

    /// Its thread has ended.
    fn is_over(&self) -> bool {
        self.messages.is_closed()
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    async fn create(&self, prefix: &str, data: &[u8], lasting: Lasting) -> Result<Created, Failure> {
        let (path, data) = (prefix.to_owned(), data.to_vec());
        self.call(async move |client: Client| {
            let (stat, sequence) = client.create(&path, &data, &next(lasting)).await?;
            Ok(Created { path: format!("{path}{sequence}"), zxid: stat.czxid.cast_unsigned() })
        })
        .await
    }

    async fn make_directory(&self, path: &str) -> Result<(), Failure> {
        let path = path.to_owned();
        self.call(async move |client: Client| client.mkdir(&path, &PERSISTENT).await).await
    }

    async fn delete(&self, path: &str, version: Option<i32>) -> Result<(), Failure> {
        let path = path.to_owned();
        self.call(async move |client: Client| client.delete(&path, version).await).await
    }

    async fn transact(&self, operations: Vec<Operation>) -> Result<Transacted, Failure> {
        self.call(async move |client: Client| {
            let mut writer = client.new_multi_writer();
            for operation in &operations {
                add(&mut writer, operation)?;
            }
            match writer.commit().await {
                Ok(results) => Ok(Ok(Transacted::Done(results.into_iter().filter_map(path_made).collect()))),
                Err(MultiWriteError::OperationFailed { index: at, source }) => match failure(&source) {
                    Failure::Said(why) => Ok(Ok(Transacted::Refused { at, why })),
                    Failure::InDoubt(cause) => Ok(Err(cause)),
                },
                Err(error) => Err(error.into()),
            }
        })
        .await?
        .map_err(Failure::InDoubt)
    }

    async fn may_delete(&self, directory: &str, probe: &str) -> Result<(), Failure> {
        let (directory, path) = (directory.to_owned(), format!("{directory}/{probe}"));
        self.call(async move |client: Client| {
            match client.get_acl(&directory).await {
                Ok((acls, _)) if acls.iter().any(is_open) => return Ok(()),
                Ok(_) | Err(Error::NoAuth) => {}
                Err(error) => return Err(error),
            }
            let mut writer = client.new_multi_writer();
            writer.add_create(&path, &[], &PERSISTENT)?;
            writer.add_delete(&path, None)?;
            match writer.commit().await {
                // That we may not create either is told when we do.
                Ok(_) | Err(MultiWriteError::OperationFailed { index: 0, .. }) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    async fn sync(&self, path: &str) -> Result<(), Failure> {
        let path = path.to_owned();
        self.call(async move |client: Client| client.sync(&path).await).await
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, Failure> {
        let path = path.to_owned();
        self.call(async move |client: Client| client.list_children(&path).await).await
    }

    async fn stat(&self, path: &str) -> Result<Option<Stat>, Failure> {
        let path = path.to_owned();
        self.call(async move |client: Client| Ok(client.check_stat(&path).await?.map(stat))).await
    }

    async fn read(&self, paths: Vec<String>) -> Result<Vec<Result<Node, Refusal>>, Failure> {
        self.call(async move |client: Client| {
            // Asked for when called, so all leave before the first is waited for.
            let asked: Vec<_> = paths.iter().map(|path| client.get_data(path)).collect();
            let mut nodes = Vec::with_capacity(asked.len());
            for answer in asked {
                nodes.push(match answer.await {
                    Ok((data, node)) => Ok(Node { data, stat: stat(node) }),
                    Err(error) => match failure(&error) {
                        Failure::Said(refusal) => Err(refusal),
                        Failure::InDoubt(cause) => return Ok(Err(cause)),
                    },
                });
            }
            Ok(Ok(nodes))
        })
        .await?
        .map_err(Failure::InDoubt)
    }

    async fn watch(&self, path: &str) -> Result<Watched, Failure> {
        let path = path.to_owned();
        self.converse(async move |client: Client| match nudging(&client, client.check_and_watch_stat(&path)).await? {
            (None, _) => Ok(Watched::Gone),
            (Some(_), watcher) => match watcher.changed().await.event_type {
                EventType::NodeDeleted => Ok(Watched::Gone),
                _ => Ok(Watched::There),
            },
        })
        .await
    }

    async fn close(self, within: Duration) -> bool {
        _ = self.messages.send(Message::Close(within));
        matches!(timeout(within, self.ended).await, Ok(Ok(End::Closed)))
    }
}

async fn serve(
    server: &Server,
    resume: Option<SessionInfo>,
    within: Duration,
    opened: oneshot::Sender<Result<(SessionInfo, Duration), OpenError>>,
    mut inbox: mpsc::UnboundedReceiver<Message>,
) -> End {
    let resumes = resume.is_some();
    let client = match connect(server, resume, within).await {
        Ok(client) => client,
        Err(error) => {
            _ = opened.send(Err(error));
            return End::Lost;
        }
    };
    let mut state = client.state_watcher();
    let is_wanted = opened.send(Ok((client.session().clone(), client.session_timeout()))).is_ok();
    let requests = LocalSet::new();
    let conversation = requests.run_until(async {
        if !is_wanted {
            return if resumes { None } else { Some(CLOSE_TIMEOUT) };
        }
        loop {
            tokio::select! {
                biased;
                message = inbox.recv() => match message {
                    Some(Message::Ask(request)) => drop(tokio::task::spawn_local(request(client.clone()))),
                    Some(Message::Close(within)) => return Some(within),
                    None => return None,
                },
                state = state.changed() => if state != SessionState::SyncConnected {
                    debug!("connection to {server}: {state}");
                    return None;
                },
            }
        }
    });
    let Some(within) = conversation.await else { return End::Lost };
    // The last client closes its session, and tells when that was answered. Whatever comes before tells of a lost connection.
    drop(requests);
    drop(client);
    match timeout(within, state.changed()).await {
        Ok(SessionState::Closed) => End::Closed,
        Ok(_) | Err(_) => End::Lost,
    }
}

/// Sends something now and then while an answer is due.
async fn nudging<T>(client: &Client, request: impl Future<Output = T>) -> T {
    let mut request = pin!(request);
    loop {
        match timeout(NUDGE, request.as_mut()).await {
            Ok(answer) => return answer,
            // It leaves when it is called; its answer is of no interest.
            Err(_) => drop(client.check_stat("/")),
        }
    }
}

/// How a connection ended.
enum End {
    /// By the end of its session, which the server confirmed.
    Closed,
    Lost,
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
        Ok(Err(Error::NoHosts | Error::ConnectionLoss)) => None,
        Ok(Err(error)) => Some(error.to_string()).filter(|text| !is_hanging_up(text)),
        Err(_) => Some(format!("no answer in {}", humantime::format_duration(within))),
    };
    Err(OpenError::Failed(cause(server, error).await))
}

/// A server that hangs up at once is met in the middle of our first request.
fn is_hanging_up(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("broken pipe") || text.contains("connection reset")
}

/// The client keeps the reason of a failed connect to itself; so the server is tried once more without it.
async fn cause(server: &Server, error: Option<String>) -> String {
    match timeout(PROBE_TIMEOUT, TcpStream::connect((server.host.as_str(), server.port))).await {
        Ok(Err(refused)) if !is_hanging_up(&refused.to_string()) => reason(&refused),
        Err(_) => "no answer".to_owned(),
        Ok(Ok(_) | Err(_)) => {
            error.unwrap_or_else(|| "it closed the connection (no ZooKeeper, or too many connections?)".to_owned())
        }
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

fn lost() -> Failure {
    Failure::InDoubt("the connection was lost".to_owned())
}

fn one(lasting: Lasting) -> CreateOptions<'static> {
    let mode = match lasting {
        Lasting::Persistent => CreateMode::Persistent,
        Lasting::Ephemeral => CreateMode::Ephemeral,
    };
    mode.with_acls(Acls::anyone_all())
}

fn next(lasting: Lasting) -> CreateOptions<'static> {
    let mode = match lasting {
        Lasting::Persistent => CreateMode::PersistentSequential,
        Lasting::Ephemeral => CreateMode::EphemeralSequential,
    };
    mode.with_acls(Acls::anyone_all())
}

/// The version by which the servers know that any will do.
const ANY_VERSION: i32 = -1;

fn add(writer: &mut MultiWriter<'_>, operation: &Operation) -> Result<(), Error> {
    match operation {
        Operation::Create { path, data, lasting } => writer.add_create(path, data, &one(*lasting)),
        Operation::CreateNext { prefix, data, lasting } => writer.add_create(prefix, data, &next(*lasting)),
        Operation::Delete { path, version } => writer.add_delete(path, *version),
        Operation::Set { path, data, version } => writer.add_set_data(path, data, *version),
        Operation::Check { path } => writer.add_check_version(path, ANY_VERSION),
    }
}

fn path_made(result: MultiWriteResult) -> Option<String> {
    match result {
        MultiWriteResult::Create { path, .. } => Some(path),
        // Its other kinds make nothing.
        _ => None,
    }
}

/// Whether everybody may do what a contender has to.
fn is_open(acl: &Acl) -> bool {
    acl.scheme() == "world" && acl.permission().has(Permission::DELETE)
}

fn stat(stat: zookeeper_client::Stat) -> Stat {
    Stat { czxid: stat.czxid.cast_unsigned(), ctime: time(stat.ctime), mtime: time(stat.mtime), version: stat.version }
}

fn time(milliseconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.try_into().unwrap_or(0))
}

/// Whether this error is the server's own answer, so that nothing was changed. Anything else means "perhaps".
fn failure(error: &Error) -> Failure {
    match error {
        Error::NoNode => Failure::Said(Refusal::NoNode),
        Error::NodeExists => Failure::Said(Refusal::NodeExists),
        Error::BadVersion => Failure::Said(Refusal::BadVersion),
        Error::NoAuth => Failure::Said(Refusal::NoAuth),
        Error::InvalidAcl
        | Error::NotEmpty
        | Error::NoChildrenForEphemerals
        | Error::QuotaExceeded
        | Error::BadArguments(_)
        | Error::MarshallingError
        | Error::Unimplemented
        | Error::NotReadOnly
        | Error::AuthFailed => Failure::Said(Refusal::Other(error.to_string())),
        _ => Failure::InDoubt(error.to_string()),
    }
}
