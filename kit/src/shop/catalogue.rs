//! The products of the demonstration shops. Barcodes of the real batch; names, prices and opinions are invented.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::ShopKind;

/// The real batch of 17 October 2025.
pub const REAL_BATCH: [&str; 8] = [
    "0748322148474",
    "0748322148481",
    "0748322148498",
    "0748322148863",
    "3665606002802",
    "3701129820322",
    "3701129811955",
    "3701129811962",
];

/// In the real batch: sold nowhere.
pub const SOLD_NOWHERE: &str = "3701129811962";
/// In the real batch: found only by [`REPLACEMENT`].
pub const REPLACED: &str = "0748322148863";
/// The replacement of [`REPLACED`].
pub const REPLACEMENT: &str = "0748322148993";
/// In the real batch: drakkars' search gives [`DECOY`] before it, cocooncenter's gives only that.
pub const CONFUSED: &str = "3665606002802";
/// Another product, which searches return by mistake.
pub const DECOY: &str = "3665606002406";

/// One opinion of a customer.
#[derive(Clone, Debug)]
pub struct Review {
    /// Who wrote it.
    pub author: String,
    /// Stars of 5.
    pub stars: u8,
    /// Its title.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Its day, as the shop writes it.
    pub date: String,
}

/// One product, as the shops describe it.
#[derive(Clone, Debug)]
pub struct Product {
    /// Its barcode, as the shops write it.
    pub ean: String,
    /// Its name.
    pub name: String,
    /// Its brand.
    pub brand: String,
    /// Its price in cents; each shop adds something of its own ([`Product::price_cents_at`]).
    pub price_cents: u32,
    /// How much is in it.
    pub size: String,
    /// Its description.
    pub description: String,
    /// What it is made of.
    pub composition: String,
    /// How to use it.
    pub advice: String,
    /// What customers say.
    pub reviews: Vec<Review>,
}

impl Product {
    /// A product with everything invented from its barcode.
    pub fn invented(ean: &str) -> Self {
        const WHAT: [&str; 6] = ["Baume", "Crème", "Gel", "Lait", "Sérum", "Huile"];
        const WHOSE: [&str; 5] =
            ["de l'aube", "des marais", "du potager", "d'été & d'hiver", "à la guimauve"];
        const BRAND: [&str; 4] = ["Laboratoires Héron", "Saponaire", "Maison Tilleul", "Ondine"];
        const SIZE: [&str; 3] = ["50 ml", "200 ml", "15 g"];
        let number = ean.bytes().fold(7_usize, |sum, digit| (sum * 31 + usize::from(digit)) % 100_003);
        let size = SIZE[number % SIZE.len()];
        let name = format!("{} {} {size}", WHAT[number % WHAT.len()], WHOSE[number % WHOSE.len()]);
        let reviews = ["Aïcha", "Benoît", "Chloé"].iter().zip(0..=number % 3).map(|(author, n)| Review {
            author: (*author).to_owned(),
            stars: 5 - u8::try_from((number + n) % 3).unwrap_or_default(),
            title: format!("Avis n° {}", n + 1),
            text: format!("Produit conforme, reçu en {} jours.", n + 2),
            date: format!("{:02}/10/2025", n + 3),
        });
        Self {
            ean: ean.to_owned(),
            brand: BRAND[number % BRAND.len()].to_owned(),
            price_cents: 490 + u32::try_from(number % 2_000).unwrap_or_default(),
            size: size.to_owned(),
            description: format!("{name} : un soin inventé pour la démonstration."),
            composition: "Aqua, Glycerin, Althaea Officinalis Root Extract.".to_owned(),
            advice: "Appliquer matin et soir sur une peau propre.".to_owned(),
            reviews: reviews.collect(),
            name,
        }
    }

    /// Its price in one shop: no two ask the same.
    pub fn price_cents_at(&self, kind: ShopKind) -> u32 {
        self.price_cents
            + match kind {
                ShopKind::Cocooncenter => 0,
                ShopKind::Pharmagdd => 35,
                ShopKind::Drakkars => 70,
            }
    }

    /// Its price in one shop as `14.90`.
    pub fn price_at(&self, kind: ShopKind) -> String {
        let cents = self.price_cents_at(kind);
        format!("{}.{:02}", cents / 100, cents % 100)
    }

    /// The mean of the stars as `4.5`, or `None` without reviews.
    pub fn rating(&self) -> Option<String> {
        let stars: u32 = self.reviews.iter().map(|review| u32::from(review.stars)).sum();
        let count = u32::try_from(self.reviews.len()).ok().filter(|count| *count > 0)?;
        let tenths = stars * 10 / count;
        Some(format!("{}.{}", tenths / 10, tenths % 10))
    }

    /// The last part of its address in a shop; ends with the barcode.
    pub(super) fn slug(&self) -> String {
        let name: String = self.name.chars().filter_map(ascii).collect();
        let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
        format!("{}-{}", words.join("-"), self.ean)
    }
}

fn ascii(char: char) -> Option<char> {
    match char {
        'a'..='z' | '0'..='9' => Some(char),
        'A'..='Z' => Some(char.to_ascii_lowercase()),
        'é' | 'è' | 'ê' => Some('e'),
        'à' | 'â' => Some('a'),
        ' ' | '\'' => Some('-'),
        _ => None,
    }
}

