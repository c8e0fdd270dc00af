//! The cache against cells that remember what was put into them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

mod properties;

/// Cells as llama.cpp has them: each holds one token at one position for a set of sequences.
#[derive(Debug, Default)]
struct Grid {
    cells: Vec<(u32, Token, BTreeSet<Seq>)>,
    most: usize,
    /// Refuse the next restores, as llama.cpp does when a state does not fit.
    refuse: bool,
}

impl Grid {
    fn write(&mut self, seq: Seq, position: u32, token: Token) {
        assert_eq!(
            self.read(seq).len() as u32,
            position,
            "sequences have no gaps"
        );
        self.cells.push((position, token, BTreeSet::from([seq])));
        self.most = self.most.max(self.cells.len());
    }

    fn read(&self, seq: Seq) -> Vec<Token> {
        let own = self.cells.iter().filter(|(_, _, seqs)| seqs.contains(&seq));
        let ordered: BTreeMap<u32, Token> =
            own.map(|&(position, token, _)| (position, token)).collect();
        ordered.into_values().collect()
    }
}

/// A saved token takes ten bytes.
impl Cells for Grid {
    type Saved = Vec<Token>;

    fn share(&mut self, from: Seq, to: Seq, end: u32) {
        assert!(self.read(to).is_empty());
        for (position, _, seqs) in &mut self.cells {
            if *position < end && seqs.contains(&from) {
                seqs.insert(to);
            }
        }
    }

    fn truncate(&mut self, seq: Seq, end: u32) {
        for (position, _, seqs) in &mut self.cells {
            if *position >= end {
                seqs.remove(&seq);
            }
        }
        self.cells.retain(|(_, _, seqs)| !seqs.is_empty());
    }

    fn save(&mut self, seq: Seq) -> Option<(Vec<Token>, usize)> {
        let tokens = self.read(seq);
        let bytes = tokens.len() * 10;
        Some((tokens, bytes))
    }

    fn restore(&mut self, saved: &Vec<Token>, seq: Seq) -> bool {
        if self.refuse {
            return false;
        }
        for (position, &token) in (0..).zip(saved) {
            self.write(seq, position, token);
        }
        true
    }
}

/// A conversation tree as clients would build one, with a cache under it.
struct World {
    cache: KvCache<Grid>,
    /// Every response that can be named: its prompt and output without the head.
    links: BTreeMap<u64, Vec<Token>>,
    next: u64,
}

/// The head of a turn without instructions and tools.
const NO_HEAD: u64 = 3;

struct Running {
    node: u64,
    parent: Option<u64>,
    head: u64,
    grant: Grant,
    ids: Vec<Token>,
}

impl World {
    fn new(capacity: u32, seqs: u32, warm: usize) -> Self {
        Self {
            cache: KvCache::new(Grid::default(), capacity, seqs, warm),
            links: BTreeMap::new(),
            next: 1,
        }
    }

    /// Heads share their first tokens, as system prompts of one template do.
    /// One is empty: what other heads hold can be a first message behind it.
    fn head(head: u64) -> Vec<Token> {
        if head == NO_HEAD {
            return Vec::new();
        }
        (0..20 + head as Token)
            .chain([1_000 + head as Token])
            .collect()
    }

    fn start(
        &mut self,
        parent: Option<u64>,
        head: u64,
        delta: &[Token],
        output: u32,
    ) -> Option<Running> {
        let mut ids = Self::head(head);
        ids.extend(
            parent
                .iter()
                .flat_map(|parent| &self.links[parent])
                .copied(),
        );
        ids.extend_from_slice(delta);
        let prompt = ids.clone();
        let grant = self.cache.acquire(&Want {
            parent: parent.map(NodeId),
            head,
            prompt_len: ids.len() as u32,
            cacheable: ids.len() as u32 - 1,
            output,
            prompt: &|| prompt.clone(),
        })?;
        let node = self.next;
        self.next += 1;
        let mut turn = Running {
            node,
            parent,
            head,
            grant,
            ids,
        };
        self.feed(&mut turn);
        Some(turn)
    }

    /// Feeds what is not in cells yet.
    fn feed(&mut self, turn: &mut Running) {
        let at = self.cache.len(turn.grant.branch);
        let new = turn.ids[at as usize..].to_vec();
        for (position, &token) in (at..).zip(&new) {
            self.cache.cells().write(turn.grant.seq, position, token);
        }
        self.cache.advance(turn.grant.branch, &new);
        assert_eq!(
            self.cache.cells().read(turn.grant.seq),
            turn.ids,
            "the model sees exactly the prompt"
        );
    }

