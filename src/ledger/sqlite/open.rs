//! Opening the ledger: the lock, the file, its schema, and what the last process left behind.

use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, params};
use rustix::fs::Access;

use super::super::reader::LedgerReader;
use super::super::store::{Addressing, EndedAside, Read, SUSPECTED_AT, Store, StoreError};
use super::counters::Delta;
use super::reader::SqliteReader;
use super::writer::SqliteStore;
use crate::failpoint::{self, Point};
use crate::model::body::Language;
use crate::model::{BatchNo, Outcome, ProductKey};

/// What the daemon decides about its ledger before it opens it.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub addressing: Addressing,
    /// Deaths of the process that end a product as `crashed` (design 4, rule 2).
    pub claims_max: u32,
    /// Below this much free space accepts are refused; zero: never.
    pub free_bytes_min: u64,
    /// Connections that read; at least one is opened.
    pub readers: usize,
    /// `/proc/sys/kernel/random/boot_id`: a death by another boot is nobody's fault.
    pub boot_id: String,
}

/// An open ledger. The lock lives as long as the store.
#[derive(Debug)]
pub struct Opened {
    pub store: SqliteStore,
    pub reader: LedgerReader,
    pub report: OpenReport,
    /// The products that ended as `crashed`, to be told.
    pub crashed: Vec<EndedAside>,
}

/// How the process before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastRun {
    /// There was none: the ledger is new.
    None,
    /// It was asked to stop.
    Stopped,
    /// It ended itself, and said so beside the ledger.
    Escalated,
    /// The machine went down with it.
    OtherBoot,
    /// None of these: what it had in hand is charged.
    Died,
}

/// What was found and done at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// The number of this start: the first half of every claim.
    pub epoch: i64,
    pub last_run: LastRun,
    /// Products that were being visited when the last process died.
    pub charged: u32,
    /// Of these, products that ended as `crashed`, for it was one death too many.
    pub crashed: u32,
    /// Claims of the last process that were put back.
    pub released: u32,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the ledger {} is in use by another process (it holds {}.lock)", path.display(), path.display())]
    Locked { path: PathBuf },
    #[error(
        "the ledger {} has schema {found}, and this glaneur knows no newer than {known}: start the newer glaneur, \
         or restore the backup made before it ran",
        path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("{} is an SQLite database, but not a ledger of glaneur: name another file in ledger.url", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "the ledger {} is damaged: {detail}. Move it away with its -wal and restore a backup, or save what is readable \
         with `sqlite3 FILE .recover`",
        path.display()
    )]
    Corrupt { path: PathBuf, detail: String },
    #[error("no room on the disk of the ledger {}: free some, then start again", path.display())]
    Full { path: PathBuf },
    #[error("cannot {deed} {}: {source}{}", path.display(), way_out(source))]
    Io {
        deed: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Schemas in order: entry `n` leads from version `n` to `n + 1`. Never change one that was released.
const MIGRATIONS: [&str; 2] = [include_str!("../schema.sql"), include_str!("../schema2.sql")];
const KNOWN: i64 = MIGRATIONS.len() as i64;

/// "glan", in the header of the file.
const APPLICATION_ID: i32 = 0x676c_616e;

/// How long a connection waits for a lock that only a foreign tool or a checkpoint can hold.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Counts up while a ledger is being opened: a long migration or recovery shows that it moves.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets SQLite step: some hundred times a second, as long as it computes. It does so for ever, which costs nothing.
    fn watch(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        /// Instructions of SQLite's machine, of which it does some millions a second.
        const INSTRUCTIONS: i32 = 10_000;
        let progress = self.clone();
        let step = move || {
            progress.step();
            false // Goes on.
        };
        connection.progress_handler(INSTRUCTIONS, Some(step))
    }
}

/// Opens or creates the ledger at `path`, and takes over what the last process left.
pub fn open(path: &Path, options: OpenOptions) -> Result<Opened, OpenError> {
    open_visibly(path, options, &Progress::default())
}

/// As [`open`], and shows in `progress` that it moves.
pub fn open_visibly(path: &Path, options: OpenOptions, progress: &Progress) -> Result<Opened, OpenError> {
    let lock = lock(path)?;
    create(path)?;
    let mut connection = connect_writer(path).map_err(|error| explain(path, error))?;
    progress.watch(&mut connection).map_err(|error| explain(path, error.into()))?;
    migrate(path, &mut connection)?;
    let OpenOptions { addressing, claims_max, free_bytes_min, readers, boot_id } = options;
    let mut store = SqliteStore::new(connection, lock, path.into(), addressing, free_bytes_min)
        .map_err(|error| explain(path, error))?;
    let (report, crashed) = take_over(path, &mut store, claims_max, &boot_id, progress)?;
    let reader = (0..readers.max(1)).map(|_| Ok(Box::new(open_read_only(path)?) as Box<dyn Read>));
    let reader = LedgerReader::new(reader.collect::<Result<_, OpenError>>()?);
    Ok(Opened { store, reader, report, crashed })
}

