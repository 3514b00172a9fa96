//! What tor's events tell of circuits and streams: who goes where. Pure.
//!
//! Bounded by what tor itself has open, and by a limit for a port that invents circuits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::protocol::{Circuit, CircuitNo, CircuitStatus, Hop, Owner, Stream, StreamNo, StreamStatus};

/// Tor has some tens, and one for each of at most 512 scrapers.
const CIRCUITS_MAX: usize = 4_096;
const STREAMS_MAX: usize = 16_384;
/// Circuits that ended and may still be waited for by whoever launched them.
const ENDED_MAX: usize = 256;

/// All that is known of one tor. Begins anew with each connection.
#[derive(Clone, Debug, Default)]
pub struct Book {
    circuits: BTreeMap<CircuitNo, Known>,
    ended: BTreeSet<CircuitNo>,
    /// Of the daemon's own; others are passed over.
    streams: HashMap<StreamNo, (Owner, u16)>,
    /// Where the last stream of an owner went, by its port.
    routes: HashMap<Owner, Route>,
    /// Of owners that dial: why the last one came to nothing, if it did.
    refusals: HashMap<Owner, Option<Box<str>>>,
    /// Owners whose streams the daemon attaches, and to what.
    bound: HashMap<Owner, Option<CircuitNo>>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    exit: Option<Hop>,
    built: bool,
    users: HashSet<Owner>,
}

#[derive(Clone, Copy, Debug)]
struct Route {
    source_port: u16,
    circuit: CircuitNo,
}

/// How a circuit stands that somebody launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Underway,
    /// With its exit.
    Built(Hop),
    Over,
}

/// What is to be done with a stream that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    To(CircuitNo),
    /// As tor itself would.
    ByTor,
    /// Whoever dialled hears at once that there is no way, as this number says.
    Close(u8),
}

impl Book {
    pub fn on_circuit(&mut self, circuit: &Circuit) {
        match circuit.status {
            CircuitStatus::Failed | CircuitStatus::Closed => {
                self.circuits.remove(&circuit.id);
                self.ended.insert(circuit.id);
                if ENDED_MAX < self.ended.len() {
                    self.ended.pop_first();
                }
                for bound in self.bound.values_mut().filter(|bound| **bound == Some(circuit.id)) {
                    *bound = None;
                }
                self.routes.retain(|_, route| route.circuit != circuit.id);
            }
            CircuitStatus::Underway | CircuitStatus::Built => {
                let known = self.circuits.entry(circuit.id).or_default();
                known.built |= circuit.status == CircuitStatus::Built;
                known.exit = circuit.path.last().cloned().or(known.exit.take());
                known.users.extend(circuit.owner.clone());
                if CIRCUITS_MAX < self.circuits.len() {
                    self.circuits.pop_first();
                }
            }
        }
    }

    /// `is_ours`: whether a user is one of the daemon's, whose ways are kept.
    pub fn on_stream(&mut self, stream: &Stream, is_ours: impl Fn(&str) -> bool) {
        let Some(owner) = &stream.owner else { return };
        let ours = is_ours(&owner.user);
        match stream.status {
            StreamStatus::New => {
                if let Some(port) = stream.source_port.filter(|_| ours)
                    && self.streams.len() < STREAMS_MAX
                {
                    self.streams.insert(stream.id, (owner.clone(), port));
                }
            }
            StreamStatus::Sent | StreamStatus::Succeeded => {
                let Some(circuit) = stream.circuit else { return };
                if let Some(known) = self.circuits.get_mut(&circuit) {
                    known.users.insert(owner.clone());
                }
                if stream.status == StreamStatus::Succeeded
                    && let Some((_, source_port)) = self.streams.get(&stream.id)
                {
                    self.routes.insert(owner.clone(), Route { source_port: *source_port, circuit });
                }
            }
            StreamStatus::Detached => self.refused(stream, owner, ours),
            StreamStatus::Failed | StreamStatus::Closed => {
                // The first word is the exit's; what follows may be our own.
                if self.refusal(owner).is_none() {
                    self.refused(stream, owner, ours);
                }
                self.streams.remove(&stream.id);
            }
            StreamStatus::Other => {}
        }
    }

    fn refused(&mut self, stream: &Stream, owner: &Owner, ours: bool) {
        // Of an owner that was retired nobody asks any more.
        if let (Some(last), Some(reason), true) = (self.refusals.get_mut(owner), &stream.reason, ours) {
            *last = Some(reason.clone());
        }
    }

    /// An owner dials: what its last dial came to is forgotten.
    pub fn dials(&mut self, owner: &Owner) {
        self.refusals.insert(owner.clone(), None);
    }

    /// Why the dial of this owner came to nothing, in tor's words; the exit's where there are any.
    pub fn refusal(&self, owner: &Owner) -> Option<&str> {
        self.refusals.get(owner)?.as_deref()
    }

