"""Many answers at once, given back in the order they were asked for.

Reads   any number of items, a coroutine that works on one
Gives   `in_order`: results one by one, in the items' order, with a bounded number under way
Not     how many requests are in flight (client.py)
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_order(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, ahead: int
) -> AsyncIterator[Result]:
    """`work` on up to `ahead` items at a time; memory does not grow with their number.

    Where one fails, those under way end first: what they paid for is kept.
    """
    under_way: deque[asyncio.Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(asyncio.ensure_future(work(item)))
            if len(under_way) >= ahead:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    except Exception:
        await asyncio.gather(*under_way, return_exceptions=True)
        raise
    finally:
        for left in under_way:
            left.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
