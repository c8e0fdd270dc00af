"""Waiting for what has to come, with an end to it."""

import asyncio
from collections.abc import Callable

PATIENCE_SECONDS = 30


async def grows(count: Callable[[], int], by: int = 20) -> None:
    """Returns once `count` has grown as much."""
    enough = count() + by
    async with asyncio.timeout(PATIENCE_SECONDS):
        while count() < enough:
            await asyncio.sleep(0.01)