/// Opens the ledger to look at it, also while the daemon runs.
pub fn open_read_only(path: &Path) -> Result<SqliteReader, OpenError> {
    may(path, Access::READ_OK).map_err(io_error("read the ledger", path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connect = || -> rusqlite::Result<(Connection, i64, i32)> {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        keep_plans(&connection, 32)?;
        // Reads are by key or go once over a table: a large cache would only be memory.
        connection
            .execute_batch("PRAGMA cache_size = -256; PRAGMA temp_store = MEMORY; PRAGMA query_only = 1;")?;
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let application = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
        Ok((connection, version, application))
    };
    let (connection, found, application) = connect().map_err(|error| explain(path, error.into()))?;
    check_kind(path, found, application == APPLICATION_ID)?;
    Ok(SqliteReader::new(connection))
}

/// Notes beside the ledger that this process ends itself, so that its death is charged to no product.
pub fn mark_escalated(path: &Path) -> io::Result<()> {
    let mut file = File::create(beside(path, ".escalated"))?;
    file.write_all(b"The daemon ended itself; removed at the next start.\n")?;
    file.sync_all()
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn io_error(deed: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { deed, path, source }
}

/// What a person can do about what the system refuses.
fn way_out(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            ". Mount it for writing (dmesg says why it is not), or name another place in ledger.url"
        }
        io::ErrorKind::PermissionDenied => {
            ". Let the user of the daemon write the file and its folder (ls -l, lsattr), or name another place in \
             ledger.url"
        }
        _ => "",
    }
}

fn lock(path: &Path) -> Result<File, OpenError> {
    let name = beside(path, ".lock");
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(&name);
    let file = file.map_err(io_error("create the lock of the ledger", &name))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &name)(source)),
    }
}

/// Makes sure that the file is there and can be written: the system's own words are clearer than SQLite's. Only its
/// owner may read it, since URLs with their secrets are in it.
///
/// A file that is there is not opened here: closing it again would drop the POSIX locks that SQLite may hold on it in
/// this very process.
fn create(path: &Path) -> Result<(), OpenError> {
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            may(path, Access::READ_OK | Access::WRITE_OK)
                .map_err(io_error("open the ledger for writing", path))
        }
        Err(error) => Err(io_error("create the ledger", path)(error)),
    }
}

fn may(path: &Path, access: Access) -> io::Result<()> {
    rustix::fs::access(path, access)?;
    if std::fs::metadata(path)?.is_file() { Ok(()) } else { Err(io::Error::other("not a regular file")) }
}

/// Statements are compiled once, `kept` of them. Without the "query planner stability guarantee" SQLite compiles some
/// again whenever a parameter changes, because a partial index might be of use for the new value.
fn keep_plans(connection: &Connection, kept: usize) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(kept);
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn connect_writer(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    keep_plans(&connection, 64)?;
    // auto_vacuum first: it is fixed once the first page is written, and journal_mode writes it.
    // No wal_autocheckpoint: checkpoint.rs takes it over.
    // temp_store: savepoints keep their pages in memory; nothing is written outside the ledger's folder.
    connection.execute_batch(
        "PRAGMA auto_vacuum = INCREMENTAL;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         PRAGMA temp_store = MEMORY;
         PRAGMA foreign_keys = OFF;
         PRAGMA cache_size = -2048;
         PRAGMA journal_size_limit = 16777216;",
    )?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode != "wal" {
        return Err(StoreError::Other(format!("SQLite does not offer WAL here, but {mode}")));
    }
    Ok(connection)
}

/// Brings the schema up to date, each step in a transaction of its own.
fn migrate(path: &Path, connection: &mut Connection) -> Result<(), OpenError> {
    let explain = |error: rusqlite::Error| explain(path, error.into());
    let found: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(explain)?;
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(explain)?;
    let empty: bool = connection
        .query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))
        .map_err(explain)?;
    let fresh = found == 0 && empty;
    check_kind(path, found, fresh || application == APPLICATION_ID)?;
    for (version, step) in (1..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or_default()) {
        let mut upgrade = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            transaction.execute_batch(step)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", version)?;
            transaction.commit()
        };
        upgrade().map_err(explain)?;
    }
    Ok(())
}

fn check_kind(path: &Path, found: i64, ours: bool) -> Result<(), OpenError> {
    let path = path.to_owned();
    if !ours || found < 0 {
        return Err(OpenError::Foreign { path });
    }
    if found > KNOWN {
        return Err(OpenError::Newer { path, found, known: KNOWN });
    }
    Ok(())
}

fn explain(path: &Path, error: StoreError) -> OpenError {
    let path = path.to_owned();
    match error {
        StoreError::Corrupt(detail) => OpenError::Corrupt { path, detail },
        StoreError::Full { .. } => OpenError::Full { path },
        StoreError::Unwritten(detail) | StoreError::Medium(detail) | StoreError::Other(detail) => {
            OpenError::Io { deed: "use the ledger", path, source: io::Error::other(detail) }
        }
    }
}

