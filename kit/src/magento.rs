//! The shop owner's own catalogue: a stand-in for the Magento 2 REST endpoint that is asked before scraping.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Instant,
};

use hyper::{Request, Response, body::Incoming};
use serde_json::json;

use crate::{
    Catalogue, Gate, Result, form,
    records::Records,
    server::{self, Answering, Content, HungUp, Listeners, Wire},
};

/// How the catalogue answers.
#[derive(Clone, Debug)]
pub enum Mood {
    /// As Magento does.
    Normal,
    /// This status, with a message as Magento writes it.
    Status(u16),
    /// Nothing, until the client goes away.
    Hang,
    /// As Magento does, when the gate is open.
    Held(Gate),
    /// 200 with what is no JSON.
    Rubbish,
    /// 200 with a JSON object that has neither `total_count` nor `items`.
    Strange,
}

/// One question to the catalogue.
#[derive(Clone, Debug)]
pub struct Question {
    /// When it came.
    pub at: Instant,
    /// The path with the query, as it was written.
    pub path: String,
    /// The barcode it asks for, if it asks as Magento wants it.
    pub ean: Option<String>,
    /// Its `Authorization`.
    pub authorization: Option<String>,
}

/// The catalogue. Dropping it closes its port.
#[derive(Debug)]
pub struct Magento {
    listeners: Listeners,
    desk: Arc<Desk>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Desk {
    catalogue: Catalogue,
    mood: Mutex<Mood>,
    questions: Records<Question>,
}

impl Magento {
    /// Listens on 127.0.0.1 and knows the products of `catalogue`.
    pub fn start(catalogue: Catalogue) -> Result<Self> {
        let desk =
            Arc::new(Desk { catalogue, mood: Mutex::new(Mood::Normal), questions: Records::default() });
        let listeners = Listeners::http(&[Ipv4Addr::LOCALHOST.into()], Arc::clone(&desk))?;
        let address = server::first(listeners.addresses())?;
        Ok(Self { listeners, desk, address })
    }

    /// The URL that is asked, without its query.
    pub fn url(&self) -> String {
        format!("http://{}/rest/V1/products", self.address)
    }

    /// Answers so from now on.
    pub fn set(&self, mood: Mood) {
        *self.desk.mood.lock().expect("no panic under this lock") = mood;
    }

    /// Every question, for looking and waiting.
    pub fn questions(&self) -> &Records<Question> {
        &self.desk.questions
    }

    /// Closes the port and cuts every connection: new ones are refused when this returns.
    pub async fn stop_listening(&self) {
        self.listeners.stop_listening().await;
    }

    /// Listens again on the same port.
    pub fn listen_again(&self) -> Result<()> {
        self.listeners.listen_again()
    }
}

/// The barcode of a query like `searchCriteria[filter_groups][0][filters][0][field]=ean&…[value]=…`.
fn asked(query: &str) -> Option<String> {
    let pairs = form::pairs(query);
    let value = |end: &str| {
        let pair = pairs.iter().find(|(name, _)| name.starts_with("searchCriteria[") && name.ends_with(end));
        pair.map(|(_, value)| value.as_str())
    };
    (value("[field]") == Some("ean") && value("[condition_type]").is_none_or(|condition| condition == "eq"))
        .then(|| value("[value]").map(str::to_owned))
        .flatten()
}

impl Answering for Desk {
    async fn answer(
        self: Arc<Self>,
        _wire: Arc<Wire>,
        request: Request<Incoming>,
    ) -> Result<Response<Content>, HungUp> {
        let ean = request.uri().query().and_then(asked);
        let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        self.questions.push(Question {
            at: Instant::now(),
            path: request.uri().to_string(),
            ean: ean.clone(),
            authorization: authorization.map(str::to_owned),
        });
        let mood = self.mood.lock().expect("no panic under this lock").clone();
        let json =
            |status, body: serde_json::Value| server::page(status, "application/json", body.to_string());
        match mood {
            Mood::Normal => {}
            Mood::Held(gate) => gate.passed().await,
            Mood::Hang => std::future::pending().await,
            Mood::Status(status) => return Ok(json(status, json!({"message": "Internal Error"}))),
            Mood::Rubbish => return Ok(server::page(200, "text/html", "<html>Maintenance</html>")),
            Mood::Strange => return Ok(json(200, json!({"search_criteria": {}}))),
        }
        Ok(match ean {
            None => json(400, json!({"message": "\"%fieldName\" is required. Enter and try again."})),
            Some(ean) => {
                let items: Vec<_> = self
                    .catalogue
                    .product(&ean)
                    .map(|product| json!({"name": product.name}))
                    .into_iter()
                    .collect();
                json(200, json!({"items": items, "total_count": items.len()}))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client;

    const QUERY: &str = "searchCriteria%5Bfilter_groups%5D%5B0%5D%5Bfilters%5D%5B0%5D%5Bfield%5D=ean\
        &searchCriteria[filter_groups][0][filters][0][value]=0748322148474\
        &searchCriteria[filter_groups][0][filters][0][condition_type]=eq";

    #[tokio::test]
    async fn it_says_what_is_sold_and_what_is_not() {
        let magento = Magento::start(Catalogue::of(["0748322148474"])).unwrap();
        let ask = async |query: String| {
            let path = format!("/rest/V1/products?{query}");
            crate::daemon::parsed(&client::get(magento.address, &path).await.unwrap())
        };
        let (status, sold) = ask(QUERY.to_owned()).await;
        assert_eq!((status, &sold["total_count"]), (200, &json!(1)), "{sold}");
        let (status, unknown) = ask(QUERY.replace("0748322148474", "0748322148481")).await;
        assert_eq!((status, unknown), (200, json!({"items": [], "total_count": 0})));
        magento.set(Mood::Status(500));
        assert_eq!(ask(QUERY.to_owned()).await.0, 500);
        let eans: Vec<_> =
            magento.questions().all().into_iter().filter_map(|question| question.ean).collect();
        assert_eq!(eans, ["0748322148474", "0748322148481", "0748322148474"]);
    }
}
