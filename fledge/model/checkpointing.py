"""Memory for time: what a layer computes on the way forward is computed again on the way back, instead of being kept.

"full" keeps the input of each layer and computes a third more; "selective" keeps the results of matrix products and attention, which are
what costs time, and computes the cheap rest again (torchtitan's selective checkpointing has the same idea).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

ActivationCheckpointing = Literal["none", "selective", "full"]

_COSTLY = ("aten.mm.", "aten.bmm.", "aten._scaled_mm.", "aten._scaled_dot_product", "fledge.block_attention.", "flex_attention")
"""How the names of operators begin whose results are kept."""


def recomputed(layer: Callable[[Tensor], Tensor], hidden: Tensor, how: ActivationCheckpointing, draws: bool = False) -> Tensor:
    """`layer(hidden)`, with as much kept for the backward pass as `how` says; `draws`: the layer draws random numbers, the same again."""
    if how == "none":
        return layer(hidden)
    again = partial(checkpoint, layer, hidden, use_reentrant=False, preserve_rng_state=draws)
    # Apart, because torch.compile takes a context_fn that does nothing for one it does not know.
    output: Tensor = again(context_fn=partial(create_selective_checkpoint_contexts, _policy)) if how == "selective" else again()
    return output


def _policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if str(operator).startswith(_COSTLY) else CheckpointPolicy.PREFER_RECOMPUTE
