"""A client of the live server: watch a video while it is made, and steer it.

with connect("ws://127.0.0.1:8000") as live:
    for chunk in live.start("a red ball bounces on a green floor"):
        show(chunk.frames)                     # uint8 (n, H, W, 3)
        if chunk.index == 3:
            live.prompt("a blue star spins")   # shows two chunks later
"""

from dummyforcing.client.live import Live, LiveChunk, LiveError, connect

__all__ = ["Live", "LiveChunk", "LiveError", "connect"]
