"""Encoders: text in, flat arrays of token ids out. The reference defines the ids; a faster one is taken where it gives the same."""

from fledge.tokens.engines.choice import EngineChoice, EnginePool, choose_engine
from fledge.tokens.engines.reference import Encoded, Engine, ReferenceEngine, not_unicode

__all__ = ["Encoded", "Engine", "EngineChoice", "EnginePool", "ReferenceEngine", "choose_engine", "not_unicode"]
