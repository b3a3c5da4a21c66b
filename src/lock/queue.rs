//! Whose turn it is: a pure function of the names in a lock's directory.

use super::contender::{Kind, NodeName};

/// Everybody in a lock's directory: the contenders, first come first, and the strangers.
#[derive(Clone, Debug, Default)]
pub struct Queue {
    contenders: Vec<NodeName>,
    strangers: Vec<String>,
}

/// Where one contender stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing<'q> {
    Held,
    /// Watch this one: the last of those it waits for.
    Behind(&'q NodeName),
    /// It is not in the queue: somebody removed it.
    Gone,
    /// Numbers no longer tell who came first.
    UsedUp,
}

impl Queue {
    pub fn new<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> Queue {
        let mut queue = Queue::default();
        for name in names {
            match NodeName::parse(name.as_ref()) {
                Some(name) => queue.contenders.push(name),
                None => queue.strangers.push(name.as_ref().to_owned()),
            }
        }
        queue.contenders.sort_by_key(NodeName::sequence);
        queue.strangers.sort();
        queue
    }

    /// First come first.
    pub fn contenders(&self) -> &[NodeName] {
        &self.contenders
    }

    /// Nodes that are no contenders; nobody waits for them.
    pub fn strangers(&self) -> &[String] {
        &self.strangers
    }

    /// Where `me` stands.
    ///
    /// A contender holds once nobody it waits for stands before it: exclusive waits for everybody earlier, shared for
    /// earlier exclusives.
    pub fn standing(&self, me: &NodeName) -> Standing<'_> {
        let Some(mine) = self.contenders.iter().position(|name| name == me) else {
            return Standing::Gone;
        };
        let (earlier, me) = (&self.contenders[..mine], &self.contenders[mine]);
        if me.sequence().is_used_up() || earlier.iter().any(|name| name.sequence().is_used_up()) {
            return Standing::UsedUp;
        }
        match earlier.iter().rfind(|name| waits_for(me.kind(), name.kind())) {
            Some(predecessor) => Standing::Behind(predecessor),
            None => Standing::Held,
        }
    }

    /// Those before `me` that it waits for, first come first.
    pub fn ahead_of<'q>(&'q self, me: &'q NodeName) -> impl Iterator<Item = &'q NodeName> {
        self.contenders.iter().take_while(move |name| *name != me).filter(|name| waits_for(me.kind(), name.kind()))
    }
}

fn waits_for(mine: Kind, earlier: Kind) -> bool {
    match (mine, earlier) {
        (Kind::Exclusive, Kind::Exclusive | Kind::Shared) | (Kind::Shared, Kind::Exclusive) => true,
        (Kind::Shared, Kind::Shared) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(kind: Kind, sequence: i64) -> String {
        format!("{:032x}{}{sequence:010}", 1000 - sequence, kind.mark())
    }

    /// Every queue of up to seven contenders, with gaps in its numbers and a stranger, as the store may list it: last first.
    fn every_queue() -> impl Iterator<Item = Vec<(Kind, NodeName)>> {
        (0..=7).flat_map(|length: u32| {
            (0..2_u32.pow(length)).map(move |kinds| {
                (0..length)
                    .map(|place| {
                        let kind = if kinds >> place & 1 == 0 { Kind::Exclusive } else { Kind::Shared };
                        (kind, NodeName::parse(&name(kind, i64::from(place) * 3 + 98)).unwrap())
                    })
                    .collect()
            })
        })
    }

    fn listed(contenders: &[(Kind, NodeName)]) -> Queue {
        Queue::new(contenders.iter().rev().map(|(_, name)| name.as_str()).chain(["stranger"]))
    }

    #[test]
    fn in_every_queue_the_rule_holds() {
        let mut queues = 0;
        for contenders in every_queue() {
            queues += 1;
            let queue = listed(&contenders);
            assert_eq!(queue.contenders().len(), contenders.len());
            assert_eq!(queue.strangers(), ["stranger"]);
            let standings: Vec<_> = contenders.iter().map(|(_, name)| queue.standing(name)).collect();
            let holders: Vec<Kind> = (contenders.iter().zip(&standings))
                .filter(|(_, standing)| **standing == Standing::Held)
                .map(|((kind, _), _)| *kind)
                .collect();
            assert_eq!(holders.is_empty(), contenders.is_empty(), "somebody always holds: {contenders:?}");
            assert!(holders.len() <= 1 || holders.iter().all(|kind| *kind == Kind::Shared), "a writer is alone");
            for (place, ((kind, me), standing)) in contenders.iter().zip(&standings).enumerate() {
                let earlier = &contenders[..place];
                let conflicts = |other: &&(Kind, NodeName)| (*kind, other.0) != (Kind::Shared, Kind::Shared);
                let expected = match earlier.iter().rfind(conflicts) {
                    Some((_, predecessor)) => Standing::Behind(predecessor),
                    None => Standing::Held,
                };
                assert_eq!(*standing, expected, "{me} in {contenders:?}");
                assert_eq!(queue.ahead_of(me).count(), earlier.iter().filter(conflicts).count());
            }
        }
        assert_eq!(queues, 255);
    }

    #[test]
    fn whoever_leaves_a_queue_lets_everybody_else_in_sooner_or_later() {
        for mut contenders in every_queue() {
            while !contenders.is_empty() {
                let queue = listed(&contenders);
                let before = contenders.len();
                contenders.retain(|(_, name)| queue.standing(name) != Standing::Held);
                assert!(contenders.len() < before, "stuck: {contenders:?}");
            }
        }
    }

    #[test]
    fn order_is_by_number_never_by_text() {
        let queue = Queue::new(["a__lock__0000000010", "b__lock__0000000009", "9__lock__0000000100"]);
        let order: Vec<_> = queue.contenders().iter().map(|name| name.sequence().number()).collect();
        assert_eq!(order, [9, 10, 100]);
    }

    #[test]
    fn a_contender_that_is_not_listed_is_gone_and_never_holds() {
        let me = NodeName::parse(&name(Kind::Exclusive, 5)).unwrap();
        assert_eq!(Queue::default().standing(&me), Standing::Gone);
        assert_eq!(Queue::new([name(Kind::Exclusive, 6)]).standing(&me), Standing::Gone);
    }

    #[test]
    fn at_the_end_of_the_numbers_nobody_holds() {
        let last = NodeName::parse("a__lock__2147483647").unwrap();
        assert_eq!(Queue::new([last.as_str()]).standing(&last), Standing::UsedUp);
        let behind = NodeName::parse("b__lock__0000000007").unwrap();
        let queue = Queue::new([behind.as_str(), "c__rlock__-2147483648"]);
        assert_eq!(queue.standing(&behind), Standing::UsedUp);
        let before = NodeName::parse("b__lock__2147483646").unwrap();
        assert_eq!(Queue::new([before.as_str(), last.as_str()]).standing(&before), Standing::Held);
    }
}
