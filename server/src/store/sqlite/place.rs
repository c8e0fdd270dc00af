//! Place: where a link is. Its branch and its position in that branch, in one number.

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef};

/// Responses in one branch: 2²⁴. The next one begins another branch, which is as good.
const POSITION_BITS: u32 = 24;
const POSITION_MASK: i64 = (1 << POSITION_BITS) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(i64);

impl Place {
    /// The first place of a branch.
    pub(super) fn first_of(branch: i64) -> Self {
        Self(branch << POSITION_BITS)
    }

    pub(super) fn branch(self) -> i64 {
        self.0 >> POSITION_BITS
    }

    /// The next place in the same branch; none if the branch is full.
    pub(super) fn next(self) -> Option<Self> {
        (self.0 & POSITION_MASK != POSITION_MASK).then_some(Self(self.0 + 1))
    }

    /// The place before in the same branch; none if this is the first.
    pub(super) fn previous(self) -> Option<Self> {
        (self.0 & POSITION_MASK != 0).then_some(Self(self.0 - 1))
    }
}

impl ToSql for Place {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Place {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        i64::column_result(value).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_one_branch_follow_each_other_until_it_is_full() {
        let first = Place::first_of(7);
        assert_eq!(first.previous(), None);
        let second = first.next().unwrap();
        assert_eq!((second.branch(), second.previous()), (7, Some(first)));
        let last = Place(Place::first_of(8).0 - 1);
        assert_eq!((last.branch(), last.next()), (7, None));
    }
}
