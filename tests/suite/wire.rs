//! ZooKeeper's requests on the wire, as far as the tests look into them.

/// Requests, by their numbers in ZooKeeper's protocol. One that changes something may be a part of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first of a connection, which has no number of its own there.
    Connect = -10,
    Close = -11,
    Create = 15,
    Delete = 2,
    Exists = 3,
    Read = 4,
    /// What a contender does to its own node when it begins to wait, and when it comes to its turn.
    Mark = 5,
    /// What a contender asks for first.
    Permissions = 6,
    List = 8,
    Sync = 9,
}

/// The number of a transaction.
pub const MULTI: i32 = 14;
/// A create whose answer has no more than a path, which transactions are made of.
const CREATE: i32 = 1;
const CHECK: i32 = 13;

impl Request {
    /// Whether this is what is asked for, by a request of its own or as a part of a transaction.
    pub fn is_in(self, operations: &[Operation]) -> bool {
        operations.iter().any(|operation| operation.is(self))
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Operation {
    pub kind: i32,
    /// Empty where there is none, or none that is looked at.
    pub path: String,
    /// What a delete, a write or a check must find.
    pub version: i32,
    /// What is created goes with its session.
    pub is_ephemeral: bool,
    /// The name of what is created ends with a number.
    pub is_sequential: bool,
}

impl Operation {
    /// Of a request of this number, which all begin with a path that are of interest.
    fn read(kind: i32, body: &mut Body<'_>) -> Option<Operation> {
        let mut operation = Operation { kind, path: String::new(), version: 0, is_ephemeral: false, is_sequential: false };
        let has_path = [Request::Delete, Request::Exists, Request::Read, Request::Mark, Request::List, Request::Sync];
        let creates = [CREATE, Request::Create as i32].contains(&kind);
        if creates || kind == CHECK || has_path.iter().any(|request| *request as i32 == kind) {
            operation.path = String::from_utf8(body.buffer()?.to_vec()).ok()?;
        }
        if creates {
            body.buffer()?;
            for _ in 0..body.number()? {
                body.number()?;
                body.buffer()?;
                body.buffer()?;
            }
            let flags = body.number()?;
            (operation.is_ephemeral, operation.is_sequential) = (flags & 1 != 0, flags & 2 != 0);
        }
        if kind == Request::Mark as i32 {
            body.buffer()?;
        }
        if [CHECK, Request::Delete as i32, Request::Mark as i32].contains(&kind) {
            operation.version = body.number()?;
        }
        Some(operation)
    }

    pub fn is(&self, request: Request) -> bool {
        let kind = if self.kind == CREATE { Request::Create as i32 } else { self.kind };
        kind == request as i32
    }

    pub fn is_check(&self) -> bool {
        self.kind == CHECK
    }
}

/// What a request asks for: of this number, and with this behind its header.
pub fn operations(kind: i32, body: &[u8]) -> Vec<Operation> {
    let mut body = Body(body);
    if kind != MULTI {
        return Operation::read(kind, &mut body).into_iter().collect();
    }
    let mut operations = Vec::new();
    // Each has a header of its own: its number, whether it is none but the end, and an error that is none yet.
    while let (Some(kind), Some([0]), Some(_)) = (body.number(), body.take(1), body.number()) {
        operations.push(Operation::read(kind, &mut body).expect("a part of a transaction that is known here"));
    }
    operations
}

struct Body<'a>(&'a [u8]);

impl<'a> Body<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(length)?;
        self.0 = left;
        Some(taken)
    }

    fn number(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().expect("four bytes")))
    }

    /// Of a length that stands before it; one that is less than nothing is that of nothing.
    fn buffer(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?.max(0);
        self.take(usize::try_from(length).expect("it is not negative"))
    }
}
