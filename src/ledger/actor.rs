//! One writer. Commands queue here; while one group is being committed the next one gathers.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use super::reader::LedgerReader;
use super::store::{Store, StoreError};
use crate::failpoint::{self, Point};
use crate::supervisor::address::{self, Address, Publisher};
use crate::telemetry::Event;

/// The only way to write to the ledger. Cheap to clone; outlives restarts of the actor behind it.
#[derive(Clone, Debug)]
pub struct LedgerHandle {
    address: Address<Msg>,
    /// Bounds the mailbox: ractor's own is unbounded.
    slots: Arc<Semaphore>,
    reply_within: Duration,
    reader: LedgerReader,
    outbox: watch::Receiver<u64>,
    health: watch::Receiver<Health>,
}

/// Why a write did not, or may not have, happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// Nothing was queued.
    #[error("the ledger's queue is full")]
    Busy,
    /// Nothing was queued.
    #[error("the ledger is not there")]
    Away,
    /// Known to be rolled back: there is no room on the disk.
    #[error("no room on the ledger's disk")]
    Full,
    /// Known to be rolled back: the file may not be written.
    #[error("the ledger may not be written")]
    ReadOnly,
    /// Known to be rolled back, for another reason.
    #[error("the ledger refused: {0}")]
    Refused(String),
    /// Queued, and not confirmed in time: it may be on disk or may still get there.
    #[error("the ledger did not confirm the write in time")]
    Unknown,
}

/// What may be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Writing,
    /// Less than `ledger.free_bytes_min` is free: accepts get 503, all else goes on.
    Low,
    /// The last group found no room: accepts get 503 and visits pause until a write succeeds.
    Full,
    /// The file may not be written: accepts get 503 and visits pause until it may.
    ReadOnly,
}

impl Health {
    /// Whether an outcome could be stored: without that nobody is visited.
    pub fn takes_outcomes(self) -> bool {
        match self {
            Self::Writing | Self::Low => true,
            Self::Full | Self::ReadOnly => false,
        }
    }
}

impl LedgerHandle {
    /// Runs `command` in a savepoint of the next group; `Ok` means that its effect survives `kill -9`.
    pub async fn write<T, F>(&self, command: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Store) -> Result<T, StoreError> + Send + 'static,
    {
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| LedgerError::Busy)?;
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Typed { command: Some(command), result: None, reply });
        self.address.cast(Msg::Write(Command { job, _slot: Some(slot) })).map_err(|_| LedgerError::Away)?;
        match tokio::time::timeout(self.reply_within, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(LedgerError::Unknown),
        }
    }

    /// Whether the writer answers a write: by a commit, or by a failure that it has classified, such as a full disk. Waits
    /// as long as it takes, and needs no slot: a full queue is no sign of a writer that hangs.
    pub async fn answers(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.address.cast(Msg::Write(Command::touch(reply))).is_ok() && answer.await.is_ok()
    }

    /// The same store, read through connections of its own.
    pub fn reader(&self) -> &LedgerReader {
        &self.reader
    }

    /// Changes whenever a committed group may have made a delivery due.
    pub fn outbox(&self) -> watch::Receiver<u64> {
        self.outbox.clone()
    }

    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }
}

/// What the supervisor keeps: starts the actor, again if need be.
#[derive(Debug)]
pub struct Ledger {
    publisher: Publisher<Msg>,
    reader: LedgerReader,
    outbox: watch::Sender<u64>,
    health: watch::Sender<Health>,
    group_max: usize,
}

/// Limits of the writer.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Commands that may wait; more get [`LedgerError::Busy`].
    pub queue_max: usize,
    /// Commands in one transaction.
    pub group_max: usize,
    /// How long a caller waits for its commit before it calls the result unknown.
    pub reply_within: Duration,
}

/// Makes the handle and what starts the actor behind it.
pub fn handle(reader: LedgerReader, limits: Limits) -> (LedgerHandle, Ledger) {
    let (publisher, address) = address::channel();
    let (outbox_tx, outbox) = watch::channel(0);
    let (health_tx, health) = watch::channel(Health::Writing);
    let slots = Arc::new(Semaphore::new(limits.queue_max));
    let reply_within = limits.reply_within;
    let handle = LedgerHandle { address, slots, reply_within, reader: reader.clone(), outbox, health };
    let (outbox, health) = (outbox_tx, health_tx);
    (handle, Ledger { publisher, reader, outbox, health, group_max: limits.group_max })
}

