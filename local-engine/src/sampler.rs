//! Sampler: from a row of logits to one token.

use std::collections::HashMap;

use toktrie::SimpleVob;
use turnwire_protocol::engine::TurnRequest;

use crate::cache::Token;

/// How a turn chooses among tokens.
#[derive(Debug)]
pub(crate) struct Sampler {
    temperature: f32,
    top_p: f32,
    presence_penalty: f32,
    frequency_penalty: f32,
    /// How often each token was generated in this turn; empty without penalties.
    seen: HashMap<Token, u32>,
    rng: fastrand::Rng,
    /// Reused from token to token.
    scratch: Vec<(f32, Token)>,
}

/// Candidates looked at before all of the vocabulary is sorted: in nearly every step the
/// tokens that make up `top_p` are among them.
const SHORTLIST: usize = 256;

impl Sampler {
    pub(crate) fn new(request: &TurnRequest, rng: fastrand::Rng) -> Self {
        Self {
            temperature: request.temperature,
            top_p: request.top_p,
            presence_penalty: request.presence_penalty,
            frequency_penalty: request.frequency_penalty,
            seen: HashMap::new(),
            rng,
            scratch: Vec::new(),
        }
    }

    /// Chooses among the tokens that `allowed` permits. None: it permits none.
    pub(crate) fn sample(&mut self, logits: &[f32], allowed: Option<&SimpleVob>) -> Option<Token> {
        let adjust = |token: usize, logit: f32| match self.seen.get(&(token as Token)) {
            Some(&count) => logit - self.presence_penalty - self.frequency_penalty * count as f32,
            None => logit,
        };
        let candidates = logits
            .iter()
            .enumerate()
            .filter(|&(token, logit)| {
                !logit.is_nan() && allowed.is_none_or(|mask| token < mask.len() && mask.get(token))
            })
            .map(|(token, &logit)| (adjust(token, logit), token as Token));
        let token = if self.temperature <= 0.0 {
            // The lowest id among equals, so that greedy output is one output.
            candidates
                .reduce(|best, next| if next.0 > best.0 { next } else { best })?
                .1
        } else {
            self.scratch.clear();
            self.scratch.extend(candidates);
            self.draw()?
        };
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            *self.seen.entry(token).or_default() += 1;
        }
        Some(token)
    }

    /// Draws from the scratch candidates by temperature and `top_p`.
    fn draw(&mut self) -> Option<Token> {
        let max = self
            .scratch
            .iter()
            .map(|c| c.0)
            .fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return None;
        }
        let mut sum = 0.0;
        for candidate in &mut self.scratch {
            candidate.0 = ((candidate.0 - max) / self.temperature).exp();
            sum += candidate.0;
        }
        let mut mass = sum;
        if self.top_p < 1.0 {
            let wanted = self.top_p * sum;
            let (kept, kept_mass) = nucleus(&mut self.scratch, wanted);
            self.scratch.truncate(kept);
            mass = kept_mass;
        }
        let mut left = self.rng.f32() * mass;
        for &(weight, token) in &self.scratch {
            left -= weight;
            if left <= 0.0 && weight > 0.0 {
                return Some(token);
            }
        }
        // Rounding can leave a little over: then it is the last one that had any weight.
        self.scratch.iter().rev().find(|c| c.0 > 0.0).map(|c| c.1)
    }
}

/// Orders the heaviest candidates first and says how many of them make up `wanted`, at least one.
fn nucleus(candidates: &mut [(f32, Token)], wanted: f32) -> (usize, f32) {
    let heaviest_first =
        |a: &(f32, Token), b: &(f32, Token)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut sorted = SHORTLIST.min(candidates.len());
    if sorted < candidates.len() {
        candidates.select_nth_unstable_by(sorted, heaviest_first);
    }
    loop {
        candidates[..sorted].sort_unstable_by(heaviest_first);
        let mut mass = 0.0;
        for (index, candidate) in candidates[..sorted].iter().enumerate() {
            mass += candidate.0;
            if mass >= wanted {
                return (index + 1, mass);
            }
        }
        if sorted == candidates.len() {
            return (sorted, mass);
        }
        sorted = candidates.len();
    }
}

