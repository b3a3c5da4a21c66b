//! Mistakes that the simulation has to find. One is switched on for a run of it; outside the unit tests none can be.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// To run though somebody stands in front.
    IgnoresThePredecessor,
    /// To create again after an answer was lost, as if nothing had been created.
    CreatesBlindlyAgain,
    /// To look for one's node at a server that may not have seen it yet.
    LooksWithoutABarrier,
    /// To let go while the command still runs.
    ReleasesBeforeTheEnd,
    /// To take a delete that was not answered for done.
    DeletesOnlyOnce,
    /// Not to look again after a connection was lost.
    MissesAWakeUp,
    /// To work on under a lock that is bound to a session, though the session cannot be confirmed.
    TrustsAnOldSession,
    /// To take what any server says for the leader's word that our session lives.
    TrustsAMereLook,
    /// To run under a mark that says one waits.
    RunsWithoutAMark,
    /// To remove who waits without asking whether somebody vouches for it after all.
    BuriesTheLiving,
    /// To remove whomever nobody vouches for, though its command may run.
    BuriesWhoeverIsOrphaned,
    /// To remove who has promised to stop its command before it has to.
    BuriesTooEarly,
    /// To work on though nobody could vouch for us as long as was promised.
    BreaksItsPromise,
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Mistake>> = const { std::cell::Cell::new(None) };
}

/// Makes this thread make a mistake, or none.
#[cfg(test)]
pub fn plant(mistake: Option<Mistake>) {
    PLANTED.set(mistake);
}

/// Whether this mistake is to be made.
#[cfg(test)]
pub fn planted(mistake: Mistake) -> bool {
    PLANTED.get() == Some(mistake)
}

#[cfg(not(test))]
pub const fn planted(_: Mistake) -> bool {
    false
}