    /// Where the stream from this port went, with the exit.
    pub fn route(&self, owner: &Owner, source_port: u16) -> Option<(CircuitNo, Hop)> {
        let route = self.routes.get(owner).filter(|route| route.source_port == source_port)?;
        Some((route.circuit, self.circuits.get(&route.circuit)?.exit.clone()?))
    }

    /// The answer to the launch of a circuit may come before any event of it.
    pub fn expect(&mut self, circuit: CircuitNo) {
        if !self.ended.contains(&circuit) {
            self.circuits.entry(circuit).or_default();
        }
    }

    pub fn progress(&self, circuit: CircuitNo) -> Progress {
        match self.circuits.get(&circuit) {
            Some(Known { built: true, exit: Some(exit), .. }) => Progress::Built(exit.clone()),
            Some(_) => Progress::Underway,
            None => Progress::Over,
        }
    }

    /// From now on the owner's streams are attached to `circuit`, or to none until there is one.
    pub fn bind(&mut self, owner: &Owner, circuit: Option<CircuitNo>) {
        self.bound.insert(owner.clone(), circuit);
    }

    /// The circuit of this owner, if there is one that lives.
    pub fn bound(&self, owner: &Owner) -> Option<(CircuitNo, Hop)> {
        let circuit = (*self.bound.get(owner)?)?;
        match self.progress(circuit) {
            Progress::Built(exit) => Some((circuit, exit)),
            Progress::Underway | Progress::Over => None,
        }
    }

    /// What to do with a stream that is attached to nothing; None: nothing, it waits for nobody.
    pub fn attach(&self, stream: &Stream) -> Option<Attach> {
        let bound = stream.owner.as_ref().and_then(|owner| self.bound.get(owner));
        let bound = bound.filter(|_| !stream.is_onion);
        match (stream.status, bound) {
            (StreamStatus::New | StreamStatus::Detached, None) => Some(Attach::ByTor),
            (StreamStatus::New, Some(Some(circuit))) => Some(Attach::To(*circuit)),
            (StreamStatus::New, Some(None)) => Some(Attach::Close(end::MISC)),
            // Its circuit refused it. Whoever dialled decides, and hears at once what the exit said.
            (StreamStatus::Detached, Some(_)) => {
                Some(Attach::Close(end::of(stream.reason.as_deref().unwrap_or_default())))
            }
            (
                StreamStatus::Sent
                | StreamStatus::Succeeded
                | StreamStatus::Failed
                | StreamStatus::Closed
                | StreamStatus::Other,
                _,
            ) => None,
        }
    }

    /// An owner is gone. Gives its circuit, if nobody else uses that.
    pub fn forget(&mut self, owner: &Owner) -> Option<CircuitNo> {
        self.streams.retain(|_, (other, _)| other != owner);
        self.refusals.remove(owner);
        let route = self.routes.remove(owner).map(|route| route.circuit);
        let circuit = self.bound.remove(owner).flatten().or(route)?;
        let alone = self.circuits.get(&circuit)?.users.iter().all(|user| user == owner);
        alone.then_some(circuit)
    }
}

/// The numbers of reasons why a stream ends (tor-spec, "Closing streams").
mod end {
    pub(super) const MISC: u8 = 1;

