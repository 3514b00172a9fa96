//! How the process ends: the closed list of exit codes, for systemd and for people.

/// An exit code. Values follow sysexits.h where it has a word for the case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done, or drained after a signal.
    Ok = 0,
    /// A command's answer is no: nothing found, no daemon that answers, a Tor that is not as it should be.
    No = 1,
    /// The command line is wrong.
    Usage = 64,
    /// The ledger is damaged. Do not restart: restore a backup.
    LedgerDamaged = 65,
    /// The listener could not be bound.
    Listen = 69,
    /// A part failed past its limit, or the disk failed. Restart: nothing is lost.
    Escalated = 70,
    /// A file could not be read or made: the ledger, a token, a secret.
    File = 74,
    /// Another process holds the ledger.
    LedgerLocked = 75,
    /// The ledger is newer than this binary. Do not restart: install the newer binary.
    LedgerNewer = 76,
    /// The configuration is wrong, or what the service manager handed over is no listener. Do not restart: mend it.
    Config = 78,
    /// A second signal cut the drain short. Nothing that was committed is lost.
    Cut = 79,
}

impl Exit {
    pub const ALL: [Self; 11] = [
        Self::Ok,
        Self::No,
        Self::Usage,
        Self::LedgerDamaged,
        Self::Listen,
        Self::Escalated,
        Self::File,
        Self::LedgerLocked,
        Self::LedgerNewer,
        Self::Config,
        Self::Cut,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    /// Whether another start may go better with nothing changed by a person. systemd starts the daemon again for these
    /// alone; for the others it also closes the port (`systemd/glaneur.service`).
    pub fn may_mend(self) -> bool {
        match self {
            Self::Listen | Self::Escalated | Self::File => true,
            Self::Ok
            | Self::No
            | Self::Usage
            | Self::LedgerDamaged
            | Self::LedgerLocked
            | Self::LedgerNewer
            | Self::Config
            | Self::Cut => false,
        }
    }

    /// In a sentence, for the manual page.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "Done, or drained after a signal.",
            Self::No => {
                "The answer of a command is no: nothing found, no daemon that answers, a Tor that is not as it should be."
            }
            Self::Usage => "The command line is wrong.",
            Self::LedgerDamaged => "The ledger is damaged: restore a backup.",
            Self::Listen => "The listener could not be bound.",
            Self::Escalated => "A part failed past its limit, or the disk failed. A restart loses nothing.",
            Self::File => "A file could not be read or made: the ledger, a token, a secret.",
            Self::LedgerLocked => "Another process holds the ledger.",
            Self::LedgerNewer => "The ledger is newer than this program: install the newer one.",
            Self::Config => "The configuration is wrong.",
            Self::Cut => "A second signal cut the drain short. Nothing that was committed is lost.",
        }
    }
}
