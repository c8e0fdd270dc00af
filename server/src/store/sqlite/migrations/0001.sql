-- Who owns what: the digest of a key, by a number that keeps other keys short.
CREATE TABLE owners (
    number INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE
) STRICT;

-- The links of chains. `place` is the number of a branch, shifted left by 24 bits, plus the
-- position of the link in that branch, so that what a branch says is one range of this table.
CREATE TABLE links (
    place  INTEGER PRIMARY KEY,
    owner  INTEGER NOT NULL,
    id     TEXT NOT NULL,
    record BLOB NOT NULL
) STRICT;

-- A branch goes on from one place of another branch, or begins a chain.
CREATE TABLE branches (
    number INTEGER PRIMARY KEY,
    parent INTEGER
) STRICT;

CREATE INDEX branches_by_parent ON branches (parent) WHERE parent IS NOT NULL;

-- Where the link of a response is, and the number of the response if it can be asked for. Links
-- that later ones need stay when their response is deleted.
CREATE TABLE names (
    owner    INTEGER NOT NULL,
    id       TEXT NOT NULL,
    place    INTEGER NOT NULL,
    response INTEGER,
    PRIMARY KEY (owner, id)
) STRICT, WITHOUT ROWID;

-- Responses that can be asked for, in the order in which they came. `before` and `after` are the
-- JSON of the response object around its output items, which are those of its link.
CREATE TABLE responses (
    number     INTEGER PRIMARY KEY,
    owner      INTEGER NOT NULL,
    id         TEXT NOT NULL,
    status     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    before     BLOB NOT NULL,
    after      BLOB NOT NULL
) STRICT;

CREATE INDEX unfinished ON responses (number) WHERE status IN ('queued', 'in_progress');

-- Items that have an id: the link they are in, and which one of its own items they are.
CREATE TABLE items (
    owner    INTEGER NOT NULL,
    id       TEXT NOT NULL,
    place    INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (owner, id, place)
) STRICT, WITHOUT ROWID;

-- Conversations: names for the ends of chains, or for none yet.
CREATE TABLE conversations (
    owner      INTEGER NOT NULL,
    id         TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    metadata   BLOB NOT NULL,
    place      INTEGER,
    PRIMARY KEY (owner, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX conversations_by_place ON conversations (place) WHERE place IS NOT NULL;

CREATE INDEX conversations_by_use ON conversations (used_at);

-- Ends of chains that may not be needed any more and still have to be looked at.
CREATE TABLE loose (
    place INTEGER PRIMARY KEY
) STRICT;
