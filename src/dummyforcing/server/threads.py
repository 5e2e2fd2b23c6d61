"""Work that would keep the event loop waiting, in threads, and what waits for several things at once."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


async def run_in(
    executor: Executor, function: Callable[P, Result], *args: P.args, **options: P.kwargs
) -> Result:
    """Call a function in a thread of an executor, and wait for what it gives."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(executor, lambda: function(*args, **options))


async def first_of(*works: Coroutine[Any, Any, Any]) -> Any:
    """Wait until one of several is done, cancel the others, and give what it gives.

    Raises:
        Exception: What it raised.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else asks
