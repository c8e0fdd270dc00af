//! KvCache: which conversation's keys and values are in cells, which in RAM, which gone.
//!
//! A *branch* is a run of tokens from position 0 with a KV cell for each. Ends of responses
//! are *marks* on branches. A branch is *hot* (in cells of the context, under a sequence id) or
//! *warm* (saved as bytes in RAM); one that is neither is gone and has to be prefilled again.
//! Forks share cells. Branches without a live mark are freed at once.
//!
//! No model here: [`Cells`] is what is asked of one, so all of this is tested without it.

use std::collections::HashMap;

/// A token id of the model's vocabulary.
pub(crate) type Token = i32;

/// A sequence id of the context.
pub(crate) type Seq = i32;

/// The end of a response, as the cache knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(pub(crate) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BranchId(u64);

/// The cells of a context. Positions of a sequence always form a run from 0.
pub(crate) trait Cells {
    /// The state of one sequence in RAM.
    type Saved;

    /// Lets `to`, which is empty, share the cells `0..end` of `from`.
    fn share(&mut self, from: Seq, to: Seq, end: u32);
    /// Takes the cells from `end` on away from `seq`.
    fn truncate(&mut self, seq: Seq, end: u32);
    /// Copies a sequence out, and says how many bytes that took.
    fn save(&mut self, seq: Seq) -> Option<(Self::Saved, usize)>;
    /// Brings a saved sequence back into `seq`, which is empty.
    fn restore(&mut self, saved: &Self::Saved, seq: Seq) -> bool;
}

#[derive(Debug)]
enum Place<S> {
    Hot(Seq),
    Warm { saved: S, bytes: usize },
}

/// Cells written in one go, perhaps shared by several branches: those of `id` from `start` on.
#[derive(Clone, Copy, Debug)]
struct Span {
    id: u64,
    start: u32,
    end: u32,
    /// Only the branch that began the span may extend it.
    owned: bool,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    node: NodeId,
    /// Cells of the branch that belong to the marked response and its parents.
    len: u32,
}

#[derive(Debug)]
struct Branch<S> {
    place: Place<S>,
    /// The tokens in its cells.
    ids: Vec<Token>,
    head: u64,
    spans: Vec<Span>,
    marks: Vec<Mark>,
    /// A turn is writing to it.
    busy: bool,
    /// Cells promised to that turn and not yet written.
    reserved: u32,
    last_used: u64,
}

/// Room for a turn: the branch it writes to, and how many of its tokens are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) branch: BranchId,
    pub(crate) seq: Seq,
    pub(crate) cached: u32,
}

/// What a turn asks for.
pub(crate) struct Want<'a> {
    /// The response it continues.
    pub(crate) parent: Option<NodeId>,
    /// Names the head the turn's prompt begins with.
    pub(crate) head: u64,
    /// Tokens of the prompt.
    pub(crate) prompt_len: u32,
    /// Prompt tokens that may come from the cache: all, or all but the last one when its
    /// logits are wanted.
    pub(crate) cacheable: u32,
    /// Cells for output.
    pub(crate) output: u32,
    /// The ids of the whole prompt. Costs a walk over the chain: asked only under a new head.
    pub(crate) prompt: &'a dyn Fn() -> Vec<Token>,
}

/// Where a response's keys and values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// In cells of the context.
    Hot,
    /// In RAM, to be copied back.
    Warm,
    /// Nowhere: to be prefilled again from its token ids.
    Cold,
}

/// A shared prefix shorter than this is not worth a sequence id of its own.
const SHORTEST_SHARED_PREFIX: u32 = 16;

#[derive(Debug)]
pub(crate) struct KvCache<C: Cells> {
    cells: C,
    capacity: u32,
    warm_budget: usize,
    warm_bytes: usize,
    free_seqs: Vec<Seq>,
    branches: HashMap<BranchId, Branch<C::Saved>>,
    /// The branches that carry a mark of a node.
    marked: HashMap<NodeId, Vec<BranchId>>,
    /// Counts up; names branches and spans and tells older from newer.
    clock: u64,
}

impl<C: Cells> KvCache<C> {
    /// `capacity` in cells, `warm_budget` in bytes.
    pub(crate) fn new(cells: C, capacity: u32, seqs: u32, warm_budget: usize) -> Self {
        Self {
            cells,
            capacity,
            warm_budget,
            warm_bytes: 0,
            free_seqs: (0..seqs as Seq).rev().collect(),
            branches: HashMap::new(),
            marked: HashMap::new(),
            clock: 0,
        }
    }

