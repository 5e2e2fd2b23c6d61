"""TeaCache: leave out a network call whose timestep embedding hardly differs from the one before.

The public code decides from the timestep embedding alone. Timesteps are fixed, so its decisions are too: they
are worked out once, as a table for all chunks.
"""

from collections.abc import Sequence

from dummyforcing.model import TimeEmbedding

COEFFICIENTS = (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774)
"""Of the polynomial from relative change to expected error, highest power first (Wan 2.1 1.3B)."""


def skip_table(
    embeddings: Sequence[TimeEmbedding],
    timesteps: Sequence[float],
    threshold: float = 0.2,
    coefficients: Sequence[float] = COEFFICIENTS,
) -> tuple[bool, ...]:
    """Tell which calls of a chunk to leave out.

    A call is left out while the expected error, summed up since the last call that ran, is below the
    threshold. The first step and the commit pass always run, as do timesteps 1000 and 0.

    Args:
        embeddings: From `CausalWan.embed_time`, of the chunk's calls in order: denoising steps, then commit.
        timesteps: Of the same calls.
        threshold: Highest expected error; 0.2 in the public code.
        coefficients: Of the polynomial.

    Returns:
        For each call, whether it is left out.

    Source: TeaCache (arXiv:2411.19108), as used by the public Dummy Forcing code.
    """
    skips = []
    error = 0.0
    last = len(embeddings) - 1
    for call, (embedding, timestep) in enumerate(zip(embeddings, timesteps, strict=True)):
        must_run = call in (0, last) or timestep in (0, 1000)
        if not must_run:
            before = embeddings[call - 1].blocks.float()
            change = (embedding.blocks.float() - before).abs().mean() / before.abs().mean()
            error += _polynomial(coefficients, change.item())
        skips.append(not must_run and error < threshold)
        if not skips[-1]:
            error = 0.0
    return tuple(skips)


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value
