"""How much attention queries spend on each frame slot of their keys: in torch, and in Triton on a GPU."""

from torch import Tensor

from dummyforcing.kernels.choice import runs_in_triton

BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
"""Most logits that are held at a time (one row of a frame at least): as fit a cache, or few launches."""


def log_mass(q: Tensor, k: Tensor, slots: int) -> Tensor:
    """Add up the exponentials of each query's logits slot by slot; their softmax is the attention of a slot.

    Args:
        q: Query rows, RoPE applied, `(B, R, H, D)`.
        k: Visible keys, RoPE applied, `(B, S, H, D)`.
        slots: How many frames `S` holds.

    Returns:
        Logarithms of the sums, `(B, H, R, slots)` float32.
    """
    if runs_in_triton(k):
        from dummyforcing.kernels import mass_triton

        return mass_triton.log_mass(q, k, slots)
    return reference_log_mass(q, k, slots)


def reference_log_mass(q: Tensor, k: Tensor, slots: int) -> Tensor:
    """`log_mass` in torch: block by block, so that memory does not grow with the number of keys."""
    q = q.transpose(1, 2).float() * q.shape[-1] ** -0.5
    tokens = k.shape[1] // slots
    block = BLOCK_ELEMENTS["cpu" if q.device.type == "cpu" else "cuda"]
    block //= tokens * q.shape[0] * q.shape[1]  # in rows times slots
    wide = max(1, min(slots, block // q.shape[2]))
    high = max(1, block // wide)
    found = q.new_empty(*q.shape[:3], slots)
    for slot in range(0, slots, wide):
        keys = k[:, slot * tokens : (slot + wide) * tokens].permute(0, 2, 3, 1).float()
        for row in range(0, q.shape[2], high):
            logits = q[:, :, row : row + high] @ keys
            by_slot = logits.view(*logits.shape[:-1], -1, tokens).logsumexp(-1)
            found[:, :, row : row + high, slot : slot + wide] = by_slot
    return found
