//! What the answers of Tor mean: a line for each question, with what mends it. Pure.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{Binding, format_duration};
use crate::scraper::relay::ExitRelay;
use crate::scraper::survey::{ControlSeen, ExitAnswer, Facts, Seen, Told, Way};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Bad,
    /// Cannot be seen from here, or was not asked because something before it is bad.
    Unknown,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub question: &'static str,
    pub verdict: Verdict,
    sentence: String,
    /// A line for torrc or for config.toml, or a command.
    mend: Option<String>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Bad => "bad",
            Verdict::Unknown => "unknown",
        };
        write!(f, "{verdict:<8} {:<10} {}", self.question, self.sentence)?;
        match &self.mend {
            Some(mend) => write!(f, "\n{:19} {mend}", ""),
            None => Ok(()),
        }
    }
}

/// What the daemon is configured to need.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    pub socks: SocketAddr,
    /// What was looked up, if there was anything to look up.
    pub name: Option<&'a str>,
    /// When the daemon retires a circuit.
    pub age_max: Duration,
    pub binding: Binding,
}

const CONFLUX_OFF: &str = "torrc: ConfluxEnabled 0";
const NO_CONTROL: &str = "this cannot be seen without the control port";

/// All questions, in the order in which one rests on the other.
pub fn lines(needs: &Needs<'_>, seen: &Seen) -> Vec<Line> {
    let facts = match &seen.control {
        ControlSeen::There(facts) => Some(facts),
        ControlSeen::NotConfigured | ControlSeen::Away(_) => None,
    };
    vec![
        port(needs, seen),
        password(needs, seen),
        control(seen),
        bootstrap(seen, facts),
        isolation(needs, seen),
        lifetime(needs, facts),
        conflux(needs, facts),
        resolving(needs, seen),
        exits(seen),
    ]
}

fn ok(question: &'static str, sentence: impl Into<String>) -> Line {
    Line { question, verdict: Verdict::Ok, sentence: sentence.into(), mend: None }
}

fn bad(question: &'static str, sentence: impl Into<String>, mend: impl Into<String>) -> Line {
    Line { question, verdict: Verdict::Bad, sentence: sentence.into(), mend: Some(mend.into()) }
}

fn unknown(question: &'static str, sentence: impl Into<String>) -> Line {
    Line { question, verdict: Verdict::Unknown, sentence: sentence.into(), mend: None }
}

fn socks_line(socks: SocketAddr) -> String {
    format!("torrc: SocksPort {socks} IsolateSOCKSAuth KeepAliveIsolateSOCKSAuth ExtendedErrors")
}

/// Is Tor there?
fn port(needs: &Needs<'_>, seen: &Seen) -> Line {
    let socks = needs.socks;
    match &seen.port {
        Ok(()) => ok("port", format!("{socks} answers as a SOCKS5 port.")),
        Err(away) => bad(
            "port",
            format!("{}.", away.reason),
            format!(
                "start tor (systemctl start tor), with {}; or set tor.socks to its port",
                socks_line(socks)
            ),
        ),
    }
}

/// Would a client that offers both send its password?
fn password(needs: &Needs<'_>, seen: &Seen) -> Line {
    const QUESTION: &str = "password";
    let mend = || format!("{} (and no PreferSOCKSNoAuth)", socks_line(needs.socks));
    match (&seen.port, seen.choice) {
        (Err(_), _) => unknown(QUESTION, "not asked: there is no SOCKS port."),
        (Ok(()), Some([0x05, 0x02])) => ok(QUESTION, "it takes user and password, and prefers them to none."),
        (Ok(()), Some([0x05, 0x00])) => bad(
            QUESTION,
            "it prefers \"no authentication\" to a password: all circuits would be one, so the daemon refuses it.",
            mend(),
        ),
        (Ok(()), Some([version, method])) => bad(
            QUESTION,
            format!("it chose {version:#04x} {method:#04x} when offered a password or none: it is not tor."),
            mend(),
        ),
        (Ok(()), None) => unknown(QUESTION, "it takes a password alone, but did not say what it prefers."),
    }
}

