use super::*;

fn feed(text: &str) -> Result<Vec<Message>, Rubbish> {
    Assembler::default().feed(text.as_bytes())
}

fn one(text: &str) -> Message {
    let mut messages = feed(text).unwrap();
    assert_eq!(messages.len(), 1, "{messages:?}");
    messages.remove(0)
}

const CONVERSATION: &str = "250-version=0.4.9.11\r\n250+circuit-status=\r\n7 BUILT\r\n..dot\r\n.\r\n250 OK\r\n\
    650 STREAM 5 NEW 0 shop.test:80\r\n552 Unrecognized key \"x\"\r\n";

#[test]
fn a_conversation_cut_anywhere_is_the_same_conversation() {
    let whole = feed(CONVERSATION).unwrap();
    assert_eq!(whole.iter().map(Message::code).collect::<Vec<_>>(), [250, 650, 552]);
    assert_eq!(whole[0].lines[1].data, ["7 BUILT", ".dot"]);
    assert!(whole[1].is_event() && !whole[2].is_event());
    for cut in 0..=CONVERSATION.len() {
        let (begin, end) = CONVERSATION.as_bytes().split_at(cut);
        let mut assembler = Assembler::default();
        let mut messages = assembler.feed(begin).unwrap();
        messages.extend(assembler.feed(end).unwrap());
        assert_eq!(messages, whole, "cut at {cut}");
    }
}

#[test]
fn rubbish_is_an_error() {
    for text in [
        "HTTP/1.1 400 Bad Request\r\n",
        "\r\n",
        "25\r\n",
        "250\r\n",
        "250?OK\r\n",
        "+50 OK\r\n",
        "250-a=b\r\n650 CIRC 1 BUILT\r\n",
        "650-CIRC 1 BUILT\r\n250 OK\r\n",
        "é50 OK\r\n",
    ] {
        assert!(feed(text).is_err(), "{text:?}");
    }
}

#[test]
fn neither_a_line_nor_a_message_grows_without_end() {
    assert!(Assembler::default().feed(&vec![b'1'; LINE_BYTES_MAX]).unwrap().is_empty());
    assert!(Assembler::default().feed(&vec![b'1'; LINE_BYTES_MAX + 1]).is_err());
    for line in ["250-a=b\r\n", "250+a=\r\n"] {
        let mut assembler = Assembler::default();
        assembler.feed(line.as_bytes()).unwrap();
        let more = if line.contains('+') { "data\r\n" } else { line };
        let enough = MESSAGE_BYTES_MAX / more.len() + 1;
        assert!((0..enough).any(|_| assembler.feed(more.as_bytes()).is_err()), "{line:?}");
    }
}

#[test]
fn the_limit_of_a_message_is_not_one_of_a_connection() {
    let mut assembler = Assembler::default();
    for _ in 0..(2 * MESSAGE_BYTES_MAX / 8) {
        assert_eq!(assembler.feed(b"250 OK\r\n").unwrap().len(), 1);
    }
}

