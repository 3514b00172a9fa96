//! The sentences of [`Problem`], for the person in front of n8n: what is wrong, and what would cure it.

use super::{Expected, Problem, Syntax, UrlFault};

/// At most this much of what was sent is quoted.
const QUOTED_CHARS_MAX: usize = 60;

impl Problem {
    pub(super) fn french(&self) -> String {
        match self {
            Self::BodyNotUtf8 => "Le corps de la requête n'est pas du texte UTF-8.".into(),
            Self::BodySyntax { line, column, fault } => {
                let why = match fault {
                    Syntax::EndsEarly => "il s'arrête avant la fin",
                    Syntax::Trailing => "il y a du texte après la fin",
                    Syntax::Number => {
                        "un nombre est mal écrit ; un code-barres qui commence par 0 doit être entre guillemets"
                    }
                    Syntax::Other => "la syntaxe est incorrecte",
                };
                format!("Le corps n'est pas du JSON valable (ligne {line}, colonne {column}) : {why}.")
            }
            Self::BodyNotAnObject => "Le corps doit être un objet JSON, par exemple {\"eans\": [\"0748322148474\"]}.".into(),
            Self::BodyCutOff => "Le corps de la requête s'est interrompu.".into(),
            Self::BodySlow { within } => {
                format!("Le corps n'est pas arrivé en {} s (server.body_timeout).", within.as_secs_f32())
            }
            Self::BodyTooLarge { bytes_max } => {
                format!("Le corps dépasse {bytes_max} octets (server.body_bytes_max) : envoyez plusieurs lots.")
            }
            Self::NotJson => "Il faut l'en-tête « Content-Type: application/json ».".into(),
            Self::Encoded => "Le corps ne doit pas être compressé (Content-Encoding).".into(),
            Self::NothingInIt => "Rien à faire : « eans » et « ignored3400 » sont vides ou absents.".into(),
            Self::KeyTwice { field } => format!("La clé « {field} » est présente deux fois."),
            Self::WrongType { field, expected } => {
                let what = match expected {
                    Expected::Barcode => "un code-barres (texte ou nombre)",
                    Expected::Entry => "un code-barres ou un objet {\"primary\", \"replacement\"}",
                    Expected::List => "une liste",
                    Expected::Object => "un objet JSON",
                    Expected::Text => "un texte",
                    Expected::Truth => "true ou false",
                };
                format!("« {field} » doit être {what}.")
            }
            Self::TooMany { field, products_max } => {
                format!("« {field} » dépasse {products_max} entrées (server.products_max) : envoyez plusieurs lots.")
            }
            Self::SiteUnknown { name, known, .. } => {
                format!("Le site « {} » n'est pas en service ; disponibles : {}.", quote(name), known.join(", "))
            }
            Self::SitesEmpty { known } => {
                format!("« sites » est vide : retirez-le ou choisissez parmi {}.", known.join(", "))
            }
            Self::UrlRefused { field, fault } => match fault {
                UrlFault::Malformed => format!("« {field} » n'est pas une URL."),
                UrlFault::Scheme => format!("« {field} » doit commencer par http:// ou https://."),
                UrlFault::Credentials => {
                    format!("« {field} » ne doit pas contenir d'identifiant ni de mot de passe.")
                }
                UrlFault::Host { host } => {
                    format!("« {field} » : l'hôte {} n'est pas autorisé ; ajoutez-le à webhooks.hosts.", quote(host))
                }
            },
            Self::MetadataTooLarge { bytes_max } => {
                format!("« metadata » dépasse {bytes_max} octets (server.metadata_bytes_max).")
            }
            Self::MetadataTooOften { products, metadata_bytes, bytes_max } => {
                format!(
                    "« metadata » ({metadata_bytes} octets) répété dans {products} webhooks dépasse {bytes_max} octets : \
                     raccourcissez-le ou envoyez plusieurs lots."
                )
            }
            Self::MetadataUnreadable => {
                "« metadata » contient une valeur que tous ne savent pas lire : imbrication trop profonde, nombre \
                 trop grand ou caractère invalide."
                    .into()
            }
            Self::KeyMalformed => {
                "L'en-tête Idempotency-Key doit avoir de 1 à 255 caractères ASCII visibles, sans espace.".into()
            }
            Self::KeyReused => {
                "Cette Idempotency-Key a déjà servi avec un autre corps : rien n'a été enregistré.".into()
            }
            Self::QueryMalformed { field, max } => format!("« {field} » doit être un nombre de 0 à {max}."),
            Self::NoHost => "Il faut exactement un en-tête Host.".into(),
            Self::HostRefused { host } => {
                format!("L'hôte « {} » n'est pas connu de ce serveur ; ajoutez-le à server.hosts.", quote(host))
            }
            Self::OriginRefused { origin } => {
                format!("Une page d'un autre site ({}) ne peut pas appeler ce serveur.", quote(origin))
            }
            Self::TokenMissing => {
                "Il faut l'en-tête « Authorization: Bearer … » avec le jeton de ce serveur, ou une adresse listée dans \
                 server.allow_from."
                    .into()
            }
            Self::TokenWrong => "Le jeton de l'en-tête Authorization n'est pas celui de ce serveur.".into(),
            Self::PeerRefused { peer } => {
                format!("L'adresse {peer} n'est pas autorisée ; ajoutez-la à server.allow_from ou utilisez un jeton.")
            }
            Self::NoRoute { path } => format!("Il n'y a rien à l'adresse « {} ».", quote(path)),
            Self::NoBatch { id } => format!("Aucun lot « {} ».", quote(id)),
            Self::WrongMethod { allow } => format!("Cette adresse n'accepte que {allow}."),
            Self::NoShop => {
                "Aucun site n'est en service : mettez sites.<name>.enabled = true dans la configuration.".into()
            }
            Self::LedgerBusy => {
                "Trop de lots arrivent à la fois ; rien n'a été enregistré, renvoyez la requête.".into()
            }
            Self::LedgerAway => {
                "Le registre n'est pas disponible ; rien n'a été enregistré, renvoyez la requête.".into()
            }
            Self::LedgerFull => {
                "Le disque du registre est plein : rien n'a été enregistré. Faites de la place, puis renvoyez la \
                 requête."
                    .into()
            }
            Self::LedgerReadOnly => {
                "Le registre est en lecture seule : rien n'a été enregistré. Rendez son fichier inscriptible, puis \
                 renvoyez la requête."
                    .into()
            }
            Self::LedgerRefused => {
                "Le registre a refusé l'écriture ; rien n'a été enregistré (voir le journal du serveur).".into()
            }
            Self::LedgerSlow => "Le registre n'a pas répondu à temps ; renvoyez la requête.".into(),
        }
    }