    pub(crate) fn cells(&mut self) -> &mut C {
        &mut self.cells
    }

    /// Finds room for a turn, moving idle conversations out if need be. None: wait for a turn to end.
    ///
    /// `prompt_len + output` must fit the capacity, or a lone turn would wait for ever.
    pub(crate) fn acquire(&mut self, want: &Want<'_>) -> Option<Grant> {
        let Some((base, cached)) = self.find_base(want) else {
            if !self.make_room(want.prompt_len + want.output, true, None) {
                return None;
            }
            let branch = self.begin(want.head);
            return Some(self.grant(branch, 0, want));
        };
        let source = &self.branches[&base];
        let warm = source.seq().is_none();
        // Equal ids are not enough: a branch's marks end where they do behind its own head.
        let same_head = source.head == want.head;
        let in_place = !source.busy && same_head && source.ids.len() as u32 == cached;
        let fresh = want.prompt_len - cached + want.output;
        let restored = if warm { source.ids.len() as u32 } else { 0 };
        if !self.make_room(fresh + restored, warm || !in_place, Some(base)) {
            if self.branches.values().any(|branch| branch.busy) {
                return None;
            }
            // Alone, and the rest of the base is what is in the way.
            match warm || !same_head {
                true => self.remove(base),
                false => self.cut(base, cached),
            }
            return self.acquire(want);
        }
        if warm && !self.restore(base) {
            // Its bytes were refused and it is gone: the turn starts over without it.
            return self.acquire(want);
        }
        let branch = match in_place {
            true => base,
            false => match self.fork(base, cached, want.head) {
                Some(fork) => fork,
                // The base took the last sequence id when it was restored: it is hot now.
                None => return self.acquire(want),
            },
        };
        Some(self.grant(branch, cached, want))
    }

    fn grant(&mut self, branch: BranchId, cached: u32, want: &Want<'_>) -> Grant {
        self.clock += 1;
        let now = self.clock;
        let entry = self.branch_mut(branch);
        entry.busy = true;
        entry.reserved = want.prompt_len - cached + want.output;
        entry.last_used = now;
        let seq = entry.seq().expect("a granted branch is hot");
        Grant {
            branch,
            seq,
            cached,
        }
    }

    /// Asks for `more` cells for a turn that has used up what it was promised.
    pub(crate) fn grow(&mut self, branch: BranchId, more: u32) -> bool {
        if !self.make_room(more, false, Some(branch)) {
            return false;
        }
        self.branch_mut(branch).reserved += more;
        true
    }

    /// Cells the turn on `branch` may still write.
    pub(crate) fn reserved(&self, branch: BranchId) -> u32 {
        self.branches[&branch].reserved
    }

    /// Tokens in the cells of `branch`.
    pub(crate) fn len(&self, branch: BranchId) -> u32 {
        self.branches[&branch].ids.len() as u32
    }

    /// Records that `ids` were decoded into cells behind those of `branch`.
    pub(crate) fn advance(&mut self, branch: BranchId, ids: &[Token]) {
        self.clock += 1;
        let span = self.clock;
        let entry = self.branch_mut(branch);
        let start = entry.ids.len() as u32;
        let end = start + ids.len() as u32;
        entry.ids.extend_from_slice(ids);
        entry.reserved = entry.reserved.saturating_sub(ids.len() as u32);
        match entry.spans.last_mut() {
            Some(last) if last.owned => last.end = end,
            _ => entry.spans.push(Span {
                id: span,
                start,
                end,
                owned: true,
            }),
        }
    }

    /// The turn on `branch` is over; `marks` are the responses that end on it now.
    pub(crate) fn finish(&mut self, branch: BranchId, marks: &[(NodeId, u32)]) {
        self.clock += 1;
        let now = self.clock;
        let entry = self
            .branches
            .get_mut(&branch)
            .expect("its turn was running");
        entry.busy = false;
        entry.reserved = 0;
        entry.last_used = now;
        for &(node, len) in marks {
            self.mark(branch, node, len);
        }
        self.trim(branch);
    }