#[test]
fn quoted_texts_are_read_with_their_escapes() {
    let words = Words::of(r#"A "b \"c\" \\" K="v w" E="\303\251\n\7" X=1"#).unwrap();
    assert_eq!(words.placed, ["A", "b \"c\" \\"]);
    assert_eq!(
        (words.named("K"), words.named("E"), words.named("X")),
        (Some("v w"), Some("é\n\u{7}"), Some("1"))
    );
    for wrong in ["K=\"v", "K=\"v\"w", "a\"b\"", "K=\"v\\", "K=\"\\777\""] {
        assert!(Words::of(wrong).is_err(), "{wrong}");
    }
    let text = "a \"b\" \\ \r\n250 OK";
    assert!(!quote(text).contains(['\r', '\n']));
    assert_eq!(Words::of(&quote(text)).unwrap().placed, [text]);
}

const FINGERPRINTS: [&str; 3] = [
    "AB0123456789ABCDEF0123456789ABCDEF012345",
    "AB0123456789ABCDEF0123456789ABCDEF012346",
    "ab0123456789abcdef0123456789abcdef012347",
];

#[test]
fn a_circuit_says_its_way_and_its_owner() {
    let [one, two, three] = FINGERPRINTS;
    let text = format!(
        "7 BUILT ${one}~guard,${two}=middle,${three} BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL \
         TIME_CREATED=2026-11-24T06:00:00.1 SOCKS_USERNAME=\"w 1\" SOCKS_PASSWORD=\"e=1\""
    );
    let circuit = Circuit::parse(&text).unwrap();
    assert_eq!((circuit.id, circuit.status), (CircuitNo(7), CircuitStatus::Built));
    let nicknames: Vec<_> = circuit.path.iter().map(|hop| &*hop.nickname).collect();
    assert_eq!(nicknames, ["guard", "middle", ""]);
    assert_eq!(&*circuit.path[2].fingerprint, three.to_ascii_uppercase());
    assert_eq!(circuit.owner, Some(Owner { user: "w 1".into(), password: "e=1".into() }));
    assert!(!format!("{circuit:?}").contains("e=1"), "a password is never shown");

    let failed =
        Circuit::parse("12 FAILED PURPOSE=CONTROLLER REASON=DESTROYED REMOTE_REASON=CONNECTFAILED").unwrap();
    assert_eq!(failed.status, CircuitStatus::Failed);
    assert_eq!(
        (failed.path.len(), failed.owner, failed.reason.as_deref()),
        (0, None, Some("DESTROYED CONNECTFAILED"))
    );
    for wrong in ["", "7", "x BUILT", "7 BUILT guard", "7 BUILT $12~guard", "99999999999999999999 BUILT"] {
        assert!(Circuit::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_stream_says_whose_it_is_and_where_it_goes() {
    let new = Stream::parse(
        "31 NEW 0 shop.test:80 SOURCE_ADDR=127.0.0.1:40404 PURPOSE=USER SOCKS_USERNAME=\"u\" SOCKS_PASSWORD=\"p\"",
    )
    .unwrap();
    assert_eq!((new.id, new.status, new.circuit), (StreamNo(31), StreamStatus::New, None));
    assert_eq!((new.source_port, new.owner.unwrap().user), (Some(40404), "u".into()));
    let closed = Stream::parse("31 CLOSED 7 shop.test:80 REASON=END REMOTE_REASON=CONNECTREFUSED").unwrap();
    assert_eq!((closed.circuit, closed.reason.as_deref()), (Some(CircuitNo(7)), Some("CONNECTREFUSED")));
    let other = Stream::parse("31 XOFF_SENT 7 shop.test:80").unwrap();
    assert_eq!(other.status, StreamStatus::Other);
    for wrong in ["", "31 NEW", "31 NEW x y:1", "31 NEW 0", "-1 NEW 0 y:1"] {
        assert!(Stream::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_way_to_the_network_is_told_with_what_stands_in_it() {
    let phase = Bootstrap::parse("NOTICE BOOTSTRAP PROGRESS=100 TAG=done SUMMARY=\"Done\"").unwrap().unwrap();
    assert!(phase.is_done() && phase.trouble.is_none());
    let stuck = "WARN BOOTSTRAP PROGRESS=10 TAG=conn_done SUMMARY=\"Connected to a relay\" \
        WARNING=\"Connection refused\" REASON=CONNECTREFUSED COUNT=5 RECOMMENDATION=warn";
    let stuck = Bootstrap::parse(stuck).unwrap().unwrap();
    assert_eq!((stuck.progress, stuck.summary.as_str()), (10, "Connected to a relay"));
    assert_eq!(stuck.trouble.as_deref(), Some("Connection refused (CONNECTREFUSED)"));
    assert_eq!(Bootstrap::parse("NOTICE CIRCUIT_ESTABLISHED"), Ok(None));
    assert!(Bootstrap::parse("NOTICE BOOTSTRAP PROGRESS=101").is_err());
    assert!(Bootstrap::parse("NOTICE BOOTSTRAP").is_err());
}

#[test]
fn events_are_told_apart_and_new_ones_are_let_pass() {
    let event = |text: &str| Event::parse(&one(text)).unwrap();
    assert!(matches!(event("650 CIRC 1 LAUNCHED PURPOSE=GENERAL\r\n"), Event::Circuit(_)));
    assert!(matches!(event("650 STREAM 1 NEW 0 a.test:1\r\n"), Event::Stream(_)));
    assert!(matches!(event("650 STATUS_CLIENT NOTICE BOOTSTRAP PROGRESS=5\r\n"), Event::Bootstrap(_)));
    assert_eq!(event("650 STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED\r\n"), Event::Other);
    assert_eq!(event("650-CONF_CHANGED\r\n650-SocksPort\r\n650 OK\r\n"), Event::ConfChanged);
    assert_eq!(event("650 NEVER_HEARD_OF\r\n"), Event::Other);
}

#[test]
fn protocolinfo_tells_the_ways_to_authenticate() {
    let info = one(
        "250-PROTOCOLINFO 1\r\n250-AUTH METHODS=COOKIE,SAFECOOKIE,HASHEDPASSWORD COOKIEFILE=\"/run/tor/a \\\"b\\\"\"\r\n\
         250-VERSION Tor=\"0.4.9.11\"\r\n250 OK\r\n",
    );
    let info = ProtocolInfo::parse(&info).unwrap();
    assert_eq!((info.null, info.password, info.safe_cookie), (false, true, true));
    assert_eq!(info.cookie_file, Some(PathBuf::from("/run/tor/a \"b\"")));
    assert_eq!(info.version, "0.4.9.11");
}

#[test]
fn answers_are_found_by_their_keys_in_every_form() {
    let reply = one("250-version=0.4.9\r\n250+ns/id/AB=\r\nr a b\r\ns Exit\r\n.\r\n250 OK\r\n");
    let answers = answers(&reply);
    assert_eq!(answers[0], ("version".into(), Some("0.4.9".into())));
    assert_eq!(answers[1], ("ns/id/AB".into(), Some("r a b\ns Exit".into())));
    assert_eq!(
        super::answers(&one("250 ConfluxEnabled=auto\r\n")),
        [("ConfluxEnabled".into(), Some("auto".into()))]
    );
    assert_eq!(super::answers(&one("250 ConfluxEnabled\r\n")), [("ConfluxEnabled".into(), None)]);
}

#[test]
fn a_relay_is_found_by_the_address_in_its_status() {
    let status = "r exit0 q3a1 zzz9 2026-11-24 06:00:00 127.1.2.12 5000 0\ns Exit Fast\n";
    assert_eq!(address_of(status), Some("127.1.2.12".parse().unwrap()));
    assert_eq!(address_of("s Exit\n"), None);
}

#[test]
fn a_challenge_is_two_times_32_bytes() {
    let (hash, nonce) = ("0f".repeat(32), "A1".repeat(32));
    let reply = one(&format!("250 AUTHCHALLENGE SERVERHASH={hash} SERVERNONCE={nonce}\r\n"));
    assert_eq!(challenge(&reply), Ok(([0x0f; 32], [0xa1; 32])));
    for wrong in ["250 AUTHCHALLENGE SERVERHASH=0f SERVERNONCE=a1\r\n", "250 OK\r\n"] {
        assert!(challenge(&one(wrong)).is_err(), "{wrong}");
    }
}