fn control(seen: &Seen) -> Line {
    const QUESTION: &str = "control";
    match &seen.control {
        ControlSeen::There(Facts { version, .. }) => ok(QUESTION, format!("the control port of tor {version} lets us in.")),
        ControlSeen::NotConfigured => Line {
            mend: Some(
                "to see more, in torrc: ControlPort 127.0.0.1:9051 and CookieAuthentication 1; in config.toml: \
                 tor.control = \"127.0.0.1:9051\""
                    .into(),
            ),
            ..unknown(QUESTION, "tor.control is not set: exits, isolation and Conflux cannot be seen.")
        },
        ControlSeen::Away(error) => bad(
            QUESTION,
            format!("{error}."),
            "torrc: ControlPort at the address of tor.control, with CookieAuthentication 1 or HashedControlPassword",
        ),
    }
}

fn bootstrap(seen: &Seen, facts: Option<&Facts>) -> Line {
    const QUESTION: &str = "bootstrap";
    match facts.and_then(|facts| facts.bootstrap.as_ref()) {
        Some(bootstrap) if bootstrap.is_done() => ok(QUESTION, "tor is at 100 % of its way to the network."),
        Some(bootstrap) => {
            let trouble =
                bootstrap.trouble.as_ref().map(|trouble| format!("; {trouble}")).unwrap_or_default();
            bad(
                QUESTION,
                format!(
                    "tor is at {} % of its way to the network: {}{trouble}.",
                    bootstrap.progress, bootstrap.summary
                ),
                "wait for 100 %; if it stays, see tor's log (journalctl -u tor@default), the clock and the firewall",
            )
        }
        None if proven(seen) => ok(QUESTION, "an exit answered, so tor has reached the network."),
        None => unknown(QUESTION, format!("no exit answered, and {NO_CONTROL}.")),
    }
}

fn proven(seen: &Seen) -> bool {
    seen.ways.iter().flatten().any(|way| way.answer.is_proof())
}

/// Do two credentials give two circuits?
fn isolation(needs: &Needs<'_>, seen: &Seen) -> Line {
    const QUESTION: &str = "isolation";
    let ways = match (&seen.ways, &seen.control) {
        (None, _) => return unknown(QUESTION, "not asked: there is no SOCKS port."),
        (Some(_), ControlSeen::NotConfigured | ControlSeen::Away(_)) => {
            let line = unknown(QUESTION, format!("whether two passwords give two circuits: {NO_CONTROL}."));
            return Line { mend: Some(format!("to be sure, in {}", socks_line(needs.socks))), ..line };
        }
        (Some(ways), ControlSeen::There(_)) => ways,
    };
    let [first, second] = ways.each_ref().map(numbers);
    if let Some(shared) = first.iter().find(|circuit| second.contains(circuit)) {
        return bad(
            QUESTION,
            format!("two passwords were put on one circuit ({shared}): shops could link all scrapers."),
            socks_line(needs.socks),
        );
    }
    match (first.first(), second.first()) {
        (Some(first), Some(second)) => {
            ok(QUESTION, format!("two passwords gave two circuits ({first} and {second})."))
        }
        (None, _) | (_, None) => {
            unknown(QUESTION, "the control port told of no circuit for the two passwords.")
        }
    }
}

fn numbers(way: &Way) -> Vec<u64> {
    way.circuits.iter().map(|(circuit, _)| circuit.0).collect()
}

/// Does a circuit last as long as the daemon means it to?
fn lifetime(needs: &Needs<'_>, facts: Option<&Facts>) -> Line {
    const QUESTION: &str = "lifetime";
    let Some(facts) = facts else {
        return unknown(QUESTION, format!("how long tor keeps a circuit: {NO_CONTROL}."));
    };
    let keeps =
        |line: &str| line.split(' ').any(|word| word.eq_ignore_ascii_case("KeepAliveIsolateSOCKSAuth"));
    if matches!(&facts.socks_port, Told::Value(line) if keeps(line)) {
        return ok(QUESTION, "tor keeps a circuit for as long as it is used.");
    }
    let age_max = format_duration(needs.age_max);
    match &facts.dirtiness {
        Told::Value(seconds) => match seconds.parse().map(Duration::from_secs) {
            Ok(lasts) if needs.age_max < lasts => ok(
                QUESTION,
                format!(
                    "tor changes a circuit {seconds} s after its first use; the daemon does it after {age_max}."
                ),
            ),
            Ok(_) | Err(_) => bad(
                QUESTION,
                format!(
                    "tor changes a circuit {seconds} s after its first use, before the daemon does (tor.age_max, {age_max})."
                ),
                format!("{}; or MaxCircuitDirtiness 600", socks_line(needs.socks)),
            ),
        },
        Told::Default | Told::NoSuchOption | Told::Nothing => {
            unknown(QUESTION, "tor did not say how long it keeps a circuit.")
        }
    }
}

