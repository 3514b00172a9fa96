//! Keeps the connection to the control port, for ever: reads what tor says, and tells what changed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::book::Book;
use super::bootstrap::{self, Phase};
use super::client::{Client, ControlError, Events};
use super::protocol::{Bootstrap, Circuit, Event as Said, Stream, StreamStatus};
use super::release::{UNATTACHED, attach_waiting};
use super::{Control, State, There};
use crate::scraper::circuit::socks;
use crate::scraper::tor::TorGate;
use crate::supervisor::policy::{Backoff, Roll};
use crate::telemetry::Event;

/// Tor that was restarted is back within a second. In the strict grade others wait for us meanwhile, so it is not long.
const RECONNECT: Backoff = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(5) };
/// A paused tor keeps its connections open; only a question shows it.
const ASK_EVERY: Duration = Duration::from_secs(10);

const EVENTS: [&str; 4] = ["CIRC", "STREAM", "STATUS_CLIENT", "CONF_CHANGED"];

/// A watcher that ends takes its connection with it: nobody may go on to believe in it. One that ends after the next one
/// has begun, as an aborted task may, takes nothing of that one's.
struct Guard {
    control: Control,
    /// Which watcher of this process.
    number: u64,
}

impl Guard {
    fn of(control: Control) -> Self {
        let number = control.0.watchers.fetch_add(1, Ordering::AcqRel) + 1;
        Self { control, number }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let shared = &self.control.0;
        if shared.watchers.load(Ordering::Acquire) == self.number {
            shared.state.send_replace(State::Unknown);
            shared.book.send_replace(Book::default());
        }
    }
}

impl Control {
    /// Connects, again and again. `gate` hears of a loss where nothing may go out without the port.
    pub async fn keep_watching(self, gate: TorGate) {
        let _guard = Guard::of(self.clone());
        let mut failures = 0;
        let mut phase = None;
        while !self.is_stopping() {
            let reason = match self.open().await {
                Ok((client, events, there)) => {
                    failures = 0;
                    if there.bootstrap.as_ref().is_some_and(Bootstrap::is_done) {
                        phase.get_or_insert(Phase::Done); // It was there before us: no news.
                    }
                    let bootstrap = there.bootstrap.clone();
                    self.found(there);
                    if let Some(bootstrap) = bootstrap {
                        tell_bootstrap(&mut phase, &bootstrap);
                    }
                    let error = self.serve(&client, events, &mut phase).await;
                    error.to_string()
                }
                Err(error) => error.to_string(),
            };
            self.lost(reason, &gate);
            sleep(RECONNECT.pause(failures, Roll::by_chance())).await;
            failures = failures.saturating_add(1);
        }
    }

    async fn open(&self) -> Result<(Client, Events, There), ControlError> {
        let password = self.password();
        let (client, events) = Client::connect(self.0.address, password.as_ref()).await?;
        client.set_events(&EVENTS).await?;
        let mut book = Book::default();
        for circuit in Circuit::parse_all(&client.get_info("circuit-status").await?)? {
            book.on_circuit(&circuit);
        }
        self.0.book.send_replace(book);
        let conflux = match client.get_conf("ConfluxEnabled").await {
            Ok(value) => value.as_deref() != Some("0"),
            // A tor that is older than it.
            Err(ControlError::Refused { .. }) => false,
            Err(error) => return Err(error),
        };
        let bootstrap = Bootstrap::parse(&client.get_info("status/bootstrap-phase").await?)?;
        if self.is_strict() {
            self.hold(&client).await?;
        }
        Ok((client.clone(), events, There { client, bootstrap, conflux }))
    }

    /// From now on tor leaves all streams to us. Those that wait already, for a process that died, are let go.
    async fn hold(&self, client: &Client) -> Result<(), ControlError> {
        if self.is_stopping() {
            return Ok(());
        }
        client.set_conf(UNATTACHED, "1").await?;
        attach_waiting(client).await.map(drop)
    }

