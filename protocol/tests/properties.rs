//! What holds however messages, output, answers of the store and time come together.

mod interleaving;

use proptest::collection::vec;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Numbers count from 0, one end for each create and nothing after it, lanes are first in,
    /// first out and do not overlap, at most so many run, and all memory is given back.
    #[test]
    fn a_session_keeps_its_promises(bytes in vec(any::<u8>(), 0..1200)) {
        interleaving::play(&bytes);
    }

    /// The same with turns that get somewhere: mostly creates, starts, items and ends.
    #[test]
    fn a_busy_session_keeps_its_promises(steps in vec(step(), 0..250)) {
        interleaving::play(&steps.concat());
    }
}

/// One input of a session at work.
fn step() -> impl Strategy<Value = Vec<u8>> {
    let create = vec(any::<u8>(), 4).prop_map(|bytes| [vec![0], bytes].concat());
    let output = (any::<u8>(), any::<u8>()).prop_map(|(turn, output)| vec![4, turn, output]);
    let loaded = any::<u8>().prop_map(|turn| vec![10, turn]);
    let saved = (any::<u8>(), any::<u8>()).prop_map(|(turn, answer)| vec![11, turn, answer]);
    let other = (12..15u8, any::<u8>(), any::<u8>()).prop_map(|(a, b, c)| vec![a, b, c]);
    prop_oneof![5 => create, 30 => output, 2 => loaded, 2 => saved, 1 => other]
}
