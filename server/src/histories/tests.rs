use std::sync::{Arc, Weak};

use turnwire_protocol::chain::{Carried, EngineState};
use turnwire_protocol::history::Premise;
use turnwire_protocol::item::Item;

use super::*;

const IDLE: Duration = Duration::from_secs(300);

const PREMISE: Premise<'static> = Premise {
    model: "m",
    store: false,
    truncate: false,
};

fn owner() -> Tenant {
    Tenant::of_key(b"sk-1")
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A conversation that grows, and what is held for its chain as long as that is.
struct Talk {
    name: &'static str,
    chain: Option<Chain>,
    history: History,
    prefixes: Vec<Prefix>,
    states: Vec<Weak<()>>,
}

impl Talk {
    fn new(name: &'static str) -> Self {
        Self::about(name, name)
    }

    fn about(name: &'static str, about: &str) -> Self {
        let history = History::begin(PREMISE).followed_by(&item(about));
        Self {
            name,
            chain: None,
            history,
            prefixes: Vec::new(),
            states: Vec::new(),
        }
    }

    /// Another response of one item.
    fn go_on(&mut self, said: &str) {
        let item = item(said);
        self.history = self.history.followed_by(&item);
        let items = self.prefixes.len() + 1;
        let history = self.history;
        self.prefixes.insert(0, Prefix { items, history });
        let (state, none) = (Arc::new(()), Arc::new([]));
        self.states.push(Arc::downgrade(&state));
        let id = ResponseId::from(&*format!("resp_{}_{items}", self.name));
        self.chain = Some(Chain::append(
            self.chain.take(),
            id,
            none,
            Arc::new([item]),
            Carried::default(),
            Some(EngineState::new(state)),
        ));
    }

    fn chain(&self) -> &Chain {
        self.chain.as_ref().expect("it has gone on")
    }

    fn keep(&self, histories: &Histories, now: Duration) {
        histories.keep(owner(), self.history, self.chain().clone(), now);
    }

    /// How many items of it are found.
    fn found(&self, histories: &Histories, now: Duration) -> Option<usize> {
        let (items, chain) = histories.find(owner(), &self.prefixes, now)?;
        assert_eq!(chain.ancestry().count(), items);
        Some(items)
    }
}

fn item(text: &str) -> Item {
    Item::parse(format!(r#"{{"role":"assistant","content":"{text}"}}"#).into()).expect("an item")
}

/// Nothing is counted that is not kept, and what nothing continues is known to be such.
fn assert_in_step(histories: &Histories) {
    let shelf = histories.0.as_ref().expect("they are kept").shelf();
    let bytes: u64 = shelf.kept.values().map(|kept| kept.bytes).sum();
    assert_eq!(shelf.bytes, bytes);
    let ends = shelf.kept.values().filter(|kept| kept.children == 0);
    assert_eq!(shelf.ends.len(), ends.count());
    assert_eq!(shelf.by_response.len(), shelf.kept.len());
    for (at, key) in &shelf.ends {
        assert_eq!(shelf.kept[key].used, *at);
    }
}

#[test]
fn the_longest_beginning_is_found_by_its_owner_alone() {
    let histories = Histories::new(1 << 20, IDLE);
    let mut talk = Talk::new("a");
    for said in ["b", "c", "d"] {
        talk.go_on(said);
        talk.keep(&histories, at(0));
    }
    talk.go_on("e");
    assert_eq!(talk.found(&histories, at(1)), Some(3));
    let other = Tenant::of_key(b"sk-2");
    assert!(histories.find(other, &talk.prefixes, at(1)).is_none());
    assert_eq!(Talk::new("x").found(&histories, at(1)), None);
    assert!(!Histories::none().are_kept());
}

#[test]
fn what_nobody_brings_again_is_dropped_with_all_that_it_continues() {
    let histories = Histories::new(1 << 20, IDLE);
    let (mut idle, mut busy) = (Talk::new("a"), Talk::new("b"));
    for second in 0..3 {
        for talk in [&mut idle, &mut busy] {
            talk.go_on("again");
            talk.keep(&histories, at(second));
        }
    }
    assert_eq!(busy.found(&histories, at(200)), Some(3));
    assert_eq!(
        histories.sweep(at(301)),
        Some(at(302)),
        "when the idle one goes"
    );
    idle.chain = None;
    assert!(idle.states.iter().all(|state| state.strong_count() == 1));
    assert_eq!(histories.sweep(at(302)), Some(at(500)));
    assert!(idle.states.iter().all(|state| state.strong_count() == 0));
    assert_eq!(busy.found(&histories, at(499)), Some(3));
    assert_eq!(busy.found(&histories, at(799)), None);
    assert_in_step(&histories);
}

#[test]
fn above_the_budget_the_oldest_ends_go_first() {
    let mut talks: Vec<Talk> = ["a", "b", "c"].map(Talk::new).into();
    talks.iter_mut().for_each(|talk| talk.go_on("again"));
    let one = talks[0].chain().bytes() + OVERHEAD;
    let histories = Histories::new(3 * one + 100, IDLE);
    for (second, talk) in talks.iter().enumerate() {
        talk.keep(&histories, at(second as u64));
    }
    assert_eq!(talks[0].found(&histories, at(5)), Some(1));
    // What goes on keeps what it continues, though that is older than the last one.
    talks[0].go_on("and again");
    talks[0].keep(&histories, at(6));
    assert_eq!(talks[1].found(&histories, at(7)), None);
    assert_eq!(talks[0].found(&histories, at(7)), Some(2));
    assert_eq!(talks[2].found(&histories, at(7)), Some(1));
    assert_in_step(&histories);

    let mut large = Talk::new("d");
    large.go_on(&"much ".repeat(one as usize));
    large.keep(&histories, at(8));
    assert_eq!(
        large.found(&histories, at(8)),
        None,
        "it would have no room"
    );
    assert_eq!(talks[0].found(&histories, at(8)), Some(2));
}

#[test]
fn of_two_chains_with_one_history_one_is_kept() {
    let histories = Histories::new(1 << 20, IDLE);
    let (mut first, mut second) = (Talk::about("a", "x"), Talk::about("b", "x"));
    first.go_on("b");
    second.go_on("b");
    first.keep(&histories, at(0));
    second.keep(&histories, at(1));
    let find = || {
        histories
            .find(owner(), &first.prefixes, at(2))
            .expect("it is kept")
            .1
    };
    assert!(find().is(second.chain()), "the later one is the hotter one");
    // Once something continues it, it stays.
    second.go_on("c");
    second.keep(&histories, at(2));
    first.keep(&histories, at(3));
    assert!(!find().is(first.chain()));
    assert_in_step(&histories);
}