    /// Ends a turn after `output` more tokens, the last of which is never fed.
    fn finish(&mut self, mut turn: Running, output: &[Token]) -> u64 {
        turn.ids.extend_from_slice(&output[..output.len() - 1]);
        self.feed(&mut turn);
        let mut marks = vec![(NodeId(turn.node), self.cache.len(turn.grant.branch))];
        let head = Self::head(turn.head).len();
        if let Some(parent) = turn.parent {
            let end = (head + self.links[&parent].len()) as u32;
            if turn.grant.cached + 1 < end {
                marks.push((NodeId(parent), end));
            }
        }
        self.cache.finish(turn.grant.branch, &marks);
        let mut own = turn.ids[head..].to_vec();
        own.push(output[output.len() - 1]);
        self.links.insert(turn.node, own);
        turn.node
    }

    /// Moves a turn out in the middle: it made a token that is not fed, and leaves its own mark.
    fn park(&mut self, turn: &mut Running, output: &[Token]) {
        turn.ids.extend_from_slice(&output[..output.len() - 1]);
        self.feed(turn);
        turn.ids.push(output[output.len() - 1]);
        let len = self.cache.len(turn.grant.branch);
        self.cache
            .finish(turn.grant.branch, &[(NodeId(turn.node), len)]);
    }

    fn resume(&mut self, turn: &mut Running, output: u32) -> bool {
        let prompt = turn.ids.clone();
        let grant = self.cache.acquire(&Want {
            parent: Some(NodeId(turn.node)),
            head: turn.head,
            prompt_len: prompt.len() as u32,
            cacheable: prompt.len() as u32 - 1,
            output,
            prompt: &|| prompt.clone(),
        });
        let Some(grant) = grant else { return false };
        turn.grant = grant;
        self.cache.release(NodeId(turn.node));
        self.feed(turn);
        true
    }

    /// Ends a turn that has a branch, without its last `back` tokens.
    fn wrap_up(&mut self, mut turn: Running, back: usize) -> u64 {
        let head = Self::head(turn.head).len();
        let parent = turn.parent.map_or(0, |parent| self.links[&parent].len());
        turn.ids
            .truncate((turn.ids.len().saturating_sub(back)).max(head + parent));
        let len = self.cache.len(turn.grant.branch).min(turn.ids.len() as u32);
        self.cache
            .finish(turn.grant.branch, &[(NodeId(turn.node), len)]);
        self.links.insert(turn.node, turn.ids[head..].to_vec());
        turn.node
    }

    /// Ends a parked turn without its last `back` tokens.
    fn leave(&mut self, mut turn: Running, back: usize) {
        let head = Self::head(turn.head).len();
        let parent = turn.parent.map_or(0, |parent| self.links[&parent].len());
        turn.ids
            .truncate((turn.ids.len().saturating_sub(back)).max(head + parent));
        let len = turn.ids.len() as u32;
        self.cache
            .end_without_room(NodeId(turn.node), len, turn.parent.map(NodeId));
        self.links.insert(turn.node, turn.ids[head..].to_vec());
    }

    /// A turn that asks for room, gets none and ends.
    fn leave_waiting(&mut self, parent: Option<u64>, head: u64, delta: &[Token]) -> u64 {
        let mut own = parent.map_or(Vec::new(), |parent| self.links[&parent].clone());
        own.extend_from_slice(delta);
        let node = self.next;
        self.next += 1;
        let len = Self::head(head).len() + own.len();
        self.cache
            .end_without_room(NodeId(node), len as u32, parent.map(NodeId));
        self.links.insert(node, own);
        node
    }

    fn cancel(&mut self, turn: &Running) {
        self.cache.finish(turn.grant.branch, &[]);
    }

    fn turn(
        &mut self,
        parent: Option<u64>,
        head: u64,
        delta: &[Token],
        output: &[Token],
    ) -> (u64, u32) {
        let turn = self
            .start(parent, head, delta, output.len() as u32)
            .expect("there is room");
        let cached = turn.grant.cached;
        (self.finish(turn, output), cached)
    }

    fn release(&mut self, node: u64) {
        self.links.remove(&node);
        self.cache.release(NodeId(node));
    }

    fn check(&mut self) {
        let used = self.cache.used();
        let capacity = self.cache.capacity;
        let grid = self.cache.cells();
        assert_eq!(
            grid.cells.len() as u32,
            used,
            "the cache knows how many cells are in use"
        );
        assert!(
            grid.most as u32 <= capacity,
            "{} cells of {capacity}",
            grid.most
        );
        assert!(self.cache.warm_bytes <= self.cache.warm_budget);
        for (id, branch) in &self.cache.branches {
            if let Some(seq) = branch.seq() {
                assert_eq!(self.cache.cells.read(seq), branch.ids);
            }
            assert!(branch.busy || !branch.marks.is_empty(), "nobody can use it");
            for mark in &branch.marks {
                assert!(mark.len as usize <= branch.ids.len());
                assert!(self.cache.marked[&mark.node].contains(id));
            }
        }
    }
}