impl Ledger {
    /// Starts the writer on `store`.
    pub async fn start(&self, store: Box<dyn Store>, supervisor: ActorCell) -> Result<ActorCell, SpawnErr> {
        let arguments = State {
            store: Some(store),
            committing: None,
            waiting: Vec::new(),
            reader: self.reader.clone(),
            outbox: self.outbox.clone(),
            health: self.health.clone(),
        };
        let actor = LedgerActor { group_max: self.group_max };
        // Without a name: ractor's names are global, and the ledgers of two tests in one process would collide.
        self.publisher.start(None, actor, arguments, None, supervisor).await
    }
}

/// A command with its slot in the queue, freed when the answer is out.
struct Command {
    job: Box<dyn Job>,
    /// None for the ledger's own.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Command {
    fn look_for_room() -> Self {
        Self::touch(oneshot::channel().0)
    }

    /// Changes nothing that anybody reads.
    fn touch(reply: oneshot::Sender<Result<(), LedgerError>>) -> Self {
        let command = |store: &mut dyn Store| store.touch();
        Self { job: Box::new(Typed { command: Some(command), result: None, reply }), _slot: None }
    }
}

/// A command whose result type only its caller knows.
trait Job: Send {
    /// Runs inside a savepoint. The result is kept until the group's fate is known.
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError>;
    /// `Ok`: the group is on disk; `Err`: it is known not to be.
    fn answer(self: Box<Self>, fate: Result<(), LedgerError>);
}

struct Typed<T, F> {
    command: Option<F>,
    result: Option<T>,
    reply: oneshot::Sender<Result<T, LedgerError>>,
}

impl<T, F> Job for Typed<T, F>
where
    T: Send,
    F: FnOnce(&mut dyn Store) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        let command = self.command.take().ok_or_else(|| StoreError::Other("a command ran twice".into()))?;
        self.result = Some(command(store)?);
        Ok(())
    }

    fn answer(self: Box<Self>, fate: Result<(), LedgerError>) {
        let answer = match (fate, self.result) {
            (Ok(()), Some(result)) => Ok(result),
            (Ok(()), None) => Err(LedgerError::Refused("the command gave no result".into())),
            (Err(error), _) => Err(error),
        };
        // The caller may have stopped waiting; what is on disk stands.
        let _ = self.reply.send(answer);
    }
}

enum Msg {
    /// Ask: answered after COMMIT, or when the command is known to be rolled back.
    Write(Command),
    /// Tell: a group is done. Sent by the ledger's own blocking task, which gives the store back as it ends.
    Committed { fate: GroupFate },
    /// Tell: look how much room there is. Sent by the ledger to itself.
    LookForRoom,
}

/// How often the disk is looked at, so that health is true also while nobody writes.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_secs(1);

impl fmt::Debug for Msg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Write(_) => "Write",
            Self::Committed { .. } => "Committed",
            Self::LookForRoom => "LookForRoom",
        })
    }
}

enum GroupFate {
    Durable {
        /// Commands that are on disk now; the others were refused one by one.
        commands: usize,
        /// A command found no room, although accepts were allowed to look for it.
        full: bool,
    },
    /// Rolled back for want of room.
    Full,
    /// Rolled back since the file may not be written.
    ReadOnly,
    /// Rolled back for another reason; each command knows it.
    Refused,
    /// Nothing in memory may be trusted after it: escalate.
    Lost(StoreError),
}

struct LedgerActor {
    group_max: usize,
}

struct State {
    /// `None` while a group is being committed.
    store: Option<Box<dyn Store>>,
    committing: Option<JoinHandle<Committed>>,
    waiting: Vec<Command>,
    /// For what reads find out about the file.
    reader: LedgerReader,
    outbox: watch::Sender<u64>,
    health: watch::Sender<Health>,
}

/// What the blocking task gives back.
struct Committed {
    store: Box<dyn Store>,
    /// The store's chores after the commit.
    tended: Result<(), StoreError>,
}

impl Actor for LedgerActor {
    type Msg = Msg;
    type State = State;
    type Arguments = State;

    async fn pre_start(&self, _: ActorRef<Msg>, state: State) -> Result<State, ActorProcessingErr> {
        Ok(state)
    }