    fn mark(&mut self, branch: BranchId, node: NodeId, len: u32) {
        let marks = &mut self.branch_mut(branch).marks;
        match marks.iter_mut().find(|mark| mark.node == node) {
            Some(mark) => mark.len = len,
            None => {
                marks.push(Mark { node, len });
                self.marked.entry(node).or_default().push(branch);
            }
        }
    }

    /// `node` ended with `len` tokens while it had no room. What there is of it are the cells it
    /// had before, or else those of its parent.
    pub(crate) fn end_without_room(&mut self, node: NodeId, len: u32, parent: Option<NodeId>) {
        let own = self.marked.get(&node).cloned();
        let like = own.as_ref().map_or(parent, |_| Some(node));
        let Some(like) = like else { return };
        for id in own
            .or_else(|| self.marked.get(&like).cloned())
            .unwrap_or_default()
        {
            let marks = &self.branches[&id].marks;
            let mark = marks.iter().find(|mark| mark.node == like);
            let len = mark.expect("indexed by its marks").len.min(len);
            self.mark(id, node, len);
            self.trim(id);
        }
    }

    /// Nobody can name `node` any more.
    pub(crate) fn release(&mut self, node: NodeId) {
        for branch in self.marked.remove(&node).unwrap_or_default() {
            self.branch_mut(branch)
                .marks
                .retain(|mark| mark.node != node);
            self.trim(branch);
        }
    }

    /// Moves all idle branches out of the cells, and out of RAM too if `to` is cold.
    pub(crate) fn evict_idle(&mut self, to: Tier) {
        let idle: Vec<BranchId> = self
            .branches
            .iter()
            .filter(|(_, b)| !b.busy)
            .map(|(&id, _)| id)
            .collect();
        for id in idle {
            // Making room in RAM for one may have dropped another.
            let hot = self
                .branches
                .get(&id)
                .is_some_and(|branch| branch.seq().is_some());
            match to {
                Tier::Warm if hot => self.cool(id, None),
                Tier::Hot | Tier::Warm => {}
                Tier::Cold => self.remove(id),
            }
        }
    }

    pub(crate) fn tier(&self, node: NodeId) -> Tier {
        let places = self
            .marked
            .get(&node)
            .into_iter()
            .flatten()
            .map(|id| &self.branches[id].place);
        places.fold(Tier::Cold, |best, place| match (best, place) {
            (_, Place::Hot(_)) | (Tier::Hot, _) => Tier::Hot,
            (_, Place::Warm { .. }) => Tier::Warm,
        })
    }

    /// The ids in the cells of `node`, on the branch where it is.
    pub(crate) fn ids(&self, node: NodeId) -> Option<&[Token]> {
        let branch = self.marked.get(&node)?.first()?;
        let branch = &self.branches[branch];
        let mark = branch.marks.iter().find(|mark| mark.node == node)?;
        Some(&branch.ids[..mark.len as usize])
    }

    /// Cells in use. Shared cells count once.
    pub(crate) fn used(&self) -> u32 {
        Self::cells_of(self.branches.values())
    }

