//! Random orders of everything that can happen to the cache.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Start {
        parent: usize,
        head: u64,
        delta: usize,
        output: u32,
    },
    Finish {
        turn: usize,
        output: usize,
    },
    Cancel {
        turn: usize,
    },
    Release {
        link: usize,
    },
    Evict {
        cold: bool,
    },
    Refuse {
        refuse: bool,
    },
    Grow {
        turn: usize,
        more: u32,
    },
    Park {
        turn: usize,
        output: usize,
    },
    Resume {
        turn: usize,
        output: u32,
    },
    WrapUp {
        turn: usize,
        back: usize,
    },
    Leave {
        turn: usize,
        back: usize,
    },
    LeaveWaiting {
        parent: usize,
        head: u64,
        delta: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..20usize, 0..4u64, 1..30usize, 1..10u32)
            .prop_map(|(parent, head, delta, output)| Op::Start { parent, head, delta, output }),
        5 => (0..8usize, 1..10usize).prop_map(|(turn, output)| Op::Finish { turn, output }),
        2 => (0..8usize).prop_map(|turn| Op::Cancel { turn }),
        2 => (0..20usize).prop_map(|link| Op::Release { link }),
        1 => any::<bool>().prop_map(|cold| Op::Evict { cold }),
        1 => any::<bool>().prop_map(|refuse| Op::Refuse { refuse }),
        2 => (0..8usize, 1..20u32).prop_map(|(turn, more)| Op::Grow { turn, more }),
        2 => (0..8usize, 1..10usize).prop_map(|(turn, output)| Op::Park { turn, output }),
        3 => (0..8usize, 1..10u32).prop_map(|(turn, output)| Op::Resume { turn, output }),
        1 => (0..8usize, 0..9usize).prop_map(|(turn, back)| Op::WrapUp { turn, back }),
        1 => (0..8usize, 0..9usize).prop_map(|(turn, back)| Op::Leave { turn, back }),
        1 => (0..20usize, 0..4u64, 1..20usize)
            .prop_map(|(parent, head, delta)| Op::LeaveWaiting { parent, head, delta }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Whatever happens, the model sees exactly the prompt (asserted in `feed`), the count of
    /// cells is right and never above the capacity, and nothing is left when all is released.
    #[test]
    fn any_order_of_events_keeps_the_books(
        ops in prop::collection::vec(op(), 1..80),
        seqs in 1..6u32,
        warm in prop_oneof![Just(0usize), Just(900), Just(100_000)],
    ) {
        let mut world = World::new(150, seqs, warm);
        let mut running: Vec<(Running, u32)> = Vec::new();
        let mut parked: Vec<Running> = Vec::new();
        for op in ops {
            match op {
                Op::Start { parent, head, delta, output } => {
                    let parent = world.links.keys().copied().nth(parent % (world.links.len() + 1));
                    let longest = parent.map_or(0, |parent| world.links[&parent].len());
                    if longest + delta + output as usize + World::head(head).len() > 150 {
                        continue;
                    }
                    // Some begin as a head does, so that what is a head here is a message there.
                    let same = if delta > 20 { World::head(1) } else { Vec::new() };
                    let own = (same.len() as Token..delta as Token).map(|i| i + 100 * world.next as Token);
                    let delta: Vec<Token> = same.iter().copied().chain(own).collect();
                    match world.start(parent, head, &delta, output) {
                        Some(turn) => running.push((turn, output)),
                        None => prop_assert!(!running.is_empty(), "a lone turn always gets room"),
                    }
                }
                Op::Grow { turn, more } if !running.is_empty() => {
                    let turn = turn % running.len();
                    let alone = running.len() == 1;
                    let (turn, promised) = &mut running[turn];
                    if turn.ids.len() as u32 + *promised + more <= 150 {
                        let grown = world.cache.grow(turn.grant.branch, more);
                        prop_assert!(grown || !alone, "a lone turn always grows");
                        *promised += if grown { more } else { 0 };
                    }
                }
                Op::Park { turn, output } if !running.is_empty() => {
                    let turn = turn % running.len();
                    let (mut turn, promised) = running.swap_remove(turn);
                    let output: Vec<Token> = (0..output.min(promised as usize) as Token).collect();
                    world.park(&mut turn, &output);
                    parked.push(turn);
                }
                Op::Resume { turn, output } if !parked.is_empty() => {
                    let turn = turn % parked.len();
                    if parked[turn].ids.len() + output as usize > 150 {
                        continue;
                    }
                    let mut turn = parked.swap_remove(turn);
                    if world.resume(&mut turn, output) {
                        running.push((turn, output));
                    } else {
                        prop_assert!(!running.is_empty(), "a lone turn always gets room");
                        parked.push(turn);
                    }
                }
                Op::WrapUp { turn, back } if !running.is_empty() => {
                    let turn = turn % running.len();
                    let (turn, _) = running.swap_remove(turn);
                    world.wrap_up(turn, back);
                }
                Op::Leave { turn, back } if !parked.is_empty() => {
                    let turn = turn % parked.len();
                    let turn = parked.swap_remove(turn);
                    world.leave(turn, back);
                }
                Op::LeaveWaiting { parent, head, delta } => {
                    let parent = world.links.keys().copied().nth(parent % (world.links.len() + 1));
                    let delta: Vec<Token> = (0..delta as Token).map(|i| i + 100 * world.next as Token).collect();
                    world.leave_waiting(parent, head, &delta);
                }
                Op::Finish { turn, output } if !running.is_empty() => {
                    let turn = turn % running.len();
                    let (turn, promised) = running.swap_remove(turn);
                    let output: Vec<Token> = (0..output.min(promised as usize) as Token).collect();
                    world.finish(turn, &output);
                }
                Op::Cancel { turn } if !running.is_empty() => {
                    let turn = turn % running.len();
                    let (turn, _) = running.swap_remove(turn);
                    world.cancel(&turn);
                }
                Op::Release { link } => {
                    let link = world.links.keys().copied().nth(link % (world.links.len() + 1));
                    // A running turn holds on to its parent.
                    if let Some(link) = link.filter(|link| running.iter().map(|(turn, _)| turn).chain(&parked).all(|turn| turn.parent != Some(*link))) {
                        world.release(link);
                    }
                }
                Op::Evict { cold } => world.cache.evict_idle(if cold { Tier::Cold } else { Tier::Warm }),
                Op::Refuse { refuse } => world.cache.cells().refuse = refuse,
                Op::Finish { .. } | Op::Cancel { .. } | Op::Grow { .. } | Op::Park { .. } | Op::Resume { .. } | Op::WrapUp { .. } | Op::Leave { .. } => {}
            }
            world.check();
        }
        for (turn, _) in running {
            world.cancel(&turn);
        }
        for turn in parked {
            world.cache.release(NodeId(turn.node));
        }
        for link in world.links.keys().copied().collect::<Vec<_>>() {
            world.release(link);
        }
        prop_assert_eq!(world.cache.used(), 0);
        prop_assert!(world.cache.branches.is_empty() && world.cache.marked.is_empty());
        prop_assert_eq!(world.cache.free_seqs.len(), seqs as usize);
        prop_assert_eq!(world.cache.warm_bytes, 0);
    }
}