    /// What the exit said, as far as a SOCKS client is told.
    pub(super) fn of(reason: &str) -> u8 {
        match reason {
            "RESOLVEFAILED" => 2,
            "CONNECTREFUSED" => 3,
            "EXITPOLICY" => 4,
            "TIMEOUT" => 7,
            "NOROUTE" => 8,
            _ => MISC,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: &str = "$AB0123456789ABCDEF0123456789ABCDEF012345~exit0";

    fn owner(user: &str) -> Owner {
        Owner { user: user.into(), password: "p".into() }
    }

    fn circuit(book: &mut Book, text: &str) {
        book.on_circuit(&Circuit::parse(text).unwrap());
    }

    fn stream(text: &str, user: &str) -> Stream {
        let text =
            format!("{text} SOURCE_ADDR=127.0.0.1:4000 SOCKS_USERNAME=\"{user}\" SOCKS_PASSWORD=\"p\"");
        Stream::parse(&text).unwrap()
    }

    fn tell(book: &mut Book, text: &str, user: &str) {
        book.on_stream(&stream(text, user), |user| user.starts_with("ours"));
    }

    /// One circuit, and a stream of `ours1` through it.
    fn used() -> Book {
        let mut book = Book::default();
        circuit(&mut book, &format!("7 BUILT {EXIT}"));
        tell(&mut book, "1 NEW 0 a.test:80", "ours1");
        tell(&mut book, "1 SUCCEEDED 7 a.test:80", "ours1");
        book
    }

    #[test]
    fn a_stream_is_found_by_its_owner_and_its_port() {
        let book = used();
        let (circuit, exit) = book.route(&owner("ours1"), 4000).unwrap();
        assert_eq!((circuit, &*exit.nickname), (CircuitNo(7), "exit0"));
        assert_eq!(book.route(&owner("ours1"), 4001), None, "another dial, of which nothing is known yet");
        assert_eq!(book.route(&owner("ours2"), 4000), None);
    }

    #[test]
    fn a_dial_that_fails_is_told_with_the_first_reason_of_its_own() {
        let mut book = used();
        book.dials(&owner("ours1"));
        assert_eq!(book.refusal(&owner("ours1")), None);
        for (status, reason) in [("DETACHED", "EXITPOLICY"), ("CLOSED", "MISC")] {
            tell(&mut book, &format!("2 {status} 7 a.test:80 REASON=END REMOTE_REASON={reason}"), "ours1");
            tell(&mut book, &format!("3 {status} 7 a.test:80 REASON={reason}"), "theirs");
        }
        assert_eq!(book.refusal(&owner("ours1")), Some("EXITPOLICY"));
        assert_eq!(book.refusal(&owner("theirs")), None, "nobody asks for theirs");
        book.dials(&owner("ours1"));
        assert_eq!(book.refusal(&owner("ours1")), None);
    }

    /// Kept connections end after their circuit was retired, and tor tells of each.
    #[test]
    fn what_comes_of_a_retired_owner_is_not_remembered() {
        let mut book = used();
        book.dials(&owner("ours1"));
        book.forget(&owner("ours1"));
        tell(&mut book, "1 CLOSED 7 a.test:80 REASON=DONE", "ours1");
        assert!(book.refusals.is_empty());
    }

    #[test]
    fn streams_of_others_are_not_kept() {
        let mut book = used();
        tell(&mut book, "2 NEW 0 a.test:80", "theirs");
        assert_eq!(book.streams.len(), 1);
        tell(&mut book, "1 CLOSED 7 a.test:80", "ours1");
        assert!(book.streams.is_empty());
    }

    #[test]
    fn a_circuit_that_others_use_as_well_is_not_closed_with_its_owner() {
        let mut book = used();
        assert_eq!(book.clone().forget(&owner("ours1")), Some(CircuitNo(7)));
        tell(&mut book, "2 SENTCONNECT 7 a.test:80", "theirs");
        assert_eq!(book.forget(&owner("ours1")), None);
        assert_eq!(book.forget(&owner("ours1")), None, "it is forgotten");
    }

    #[test]
    fn what_ended_is_over_whichever_came_first() {
        let mut book = Book::default();
        book.expect(CircuitNo(8));
        assert_eq!(book.progress(CircuitNo(8)), Progress::Underway);
        circuit(&mut book, "8 FAILED REASON=TIMEOUT");
        assert_eq!(book.progress(CircuitNo(8)), Progress::Over);
        book.expect(CircuitNo(8));
        assert_eq!(book.progress(CircuitNo(8)), Progress::Over, "its end was told before its launch");
    }

    #[test]
    fn streams_of_a_bound_owner_go_to_its_circuit_and_nowhere_else() {
        let mut book = used();
        let new = stream("3 NEW 0 a.test:80", "ours1");
        assert_eq!(book.attach(&new), Some(Attach::ByTor), "nobody bound it");
        book.bind(&owner("ours1"), Some(CircuitNo(7)));
        assert_eq!(book.attach(&new), Some(Attach::To(CircuitNo(7))));
        assert_eq!(book.attach(&stream("3 NEW 0 a.test:80", "theirs")), Some(Attach::ByTor));
        assert_eq!(book.attach(&stream("3 NEW 0 a.onion:80", "ours1")), Some(Attach::ByTor));
        circuit(&mut book, "7 CLOSED REASON=DESTROYED");
        assert_eq!(book.bound(&owner("ours1")), None);
        assert_eq!(book.attach(&new), Some(Attach::Close(1)));
    }

    #[test]
    fn a_stream_that_its_circuit_refused_is_closed_with_the_exits_reason() {
        let mut book = used();
        let refused = |reason: &str, user| {
            let text = format!("3 DETACHED 7 a.test:80 REASON=END REMOTE_REASON={reason}");
            stream(&text, user)
        };
        assert_eq!(book.attach(&refused("MISC", "theirs")), Some(Attach::ByTor));
        book.bind(&owner("ours1"), Some(CircuitNo(7)));
        for (reason, number) in [("CONNECTREFUSED", 3), ("EXITPOLICY", 4), ("MISC", 1), ("NEW_ONE", 1)] {
            assert_eq!(book.attach(&refused(reason, "ours1")), Some(Attach::Close(number)), "{reason}");
        }
    }

    #[test]
    fn a_port_that_invents_circuits_fills_no_memory() {
        let mut book = Book::default();
        for id in 0..2 * CIRCUITS_MAX {
            circuit(&mut book, &format!("{id} BUILT {EXIT}"));
            circuit(&mut book, &format!("{} CLOSED", 1_000_000 + id));
            tell(&mut book, &format!("{id} NEW 0 a.test:80"), "ours1");
        }
        assert_eq!((book.circuits.len(), book.ended.len()), (CIRCUITS_MAX, ENDED_MAX));
        assert!(book.streams.len() <= STREAMS_MAX);
    }
}
