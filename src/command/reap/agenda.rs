//! Which entries of the journal somebody who waits looks at, and when.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::journal::{Entry, Family};

/// Between two looks at everything; and so much more for each entry, for the others who wait look at them too.
const EVERYTHING_AGAIN: Duration = Duration::from_secs(1);
const EVERYTHING_AGAIN_BY_ENTRY: Duration = Duration::from_millis(10);
/// The kernel tells that a file was closed before it gives up the flock. And whoever looks after the dead one may die over it. So
/// it is looked at again after this pause, and then ever more rarely, until a look at everything is as good.
const SUSPECT_AGAIN: Duration = Duration::from_millis(1);
const SUSPECT_LONGEST: Duration = Duration::from_millis(600);
/// The same for what had no node: what the dead asked for last may be on its way.
const NODELESS_AGAIN: Duration = Duration::from_millis(100);
const NODELESS_LONGEST: Duration = Duration::from_secs(16);

pub struct Agenda {
    everything: Instant,
    /// Those for which nobody lives any more, as the kernel tells.
    suspects: HashMap<Family, Again>,
    /// The dead that there was no node of.
    nodeless: HashMap<Family, Again>,
}

struct Again {
    at: Instant,
    /// How long after the look before.
    pause: Duration,
}

/// What is to be looked at.
#[derive(Debug, PartialEq, Eq)]
pub enum Look {
    /// All entries but these, for which it is too early.
    AtAllBut(BTreeSet<Family>),
    At {
        suspects: BTreeSet<Family>,
        nodeless: BTreeSet<Family>,
    },
}

impl Look {
    pub const AT_ALL: Look = Look::AtAllBut(BTreeSet::new());

    pub fn at(family: &Family) -> Look {
        let it = BTreeSet::from([family.clone()]);
        Look::At { suspects: it.clone(), nodeless: it }
    }

    pub fn wants(&self, entry: &Entry) -> bool {
        match self {
            Look::AtAllBut(later) => !later.contains(&entry.family),
            // Who notes that it is dead and had no node has the kernel tell of that note too.
            Look::At { nodeless, .. } => entry.dead.is_none() || nodeless.contains(&entry.family),
        }
    }
}

impl Agenda {
    pub fn new(now: Instant) -> Agenda {
        Agenda { everything: now, suspects: HashMap::new(), nodeless: HashMap::new() }
    }

    /// When something is due.
    pub fn next(&self) -> Instant {
        let again = self.suspects.values().chain(self.nodeless.values());
        again.map(|again| again.at).fold(self.everything, Instant::min)
    }

    /// What is due now. It is put off at once, so that it does not come again and again whatever becomes of the look.
    pub fn take(&mut self, now: Instant) -> Look {
        let is_for_all = self.everything <= now;
        if is_for_all {
            self.everything = now + EVERYTHING_AGAIN;
        }
        let (mut suspects, mut nodeless, mut later) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (family, again) in &mut self.nodeless {
            let these = if again.is_due(now) { &mut nodeless } else { &mut later };
            these.insert(family.clone());
            again.put_off_if_due(NODELESS_AGAIN, NODELESS_LONGEST, now);
        }
        self.suspects.retain(|family, again| {
            if again.is_due(now) {
                suspects.insert(family.clone());
            }
            again.put_off_if_due(SUSPECT_AGAIN, SUSPECT_LONGEST, now);
            again.pause < SUSPECT_LONGEST
        });
        match is_for_all {
            true => Look::AtAllBut(later),
            false => Look::At { suspects, nodeless },
        }
    }

    /// All so many entries were looked at, or the attempt has failed.
    pub fn saw_all(&mut self, entries: usize, now: Instant) {
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        self.everything = now + EVERYTHING_AGAIN.saturating_add(EVERYTHING_AGAIN_BY_ENTRY.saturating_mul(entries));
    }

    /// Everything is to be looked at then, or sooner.
    pub fn look_at_all(&mut self, at: Instant) {
        self.everything = self.everything.min(at);
    }

    /// Nobody lives for it any more, as the kernel tells.
    pub fn suspect(&mut self, family: Family, now: Instant) {
        if !self.nodeless.contains_key(&family) {
            self.suspects.insert(family, Again { at: now, pause: Duration::ZERO });
        }
    }

