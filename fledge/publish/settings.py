"""What a checkpoint can be exported as; light to import."""

from __future__ import annotations

from typing import Literal

ModelTarget = Literal["hf", "gguf", "ollama"]
"""A Hugging Face folder (transformers, vLLM, peft), a GGUF file (llama.cpp), or the same with a Modelfile (Ollama)."""

WeightType = Literal["f32", "f16", "bf16", "q8_0"]
"""How weights are stored; q8_0: blocks of 32 as 8-bit integers with a scale in f16 (llama.cpp)."""

DEFAULT_WEIGHT_TYPES: dict[ModelTarget, WeightType] = {"hf": "f32", "gguf": "f16", "ollama": "f16"}

Q8_0_BLOCK_VALUES = 32
GGUF_FILE = "model.gguf"
MODELFILE = "Modelfile"
MODEL_CARD = "README.md"