#[test]
fn a_continuation_feeds_its_delta_and_the_token_that_was_never_fed() {
    let mut world = World::new(1_000, 8, 0);
    let (first, cached) = world.turn(None, 0, &[1, 2, 3], &[4, 5]);
    assert_eq!(cached, 0);
    let prompt = World::head(0).len() as u32 + 3;
    let (_, cached) = world.turn(Some(first), 0, &[6, 7], &[8]);
    assert_eq!(cached, prompt + 1, "all but the second output token");
    assert_eq!(world.cache.branches.len(), 1, "continued in place");
    world.check();
}

#[test]
fn forks_share_the_cells_of_their_parent_and_do_not_see_each_other() {
    let mut world = World::new(1_000, 8, 0);
    let (parent, _) = world.turn(None, 0, &[1, 2, 3], &[4]);
    let used = world.cache.used();
    let left = world.start(Some(parent), 0, &[10, 11], 5).expect("room");
    let right = world.start(Some(parent), 0, &[20], 5).expect("room");
    assert_eq!((left.grant.cached, right.grant.cached), (used, used));
    // Each fed the parent's last token itself, and its own delta.
    assert_eq!(world.cache.used(), used + 3 + 2);
    world.finish(left, &[12]);
    world.finish(right, &[21]);
    world.check();
}

#[test]
fn under_another_head_only_the_common_prefix_is_kept_and_the_old_branch_stays() {
    let mut world = World::new(1_000, 8, 0);
    let (parent, _) = world.turn(None, 0, &[1, 2, 3], &[4]);
    let (child, cached) = world.turn(Some(parent), 1, &[5], &[6]);
    assert_eq!(cached, 20, "the heads agree in twenty tokens");
    let (_, cached) = world.turn(Some(parent), 0, &[7], &[8]);
    assert_eq!(
        cached,
        World::head(0).len() as u32 + 3,
        "the branch with the old head is still there"
    );
    let (_, cached) = world.turn(Some(child), 1, &[9], &[10]);
    assert!(cached > 20, "the new head is continued in place: {cached}");
    world.check();
}

#[test]
fn a_cancelled_turn_is_rolled_back_to_its_parent() {
    let mut world = World::new(1_000, 8, 0);
    let (parent, _) = world.turn(None, 0, &[1], &[2]);
    let used = world.cache.used();
    let turn = world.start(Some(parent), 0, &[3, 4, 5], 10).expect("room");
    world.cancel(&turn);
    assert_eq!(world.cache.used(), used);
    let orphan = world.start(None, 0, &[6], 10).expect("room");
    world.cancel(&orphan);
    assert_eq!(world.cache.used(), used);
    world.check();
}

#[test]
fn a_cancelled_fork_leaves_no_second_branch() {
    let mut world = World::new(1_000, 4, 0);
    let (other, _) = world.turn(None, 1, &[9], &[9]);
    let (parent, _) = world.turn(None, 0, &[1], &[2]);
    for _ in 0..3 {
        let left = world.start(Some(parent), 0, &[3], 10).expect("room");
        let right = world.start(Some(parent), 0, &[4], 10).expect("room");
        world.cancel(&right);
        world.cancel(&left);
    }
    assert_eq!(world.cache.free_seqs.len(), 2);
    assert_eq!(world.cache.tier(NodeId(other)), Tier::Hot);
    world.check();
}

#[test]
fn what_is_idle_longest_goes_to_ram_and_comes_back() {
    let mut world = World::new(60, 8, 100_000);
    let (first, _) = world.turn(None, 0, &[1, 2], &[3]);
    let (second, _) = world.turn(None, 1, &[4, 5], &[6]);
    world.turn(None, 2, &[7, 8], &[9]);
    assert_eq!(world.cache.tier(NodeId(first)), Tier::Warm);
    assert_eq!(world.cache.tier(NodeId(second)), Tier::Hot);
    let (_, cached) = world.turn(Some(first), 0, &[10], &[11]);
    assert_eq!(cached, World::head(0).len() as u32 + 2);
    assert_eq!(world.cache.tier(NodeId(first)), Tier::Hot);
    world.check();
}

#[test]
fn without_ram_a_conversation_goes_cold_and_is_fed_again() {
    let mut world = World::new(60, 8, 0);
    let (first, _) = world.turn(None, 0, &[1, 2], &[3]);
    world.turn(None, 1, &[4, 5], &[6]);
    world.turn(None, 2, &[7, 8], &[9]);
    assert_eq!(world.cache.tier(NodeId(first)), Tier::Cold);
    let (_, cached) = world.turn(Some(first), 0, &[10], &[11]);
    assert_eq!(cached, 0);
    world.check();
}

