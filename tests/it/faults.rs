//! What the machine does to the daemon: its clock jumps, its descriptors are used up, its ledger may not be written.

mod clock;