/// The log probability of `token`, and the `top` most likely tokens with theirs.
pub(crate) fn log_probabilities(
    logits: &[f32],
    token: Token,
    top: usize,
) -> (f32, Vec<(Token, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - max).exp())
        .sum();
    let log_sum = max + sum.ln() as f32;
    let mut best: Vec<(f32, Token)> = Vec::with_capacity(top + 1);
    for (id, &logit) in logits.iter().enumerate() {
        if best.len() < top || best.last().is_some_and(|last| logit > last.0) {
            let at = best.partition_point(|other| other.0 >= logit);
            best.insert(at, (logit, id as Token));
            best.truncate(top);
        }
    }
    let best = best
        .into_iter()
        .map(|(logit, id)| (id, logit - log_sum))
        .collect();
    (logits[token as usize] - log_sum, best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(temperature: f32, top_p: f32) -> Sampler {
        Sampler {
            temperature,
            top_p,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seen: HashMap::new(),
            rng: fastrand::Rng::with_seed(7),
            scratch: Vec::new(),
        }
    }

    #[test]
    fn greedy_takes_the_best_allowed_token_and_the_lowest_of_equals() {
        let logits = [1.0, 5.0, 5.0, f32::NAN, 9.0];
        let mut mask = SimpleVob::alloc(5);
        assert_eq!(sampler(0.0, 1.0).sample(&logits, None), Some(4));
        assert_eq!(sampler(0.0, 1.0).sample(&logits, Some(&mask)), None);
        mask.allow_token(1);
        mask.allow_token(2);
        mask.allow_token(3);
        assert_eq!(sampler(0.0, 1.0).sample(&logits, Some(&mask)), Some(1));
        assert_eq!(
            sampler(1.0, 1.0).sample(&[f32::NEG_INFINITY; 3], None),
            None
        );
    }

    #[test]
    fn draws_follow_the_distribution_and_top_p_cuts_its_tail() {
        // e^0, e^ln 3, e^ln 6: a tenth, three tenths, six tenths.
        let logits = [0.0, 3f32.ln(), 6f32.ln()];
        let mut all = sampler(1.0, 1.0);
        let mut counts = [0u32; 3];
        for _ in 0..10_000 {
            counts[all.sample(&logits, None).unwrap() as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([1_000, 3_000, 6_000]) {
            assert!(count.abs_diff(expected) < 300, "{counts:?}");
        }
        let mut nucleus = sampler(1.0, 0.85);
        assert!((0..1_000).all(|_| nucleus.sample(&logits, None) != Some(0)));
        let mut narrow = sampler(1.0, 0.0);
        assert!((0..100).all(|_| narrow.sample(&logits, None) == Some(2)));
    }

    #[test]
    fn a_flat_distribution_over_a_large_vocabulary_is_cut_beyond_the_shortlist() {
        let logits = vec![0.0; 4 * SHORTLIST];
        let mut half = sampler(1.0, 0.5);
        for _ in 0..1_000 {
            assert!(half.sample(&logits, None).unwrap() < 2 * SHORTLIST as Token + 1);
        }
    }

    #[test]
    fn penalties_move_repeated_tokens_down() {
        let mut penalised = sampler(0.0, 1.0);
        penalised.frequency_penalty = 1.0;
        let logits = [2.0, 1.5];
        let picked: Vec<_> = (0..4)
            .map(|_| penalised.sample(&logits, None).unwrap())
            .collect();
        assert_eq!(picked, [0, 1, 0, 1]);
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [0.0, 3f32.ln(), 6f32.ln()];
        let (logprob, top) = log_probabilities(&logits, 1, 2);
        assert!((logprob - 0.3f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
        assert!((top[0].1 - 0.6f32.ln()).abs() < 1e-6);
        assert!(log_probabilities(&logits, 0, 0).1.is_empty());
    }
}
