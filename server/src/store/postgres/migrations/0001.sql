-- Links of chains, the responses and conversations that end with them, and the items in them.
--
-- What a response was given and what it said are bytes here: texts of a client may hold what the
-- encoding of a database cannot.

-- A run of links, each of which continues the one before it. What continues a link that was
-- continued before begins a branch of its own, which names the place it goes on from. So a chain
-- is one range of each branch on its way, and forks share what they share.
CREATE TABLE branches (
    branch bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- None for the beginning of a chain.
    parent_branch bigint,
    parent_position integer
);

CREATE TABLE links (
    branch bigint NOT NULL,
    position integer NOT NULL,
    owner bytea NOT NULL,
    id text NOT NULL,
    -- Links that continue this one, conversations that end with it, and its response: without any
    -- of them it goes.
    holders integer NOT NULL,
    -- Whether a link has ever stood at the next position. None will again, so that a place names
    -- one link for ever.
    continued boolean NOT NULL DEFAULT false,
    record bytea NOT NULL,
    PRIMARY KEY (branch, position),
    UNIQUE (owner, id)
) WITH (fillfactor = 90);

CREATE TABLE responses (
    owner bytea NOT NULL,
    id text NOT NULL,
    status text NOT NULL,
    -- Seconds since 1970.
    created_at bigint NOT NULL,
    -- The response object, up to its output items and after them.
    text_before bytea NOT NULL,
    text_after bytea NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, id)
);

CREATE INDEX responses_by_age ON responses (stored_at);

CREATE TABLE conversations (
    owner bytea NOT NULL,
    id text NOT NULL,
    -- Seconds since 1970.
    created_at bigint NOT NULL,
    metadata bytea NOT NULL,
    -- The id of the link it ends with; none if it has no items.
    ends_with text,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, id)
);

CREATE INDEX conversations_by_age ON conversations (changed_at);

-- Where named items are: the items of a request come before those it made.
CREATE TABLE items (
    branch bigint NOT NULL,
    position integer NOT NULL,
    place integer NOT NULL,
    owner bytea NOT NULL,
    -- SHA-256 of the name, which may be of any length.
    name bytea NOT NULL,
    -- Of items with one name the latest counts.
    number bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (branch, position, place)
);

CREATE INDEX items_by_name ON items (owner, name, number);

-- Bytes of all that is stored, as the sum of what was added and taken away. Who looks folds the
-- rows into one.
CREATE TABLE volume (bytes bigint NOT NULL);

-- What follows is called by servers, one call for each thing that is done. Each call does all of it
-- or nothing, and says which.