    /// Reads what tor says until it says no more; why.
    async fn serve(&self, client: &Client, mut events: Events, phase: &mut Option<Phase>) -> ControlError {
        let mut ask = interval_at(Instant::now() + ASK_EVERY, ASK_EVERY);
        ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                said = events.next() => match said {
                    Some(said) => if let Err(error) = self.hear(client, said, phase).await {
                        return error;
                    },
                    None => return ControlError::Closed,
                },
                _ = ask.tick() => if let Err(error) = client.get_info("version").await {
                    return error;
                },
            }
        }
    }

    async fn hear(&self, client: &Client, said: Said, phase: &mut Option<Phase>) -> Result<(), ControlError> {
        match said {
            Said::Circuit(circuit) => self.0.book.send_modify(|book| book.on_circuit(&circuit)),
            Said::Stream(stream) => {
                self.hear_stream(&stream);
                if self.is_strict() && !self.is_stopping() {
                    self.attach(client, &stream);
                }
            }
            Said::Bootstrap(bootstrap) => {
                tell_bootstrap(phase, &bootstrap);
                self.0.state.send_modify(|state| {
                    if let State::There(there) = state {
                        there.bootstrap = Some(bootstrap);
                    }
                });
            }
            // A reload of tor (SIGHUP) forgets what it was told.
            Said::ConfChanged if self.is_strict() && !self.is_stopping() => {
                if client.get_conf(UNATTACHED).await?.as_deref() != Some("1") {
                    self.hold(client).await?;
                }
            }
            Said::ConfChanged | Said::Other => {}
        }
        Ok(())
    }

    fn hear_stream(&self, stream: &Stream) {
        self.0.book.send_if_modified(|book| {
            book.on_stream(stream, socks::is_ours);
            // Whoever waits, waits for these.
            matches!(stream.status, StreamStatus::Succeeded | StreamStatus::Detached | StreamStatus::Closed)
        });
    }

    fn found(&self, there: There) {
        let control = self.0.address.to_string();
        Event::ControlFound { control: &control, version: there.version() }.emit();
        if there.conflux && !self.is_strict() {
            Event::ConfluxFound { control: &control }.emit();
        }
        self.0.state.send_replace(State::There(there));
    }

    /// One event, at the first of many failures in a row.
    fn lost(&self, reason: String, gate: &TorGate) {
        let news = !matches!(&*self.0.state.borrow(), State::Away { .. });
        self.0.state.send_replace(State::Away { reason: reason.clone() });
        self.0.book.send_replace(Book::default());
        if self.is_stopping() {
            return;
        }
        if self.is_strict() {
            if let Err(away) = self.lets_dial() {
                gate.lose(&away, None); // Says it once by itself.
            }
        } else if news {
            Event::ControlLost { control: &self.0.address.to_string(), reason: &reason }.emit();
        }
    }
}

fn tell_bootstrap(phase: &mut Option<Phase>, now: &Bootstrap) {
    let Some(next) = bootstrap::next(*phase, now) else { return };
    *phase = Some(next);
    let (progress, summary) = (u64::from(now.progress), now.summary.as_str());
    match next {
        Phase::Begun => Event::BootstrapStarted { progress, summary }.emit(),
        Phase::Stuck => {
            let reason = now.trouble.as_deref().unwrap_or_default();
            Event::BootstrapStuck { progress, summary, reason }.emit();
        }
        Phase::Done => Event::BootstrapEnded {}.emit(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Binding;

    #[test]
    fn a_watcher_that_ends_late_takes_nothing_of_the_one_that_came_after_it() {
        let control = Control::new(([127, 0, 0, 1], 9051).into(), Binding::Strict, None);
        let away = || State::Away { reason: "refused".to_owned() };
        let first = Guard::of(control.clone());
        let second = Guard::of(control.clone());
        control.0.state.send_replace(away());
        drop(first);
        assert!(matches!(&*control.watch().borrow(), State::Away { .. }), "the second one's");
        drop(second);
        assert!(matches!(&*control.watch().borrow(), State::Unknown));
    }
}
