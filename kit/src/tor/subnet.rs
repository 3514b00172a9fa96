//! Which addresses a private network has: one /24 of 127/8, claimed by listening on one of its ports.
//!
//! The claim lives as long as its socket, so the kernel frees it when its process ends, however that ends.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use crate::{Result, Trouble};

/// Ports are the same in each network: the addresses tell them apart.
pub(super) const OR_PORT: u16 = 9_001;
pub(super) const DIR_PORT: u16 = 9_030;
pub(super) const SOCKS_PORT: u16 = 9_050;
pub(super) const CONTROL_PORT: u16 = 9_051;
const CLAIM_PORT: u16 = 9_049;

/// The last byte of the client's address, of the first relay's (the authority's), and what turns a relay's into its alias.
const CLIENT: u8 = 1;
const FIRST_RELAY: u8 = 11;
const ALIAS: u8 = 200;

/// How many subnets are tried before giving up.
const TRIES_MAX: u32 = 200;

/// One /24, ours for as long as this lives.
#[derive(Debug)]
pub(super) struct Subnet {
    prefix: [u8; 3],
    _claim: TcpListener,
}

impl Subnet {
    /// Claims a free one; the process id decides where the search begins.
    pub(super) fn any(relays: u8) -> Result<Self> {
        let mut last = None;
        for try_number in 0..TRIES_MAX {
            // Between 127.64 and 127.223: clear of what people use by hand.
            let number = (std::process::id().wrapping_mul(7_919).wrapping_add(try_number)) % (160 * 256);
            let [_, _, high, low] = number.to_be_bytes();
            match Self::claim([127, 64 + high, low], relays) {
                Ok(subnet) => return Ok(subnet),
                Err(error) => last = Some(error),
            }
        }
        let why = last.map(|error| error.to_string()).unwrap_or_default();
        Err(Trouble::new(format!("could not find a free /24 in 127/8 for a private Tor network: {why}")))
    }

    /// Claims the one a directory is named after; `None` if it is in use or this is no such name.
    pub(super) fn named(dir: &Path, relays: u8) -> Option<Self> {
        let name = dir.file_name()?.to_str()?;
        let prefix: Vec<u8> = name.split('.').map(|byte| byte.parse().ok()).collect::<Option<_>>()?;
        Self::claim(prefix.try_into().ok()?, relays).ok()
    }

    fn claim(prefix: [u8; 3], relays: u8) -> io::Result<Self> {
        let [a, b, c] = prefix;
        let claim = TcpListener::bind((Ipv4Addr::new(a, b, c, CLIENT), CLAIM_PORT))?;
        let subnet = Self { prefix, _claim: claim };
        // A tor left behind by a killed test may still hold these, until it sees that its owner is gone.
        TcpListener::bind((subnet.client(), SOCKS_PORT))?;
        TcpListener::bind((subnet.client(), CONTROL_PORT))?;
        for number in 0..relays {
            TcpListener::bind((subnet.relay(number), OR_PORT))?;
            TcpListener::bind((subnet.relay(number), CONTROL_PORT))?;
        }
        TcpListener::bind((subnet.relay(0), DIR_PORT))?;
        Ok(subnet)
    }

    /// `127.A.B`.
    pub(super) fn name(&self) -> String {
        let [a, b, c] = self.prefix;
        format!("{a}.{b}.{c}")
    }

    fn ip(&self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.prefix;
        Ipv4Addr::new(a, b, c, last)
    }

    pub(super) fn client(&self) -> Ipv4Addr {
        self.ip(CLIENT)
    }

    /// The address of a relay; the authority is number 0.
    pub(super) fn relay(&self, number: u8) -> Ipv4Addr {
        self.ip(FIRST_RELAY + number)
    }

    /// What the exit resolves every name to.
    pub(super) fn alias(&self, number: u8) -> Ipv4Addr {
        self.ip(ALIAS + FIRST_RELAY + number)
    }

    /// The port of the exit's nameserver, on the client's address.
    pub(super) fn dns_port(&self, number: u8) -> u16 {
        5_300 + u16::from(FIRST_RELAY + number)
    }
}