    pub(super) fn english(&self) -> String {
        match self {
            Self::BodyNotUtf8 => "The body of the request is not UTF-8 text.".into(),
            Self::BodySyntax { line, column, fault } => {
                let why = match fault {
                    Syntax::EndsEarly => "it stops before its end",
                    Syntax::Trailing => "there is text after its end",
                    Syntax::Number => "a number is malformed; a barcode that begins with 0 must be in quotes",
                    Syntax::Other => "the syntax is wrong",
                };
                format!("The body is not valid JSON (line {line}, column {column}): {why}.")
            }
            Self::BodyNotAnObject => "The body must be a JSON object, such as {\"eans\": [\"0748322148474\"]}.".into(),
            Self::BodyCutOff => "The body of the request was cut off.".into(),
            Self::BodySlow { within } => {
                format!("The body did not arrive within {} s (server.body_timeout).", within.as_secs_f32())
            }
            Self::BodyTooLarge { bytes_max } => {
                format!("The body exceeds {bytes_max} bytes (server.body_bytes_max): send several batches.")
            }
            Self::NotJson => "The header \"Content-Type: application/json\" is required.".into(),
            Self::Encoded => "The body must not be compressed (Content-Encoding).".into(),
            Self::NothingInIt => "Nothing to do: \"eans\" and \"ignored3400\" are empty or missing.".into(),
            Self::KeyTwice { field } => format!("The key \"{field}\" is there twice."),
            Self::WrongType { field, expected } => {
                let what = match expected {
                    Expected::Barcode => "a barcode (text or number)",
                    Expected::Entry => "a barcode or an object {\"primary\", \"replacement\"}",
                    Expected::List => "a list",
                    Expected::Object => "a JSON object",
                    Expected::Text => "a text",
                    Expected::Truth => "true or false",
                };
                format!("\"{field}\" must be {what}.")
            }
            Self::TooMany { field, products_max } => {
                format!("\"{field}\" exceeds {products_max} entries (server.products_max): send several batches.")
            }
            Self::SiteUnknown { name, known, .. } => {
                format!("The site \"{}\" is not in use; available: {}.", quote(name), known.join(", "))
            }
            Self::SitesEmpty { known } => {
                format!("\"sites\" is empty: leave it out or choose from {}.", known.join(", "))
            }
            Self::UrlRefused { field, fault } => match fault {
                UrlFault::Malformed => format!("\"{field}\" is not a URL."),
                UrlFault::Scheme => format!("\"{field}\" must begin with http:// or https://."),
                UrlFault::Credentials => format!("\"{field}\" must not contain a user name or password."),
                UrlFault::Host { host } => {
                    format!("\"{field}\": the host {} is not allowed; add it to webhooks.hosts.", quote(host))
                }
            },
            Self::MetadataTooLarge { bytes_max } => {
                format!("\"metadata\" exceeds {bytes_max} bytes (server.metadata_bytes_max).")
            }
            Self::MetadataTooOften { products, metadata_bytes, bytes_max } => {
                format!(
                    "\"metadata\" ({metadata_bytes} bytes) repeated in {products} webhooks exceed {bytes_max} bytes: \
                     shorten them or send several batches."
                )
            }
            Self::MetadataUnreadable => {
                "\"metadata\" holds a value that not everyone can read: nested too deeply, a number too large or an \
                 invalid character."
                    .into()
            }
            Self::KeyMalformed => {
                "The header Idempotency-Key must have 1 to 255 visible ASCII characters, without spaces.".into()
            }
            Self::KeyReused => {
                "This Idempotency-Key was used before with another body: nothing was stored.".into()
            }
            Self::QueryMalformed { field, max } => format!("\"{field}\" must be a number from 0 to {max}."),
            Self::NoHost => "Exactly one Host header is required.".into(),
            Self::HostRefused { host } => {
                format!("The host \"{}\" is not known to this server; add it to server.hosts.", quote(host))
            }
            Self::OriginRefused { origin } => {
                format!("A page of another site ({}) may not call this server.", quote(origin))
            }
            Self::TokenMissing => {
                "The header \"Authorization: Bearer …\" with this server's token is required, or an address listed in \
                 server.allow_from."
                    .into()
            }
            Self::TokenWrong => "The token in the Authorization header is not this server's.".into(),
            Self::PeerRefused { peer } => {
                format!("The address {peer} is not allowed; add it to server.allow_from or use a token.")
            }
            Self::NoRoute { path } => format!("There is nothing at \"{}\".", quote(path)),
            Self::NoBatch { id } => format!("No batch \"{}\".", quote(id)),
            Self::WrongMethod { allow } => format!("This address takes only {allow}."),
            Self::NoShop => "No shop is in use: set sites.<name>.enabled = true in the configuration.".into(),
            Self::LedgerBusy => {
                "Too many batches arrive at once; nothing was stored, send the request again.".into()
            }
            Self::LedgerAway => {
                "The ledger is not available; nothing was stored, send the request again.".into()
            }
            Self::LedgerFull => {
                "The ledger's disk is full: nothing was stored. Make room, then send the request again.".into()
            }
            Self::LedgerReadOnly => {
                "The ledger is read-only: nothing was stored. Make its file writable, then send the request again."
                    .into()
            }
            Self::LedgerRefused => {
                "The ledger refused the write; nothing was stored (see the server's log).".into()
            }
            Self::LedgerSlow => "The ledger did not answer in time; send the request again.".into(),
        }
    }
}

/// Cut, without what a terminal or a log could take for more than text.
fn quote(text: &str) -> String {
    let clean = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut short: String = text.chars().take(QUOTED_CHARS_MAX).map(clean).collect();
    if text.chars().nth(QUOTED_CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}
