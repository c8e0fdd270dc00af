"""SIGKILL at random moments under load: what was acknowledged is there afterwards."""

import random
from pathlib import Path

import kills

KILLS = 200


async def test_nothing_acknowledged_is_lost_when_the_server_is_killed(tmp_path: Path):
    seed = random.SystemRandom().getrandbits(32)
    outcome = await kills.run(
        f"sqlite:{tmp_path / 'turnwire.db'}", tmp_path, kills=KILLS, seed=seed
    )
    print(outcome)
    assert not outcome.losses, str(outcome)
    assert not outcome.problems, str(outcome)
    # Otherwise nothing was tried.
    assert outcome.kills >= KILLS
    assert outcome.acknowledged > KILLS
    assert outcome.cut_short > 0


async def test_a_store_that_forgets_is_found_out(tmp_path: Path):
    outcome = await kills.run("memory", tmp_path, kills=2, seed=1)
    assert outcome.losses
