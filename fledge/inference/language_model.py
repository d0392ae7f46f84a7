"""The model as a library user holds it: make or load one, train it as any `torch.nn.Module`, and let it continue token ids.

    model = load("runs/demo/sft/checkpoints/step-000400")
    model.generate([17, 4, 256], max_length=100, temperature=0.8)

Names and behaviour are those of transformers' `generate`: the result begins with the prompt and has the type of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from fledge.core.config import Tree, parse
from fledge.core.errors import CheckpointError, ConfigError
from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings, padded_vocabulary_size
from fledge.tokens.folder import META_FILE
from fledge.tokens.tokenizer import open_tokenizer


class LanguageModel(Llama):
    """A `Llama` that generates."""

    def __init__(self, config: ModelConfig, seed: int | None = 0, vocabulary_size: int | None = None) -> None:
        """`vocabulary_size` is the tokenizer's, where the model's is padded: the ids between are never generated."""
        super().__init__(config, seed)
        self.vocabulary_size = config.vocabulary_size if vocabulary_size is None else vocabulary_size
        self._kept: tuple[tuple[tuple[int, int], ...], Engine] | None = None

    @overload
    def generate(
        self,
        ids: Sequence[int],
        max_length: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 0.95,
        seed: int | None = None,
    ) -> list[int]: ...

    @overload
    def generate(
        self,
        ids: Tensor,
        max_length: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 0.95,
        seed: int | None = None,
    ) -> Tensor: ...

    def generate(
        self,
        ids: Sequence[int] | Tensor,
        max_length: int = 100,
        temperature: float = 0.8,
        top_k: int = 50,
        top_p: float = 0.95,
        seed: int | None = None,
    ) -> list[int] | Tensor:
        """Token ids (a list, (T,) or (B, T)) continued to at most `max_length` tokens in all, the prompt and the end token included.

        `temperature` 0 is greedy. A (B, T) result is as wide as its longest row; shorter ones are filled with the padding token.
        Raises ValueError if the prompt has `max_length` tokens or more, DataError if it fills the context.
        """
        prompts = [list(ids)] if not isinstance(ids, Tensor) else (ids if ids.ndim == 2 else ids[None]).tolist()
        room_tokens = max_length - len(prompts[0])
        if room_tokens < 1:
            raise ValueError(f"the prompt has {len(prompts[0])} tokens and max_length is {max_length}: nothing is left to generate")
        settings = GenerationSettings(temperature=temperature, top_k=top_k, top_p=top_p, maximum_new_tokens=room_tokens, seed=seed)
        completions = self._engine().generate(prompts, settings)
        continued = [
            [*prompt, *completion.ids, *([] if completion.end_token is None else [completion.end_token])]
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        if not isinstance(ids, Tensor):
            return continued[0]
        padded = torch.tensor(self._fill(continued), dtype=ids.dtype, device=ids.device)
        return padded if ids.ndim == 2 else padded[0]

    def _engine(self) -> Engine:
        """The last one while the weights are as they were: it keeps them packed, which for 110M parameters takes 1.6 s."""
        versions = tuple((parameter.data_ptr(), parameter._version) for parameter in self.parameters())
        if self._kept is None or self._kept[0] != versions:
            self._kept = versions, Engine(self, self.vocabulary_size, self.config.end_token_ids)
        return self._kept[1]

    def _fill(self, rows: Sequence[list[int]]) -> list[list[int]]:
        config, longest = self.config, max(len(row) for row in rows)
        filler = next((token for token in (config.padding_token_id, *config.end_token_ids) if token is not None), 0)
        return [[*row, *[filler] * (longest - len(row))] for row in rows]


def load(checkpoint: str | Path) -> LanguageModel:
    """The model in a checkpoint folder (any Hugging Face folder of a supported class, or peft's of an adapter), on the CPU, in fp32.

    Raises CheckpointError.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}", "name a folder that holds config.json and model.safetensors")
    loaded = load_model(folder)
    # Foreign checkpoints bring tokenizers we do not read; their vocabulary is taken as it is.
    vocabulary_size = open_tokenizer(folder).vocabulary_size if (folder / META_FILE).is_file() else None
    model = LanguageModel(loaded.config, seed=None, vocabulary_size=vocabulary_size)
    model.model, model.lm_head = loaded.model, loaded.lm_head
    return model.eval()


def create_model(config: Mapping[str, Any] | ModelSettings, *, vocabulary_size: int | None = None, seed: int = 0) -> LanguageModel:
    """A new model with random weights, from the keys of the recipe's `model` section and `vocabulary_size` (the tokenizer's).

    Raises ConfigError naming an unknown key, a wrong value or the missing vocabulary size.
    """
    if isinstance(config, ModelSettings):
        settings = config
    else:
        values = dict(config)
        vocabulary_size = values.pop("vocabulary_size", vocabulary_size)
        settings = parse(ModelSettings, Tree(values, {}))
    if not isinstance(vocabulary_size, int) or vocabulary_size < 1:
        raise ConfigError(
            f"vocabulary_size is {vocabulary_size!r}, not a number of tokens", "give vocabulary_size=NUMBER, as in the tokenizer"
        )
    return LanguageModel(ModelConfig(settings, padded_vocabulary_size(vocabulary_size)), seed, vocabulary_size)
