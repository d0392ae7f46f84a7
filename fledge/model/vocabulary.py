"""More tokens for a model that is there: their rows in its embedding and head begin as the mean of the others.

A row of zeros or noise can be likelier than every token that the model knows; the mean is a token like any (Hewitt 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fledge.model.llama import Llama


@torch.no_grad()
def begin_as_mean(model: Llama, tokens: Sequence[int], size: int) -> None:
    """Give a model a vocabulary of `size`, in place, in which the rows of some tokens, and new ones, are the mean of the rows it had.

    A tied head stays tied.
    """
    embedding, head = model.model.embed_tokens, model.lm_head
    is_tied = head.weight is embedding.weight
    embedding.weight = nn.Parameter(_with_means(embedding.weight, tokens, size))
    head.weight = embedding.weight if is_tied else nn.Parameter(_with_means(head.weight, tokens, size))
    embedding.num_embeddings = head.out_features = size
    model.config = replace(model.config, vocabulary_size=size)


def _with_means(rows: Tensor, tokens: Sequence[int], size: int) -> Tensor:
    """(V, D) -> (size, D)."""
    learned = torch.ones(len(rows), dtype=torch.bool)
    learned[[token for token in tokens if token < len(rows)]] = False
    mean = rows[learned].mean(dim=0)
    grown = torch.cat((rows, mean.expand(size - len(rows), -1)))
    grown[list(tokens)] = mean
    return grown
