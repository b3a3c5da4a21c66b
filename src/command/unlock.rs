//! `unlock`: removes nodes, if the identifier agrees.

use super::{Context, Unless, say_what_is_left};
use crate::error::Error;
use crate::exit;
use crate::lock::{Expected, Identifier, Limit, NodePath, Reading, Removal, Store, StoreError};
use crate::report;

pub async fn unlock<S: Store>(
    store: &S,
    nodes: &[NodePath],
    identifier: Option<&Identifier>,
    limit: Limit,
    context: &mut Context<'_>,
) -> Result<exit::Result, Error> {
    let mut result = exit::Result::Done;
    for node in nodes {
        let read = context.look(limit, store.read(&node.lock, std::slice::from_ref(&node.name))).await?;
        let reading = match read {
            Unless::Done(reading) => reading?.pop(),
            Unless::AskedToEnd(signal) => return Ok(exit::Result::Interrupted(signal)),
        };
        let expected = match (reading, identifier) {
            (Some(Reading::There(contender)), Some(identifier)) if contender.identifier != *identifier => {
                context.voice.tell_not_yours(node, &contender.identifier);
                result = exit::Result::No;
                continue;
            }
            (Some(Reading::There(contender)), _) => Expected::Version(contender.version),
            (Some(Reading::Forbidden), Some(_)) => {
                report::error(&format_args!("{node}: its identifier may not be read"), None);
                result = exit::Result::No;
                continue;
            }
            // Who may delete a node need not be allowed to read it.
            (Some(Reading::Forbidden), None) => Expected::Anything,
            (Some(Reading::Missing) | None, _) => {
                context.voice.tell_no_such_lock(node);
                result = exit::Result::No;
                continue;
            }
        };
        let left = match context.leave(limit, store, node, expected).await? {
            Unless::Done(left) => left,
            Unless::AskedToEnd(signal) => {
                report::error(&format_args!("{node} may have been removed, or not"), None);
                return Ok(exit::Result::Interrupted(signal));
            }
        };
        match left {
            Ok(Removal::Removed | Removal::LeftToSession) => {}
            Ok(Removal::Missing) => {
                context.voice.tell_no_such_lock(node);
                result = exit::Result::No;
            }
            Ok(Removal::Changed) => {
                report::error(&format_args!("{node} was changed meanwhile"), None);
                result = exit::Result::No;
            }
            Err(error @ StoreError::NotRemoved { .. }) => {
                say_what_is_left(context.address, &error);
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(result)
}
