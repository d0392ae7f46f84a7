"""Room for more tokens in a model that is there: its embedding and head get rows, which begin as the mean of the others.

A row of zeros or noise can be likelier than every token that the model knows; the mean is a token like any (Hewitt 2021).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from fledge.model.llama import Llama


@torch.no_grad()
def grow_vocabulary(model: Llama, size: int) -> None:
    """Give a model a vocabulary of `size`, in place; a tied head stays tied."""
    embedding, head = model.model.embed_tokens, model.lm_head
    is_tied = head.weight is embedding.weight
    embedding.weight = nn.Parameter(_grown(embedding.weight, size))
    head.weight = embedding.weight if is_tied else nn.Parameter(_grown(head.weight, size))
    embedding.num_embeddings = head.out_features = size
    model.config = replace(model.config, vocabulary_size=size)


def _grown(rows: Tensor, size: int) -> Tensor:
    """(V, D) -> (size, D)."""
    return torch.cat((rows, rows.mean(dim=0).expand(size - len(rows), -1)))