    /// It was found dead at that time, and had no node.
    pub fn saw_nodeless(&mut self, family: Family, age: Duration, now: Instant) {
        self.suspects.remove(&family);
        self.nodeless.entry(family).or_insert_with(|| {
            // Who comes late need not begin like somebody who saw it die.
            let pause = age.clamp(NODELESS_AGAIN, NODELESS_LONGEST);
            Again { at: now + pause, pause }
        });
    }

    /// It is gone, or is left to the next look at everything.
    pub fn forget(&mut self, family: &Family) {
        self.suspects.remove(family);
        self.nodeless.remove(family);
    }

    /// There is nothing to suspect: it is of no concern.
    pub fn clear_of_suspicion(&mut self, family: &Family) {
        self.suspects.remove(family);
    }
}

impl Again {
    fn is_due(&self, now: Instant) -> bool {
        self.at <= now
    }

    fn put_off_if_due(&mut self, first: Duration, longest: Duration, now: Instant) {
        if self.is_due(now) {
            self.pause = (self.pause * 2).clamp(first, longest);
            self.at = now + self.pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(digit: char) -> Family {
        Family::parse(&digit.to_string().repeat(28)).unwrap()
    }

    /// When, in ms, what is looked at within so many seconds, if nothing is ever found.
    fn looks(agenda: &mut Agenda, start: Instant, seconds: u64) -> Vec<(u128, Look)> {
        let mut looks = Vec::new();
        while agenda.next() <= start + Duration::from_secs(seconds) {
            let now = agenda.next();
            looks.push(((now - start).as_millis(), agenda.take(now)));
        }
        looks
    }

    fn at(suspects: &[char], nodeless: &[char]) -> Look {
        let set = |digits: &[char]| digits.iter().map(|digit| family(*digit)).collect();
        Look::At { suspects: set(suspects), nodeless: set(nodeless) }
    }

    #[test]
    fn everything_is_looked_at_every_second_and_more_rarely_the_more_there_is() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        assert_eq!(looks(&mut agenda, start, 2), [0, 1000, 2000].map(|at| (at, Look::AT_ALL)));
        agenda.saw_all(50, start + Duration::from_secs(2));
        assert_eq!(looks(&mut agenda, start, 4), [(3500, Look::AT_ALL)]);
        agenda.look_at_all(start + Duration::from_secs(4));
        agenda.look_at_all(start + Duration::from_secs(5));
        assert_eq!(looks(&mut agenda, start, 4), [(4000, Look::AT_ALL)]);
    }

    #[test]
    fn a_suspect_is_looked_at_at_once_and_ever_more_rarely_for_a_second() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        agenda.take(start);
        agenda.suspect(family('1'), start);
        let times: Vec<u128> =
            looks(&mut agenda, start, 5).into_iter().filter(|(_, look)| *look == at(&['1'], &[])).map(|(at, _)| at).collect();
        assert_eq!(times, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 1023]);
        // Another death is another matter, and what is of no concern is none of ours.
        let now = agenda.next();
        agenda.suspect(family('1'), now);
        agenda.suspect(family('2'), now);
        agenda.forget(&family('1'));
        assert_eq!(agenda.next(), now);
        agenda.clear_of_suspicion(&family('2'));
        assert_eq!(agenda.suspects.len(), 0);
    }

    #[test]
    fn what_had_no_node_is_looked_for_soon_and_then_ever_more_rarely() {
        let start = Instant::now();
        let mut agenda = Agenda::new(start);
        agenda.take(start);
        agenda.suspect(family('1'), start);
        assert_eq!(agenda.take(start), at(&['1'], &[]));
        agenda.saw_nodeless(family('1'), Duration::ZERO, start);
        agenda.suspect(family('1'), start);
        let (mut times, mut left_out) = (Vec::new(), 0);
        for (time, look) in looks(&mut agenda, start, 60) {
            match look {
                Look::AtAllBut(later) => left_out += later.len(),
                Look::At { .. } => {
                    assert_eq!(look, at(&[], &['1']));
                    times.push(time);
                }
            }
            agenda.saw_nodeless(family('1'), Duration::ZERO, start);
        }
        assert_eq!(times, [100, 300, 700, 1500, 3100, 6300, 12700, 25500, 41500, 57500]);
        assert_eq!(left_out, 60);
        agenda.saw_nodeless(family('2'), Duration::from_secs(5), start);
        assert_eq!((agenda.nodeless[&family('2')].at, agenda.suspects.len()), (start + Duration::from_secs(5), 0));
    }
}
