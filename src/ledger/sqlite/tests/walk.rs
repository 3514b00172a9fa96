//! A long random walk over every operation, with deaths at random places.

use std::collections::HashMap;

use super::*;

/// xorshift64*: the same walk for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }
}

struct Walk {
    lab: Lab,
    dice: Dice,
    batches: Vec<BatchNo>,
    now_ms: i64,
    /// Each body as it was first seen: L4.
    bodies: HashMap<i64, Vec<u8>>,
    crashed: u32,
    resumed: u32,
    lost: u32,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let lab = Lab::with(OpenOptions { claims_max: 2, ..options() });
        let dice = Dice(seed | 1);
        Self {
            lab,
            dice,
            batches: Vec::new(),
            now_ms: NOW,
            bodies: HashMap::new(),
            crashed: 0,
            resumed: 0,
            lost: 0,
        }
    }

    fn batch(&mut self) -> NewBatch {
        let mut products: Vec<NewProduct> = Vec::new();
        for index in 1..=self.dice.below(12) {
            let n = self.dice.below(1_000);
            let visits: Vec<u32> = (1..)
                .zip(&products)
                .filter(|(_, product)| matches!(product.fate, Fate::Visit { .. }))
                .map(|(index, _)| index)
                .collect();
            products.push(match self.dice.below(6) {
                0 => over(Status::Skipped),
                1 => over(Status::Ignored),
                2 if !visits.is_empty() => {
                    duplicate(n, visits[self.dice.below(visits.len() as u64) as usize])
                }
                _ => visit(n * 20 + index),
            });
        }
        let mut batch = batch(products);
        let url = |kind: &str, n: u64| Some(format!("http://n8n.test/{kind}/{n}"));
        batch.webhook_url = if self.dice.one_in(4) { url("hook", self.dice.below(3)) } else { None };
        batch.callback_url = if self.dice.one_in(3) { url("callback", self.dice.below(5)) } else { None };
        batch.key = if self.dice.one_in(4) { Some(format!("key-{}", self.dice.below(9))) } else { None };
        batch
    }

    fn random_key(&mut self) -> Option<ProductKey> {
        // A few batches are met often enough to be worked off, with several deaths on the way.
        let few = self.batches.len().min(if self.dice.one_in(2) { 40 } else { usize::MAX });
        let batch = *self.batches.get(self.dice.below(few.max(1) as u64) as usize)?;
        let total = self.lab.view(batch).total;
        if total == 0 {
            return None;
        }
        Some(ProductKey { batch, index: 1 + self.dice.below(total.into()) as u32 })
    }

    /// One random command of one random batch, inside an open transaction. The batch number if it made one.
    fn command(&mut self) -> Result<Option<BatchNo>, StoreError> {
        self.now_ms += self.dice.below(20_000) as i64;
        let now_ms = self.now_ms;
        let Some(key) = self.random_key() else { return self.accept() };
        let claim = self.lab.claim_of(1 + self.dice.below(2) as i64);
        let limit = 1 + self.dice.below(5) as u32;
        let outcome = if self.dice.one_in(2) { found() } else { failed() };
        match self.dice.below(40) {
            0..4 => return self.accept(),
            4..10 => drop(self.lab.store().claim(key.batch, claim, limit)?),
            10..14 => drop(self.lab.store().start(key, claim)?),
            14 => self.lab.store().rest(key, claim)?,
            15 => self.lab.store().put_back(key, claim)?,
            16 => drop(self.lab.store().release_older(key.batch, claim)?),
            17..25 => drop(self.lab.store().end(key, claim, &outcome, now_ms)?),
            25 if self.dice.one_in(4) => {
                self.lab.store().end_set_aside(key.batch, &failed(), limit, now_ms)?;
            }
            26..36 => self.attempt()?,
            36 => drop(self.lab.store().release_summaries(now_ms, &|ended| ended + 900_000 <= now_ms)?),
            37 => self.lab.store().shift_due(-5_000)?,
            38 => self.readmit()?,
            _ => self.lab.store().touch()?,
        }
        Ok(None)
    }

    fn accept(&mut self) -> Result<Option<BatchNo>, StoreError> {
        let (batch, now_ms) = (self.batch(), self.now_ms);
        match self.lab.store().accept(&batch, now_ms)? {
            AcceptAnswer::Accepted(accepted) if accepted.repeat.is_none() => Ok(Some(accepted.batch)),
            AcceptAnswer::Accepted(_) | AcceptAnswer::KeyReused => Ok(None),
        }
    }

    fn attempt(&mut self) -> Result<(), StoreError> {
        let due = self.lab.due();
        let Some(due) = due.get(self.dice.below(due.len().max(1) as u64) as usize) else { return Ok(()) };
        let result = match self.dice.below(40) {
            0 => AttemptResult::StopEndpoint { url: Some(UrlHash([0; 32])) },
            1..4 => AttemptResult::Withheld,
            4..8 => AttemptResult::Dead,
            8..20 => AttemptResult::Again { after_ms: self.dice.below(60_000) },
            _ => AttemptResult::Taken,
        };
        let number = due.attempts + 1 - self.dice.below(2) as u32;
        let attempt = AttemptRecord { at_ms: self.now_ms, ..attempt(due.no, number, result) };
        self.lab.store().record_attempt(&attempt)?;
        Ok(())
    }

    fn readmit(&mut self) -> Result<(), StoreError> {
        let now_ms = self.now_ms;
        let url = UrlHash([u8::from(self.dice.one_in(2)); 32]);
        for lane in self.lab.reader().held_lanes()? {
            self.resumed += u32::from(self.lab.store().readmit(lane.no, url, now_ms, 3)?.resumed);
        }
        Ok(())
    }

    /// One group of commands: committed, or cut off by a death at a random place.
    fn group(&mut self) {
        self.lab.store().begin().unwrap();
        let mut made = Vec::new();
        for _ in 0..self.dice.below(12) {
            self.lab.store().savepoint().unwrap();
            let batch = self.command().unwrap();
            if self.dice.one_in(10) {
                self.lab.store().rollback_to_savepoint().unwrap();
            } else {
                self.lab.store().release().unwrap();
                made.extend(batch);
            }
        }
        let dies = self.dice.one_in(25);
        if dies {
            self.visit_the_oldest();
        }
        if dies && self.dice.one_in(2) {
            self.lost += 1;
        } else {
            self.lab.store().commit().unwrap();
            self.batches.extend(made);
        }
        if dies {
            self.crashed += self.lab.die_and_open().crashed;
        }
    }

    /// So that the same product is in hand at several deaths.
    fn visit_the_oldest(&mut self) {
        let claim = self.lab.claim_of(1);
        let Some(open) = self.lab.reader().open_batches(BatchNo(0), 1).unwrap().pop() else { return };
        for claimed in self.lab.store().claim(open.no, claim, 1).unwrap() {
            self.lab.store().start(ProductKey { batch: open.no, index: claimed.index }, claim).unwrap();
        }
    }

    fn bodies_are_frozen(&mut self) {
        let sql = self.lab.sql();
        let mut statement = sql.prepare("SELECT no, bytes FROM body").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        for row in rows {
            let (no, bytes): (i64, Vec<u8>) = row.unwrap();
            let first = self.bodies.entry(no).or_insert_with(|| bytes.clone());
            assert_eq!(*first, bytes, "L4: body {no} changed");
        }
        let known = self.bodies.len() as i64;
        assert_eq!(self.lab.number("SELECT count(*) FROM body"), known, "L5: a body is gone");
    }
}

#[test]
fn the_laws_hold_after_every_commit_of_a_long_random_walk_with_deaths() {
    for seed in [17, 0x0748_3221_4847_4000] {
        println!("seed {seed}");
        let mut walk = Walk::new(seed);
        for step in 0..400 {
            walk.group();
            if step % 10 == 0 {
                assert_laws(&walk.lab);
                walk.bodies_are_frozen();
            }
        }
        assert_laws(&walk.lab);
        walk.bodies_are_frozen();
        walk.lab.assert_compiled_once();
        // The walk went where there was something to lose.
        let tally = walk.lab.reader().tally().unwrap();
        println!("{tally:?}, {} lost groups, {} crashed", walk.lost, walk.crashed);
        assert!(tally.ended > 100 && walk.lost > 3 && walk.crashed > 0 && walk.resumed > 0, "{tally:?}");
        for state in [DeliveryState::Taken, DeliveryState::Dead] {
            assert!(tally.deliveries[state as usize] > 0, "{state:?}: {tally:?}");
        }
        assert!(walk.lab.number("SELECT count(*) FROM progress WHERE summary = 1") > 10);
    }
}