-- Takes one holder from the link at a place. If it was the last one, the link goes, and so does
-- every link before it that nothing else holds.
CREATE FUNCTION let_go(at_branch bigint, at_position integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    holders_left integer;
    below record;
    lowest integer;
    needed integer;
    freed bigint;
BEGIN
    LOOP
        UPDATE links SET holders = holders - 1
            WHERE branch = at_branch AND position = at_position
            RETURNING holders INTO holders_left;
        EXIT WHEN holders_left IS DISTINCT FROM 0;

        -- What only the next link of the branch holds goes with it. Each is locked before it is
        -- looked at, so that nobody continues it meanwhile.
        lowest := at_position;
        needed := NULL;
        FOR below IN
            SELECT position, holders FROM links
            WHERE branch = at_branch AND position < at_position
            ORDER BY position DESC FOR UPDATE
        LOOP
            IF below.holders > 1 THEN
                needed := below.position;
                EXIT;
            END IF;
            lowest := below.position;
        END LOOP;

        DELETE FROM items
            WHERE branch = at_branch AND position BETWEEN lowest AND at_position;
        WITH gone AS (
            DELETE FROM links
            WHERE branch = at_branch AND position BETWEEN lowest AND at_position
            RETURNING octet_length(record) AS bytes
        )
        SELECT sum(bytes) INTO freed FROM gone;
        INSERT INTO volume VALUES (-freed);

        IF needed IS NOT NULL THEN
            at_position := needed;
        ELSE
            DELETE FROM branches WHERE branch = at_branch
                RETURNING parent_branch, parent_position INTO at_branch, at_position;
            EXIT WHEN at_branch IS NULL;
        END IF;
    END LOOP;
END $$;

-- The same, of a link that is known by its id.
CREATE FUNCTION let_go(the_owner bytea, the_id text) RETURNS void
LANGUAGE sql AS $$
    SELECT let_go(branch, position) FROM links WHERE owner = the_owner AND id = the_id
$$;

-- A chain is given by its links that may not be stored yet, the oldest first: their ids, their
-- records, and `the_parent`, the link before them, none if the chain begins with them. The arrays
-- that begin with `item_` say of each of their named items in which link it is, the first being 1,
-- at which place, and under which name.

-- Stores what is not stored of a chain, and gives its last link a holder. False if the parent is
-- not stored.
CREATE FUNCTION hold_chain(
    the_owner bytea, the_parent text, ids text[], records bytea[],
    item_links integer[], item_places integer[], item_names bytea[]
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    end_branch bigint;
    end_position integer;
    end_continued boolean;
    held integer;
BEGIN
    IF the_parent IS NOT NULL THEN
        SELECT branch, position, continued INTO end_branch, end_position, end_continued
            FROM links WHERE owner = the_owner AND id = the_parent FOR UPDATE;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    FOR n IN 1 .. cardinality(ids) LOOP
        held := (n = cardinality(ids))::integer;
        -- It is there if it outlived its response, or a fork has brought it.
        UPDATE links SET holders = holders + held
            WHERE owner = the_owner AND id = ids[n];
        IF NOT FOUND THEN
            UPDATE links SET holders = holders + 1, continued = true
                WHERE branch = end_branch AND position = end_position;
            IF end_branch IS NULL OR end_continued THEN
                INSERT INTO branches (parent_branch, parent_position)
                    VALUES (end_branch, end_position)
                    RETURNING branch, 0 INTO end_branch, end_position;
            ELSE
                end_position := end_position + 1;
            END IF;
            INSERT INTO links (branch, position, owner, id, holders, record)
                VALUES (end_branch, end_position, the_owner, ids[n], held, records[n]);
            INSERT INTO volume VALUES (octet_length(records[n]));
            PERFORM name_items(
                the_owner, end_branch, end_position, n, item_links, item_places, item_names
            );
        END IF;
        SELECT branch, position, continued INTO end_branch, end_position, end_continued
            FROM links WHERE owner = the_owner AND id = ids[n];
    END LOOP;
    RETURN true;
END $$;

-- Makes the named items of the nth link of a chain known.
CREATE FUNCTION name_items(
    the_owner bytea, at_branch bigint, at_position integer, n integer,
    item_links integer[], item_places integer[], item_names bytea[]
) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO items (branch, position, place, owner, name)
        SELECT at_branch, at_position, item.place, the_owner, item.name
        FROM unnest(item_links, item_places, item_names) AS item (link, place, name)
        WHERE item.link = n
        ORDER BY item.place
$$;

-- Puts a link in the place of one of the same id, which nothing continues. False if its parent is
-- not stored.
CREATE FUNCTION replace_link(
    the_owner bytea, the_parent text, ids text[], records bytea[],
    item_links integer[], item_places integer[], item_names bytea[]
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    the_id text := ids[cardinality(ids)];
    aside text := the_id || ' (replaced)';
    old links;
    old_parent text;
BEGIN
    SELECT * INTO old FROM links WHERE owner = the_owner AND id = the_id FOR UPDATE;
    IF old.position > 0 THEN
        SELECT id INTO old_parent FROM links
            WHERE branch = old.branch AND position = old.position - 1;
    ELSE
        SELECT links.id INTO old_parent FROM branches, links
            WHERE branches.branch = old.branch
            AND links.branch = parent_branch AND links.position = parent_position;
    END IF;
    IF cardinality(ids) = 1 AND old_parent IS NOT DISTINCT FROM the_parent THEN
        IF old.record <> records[1] THEN
            UPDATE links SET record = records[1]
                WHERE branch = old.branch AND position = old.position;
            INSERT INTO volume VALUES (octet_length(records[1]) - octet_length(old.record));
            DELETE FROM items WHERE branch = old.branch AND position = old.position;
            PERFORM name_items(
                the_owner, old.branch, old.position, 1, item_links, item_places, item_names
            );
        END IF;
        RETURN true;
    END IF;
    UPDATE links SET id = aside WHERE branch = old.branch AND position = old.position;
    IF hold_chain(the_owner, the_parent, ids, records, item_links, item_places, item_names) THEN
        PERFORM let_go(old.branch, old.position);
        RETURN true;
    END IF;
    UPDATE links SET id = the_id WHERE branch = old.branch AND position = old.position;
    RETURN false;
END $$;

-- Lets a conversation that ends with `from_id` end with `to_id`, which has a holder for it.
CREATE FUNCTION move_conversation(
    the_owner bytea, the_id text, from_id text, to_id text
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE conversations SET ends_with = to_id, changed_at = now()
        WHERE owner = the_owner AND id = the_id;
    PERFORM let_go(the_owner, from_id);
END $$;

-- Stores a response. It is `saved`; or its parent is not stored (`no_parent`), its conversation
-- does not end with `conversation_from` (`moved`), or a response of its id came to another end
-- (`superseded`). Done twice it is done once.
CREATE FUNCTION save_response(
    the_owner bytea, the_parent text, ids text[], records bytea[],
    item_links integer[], item_places integer[], item_names bytea[],
    the_status text, the_created_at bigint, the_before bytea, the_after bytea,
    the_conversation text, conversation_from text
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    the_id text := ids[cardinality(ids)];
    was text;
    ended_with text;
    held boolean;
BEGIN
    SELECT status INTO was FROM responses WHERE owner = the_owner AND id = the_id FOR UPDATE;
    IF was NOT IN ('queued', 'in_progress') THEN
        RETURN CASE was WHEN the_status THEN 'saved' ELSE 'superseded' END;
    END IF;
    IF the_conversation IS NOT NULL THEN
        SELECT ends_with INTO ended_with FROM conversations
            WHERE owner = the_owner AND id = the_conversation FOR UPDATE;
        IF NOT FOUND OR ended_with IS DISTINCT FROM conversation_from THEN
            RETURN 'moved';
        END IF;
    END IF;
    IF was IS NULL THEN
        held := hold_chain(
            the_owner, the_parent, ids, records, item_links, item_places, item_names
        );
    ELSE
        held := replace_link(
            the_owner, the_parent, ids, records, item_links, item_places, item_names
        );
    END IF;
    IF NOT held THEN
        RETURN 'no_parent';
    END IF;
    INSERT INTO responses (owner, id, status, created_at, text_before, text_after)
        VALUES (the_owner, the_id, the_status, the_created_at, the_before, the_after)
        ON CONFLICT (owner, id) DO UPDATE SET
            status = excluded.status,
            created_at = excluded.created_at,
            text_before = excluded.text_before,
            text_after = excluded.text_after;
    IF the_conversation IS NOT NULL THEN
        UPDATE links SET holders = holders + 1 WHERE owner = the_owner AND id = the_id;
        PERFORM move_conversation(the_owner, the_conversation, conversation_from, the_id);
    END IF;
    RETURN 'saved';
END $$;

-- `known`, or `unknown`.
CREATE FUNCTION delete_response(the_owner bytea, the_id text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM responses WHERE owner = the_owner AND id = the_id;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    PERFORM let_go(the_owner, the_id);
    RETURN 'known';
END $$;

-- `saved`, or `no_parent`. A conversation that is there already stays as it is.
CREATE FUNCTION create_conversation(
    the_owner bytea, the_parent text, ids text[], records bytea[],
    item_links integer[], item_places integer[], item_names bytea[],
    the_id text, the_created_at bigint, the_metadata bytea
) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM conversations WHERE owner = the_owner AND id = the_id;
    IF FOUND THEN
        RETURN 'saved';
    ELSIF cardinality(ids) > 0 AND NOT hold_chain(
        the_owner, the_parent, ids, records, item_links, item_places, item_names
    ) THEN
        RETURN 'no_parent';
    END IF;
    INSERT INTO conversations (owner, id, created_at, metadata, ends_with)
        VALUES (the_owner, the_id, the_created_at, the_metadata, ids[cardinality(ids)]);
    RETURN 'saved';
END $$;

-- Puts a chain, or nothing, in the place of one that ends with `from_id`: `saved`, `moved` or
-- `no_parent`. Done twice it is done once.
CREATE FUNCTION advance_conversation(
    the_owner bytea, the_parent text, ids text[], records bytea[],
    item_links integer[], item_places integer[], item_names bytea[],
    the_id text, from_id text
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    to_id text := ids[cardinality(ids)];
    ended_with text;
BEGIN
    SELECT ends_with INTO ended_with FROM conversations
        WHERE owner = the_owner AND id = the_id FOR UPDATE;
    IF NOT FOUND THEN
        RETURN 'moved';
    ELSIF ended_with IS DISTINCT FROM from_id THEN
        RETURN CASE WHEN ended_with IS NOT DISTINCT FROM to_id THEN 'saved' ELSE 'moved' END;
    ELSIF to_id IS NOT NULL AND NOT hold_chain(
        the_owner, the_parent, ids, records, item_links, item_places, item_names
    ) THEN
        RETURN 'no_parent';
    END IF;
    PERFORM move_conversation(the_owner, the_id, from_id, to_id);
    RETURN 'saved';
END $$;

-- Gives a conversation other metadata: `known`, or `unknown`.
CREATE FUNCTION update_conversation(the_owner bytea, the_id text, the_metadata bytea) RETURNS text
LANGUAGE sql AS $$
    WITH updated AS (
        UPDATE conversations SET metadata = the_metadata
        WHERE owner = the_owner AND id = the_id RETURNING id
    )
    SELECT CASE WHEN EXISTS (SELECT FROM updated) THEN 'known' ELSE 'unknown' END
$$;

-- `known`, or `unknown`.
CREATE FUNCTION delete_conversation(the_owner bytea, the_id text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    ended_with text;
BEGIN
    DELETE FROM conversations WHERE owner = the_owner AND id = the_id
        RETURNING ends_with INTO ended_with;
    IF NOT FOUND THEN
        RETURN 'unknown';
    END IF;
    PERFORM let_go(the_owner, ended_with);
    RETURN 'known';
END $$;