    fn cells_of<'a>(branches: impl Iterator<Item = &'a Branch<C::Saved>>) -> u32
    where
        C: 'a,
    {
        let mut ends: HashMap<u64, (u32, u32)> = HashMap::new();
        for branch in branches.filter(|b| b.seq().is_some()) {
            for span in &branch.spans {
                let entry = ends.entry(span.id).or_insert((span.start, span.end));
                entry.1 = entry.1.max(span.end);
            }
        }
        ends.values().map(|(start, end)| end - start).sum()
    }

    /// The best place to continue from: a branch, and how many of its cells fit.
    fn find_base(&self, want: &Want<'_>) -> Option<(BranchId, u32)> {
        let candidates = self.marked.get(&want.parent?)?;
        let same_head = candidates
            .iter()
            .filter(|id| self.branches[id].head == want.head)
            .map(|&id| {
                let branch = &self.branches[&id];
                let mark = branch
                    .marks
                    .iter()
                    .find(|mark| Some(mark.node) == want.parent);
                let len = mark.expect("indexed by its marks").len.min(want.cacheable);
                let hot = branch.seq().is_some();
                let in_place = !branch.busy && branch.ids.len() as u32 == len;
                ((hot && in_place, hot), (id, len))
            })
            .max_by_key(|&(rank, (id, len))| (rank, len, id));
        if let Some((_, base)) = same_head {
            return Some(base);
        }
        // Another head: the cells are good up to the first token that differs.
        let prompt = (want.prompt)();
        candidates
            .iter()
            .filter(|id| self.branches[id].seq().is_some())
            .map(|&id| {
                let same = self.branches[&id]
                    .ids
                    .iter()
                    .zip(&prompt)
                    .take_while(|(a, b)| a == b);
                (id, (same.count() as u32).min(want.cacheable))
            })
            .max_by_key(|&(id, len)| (len, id))
            .filter(|&(_, len)| len >= SHORTEST_SHARED_PREFIX)
    }

    fn free(&self) -> u32 {
        self.capacity.saturating_sub(self.used() + self.promised())
    }

    /// Cells that running turns may still write.
    fn promised(&self) -> u32 {
        self.branches.values().map(|b| b.reserved).sum()
    }

    /// Frees cells (and a sequence id) by moving out what was idle longest, but not `keep`.
    fn make_room(&mut self, cells: u32, seq: bool, keep: Option<BranchId>) -> bool {
        // Nothing is moved for a turn that would have to wait all the same.
        let stay = |&(&id, b): &(&BranchId, &Branch<_>)| b.busy || Some(id) == keep;
        let staying = self.branches.iter().filter(stay).map(|(_, b)| b);
        if Self::cells_of(staying) + self.promised() + cells > self.capacity {
            return false;
        }
        while self.free() < cells || (seq && self.free_seqs.is_empty()) {
            let oldest = self
                .branches
                .iter()
                .filter(|&(&id, b)| !b.busy && b.seq().is_some() && Some(id) != keep)
                .min_by_key(|(_, b)| b.last_used)
                .map(|(&id, _)| id);
            let Some(oldest) = oldest else { return false };
            self.cool(oldest, keep);
        }
        true
    }

    /// Hot to warm, or gone if there is no room for it that `keep` does not take.
    fn cool(&mut self, id: BranchId, keep: Option<BranchId>) {
        let seq = self.branches[&id].seq().expect("only hot branches cool");
        let Some((saved, bytes)) = self.cells.save(seq) else {
            return self.remove(id);
        };
        while self.warm_bytes + bytes > self.warm_budget {
            let oldest = self
                .branches
                .iter()
                .filter(|&(&id, b)| b.seq().is_none() && Some(id) != keep)
                .min_by_key(|(_, b)| b.last_used)
                .map(|(&id, _)| id);
            match oldest {
                Some(oldest) if bytes <= self.warm_budget => self.remove(oldest),
                _ => return self.remove(id),
            }
        }
        self.warm_bytes += bytes;
        let branch = self.branch_mut(id);
        branch.place = Place::Warm { saved, bytes };
        branch.spans.clear();
        self.cells.truncate(seq, 0);
        self.free_seqs.push(seq);
    }

    /// Warm to hot. False: the bytes were refused, and the branch is gone.
    fn restore(&mut self, id: BranchId) -> bool {
        let seq = self.free_seqs.pop().expect("make_room left a sequence id");
        let branch = self.branches.get_mut(&id).expect("to be restored");
        let Place::Warm { saved, bytes } = &branch.place else {
            unreachable!("checked by the caller")
        };
        if !self.cells.restore(saved, seq) {
            self.cells.truncate(seq, 0);
            self.free_seqs.push(seq);
            self.remove(id);
            return false;
        }
        self.warm_bytes -= bytes;
        self.clock += 1;
        branch.place = Place::Hot(seq);
        branch.spans = vec![Span {
            id: self.clock,
            start: 0,
            end: branch.ids.len() as u32,
            owned: true,
        }];
        true
    }

    /// A new branch that shares the first `len` cells of `from`.
    fn fork(&mut self, from: BranchId, len: u32, head: u64) -> Option<BranchId> {
        // A base that was just restored took the sequence id that was free.
        if !self.make_room(0, true, Some(from)) {
            return None;
        }
        let seq = self.free_seqs.pop()?;
        let source = &self.branches[&from];
        let spans = source.spans.iter().filter(|span| span.start < len);
        let spans = spans
            .map(|&span| Span {
                end: span.end.min(len),
                owned: false,
                ..span
            })
            .collect();
        let ids = source.ids[..len as usize].to_vec();
        // The marks inside the shared part are reachable here as well, under the same head.
        let marks: Vec<Mark> = match source.head == head {
            true => source
                .marks
                .iter()
                .filter(|mark| mark.len == len)
                .copied()
                .collect(),
            false => Vec::new(),
        };
        self.cells.share(
            source.seq().expect("forks start from hot branches"),
            seq,
            len,
        );
        Some(self.insert(Branch {
            place: Place::Hot(seq),
            ids,
            head,
            spans,
            marks,
            busy: false,
            reserved: 0,
            last_used: 0,
        }))
    }

    fn begin(&mut self, head: u64) -> BranchId {
        let seq = self.free_seqs.pop().expect("make_room left a sequence id");
        self.insert(Branch {
            place: Place::Hot(seq),
            ids: Vec::new(),
            head,
            spans: Vec::new(),
            marks: Vec::new(),
            busy: false,
            reserved: 0,
            last_used: 0,
        })
    }

    fn insert(&mut self, branch: Branch<C::Saved>) -> BranchId {
        self.clock += 1;
        let id = BranchId(self.clock);
        for mark in &branch.marks {
            self.marked.entry(mark.node).or_default().push(id);
        }
        self.branches.insert(id, branch);
        id
    }

    /// Gives back the cells of an idle branch that lie beyond its last mark; all, if it has none
    /// that is not on another branch too, as with a fork of which nothing came.
    fn trim(&mut self, id: BranchId) {
        let branch = &self.branches[&id];
        if branch.busy {
            return;
        }
        if branch.marks.iter().all(|mark| self.is_elsewhere(mark, id)) {
            return self.remove(id);
        }
        let end = branch.marks.iter().map(|mark| mark.len).max();
        self.truncate(id, end.unwrap_or(0));
    }

    /// Whether another hot branch with the head of `id` has its mark too.
    fn is_elsewhere(&self, mark: &Mark, id: BranchId) -> bool {
        let head = self.branches[&id].head;
        let others = self.marked.get(&mark.node).into_iter().flatten();
        others.filter(|&&other| other != id).any(|other| {
            let other = &self.branches[other];
            let same = |m: &Mark| m.node == mark.node && m.len >= mark.len;
            other.seq().is_some() && other.head == head && other.marks.iter().any(same)
        })
    }

    /// Gives up the marks of an idle hot branch beyond `len`, and the cells that only they need.
    fn cut(&mut self, id: BranchId, len: u32) {
        let branch = self.branch_mut(id);
        let (keep, gone) = branch
            .marks
            .iter()
            .partition::<Vec<Mark>, _>(|mark| mark.len <= len);
        branch.marks = keep;
        for mark in gone {
            self.unmark(mark.node, id);
        }
        self.trim(id);
    }

    fn truncate(&mut self, id: BranchId, len: u32) {
        let branch = self.branch_mut(id);
        let Some(seq) = branch.seq() else { return };
        if (len as usize) < branch.ids.len() {
            branch.ids.truncate(len as usize);
            branch.spans.retain(|span| span.start < len);
            if let Some(last) = branch.spans.last_mut() {
                last.end = last.end.min(len);
                // A fork may still hold the cells cut off here: what comes next is other cells.
                last.owned = false;
            }
            self.cells.truncate(seq, len);
        }
    }

    fn unmark(&mut self, node: NodeId, id: BranchId) {
        if let Some(branches) = self.marked.get_mut(&node) {
            branches.retain(|&other| other != id);
            if branches.is_empty() {
                self.marked.remove(&node);
            }
        }
    }

    fn remove(&mut self, id: BranchId) {
        let Some(branch) = self.branches.remove(&id) else {
            return;
        };
        for mark in &branch.marks {
            self.unmark(mark.node, id);
        }
        match branch.place {
            Place::Hot(seq) => {
                self.cells.truncate(seq, 0);
                self.free_seqs.push(seq);
            }
            Place::Warm { bytes, .. } => self.warm_bytes -= bytes,
        }
    }

    fn branch_mut(&mut self, id: BranchId) -> &mut Branch<C::Saved> {
        self.branches
            .get_mut(&id)
            .expect("a branch in use is never removed")
    }
}

impl<S> Branch<S> {
    fn seq(&self) -> Option<Seq> {
        match self.place {
            Place::Hot(seq) => Some(seq),
            Place::Warm { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
