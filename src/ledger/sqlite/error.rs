//! What an error of SQLite means for the ledger.

use rusqlite::ffi;

use super::super::store::StoreError;

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(failure, _) = &error else {
            return Self::Other(error.to_string());
        };
        match failure.extended_code {
            // In WAL mode a page that could not be written leaves the pager in its error state: ROLLBACK TO does not
            // mend it, only the end of the transaction does. So the group is lost, whether or not SQLite already
            // rolled it back by itself.
            code if primary(code) == ffi::SQLITE_FULL => Self::Full { group_lost: true },
            // The shared memory of the WAL index is a file too, and SQLite has no better word for ENOSPC there.
            ffi::SQLITE_IOERR_SHMSIZE => Self::Full { group_lost: true },
            // Into the log (WAL), or at a checkpoint into the database; not the fsync after it, whose failure leaves it
            // open what is on the disk.
            code @ (ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_TRUNCATE) => {
                Self::Unwritten(format!("{error} (SQLite code {code})"))
            }
            code => match primary(code) {
                ffi::SQLITE_IOERR => Self::Medium(format!("{error} (SQLite code {code})")),
                // A file system that went read-only under us, or a file that was moved away.
                ffi::SQLITE_READONLY => Self::Unwritten(format!("{error} (SQLite code {code})")),
                ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => {
                    Self::Corrupt(format!("{error} (SQLite code {code})"))
                }
                _ => Self::Other(error.to_string()),
            },
        }
    }
}

fn primary(extended: i32) -> i32 {
    extended & 0xff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: i32) -> StoreError {
        rusqlite::Error::SqliteFailure(ffi::Error::new(code), None).into()
    }

    #[test]
    fn each_code_has_its_meaning() {
        assert!(matches!(of(ffi::SQLITE_FULL), StoreError::Full { group_lost: true }));
        assert!(matches!(of(ffi::SQLITE_IOERR_SHMSIZE), StoreError::Full { group_lost: true }));
        for code in [ffi::SQLITE_IOERR, ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_READ] {
            assert!(matches!(of(code), StoreError::Medium(_)), "{code}");
        }
        for code in [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_TRUNCATE, ffi::SQLITE_READONLY_DBMOVED] {
            assert!(matches!(of(code), StoreError::Unwritten(_)), "{code}");
        }
        assert!(matches!(of(ffi::SQLITE_CORRUPT), StoreError::Corrupt(_)));
        assert!(matches!(of(ffi::SQLITE_CORRUPT_INDEX), StoreError::Corrupt(_)));
        assert!(matches!(of(ffi::SQLITE_NOTADB), StoreError::Corrupt(_)));
        assert!(matches!(of(ffi::SQLITE_CONSTRAINT_UNIQUE), StoreError::Other(_)));
        assert!(matches!(of(ffi::SQLITE_BUSY), StoreError::Other(_)));
    }
}