#[test]
fn saved_bytes_that_are_refused_cost_a_prefill_and_nothing_else() {
    let mut world = World::new(1_000, 8, 100_000);
    let (first, _) = world.turn(None, 0, &[1, 2], &[3]);
    world.cache.evict_idle(Tier::Warm);
    world.cache.cells().refuse = true;
    let (_, cached) = world.turn(Some(first), 0, &[4], &[5]);
    assert_eq!(cached, 0);
    world.check();
}

#[test]
fn a_turn_waits_while_others_run_and_gets_its_room_when_they_end() {
    let mut world = World::new(60, 8, 0);
    let running = world.start(None, 0, &[1], 20).expect("room");
    assert!(world.start(None, 1, &[2], 20).is_none());
    world.finish(running, &[3]);
    assert!(world.start(None, 1, &[2], 20).is_some());
    world.check();
}

#[test]
fn nothing_is_moved_out_for_a_turn_that_has_to_wait_all_the_same() {
    let mut world = World::new(100, 8, 100_000);
    let (idle, _) = world.turn(None, 0, &[1], &[2]);
    let running = world.start(None, 1, &[3], 40).expect("room");
    assert!(world.start(None, 2, &[4; 40], 10).is_none());
    assert_eq!(world.cache.tier(NodeId(idle)), Tier::Hot);
    assert!(!world.cache.grow(running.grant.branch, 40));
    assert_eq!(world.cache.tier(NodeId(idle)), Tier::Hot);
    world.finish(running, &[5]);
    world.check();
}

#[test]
fn a_lone_turn_takes_the_room_of_what_its_parent_went_on_to() {
    let mut world = World::new(60, 8, 0);
    let (parent, _) = world.turn(None, 0, &[1], &[2]);
    world.turn(Some(parent), 0, &[3; 20], &[4]);
    let fork = world
        .start(Some(parent), 0, &[5; 20], 10)
        .expect("nobody else is there");
    assert_eq!(fork.grant.cached, World::head(0).len() as u32 + 1);
    world.finish(fork, &[6]);
    world.check();
}

#[test]
fn released_responses_give_their_cells_back() {
    let mut world = World::new(1_000, 8, 0);
    let (parent, _) = world.turn(None, 0, &[1, 2], &[3]);
    let used = world.cache.used();
    let (child, _) = world.turn(Some(parent), 0, &[4, 5], &[6]);
    world.release(child);
    assert_eq!(world.cache.used(), used);
    world.release(parent);
    assert_eq!(world.cache.used(), 0);
    assert!(world.cache.branches.is_empty() && world.cache.marked.is_empty());
    assert_eq!(world.cache.free_seqs.len(), 8);
}

#[test]
fn a_branch_that_is_all_start_of_another_heads_prompt_keeps_its_own_head() {
    let mut world = World::new(1_000, 8, 0);
    // What was the first message becomes the instructions.
    let message = World::head(1);
    let (parent, _) = world.turn(None, NO_HEAD, &message, &[1]);
    let (child, cached) = world.turn(Some(parent), 1, &[2, 3], &[4]);
    assert_eq!(cached, message.len() as u32, "the tokens are the same");
    // Without instructions both are conversations of their own; `feed` looks at their ids.
    world.turn(Some(child), NO_HEAD, &[5], &[6]);
    world.turn(Some(parent), NO_HEAD, &[7], &[8]);
    world.check();
}

#[test]
fn a_lone_turn_under_another_head_leaves_nothing_behind() {
    let mut world = World::new(150, 8, 100_000);
    let (parent, _) = world.turn(None, 0, &[1; 90], &[2]);
    let fork = world
        .start(Some(parent), 1, &[3; 10], 10)
        .expect("nobody else is there");
    world.cancel(&fork);
    world.release(parent);
    assert!(world.cache.branches.is_empty());
}

#[test]
fn one_sequence_is_enough_to_go_back_to_a_parent_in_ram() {
    let mut world = World::new(1_000, 1, 100_000);
    let (parent, _) = world.turn(None, 0, &[1], &[2]);
    world.turn(Some(parent), 0, &[3], &[4]);
    world.cache.evict_idle(Tier::Warm);
    let (_, cached) = world.turn(Some(parent), 0, &[5], &[6]);
    assert_eq!(cached, World::head(0).len() as u32 + 1);
    world.check();
}

#[test]
fn a_turn_that_never_had_room_is_continued_from_where_its_parent_is() {
    let mut world = World::new(200, 4, 0);
    let (parent, _) = world.turn(None, 0, &[1; 30], &[2; 5]);
    let waiting = world.leave_waiting(Some(parent), 0, &[3; 10]);
    // Its parent may be forgotten: the cells are its own now.
    world.release(parent);
    world.check();
    let turn = world
        .start(Some(waiting), 0, &[4; 5], 5)
        .expect("there is room");
    assert_eq!(turn.grant.cached as usize, World::head(0).len() + 34);
    world.finish(turn, &[5; 5]);
    world.check();
}