fn conflux(needs: &Needs<'_>, facts: Option<&Facts>) -> Line {
    const QUESTION: &str = "conflux";
    let Some(facts) = facts else {
        let line = unknown(QUESTION, format!("whether Conflux is off: {NO_CONTROL}. Tor's default is on."));
        return Line { mend: Some(format!("to be sure, in {CONFLUX_OFF}")), ..line };
    };
    match &facts.conflux {
        Told::Value(value) if value == "0" => ok(QUESTION, "it is off."),
        Told::NoSuchOption => ok(QUESTION, "this tor does not have it."),
        Told::Value(_) | Told::Default if needs.binding == Binding::Strict => ok(
            QUESTION,
            "it is on, and does no harm: with tor.binding = \"strict\" the daemon itself chooses the circuits.",
        ),
        Told::Value(value) => bad(
            QUESTION,
            format!(
                "it is on (ConfluxEnabled {value}): tor would move a scraper to another circuit and exit."
            ),
            CONFLUX_OFF,
        ),
        Told::Default => bad(QUESTION, "it is at tor's default, which is on.", CONFLUX_OFF),
        Told::Nothing => unknown(QUESTION, "the control port did not tell."),
    }
}

/// Are names looked up at the exit? What proves it: `scraper/probe.rs`.
fn resolving(needs: &Needs<'_>, seen: &Seen) -> Line {
    const QUESTION: &str = "resolving";
    let Some(ways) = &seen.ways else { return unknown(QUESTION, "not asked: there is no SOCKS port.") };
    let answers = ways.each_ref().map(|way| &way.answer);
    if answers.contains(&&ExitAnswer::NotTor) {
        let mend = "set tor.socks to the SOCKS port of a tor";
        return bad(QUESTION, "the port does not know RESOLVE, which every tor does: it is not tor.", mend);
    }
    match (needs.name, answers) {
        (Some(name), [ExitAnswer::Resolved, _] | [_, ExitAnswer::Resolved]) => {
            ok(QUESTION, format!("an exit looked up {name}; no name is looked up here."))
        }
        (Some(name), [ExitAnswer::NobodyThere, _] | [_, ExitAnswer::NobodyThere]) => ok(
            QUESTION,
            format!(
                "an exit says of a name that nobody has that it does not exist; that {name} failed proves nothing."
            ),
        ),
        (None, _) if proven(seen) => {
            ok(QUESTION, "an exit says of a name that nobody has that it does not exist.")
        }
        (_, [ExitAnswer::Nothing(why), _]) => bad(
            QUESTION,
            format!("no exit answered ({why}), so nothing gets out: tor has no working circuit."),
            "see tor's log (journalctl -u tor@default); a tor that just started may need a minute",
        ),
        (_, [ExitAnswer::Resolved | ExitAnswer::NobodyThere | ExitAnswer::NotTor, _]) => {
            unknown(QUESTION, "an exit answered, but not to this.")
        }
    }
}

fn exits(seen: &Seen) -> Line {
    const QUESTION: &str = "exits";
    match (&seen.ways, &seen.control) {
        (None, _) => unknown(QUESTION, "not asked: there is no SOCKS port."),
        (Some(_), ControlSeen::NotConfigured | ControlSeen::Away(_)) => {
            unknown(QUESTION, format!("which exits the two passwords got: {NO_CONTROL}."))
        }
        (Some(ways), ControlSeen::There(_)) => {
            // The circuit that was used last is the one that answered.
            let last =
                |way: &Way| way.circuits.iter().rev().find_map(|(_, exit)| exit.as_ref().map(described));
            match ways.each_ref().map(last) {
                [Some(first), Some(second)] => {
                    ok(QUESTION, format!("the two passwords got {first} and {second}."))
                }
                [Some(one), None] | [None, Some(one)] => {
                    ok(QUESTION, format!("one password got {one}; the other's circuit is gone already."))
                }
                [None, None] => unknown(QUESTION, "the circuits were gone before they could be looked at."),
            }
        }
    }
}