/// What the shops sell, and what their searches give.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    products: BTreeMap<String, Product>,
    /// What a search gives, where that is not simply the product asked for.
    searches: BTreeMap<(ShopKind, String), Vec<String>>,
}

impl Catalogue {
    /// The products of the real batch, with its troubles.
    pub fn real_batch() -> Self {
        let eans = REAL_BATCH.into_iter().filter(|ean| ![SOLD_NOWHERE, REPLACED].contains(ean));
        let mut catalogue = Self::of(eans.chain([REPLACEMENT, DECOY]));
        catalogue.search_gives(ShopKind::Drakkars, CONFUSED, &[DECOY, CONFUSED]);
        catalogue.search_gives(ShopKind::Cocooncenter, CONFUSED, &[DECOY]);
        catalogue.search_gives(ShopKind::Pharmagdd, REAL_BATCH[1], &[]);
        catalogue
    }

    /// `n` different valid barcodes, the same for the same seed; all shops sell them all.
    pub fn synthetic(n: usize, seed: u64) -> Self {
        const BODIES: u64 = 10_000_000_000;
        // An odd step that is no multiple of 5 visits every residue once before it repeats.
        let first = seed.wrapping_mul(6_364_136_223_846_793_005) % BODIES;
        let bodies = (0..n as u64).map(|i| (first + i * 7_777_777_777) % BODIES);
        let eans: Vec<String> = bodies.map(|body| with_check_digit(&format!("37{body:010}"))).collect();
        Self::of(eans.iter().map(String::as_str))
    }

    /// Invented products with these barcodes; all shops sell them all.
    pub fn of<'a>(eans: impl IntoIterator<Item = &'a str>) -> Self {
        let mut catalogue = Self::default();
        eans.into_iter().for_each(|ean| catalogue.add(Product::invented(ean)));
        catalogue
    }

    /// Adds a product, or replaces the one with this barcode.
    pub fn add(&mut self, product: Product) {
        self.products.insert(gtin14(&product.ean), product);
    }

    /// Makes one shop's search for `ean` give these products, in this order.
    pub fn search_gives(&mut self, kind: ShopKind, ean: &str, gives: &[&str]) {
        let gives = gives.iter().map(|ean| gtin14(ean)).collect();
        self.searches.insert((kind, gtin14(ean)), gives);
    }

    /// What one shop's search for `ean` gives.
    pub fn search(&self, kind: ShopKind, ean: &str) -> Vec<&Product> {
        let ean = gtin14(ean);
        match self.searches.get(&(kind, ean.clone())) {
            Some(gives) => gives.iter().filter_map(|ean| self.products.get(ean)).collect(),
            None => self.products.get(&ean).into_iter().collect(),
        }
    }

    /// The product with this barcode.
    pub fn product(&self, ean: &str) -> Option<&Product> {
        self.products.get(&gtin14(ean))
    }

    /// All barcodes, as the shops write them.
    pub fn eans(&self) -> Vec<String> {
        self.products.values().map(|product| product.ean.clone()).collect()
    }

    /// A body for `POST /api/scrape` that asks for all of it.
    pub fn batch(&self) -> Value {
        let eans: Vec<Value> =
            self.eans().iter().map(|ean| json!({"primary": ean, "replacement": null})).collect();
        json!({"eans": eans, "ignored3400": []})
    }
}

/// The body for `POST /api/scrape` with the real batch.
pub fn real_batch_body() -> Value {
    let eans = REAL_BATCH
        .map(|ean| json!({"primary": ean, "replacement": (ean == REPLACED).then_some(REPLACEMENT)}));
    json!({"eans": eans, "ignored3400": []})
}

/// Appends the check digit to the digits before it.
pub fn with_check_digit(digits: &str) -> String {
    let weighted = digits.bytes().rev().zip([3, 1].into_iter().cycle());
    let sum: u32 = weighted.map(|(digit, weight)| u32::from(digit - b'0') * weight).sum();
    format!("{digits}{}", (10 - sum % 10) % 10)
}

/// A barcode as 14 digits, to compare.
pub fn gtin14(ean: &str) -> String {
    format!("{:0>14}", ean.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn barcodes_have_right_check_digits() {
        let synthetic = Catalogue::synthetic(2_000, 5);
        assert_eq!(synthetic.eans().len(), 2_000, "all are different");
        let real = REAL_BATCH.map(str::to_owned).into_iter().chain([REPLACEMENT.into(), DECOY.into()]);
        for ean in synthetic.eans().into_iter().chain(real) {
            assert_eq!(with_check_digit(&ean[..12]), ean);
        }
    }

    #[test]
    fn the_real_batch_has_its_troubles() {
        let catalogue = Catalogue::real_batch();
        let found = |kind, ean| -> Vec<String> {
            catalogue.search(kind, ean).into_iter().map(|product| product.ean.clone()).collect()
        };
        for kind in ShopKind::ALL {
            assert!(found(kind, SOLD_NOWHERE).is_empty());
            assert!(found(kind, REPLACED).is_empty());
            assert_eq!(found(kind, REPLACEMENT), [REPLACEMENT]);
        }
        assert_eq!(found(ShopKind::Drakkars, CONFUSED), [DECOY, CONFUSED]);
        assert_eq!(found(ShopKind::Cocooncenter, CONFUSED), [DECOY]);
        assert_eq!(found(ShopKind::Pharmagdd, "748322148474"), ["0748322148474"]);
        assert_eq!(real_batch_body()["eans"][3]["replacement"], REPLACEMENT);
    }
}
