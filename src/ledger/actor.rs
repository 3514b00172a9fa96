//! One writer. Commands queue here; while one group is being committed the next one gathers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

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
    /// Known to be rolled back, for another reason.
    #[error("the ledger refused: {0}")]
    Refused(String),
    /// Queued, and not confirmed in time: it may be on disk or may still get there.
    #[error("the ledger did not confirm the write in time")]
    Unknown,
}

/// Whether the last group could be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Writing,
    /// `SQLITE_FULL`: accepts get 503 and visits pause until a write succeeds.
    Full,
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
    let handle = LedgerHandle { address, slots, reply_within: limits.reply_within, reader, outbox, health };
    (handle, Ledger { publisher, outbox: outbox_tx, health: health_tx, group_max: limits.group_max })
}

impl Ledger {
    /// Starts the writer on `store`.
    pub async fn start(&self, store: Box<dyn Store>, supervisor: ActorCell) -> Result<ActorCell, SpawnErr> {
        self.publisher.withdraw();
        let arguments = State {
            store: Some(store),
            waiting: Vec::new(),
            outbox: self.outbox.clone(),
            health: self.health.clone(),
        };
        let actor = LedgerActor { group_max: self.group_max };
        // Without a name: ractor's names are global, and two ledgers in one process (tests) would collide.
        let (actor, _) = Actor::spawn_linked(None, actor, arguments, supervisor).await?;
        let cell = actor.get_cell();
        self.publisher.publish(actor);
        Ok(cell)
    }

    pub fn withdraw(&self) {
        self.publisher.withdraw();
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
        let command = |store: &mut dyn Store| store.touch();
        let job = Typed { command: Some(command), result: None, reply: oneshot::channel().0 };
        Self { job: Box::new(job), _slot: None }
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
    /// Tell: a group is done, and here is the store back. Sent by the ledger's own blocking task.
    Committed { store: Box<dyn Store>, fate: GroupFate },
    /// Tell: the disk was full; look whether there is room again. Sent by the ledger to itself.
    LookForRoom,
}

/// How often a full disk is looked at while nobody else writes.
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
    Durable,
    Full,
    /// Nothing in memory may be trusted after it: escalate.
    Lost(StoreError),
}

struct LedgerActor {
    group_max: usize,
}

struct State {
    /// `None` while a group is being committed.
    store: Option<Box<dyn Store>>,
    waiting: Vec<Command>,
    outbox: watch::Sender<u64>,
    health: watch::Sender<Health>,
}

impl Actor for LedgerActor {
    type Msg = Msg;
    type State = State;
    type Arguments = State;

    async fn pre_start(&self, _: ActorRef<Msg>, state: State) -> Result<State, ActorProcessingErr> {
        Ok(state)
    }

    async fn handle(&self, me: ActorRef<Msg>, msg: Msg, state: &mut State) -> Result<(), ActorProcessingErr> {
        match msg {
            Msg::Write(command) => {
                failpoint::hit(Point::LedgerWrite);
                state.waiting.push(command);
            }
            Msg::Committed { store, fate } => {
                failpoint::hit(Point::LedgerCommitted);
                state.store = Some(store);
                if let GroupFate::Full = fate {
                    me.send_after(LOOK_FOR_ROOM_EVERY, || Msg::LookForRoom);
                }
                state.settle(fate)?;
            }
            Msg::LookForRoom => {
                if *state.health.borrow() == Health::Full {
                    state.waiting.push(Command::look_for_room());
                }
            }
        }
        self.commit_waiting(&me, state);
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
        tokio::task::spawn_blocking(move || {
            let fate = commit(store.as_mut(), group);
            // Fails only if the actor is gone; the store closes with the message.
            let _ = me.cast(Msg::Committed { store, fate });
        });
    }
}

impl State {
    fn settle(&mut self, fate: GroupFate) -> Result<(), ActorProcessingErr> {
        let health = match fate {
            GroupFate::Durable => {
                self.outbox.send_modify(|n| *n = n.wrapping_add(1));
                Health::Writing
            }
            GroupFate::Full => Health::Full,
            GroupFate::Lost(error) => {
                Event::LedgerLost { detail: &error.to_string() }.emit();
                return Err(error.into());
            }
        };
        if self.health.send_if_modified(|now| std::mem::replace(now, health) != health) {
            match health {
                Health::Full => Event::LedgerFull {}.emit(),
                Health::Writing => Event::LedgerRoom {}.emit(),
            }
        }
        Ok(())
    }
}

/// One transaction for the whole group, one savepoint for each command; answers only when the fate is known.
fn commit(store: &mut dyn Store, group: Vec<Command>) -> GroupFate {
    if let Err(error) = store.begin() {
        return fail_group(group, error);
    }
    let mut survivors = Vec::with_capacity(group.len());
    let mut group = group.into_iter();
    let mut full = false;
    for mut command in group.by_ref() {
        match run_one(store, command.job.as_mut()) {
            Ok(()) => survivors.push(command),
            Err(StoreError::Full { group_lost: true }) => {
                survivors.push(command);
                survivors.extend(group);
                store.rollback();
                return fail_group(survivors, StoreError::Full { group_lost: true });
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
                return GroupFate::Lost(error);
            }
        }
    }
    if let Err(error) = store.commit() {
        store.rollback();
        return fail_group(survivors, error);
    }
    for command in survivors {
        command.job.answer(Ok(()));
    }
    if full { GroupFate::Full } else { GroupFate::Durable }
}

fn run_one(store: &mut dyn Store, job: &mut dyn Job) -> Result<(), StoreError> {
    store.savepoint()?;
    match job.run(store) {
        Ok(()) => store.release(),
        Err(lost @ StoreError::Full { group_lost: true }) => Err(lost),
        Err(error) => store.rollback_to_savepoint().and(Err(error)),
    }
}

/// A failed BEGIN or COMMIT fails every command of the group.
fn fail_group(group: Vec<Command>, error: StoreError) -> GroupFate {
    let (answer, fate) = match error {
        StoreError::Full { .. } => (LedgerError::Full, GroupFate::Full),
        StoreError::Other(detail) => {
            Event::LedgerCommandRefused { detail: &detail }.emit();
            (LedgerError::Refused(detail), GroupFate::Durable)
        }
        lost @ (StoreError::Medium(_) | StoreError::Corrupt(_)) => return GroupFate::Lost(lost),
    };
    for command in group {
        command.job.answer(Err(answer.clone()));
    }
    fate
}