fn described(exit: &ExitRelay) -> String {
    match exit.address {
        Some(address) => format!("{exit} at {address}"),
        None => exit.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scraper::control::client::ControlError;
    use crate::scraper::control::protocol::{Bootstrap, CircuitNo};
    use crate::scraper::probe::TorAway;

    const NEEDS: Needs<'static> = Needs {
        socks: SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9050),
        name: Some("www.shop.example"),
        age_max: Duration::from_secs(480),
        binding: Binding::Credentials,
    };

    fn way(circuit: u64, answer: ExitAnswer) -> Way {
        let exit = ExitRelay {
            fingerprint: "AB".repeat(20).into(),
            nickname: format!("exit{circuit}").into(),
            address: Some([192, 0, 2, circuit as u8].into()),
            country: Some("se".into()),
        };
        Way { answer, circuits: vec![(CircuitNo(circuit), Some(exit))] }
    }

    fn bootstrapped(progress: u8) -> Option<Bootstrap> {
        Some(Bootstrap { progress, summary: "Loading".into(), trouble: Some("refused".into()) })
    }

    fn facts() -> Facts {
        Facts {
            version: "0.4.9.11".into(),
            bootstrap: bootstrapped(100),
            conflux: Told::Value("0".into()),
            socks_port: Told::Value("127.0.0.1:9050 IsolateSOCKSAuth KeepAliveIsolateSOCKSAuth".into()),
            dirtiness: Told::Value("600".into()),
        }
    }

    fn seen(control: ControlSeen) -> Seen {
        let ways = [way(1, ExitAnswer::Resolved), way(2, ExitAnswer::Resolved)];
        Seen { port: Ok(()), choice: Some([0x05, 0x02]), ways: Some(ways), control }
    }

    fn with(change: impl FnOnce(&mut Facts)) -> Seen {
        let mut facts = facts();
        change(&mut facts);
        seen(ControlSeen::There(facts))
    }

    fn of(question: &str, seen: &Seen) -> Line {
        lines(&NEEDS, seen).into_iter().find(|line| line.question == question).unwrap()
    }

    #[track_caller]
    fn assert_says(question: &str, seen: &Seen, verdict: Verdict, words: &str) {
        let line = of(question, seen);
        assert_eq!(line.verdict, verdict, "{line}");
        assert!(line.to_string().contains(words), "no {words:?} in: {line}");
    }

    #[test]
    fn a_tor_as_the_readme_wants_it_is_ok_in_every_question() {
        let seen = with(|_| {});
        let lines = lines(&NEEDS, &seen);
        assert!(lines.iter().all(|line| line.verdict == Verdict::Ok && line.mend.is_none()), "{lines:#?}");
        assert_says("exits", &seen, Verdict::Ok, "exit1 (se) at 192.0.2.1 and exit2 (se) at 192.0.2.2");
    }

    #[test]
    fn conflux_is_bad_unless_it_is_off_or_not_there() {
        for (told, verdict) in [
            (Told::Value("0".into()), Verdict::Ok),
            (Told::NoSuchOption, Verdict::Ok),
            (Told::Value("auto".into()), Verdict::Bad),
            (Told::Value("1".into()), Verdict::Bad),
            (Told::Default, Verdict::Bad),
            (Told::Nothing, Verdict::Unknown),
        ] {
            let seen = with(|facts| facts.conflux = told.clone());
            let words = if verdict == Verdict::Bad { CONFLUX_OFF } else { "" };
            assert_says("conflux", &seen, verdict, words);
            let strict = Needs { binding: Binding::Strict, ..NEEDS };
            let line = lines(&strict, &seen).into_iter().find(|line| line.question == "conflux").unwrap();
            assert_ne!(line.verdict, Verdict::Bad, "the daemon chooses the circuits itself: {line}");
        }
    }

    #[test]
    fn one_circuit_for_two_passwords_is_bad_and_none_seen_is_unknown() {
        let mut seen = with(|_| {});
        seen.ways = Some([way(7, ExitAnswer::Resolved), way(7, ExitAnswer::Resolved)]);
        assert_says("isolation", &seen, Verdict::Bad, "torrc: SocksPort 127.0.0.1:9050 IsolateSOCKSAuth");
        let nowhere = Way { answer: ExitAnswer::Resolved, circuits: Vec::new() };
        seen.ways = Some([way(7, ExitAnswer::Resolved), nowhere]);
        assert_says("isolation", &seen, Verdict::Unknown, "");
    }

    #[test]
    fn a_port_that_prefers_no_password_is_bad() {
        let mut seen = with(|_| {});
        seen.choice = Some([0x05, 0x00]);
        assert_says("password", &seen, Verdict::Bad, "it prefers \"no authentication\"");
        assert_says("password", &seen, Verdict::Bad, "PreferSOCKSNoAuth");
        seen.choice = None;
        assert_says("password", &seen, Verdict::Unknown, "");
    }

    #[test]
    fn without_a_socks_port_it_alone_is_bad_and_the_rest_of_it_not_asked() {
        let mut seen = seen(ControlSeen::NotConfigured);
        (seen.port, seen.choice, seen.ways) = (Err(TorAway::new("cannot reach 127.0.0.1:9050")), None, None);
        for line in lines(&NEEDS, &seen) {
            let expected = if line.question == "port" { Verdict::Bad } else { Verdict::Unknown };
            assert_eq!(line.verdict, expected, "{line}");
        }
        assert_says("port", &seen, Verdict::Bad, "torrc: SocksPort 127.0.0.1:9050");
    }

    #[test]
    fn without_a_control_port_what_it_alone_knows_is_unknown_and_nothing_is_bad() {
        let seen = seen(ControlSeen::NotConfigured);
        for line in lines(&NEEDS, &seen) {
            let by_control =
                ["control", "isolation", "lifetime", "conflux", "exits"].contains(&line.question);
            let expected = if by_control { Verdict::Unknown } else { Verdict::Ok };
            assert_eq!(line.verdict, expected, "{line}");
        }
        assert_says("conflux", &seen, Verdict::Unknown, CONFLUX_OFF);
        assert_says("control", &seen, Verdict::Unknown, "ControlPort 127.0.0.1:9051");
    }

    #[test]
    fn a_control_port_that_does_not_let_us_in_is_bad_and_says_why() {
        let seen = seen(ControlSeen::Away(ControlError::PasswordWrong));
        assert_says("control", &seen, Verdict::Bad, "tor.control_password_file");
        assert_says("exits", &seen, Verdict::Unknown, "");
    }

    #[test]
    fn tor_is_on_its_way_until_it_is_there() {
        let seen = with(|facts| facts.bootstrap = bootstrapped(45));
        assert_says("bootstrap", &seen, Verdict::Bad, "at 45 % of its way to the network: Loading; refused");
    }

    #[test]
    fn only_an_exit_that_answered_proves_that_names_are_looked_up_there() {
        let nothing = || ExitAnswer::Nothing("0x01".into());
        for (first, second, verdict) in [
            (ExitAnswer::Resolved, nothing(), Verdict::Ok),
            (nothing(), ExitAnswer::NobodyThere, Verdict::Ok),
            (nothing(), nothing(), Verdict::Bad),
            (ExitAnswer::NotTor, ExitAnswer::NotTor, Verdict::Bad),
        ] {
            let mut seen = with(|_| {});
            seen.ways = Some([way(1, first.clone()), way(2, second)]);
            assert_says("resolving", &seen, verdict, "");
        }
    }

    #[test]
    fn without_a_control_port_an_exit_that_answered_shows_that_tor_is_bootstrapped_and_nothing_else_does() {
        for (answer, verdict) in
            [(ExitAnswer::NobodyThere, Verdict::Ok), (ExitAnswer::Nothing("0x01".into()), Verdict::Unknown)]
        {
            let mut seen = seen(ControlSeen::NotConfigured);
            seen.ways = Some([way(1, answer.clone()), way(2, answer)]);
            assert_says("bootstrap", &seen, verdict, "");
        }
    }

    #[test]
    fn a_circuit_that_tor_changes_before_the_daemon_does_is_bad() {
        for (socks_port, dirtiness, verdict) in [
            ("9050", "600", Verdict::Ok),
            ("9050", "480", Verdict::Bad),
            ("9050 IsolateSOCKSAuth", "60", Verdict::Bad),
            ("9050 IsolateSOCKSAuth KeepAliveIsolateSOCKSAuth", "60", Verdict::Ok),
        ] {
            let seen = with(|facts| {
                (facts.socks_port, facts.dirtiness) =
                    (Told::Value(socks_port.into()), Told::Value(dirtiness.into()));
            });
            assert_says("lifetime", &seen, verdict, "");
        }
    }
}
