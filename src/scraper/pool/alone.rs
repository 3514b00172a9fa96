//! Shops that are left alone for a while: what the log says of it, and what becomes of their visits.

use ractor::ActorRef;

use super::Msg;
use crate::batch::machine::VisitEnd;
use crate::model::SiteName;
use crate::scraper::Visit;
use crate::scraper::suspension::{Change, Suspended, Went};
use crate::telemetry::Event;
use crate::wall;

/// Says what the end of a visit changed.
pub(super) fn tell(site: &SiteName, change: Change, went: &Went, me: &ActorRef<Msg>) {
    match (change, went) {
        (Change::Suspended(suspended), Went::Refused { rule, .. }) => leave(site, suspended, rule, me),
        (Change::Suspended(suspended), Went::Nowhere | Went::Astray | Went::LetIn) => {
            leave(site, suspended, "", me);
        }
        (Change::Resumed(cause), _) => Event::ShopResumed { site, reason: cause.word() }.emit(),
    }
}

/// Leaves a shop alone, and has it tried when its time is over.
pub(super) fn leave(site: &SiteName, suspended: Suspended, detail: &str, me: &ActorRef<Msg>) {
    let Suspended { cause, pause, count, again } = suspended;
    let until = &wall::format_ms(wall::now_ms() + pause.as_millis() as i64);
    let (reason, seconds) = (cause.word(), pause.as_secs());
    if again {
        Event::ShopProbed { site, reason, until, seconds, detail }.emit();
    } else {
        Event::ShopSuspended { site, reason, until, seconds, count, detail }.emit();
    }
    me.send_after(pause, || Msg::Look);
}

/// Ends a visit of a shop that refuses most exits.
pub(super) fn turn_away(visit: Visit) {
    visit.ticket.answer(VisitEnd::turned_away());
}