    async fn post_start(&self, me: ActorRef<Msg>, _: &mut State) -> Result<(), ActorProcessingErr> {
        me.send_after(LOOK_FOR_ROOM_EVERY, || Msg::LookForRoom);
        Ok(())
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Write(command) => {
                failpoint::hit(Point::LedgerWrite);
                state.waiting.push(command);
            }
            Msg::Committed { fate } => {
                failpoint::hit(Point::LedgerCommitted);
                let tended = state.committed().await?;
                let was = *state.health.borrow();
                let store = state.store.as_mut().ok_or("the store is gone")?;
                let low = store.low();
                let is_still = match was {
                    Health::Writing | Health::Low => false,
                    Health::Full => !store.has_room(),
                    Health::ReadOnly => store.is_read_only(),
                };
                let read_only = matches!(tended, Err(StoreError::Unwritten(_))) && store.is_read_only();
                state.settle(fate, low, is_still.then_some(was))?;
                match tended {
                    // What was committed stands; only the chores have to wait.
                    Err(_) if read_only => state.set_health(Health::ReadOnly),
                    Err(error) => return Err(lost(error)),
                    Ok(()) => {}
                }
            }
            Msg::LookForRoom => {
                me.send_after(LOOK_FOR_ROOM_EVERY, || Msg::LookForRoom);
                if let Some(damage) = state.reader.damage() {
                    return Err(lost(damage));
                }
                state.look_for_room();
            }
        }
        self.commit_waiting(&me, state);
        Ok(())
    }

    /// Closes the store before the supervisor hears of the end: ractor drops the state only afterwards, and the process
    /// would be gone with everything still in the store's log.
    async fn post_stop(&self, _: ActorRef<Msg>, state: &mut State) -> Result<(), ActorProcessingErr> {
        let _ = state.committed().await?; // The process ends, in order or not.
        drop(state.store.take());
        Ok(())
    }
}

impl LedgerActor {
    /// Takes what waits, up to a group, to a blocking thread; the store comes back in a message.
    fn commit_waiting(&self, me: &ActorRef<Msg>, state: &mut State) {
        if state.waiting.is_empty() {
            return;
        }
        let Some(mut store) = state.store.take() else { return };
        let rest = state.waiting.split_off(self.group_max.min(state.waiting.len()));
        let group = std::mem::replace(&mut state.waiting, rest);
        let me = me.clone();
        state.committing = Some(tokio::task::spawn_blocking(move || {
            // A command that panics must not take the store along unheard: the actor would wait for it for ever.
            let done = catch_unwind(AssertUnwindSafe(|| commit(store.as_mut(), group)));
            let panicked = |_| (GroupFate::Lost(StoreError::Other("a command panicked".into())), Vec::new());
            let (fate, durable) = done.unwrap_or_else(panicked);
            // Before the answers: whoever gets one has work to do, and the next group would wait behind all of it.
            // Fails only if the actor is gone; the store closes when this task ends.
            let _ = me.cast(Msg::Committed { fate });
            let is_durable = !durable.is_empty();
            for command in durable {
                command.job.answer(Ok(()));
            }
            let tended = if is_durable { store.tend() } else { Ok(()) };
            Committed { store, tended }
        }));
    }
}

impl State {
    /// Takes the store back, once the group in hand is done. Fails only while the process ends.
    async fn committed(&mut self) -> Result<Result<(), StoreError>, ActorProcessingErr> {
        let Some(committing) = self.committing.take() else { return Ok(Ok(())) };
        let Committed { store, tended } = committing.await?;
        self.store = Some(store);
        Ok(tended)
    }

    /// `still`: what kept the ledger from writing, and has not changed.
    fn settle(
        &mut self,
        fate: GroupFate,
        low: bool,
        still: Option<Health>,
    ) -> Result<(), ActorProcessingErr> {
        let room = if low { Health::Low } else { Health::Writing };
        match fate {
            GroupFate::Durable { commands, full } => {
                if commands > 0 {
                    self.outbox.send_modify(|n| *n = n.wrapping_add(1));
                }
                let now = *self.health.borrow();
                self.set_health(match still {
                    Some(health) => health,
                    // A group of nothing proves nothing.
                    None if commands == 0 && !now.takes_outcomes() => now,
                    None if full && !low => Health::Full,
                    None => room,
                });
            }
            GroupFate::Full => self.set_health(Health::Full),
            GroupFate::ReadOnly => self.set_health(Health::ReadOnly),
            GroupFate::Refused => {}
            GroupFate::Lost(error) => return Err(lost(error)),
        }
        Ok(())
    }

