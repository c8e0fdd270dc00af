//! Truncation: which responses of a chain stay in the prompt when not all of them fit.
//!
//! Whole responses are left out, the oldest first, and what stays begins with a message of the
//! user: so no output of a tool stays without its call. What stays stands at other positions than
//! before, so it is prefilled anew. That is why more is left out than needed: a quarter of the
//! context is made room, and the turns after this one find it free.

use std::sync::Arc;

use crate::cache::{NodeId, Token};
use crate::link_state::LinkState;

/// The newest responses of a chain, newest first, that begin with a message of the user and have
/// `wanted` tokens at most: as many as can be. If there are none, the fewest that have `most`.
pub(crate) fn newest(last: &Arc<LinkState>, wanted: u32, most: u32) -> Option<Vec<Arc<LinkState>>> {
    let mut links = Vec::new();
    let (mut tokens, mut kept) = (0, None);
    let mut link = Some(last);
    while let Some(state) = link {
        links.push(Arc::clone(state));
        tokens += state.ids.len() as u32;
        let may_begin = state.begins_with_user && (tokens <= wanted || kept.is_none());
        if tokens > most {
            break;
        }
        if may_begin {
            kept = Some(links.len());
        }
        link = state.base.as_ref();
    }
    links.truncate(kept?);
    Some(links)
}

/// A chain of the links that stay, `closing` being what closes the message before the first.
pub(crate) fn relink(
    newest_first: &[Arc<LinkState>],
    closing: &[Token],
    mut node: impl FnMut() -> NodeId,
) -> Option<Arc<LinkState>> {
    let mut base: Option<Arc<LinkState>> = None;
    for link in newest_first.iter().rev() {
        let ids = match (&base, link.ids.strip_prefix(closing)) {
            (None, Some(open)) => open.into(),
            _ => Arc::clone(&link.ids),
        };
        base = Some(Arc::new(LinkState {
            engine: link.engine,
            total: base.as_ref().map_or(0, |base| base.total) + ids.len() as u32,
            base,
            ids,
            before: link.before,
            begins_with_user: link.begins_with_user,
            node: node(),
            release: link.release.clone(),
        }));
    }
    base
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use turnwire_prompt::Before;

    use super::*;

    /// A chain of links with these ids; the marked ones begin with a message of the user.
    fn chain(links: &[(bool, &[Token])]) -> Arc<LinkState> {
        let (release, _) = channel();
        let mut base: Option<Arc<LinkState>> = None;
        for &(begins_with_user, ids) in links {
            base = Some(Arc::new(LinkState {
                engine: 1,
                total: base.as_ref().map_or(0, |base| base.total) + ids.len() as u32,
                base,
                ids: ids.into(),
                before: Before::Ended,
                begins_with_user,
                node: NodeId(0),
                release: release.clone(),
            }));
        }
        base.expect("a chain has a link")
    }

    fn kept(links: &[(bool, &[Token])], wanted: u32, most: u32) -> Option<Vec<Token>> {
        let newest = newest(&chain(links), wanted, most)?;
        let mut nodes = 10..;
        let chain = relink(&newest, &[0], || NodeId(nodes.next().expect("endless")))?;
        assert_eq!(chain.gather().len(), chain.total as usize);
        Some(chain.gather())
    }

    #[test]
    fn as_much_stays_as_fits_and_it_begins_with_the_user() {
        let links: &[(bool, &[Token])] = &[
            (true, &[1, 1, 1]),
            (true, &[0, 2, 2]),
            (false, &[3, 3]),
            (true, &[0, 4]),
            (false, &[5]),
        ];
        assert_eq!(kept(links, 8, 20), Some(vec![2, 2, 3, 3, 0, 4, 5]));
        assert_eq!(kept(links, 7, 20), Some(vec![4, 5]));
        assert_eq!(kept(links, 3, 20), Some(vec![4, 5]));
        // More than wanted rather than nothing, but no more than can be.
        assert_eq!(kept(links, 1, 3), Some(vec![4, 5]));
        assert_eq!(kept(links, 1, 2), None);
        assert_eq!(kept(&[(false, &[1])], 8, 8), None);
    }
}