/// One transaction: the new epoch, the deaths charged, the claims put back.
fn take_over(
    path: &Path,
    store: &mut SqliteStore,
    claims_max: u32,
    boot_id: &str,
    progress: &Progress,
) -> Result<(OpenReport, Vec<EndedAside>), OpenError> {
    let mark = beside(path, ".escalated");
    let escalated = mark.try_exists().map_err(io_error("look for", &mark))?;
    let mut work = || -> Result<(OpenReport, Vec<EndedAside>), StoreError> {
        store.begin()?;
        let now_ms = now_ms();
        let take_over = TakeOver { store: &mut *store, claims_max, boot_id, escalated, now_ms, progress };
        let report = take_over.run()?;
        store.commit()?;
        Ok(report)
    };
    let report = work();
    if report.is_err() {
        store.rollback();
    }
    let report = report.map_err(|error| explain(path, error))?;
    // Only after the commit: a death in between must still find it.
    if escalated {
        std::fs::remove_file(&mark).map_err(io_error("remove", &mark))?;
    }
    Ok(report)
}

fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

struct TakeOver<'a> {
    store: &'a mut SqliteStore,
    claims_max: u32,
    boot_id: &'a str,
    escalated: bool,
    now_ms: i64,
    progress: &'a Progress,
}

struct Left {
    key: ProductKey,
    started: bool,
    deaths: u32,
}

impl TakeOver<'_> {
    fn run(mut self) -> Result<(OpenReport, Vec<EndedAside>), StoreError> {
        let (epoch, last_run) = self.last_run()?;
        self.store
            .connection()
            .execute("UPDATE run SET epoch = ?1, stopping = 0, boot_id = ?2", params![epoch, self.boot_id])?;
        let mut report = OpenReport { epoch, last_run, charged: 0, crashed: 0, released: 0 };
        let mut crashed = Vec::new();
        let left = self.left()?;
        let started = left.iter().filter(|left| left.started).count();
        for left in left {
            failpoint::hit(Point::LedgerTakeOver);
            self.progress.step();
            // A suspect runs alone; a death while others were visited too tells nothing new about it.
            let telling = left.deaths < SUSPECTED_AT || started == 1;
            let charge = last_run == LastRun::Died && left.started && telling;
            let deaths = left.deaths + u32::from(charge);
            report.charged += u32::from(charge);
            if charge && deaths >= self.claims_max {
                crashed.push(self.crash(left.key, deaths)?);
                report.crashed += 1;
            } else {
                self.put_back(left.key, deaths)?;
                report.released += 1;
            }
        }
        Ok((report, crashed))
    }

    fn last_run(&self) -> Result<(i64, LastRun), StoreError> {
        let query = "SELECT epoch, stopping, boot_id FROM run";
        let (epoch, stopping, boot_id): (i64, bool, String) =
            self.store
                .connection()
                .query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let last_run = match (epoch, self.escalated, stopping) {
            (0, ..) => LastRun::None,
            (_, true, _) => LastRun::Escalated,
            (_, _, true) => LastRun::Stopped,
            _ if boot_id != self.boot_id => LastRun::OtherBoot,
            _ => LastRun::Died,
        };
        Ok((epoch + 1, last_run))
    }

    fn left(&self) -> Result<Vec<Left>, StoreError> {
        let query =
            "SELECT batch, idx, started, deaths FROM product INDEXED BY product_claimed WHERE state = 1";
        let mut statement = self.store.connection().prepare(query)?;
        let rows = statement.query_map([], |row| {
            let key = ProductKey { batch: BatchNo(row.get(0)?), index: row.get(1)? };
            Ok(Left { key, started: row.get(2)?, deaths: row.get(3)? })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    fn crash(&mut self, key: ProductKey, deaths: u32) -> Result<EndedAside, StoreError> {
        let detail = match self.store.addressing().language {
            Language::French => {
                format!("le service s'est arrêté {deaths} fois pendant la visite de ce produit")
            }
            Language::English => format!("the daemon died {deaths} times while it visited this product"),
        };
        self.store.connection().execute(
            "UPDATE product SET deaths = ?3 WHERE batch = ?1 AND idx = ?2",
            params![key.batch.0, key.index, deaths],
        )?;
        let (_, ended) = self.store.finish(key, &Outcome::crashed(&detail), self.now_ms)?;
        Ok(ended)
    }

    fn put_back(&mut self, key: ProductKey, deaths: u32) -> Result<(), StoreError> {
        self.store.connection().execute(
            "UPDATE product SET state = 0, claim_epoch = NULL, claim_inc = NULL, started = 0, deaths = ?3
             WHERE batch = ?1 AND idx = ?2",
            params![key.batch.0, key.index, deaths],
        )?;
        self.store.count(key.batch, &Delta::put_back(1))?;
        self.store.lower_cursor(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_statement_shows_that_it_moves() {
        let mut connection = Connection::open_in_memory().unwrap();
        let progress = Progress::default();
        progress.watch(&mut connection).unwrap();
        let count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
                     SELECT count(*) FROM n";
        let counted: i64 = connection.query_row(count, [], |row| row.get(0)).unwrap();
        assert_eq!(counted, 100_000);
        assert!(progress.count() > 10, "{progress:?}");
    }
}
