"""Work that would keep the event loop waiting, in threads."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


async def run_in(
    executor: Executor, function: Callable[P, Result], *args: P.args, **options: P.kwargs
) -> Result:
    """Call a function in a thread of an executor, and wait for what it gives."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(executor, lambda: function(*args, **options))