    /// A full disk is tried, and a file once it may be written; otherwise a look at the free space is enough.
    fn look_for_room(&mut self) {
        // While a group is being committed, its fate will tell.
        let Some(store) = &mut self.store else { return };
        let health = *self.health.borrow();
        match health {
            Health::Writing | Health::Low => {
                let room = if store.low() { Health::Low } else { Health::Writing };
                self.set_health(room);
            }
            Health::ReadOnly if store.is_read_only() => {}
            Health::Full | Health::ReadOnly => self.waiting.push(Command::look_for_room()),
        }
    }

    fn set_health(&self, health: Health) {
        if self.health.send_if_modified(|now| std::mem::replace(now, health) != health) {
            match health {
                Health::Full => Event::LedgerFull {}.emit(),
                Health::ReadOnly => Event::LedgerReadOnly {}.emit(),
                Health::Low => Event::LedgerLow {}.emit(),
                Health::Writing => Event::LedgerRoom {}.emit(),
            }
        }
    }
}

/// The error itself, not its text: whether the process is to be started again depends on it.
fn lost(error: StoreError) -> ActorProcessingErr {
    Event::LedgerLost { detail: &error.to_string() }.emit();
    error.into()
}

/// One transaction for the whole group, one savepoint for each command. A command that is refused alone is answered at
/// once, for nothing of it is left; what is on disk is given back to be answered.
fn commit(store: &mut dyn Store, group: Vec<Command>) -> (GroupFate, Vec<Command>) {
    if let Err(error) = store.begin() {
        return (fail_group(store, group, error), Vec::new());
    }
    let mut survivors = Vec::with_capacity(group.len());
    let mut group = group.into_iter();
    let mut full = false;
    for mut command in group.by_ref() {
        match run_one(store, command.job.as_mut()) {
            Ok(()) => survivors.push(command),
            Err(error @ (StoreError::Full { group_lost: true } | StoreError::Unwritten(_))) => {
                survivors.push(command);
                survivors.extend(group);
                store.rollback();
                return (fail_group(store, survivors, error), Vec::new());
            }
            Err(StoreError::Full { group_lost: false }) => {
                full = true;
                command.job.answer(Err(LedgerError::Full));
            }
            Err(StoreError::Other(detail)) => {
                Event::LedgerCommandRefused { detail: &detail }.emit();
                command.job.answer(Err(LedgerError::Refused(detail)));
            }
            Err(error @ (StoreError::Medium(_) | StoreError::Corrupt(_))) => {
                store.rollback();
                // Nobody is answered: what the medium kept is not known.
                return (GroupFate::Lost(error), Vec::new());
            }
        }
    }
    failpoint::hit(Point::LedgerCommit);
    if let Err(error) = store.commit() {
        store.rollback();
        return (fail_group(store, survivors, error), Vec::new());
    }
    (GroupFate::Durable { commands: survivors.len(), full }, survivors)
}

fn run_one(store: &mut dyn Store, job: &mut dyn Job) -> Result<(), StoreError> {
    store.savepoint()?;
    match job.run(store) {
        Ok(()) => store.release(),
        Err(lost @ (StoreError::Full { group_lost: true } | StoreError::Unwritten(_))) => Err(lost),
        Err(error) => store.rollback_to_savepoint().and(Err(error)),
    }
}

