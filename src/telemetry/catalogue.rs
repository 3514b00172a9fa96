//! What is said of the events elsewhere, made from the list itself: the journal's catalogue and the table in the docs.

use std::fmt::Write;

use super::event::{Description, Event};

/// The catalogue for `journalctl -x` (systemd.io/CATALOG): what each event means, and what to do.
pub fn journal() -> String {
    let mut text = String::from(
        "# Made from the list of events by `glaneur generate`. Explains them in `journalctl -x`.\n",
    );
    for event in Event::ALL {
        let Description { name, message, meaning, action, .. } = event;
        let fields: String =
            event.fields.iter().map(|field| format!("{field}: @{}@\n", field.to_ascii_uppercase())).collect();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n-- {id}\nSubject: {message}\nDefined-By: glaneur\nSupport: {support}\n\n{meaning}\n{fields}\nWhat to do: {action}\n\
             This event is {name} in docs/events.md.\n",
            id = event.message_id(),
            support = env!("CARGO_PKG_REPOSITORY"),
            meaning = meaning.trim(),
        );
    }
    text
}

/// The table of all events in Markdown.
pub fn table() -> String {
    let mut text = String::from(
        "# The events of the log\n\n\
         Made from the list in `src/telemetry/event.rs` by `glaneur generate`. Names are stable; fields may be added.\n\
         `error` means that a person must look. In the journal the fields are in capitals, and `EVENT=name` selects one:\n\
         `journalctl -u glaneur EVENT=product_ended EAN=0748322148474`.\n\n\
         | event | level | meaning | fields | what to do |\n|---|---|---|---|---|\n",
    );
    for event in Event::ALL {
        let fields: Vec<String> = event.fields.iter().map(|field| format!("`{field}`")).collect();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            event.name,
            event.level.to_ascii_lowercase(),
            event.meaning.trim().replace('|', "\\|"),
            fields.join(", "),
            event.action.replace('|', "\\|"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_and_ids_are_unique_and_every_event_is_explained() {
        let names: HashSet<&str> = Event::ALL.iter().map(|event| event.name).collect();
        let ids: HashSet<String> = Event::ALL.iter().map(Description::message_id).collect();
        assert_eq!((names.len(), ids.len()), (Event::ALL.len(), Event::ALL.len()));
        let catalogue = journal();
        for event in Event::ALL {
            assert!(catalogue.contains(&format!("\n-- {}\n", event.message_id())), "{}", event.name);
            assert!(event.action.ends_with('.') && event.meaning.trim().ends_with('.'), "{}", event.name);
        }
    }

    /// Operators have written filters with them.
    #[test]
    fn the_id_of_an_event_never_changes() {
        assert_eq!(super::super::event::message_id("product_ended"), "659d983377fa86e589ab8dcd6b647261");
    }
}