/// A failed BEGIN or COMMIT fails every command of the group.
fn fail_group(store: &mut dyn Store, group: Vec<Command>, error: StoreError) -> GroupFate {
    let (answer, fate) = match error {
        StoreError::Full { .. } => (LedgerError::Full, GroupFate::Full),
        StoreError::Other(detail) => {
            Event::LedgerCommandRefused { detail: &detail }.emit();
            (LedgerError::Refused(detail), GroupFate::Refused)
        }
        StoreError::Unwritten(_) if store.is_read_only() => (LedgerError::ReadOnly, GroupFate::ReadOnly),
        lost @ (StoreError::Unwritten(_) | StoreError::Medium(_) | StoreError::Corrupt(_)) => {
            return GroupFate::Lost(lost);
        }
    };
    for command in group {
        command.job.answer(Err(answer.clone()));
    }
    fate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::sqlite::{OpenOptions, open};
    use crate::ledger::store::{AcceptAnswer, Addressing};
    use crate::model::batch::NewBatch;
    use crate::model::{BatchId, Language};

    /// Hears of the end of the ledger, as the root supervisor does.
    struct Parent;

    impl Actor for Parent {
        type Msg = ();
        type State = watch::Sender<bool>;
        type Arguments = watch::Sender<bool>;

        async fn pre_start(
            &self,
            _: ActorRef<()>,
            failed: watch::Sender<bool>,
        ) -> Result<watch::Sender<bool>, ActorProcessingErr> {
            Ok(failed)
        }

        async fn handle_supervisor_evt(
            &self,
            _: ActorRef<()>,
            event: ractor::SupervisionEvent,
            failed: &mut watch::Sender<bool>,
        ) -> Result<(), ActorProcessingErr> {
            if let ractor::SupervisionEvent::ActorFailed(..) = event {
                failed.send_replace(true);
            }
            Ok(())
        }
    }

    const QUEUE_MAX: usize = 64;

    struct Running {
        handle: LedgerHandle,
        failed: watch::Receiver<bool>,
        _dir: tempfile::TempDir,
    }

    async fn running(free_bytes_min: u64) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let addressing = Addressing {
            product: true,
            summary_url: None,
            language: Language::French,
            dedupe_window: Duration::from_secs(60),
        };
        let options =
            OpenOptions { addressing, claims_max: 4, free_bytes_min, readers: 2, boot_id: "boot".into() };
        let opened = open(&dir.path().join("ledger.db"), options).unwrap();
        let limits = Limits { queue_max: QUEUE_MAX, group_max: 16, reply_within: Duration::from_secs(20) };
        let (handle, ledger) = handle(opened.reader, limits);
        let (tx, failed) = watch::channel(false);
        let (parent, _) = Actor::spawn(None, Parent, tx).await.unwrap();
        // A name is one per process, and tests run side by side.
        ledger.start(Box::new(opened.store), parent.get_cell()).await.unwrap();
        Running { handle, failed, _dir: dir }
    }

    fn empty_batch() -> NewBatch {
        NewBatch {
            batch_id: BatchId::mint(),
            requester: "test".into(),
            key: None,
            body_hash: [0; 32],
            force: true,
            sites: Vec::new(),
            webhook_url: None,
            callback_url: None,
            metadata: None,
            products: Vec::new(),
            ignored_3400: vec!["3400930000000".into()],
        }
    }

    async fn accept(handle: &LedgerHandle) -> Result<AcceptAnswer, LedgerError> {
        let batch = empty_batch();
        handle.write(move |store| store.accept(&batch, 1)).await
    }

    #[tokio::test]
    async fn what_was_answered_is_there_and_the_senders_hear_of_it() {
        let Running { handle, _dir, .. } = running(0).await;
        let mut outbox = handle.outbox();
        outbox.mark_unchanged();
        let all: Vec<_> = (0..20).map(|_| accept(&handle)).collect();
        for accepted in all {
            assert!(matches!(accepted.await, Ok(AcceptAnswer::Accepted(_))));
        }
        let tally = handle.reader().read(|reader| reader.batch("20")).await.unwrap();
        assert!(tally.is_some());
        outbox.changed().await.unwrap();
        assert_eq!(*handle.health().borrow(), Health::Writing);
    }

    #[tokio::test]
    async fn one_query_sees_one_snapshot_although_others_write_meanwhile() {
        let Running { handle, _dir, .. } = running(0).await;
        let (seen, saw) = oneshot::channel();
        let (go, gone) = std::sync::mpsc::channel();
        let query = handle.reader().read(move |reader| {
            let before = reader.batch("1")?.is_some();
            seen.send(()).unwrap();
            gone.recv().unwrap();
            Ok((before, reader.batch("1")?.is_some()))
        });
        let write = async {
            saw.await.unwrap();
            accept(&handle).await.unwrap();
            go.send(()).unwrap();
        };
        let (seen, ()) = tokio::join!(query, write);
        assert_eq!(seen.unwrap(), (false, false));
        assert!(
            handle.reader().read(|reader| reader.batch("1")).await.unwrap().is_some(),
            "and it is let go"
        );
    }

    #[tokio::test]
    async fn a_refused_command_leaves_its_group_and_the_ledger_as_they_are() {
        let Running { handle, failed, _dir } = running(0).await;
        let refused = handle.write(|store| {
            store.accept(&empty_batch(), 1)?;
            Err::<(), _>(StoreError::Other("on purpose".into()))
        });
        let (refused, accepted) = tokio::join!(refused, accept(&handle));
        assert_eq!(refused, Err(LedgerError::Refused("on purpose".into())));
        assert!(accepted.is_ok());
        let batches =
            handle.reader().read(|reader| Ok((reader.batch("1")?, reader.batch("2")?))).await.unwrap();
        assert!(batches.0.is_some() && batches.1.is_none());
        assert!(!*failed.borrow());
    }

    #[tokio::test]
    async fn little_room_refuses_accepts_and_nothing_else() {
        let Running { handle, failed, _dir } = running(u64::MAX).await;
        let mut health = handle.health();
        // Known before anybody asked.
        tokio::time::timeout(Duration::from_secs(20), health.wait_for(|health| *health == Health::Low))
            .await
            .expect("the ledger looks for room by itself")
            .unwrap();
        let mut outbox = handle.outbox();
        outbox.mark_unchanged();
        let (accepted, touched) = tokio::join!(accept(&handle), handle.write(|store| store.touch()));
        assert_eq!(accepted, Err(LedgerError::Full));
        assert_eq!(touched, Ok(()));
        outbox.changed().await.unwrap();
        assert_eq!(*handle.health().borrow(), Health::Low);
        assert!(!*failed.borrow());
    }

    #[tokio::test]
    async fn the_writer_answers_although_its_queue_is_full_and_not_while_a_commit_hangs() {
        let Running { handle, failed: _failed, _dir } = running(0).await;
        let (begun, began) = oneshot::channel();
        let (go, gone) = std::sync::mpsc::channel();
        let hanging = handle.write(move |_| {
            begun.send(()).unwrap();
            gone.recv().unwrap();
            Ok(())
        });
        let look = async {
            began.await.unwrap();
            let slots = Arc::clone(&handle.slots);
            let others = slots.acquire_many_owned(slots_left(&handle)).await.unwrap();
            assert_eq!(handle.write(|store| store.touch()).await, Err(LedgerError::Busy));
            let early = tokio::time::timeout(Duration::from_millis(100), handle.answers()).await;
            assert!(early.is_err(), "nothing is answered before the commit is over");
            go.send(()).unwrap();
            assert!(handle.answers().await);
            drop(others);
        };
        let (hung, ()) = tokio::join!(hanging, look);
        assert_eq!(hung, Ok(()));
    }

    fn slots_left(handle: &LedgerHandle) -> u32 {
        u32::try_from(handle.slots.available_permits()).unwrap()
    }

    #[tokio::test]
    async fn a_read_that_finds_damage_ends_the_writer_too() {
        let Running { handle, mut failed, _dir } = running(0).await;
        let read = handle.reader().read(|_| Err::<(), _>(StoreError::Corrupt("on purpose".into())));
        assert!(read.await.is_err());
        tokio::time::timeout(Duration::from_secs(20), failed.wait_for(|failed| *failed))
            .await
            .expect("the supervisor hears of it")
            .unwrap();
    }

    #[tokio::test]
    async fn more_writes_than_the_queue_holds_are_refused_and_not_queued() {
        let Running { handle, failed: _failed, _dir } = running(0).await;
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let holds = tokio::spawn({
            let handle = handle.clone();
            async move { handle.write(move |_| gone.recv().map_err(|_| StoreError::Other("cut".into()))).await }
        });
        let wait_until_it_holds = async {
            while handle.slots.available_permits() == QUEUE_MAX {
                tokio::task::yield_now().await;
            }
        };
        wait_until_it_holds.await;
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 1..QUEUE_MAX {
            let handle = handle.clone();
            waiting.spawn(async move { handle.write(|store| store.touch()).await });
        }
        while 0 < handle.slots.available_permits() {
            tokio::task::yield_now().await;
        }
        assert_eq!(handle.write(|store| store.touch()).await, Err(LedgerError::Busy));
        go.send(()).unwrap();
        assert_eq!(holds.await.unwrap(), Ok(()));
        assert!(waiting.join_all().await.iter().all(Result::is_ok));
        assert_eq!(handle.write(|store| store.touch()).await, Ok(()), "slots come back");
    }

    #[tokio::test]
    async fn a_command_that_panics_or_a_medium_that_fails_escalates() {
        for medium in [true, false] {
            let Running { handle, mut failed, _dir } = running(0).await;
            let answer = handle.write(move |_| -> Result<(), _> {
                if medium { Err(StoreError::Medium("on purpose".into())) } else { panic!("on purpose") }
            });
            assert_eq!(answer.await, Err(LedgerError::Unknown));
            tokio::time::timeout(Duration::from_secs(20), failed.wait_for(|failed| *failed))
                .await
                .expect("the supervisor hears of it")
                .unwrap();
        }
    }
}
