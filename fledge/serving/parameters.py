"""How a client wants to be answered, the same for both endpoints: sampling, length, stop strings, how many choices, in which form.

What a request leaves open is the model's own (`ServedModel.generation`). Parameters of OpenAI's that would change the answer and
are not offered here are refused rather than ignored. top_k, min_p, repetition_penalty and ignore_eos are named as vLLM names them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fledge.inference.seeds import of_sample
from fledge.inference.settings import GenerationSettings
from fledge.serving.errors import ApiError, bad_request, shown, too_long
from fledge.serving.fields import Fields
from fledge.serving.served import ServedModel
from fledge.serving.settings import CHOICES_PER_PROMPT, MAXIMUM_TEMPERATURE, STOP_STRING_CHARACTERS, STOP_STRINGS
from fledge.serving.state import ServerState

_SEEDS = 1 << 63
_MAXIMUM_TOP_K = 1_000_000
_MAXIMUM_LENGTH = 1 << 53
_MAXIMUM_PENALTY = 10.0


@dataclass(frozen=True)
class Parameters:
    """What both endpoints understand."""

    sampling: GenerationSettings
    """Its length is the model's own; `generation` sets that of one choice."""
    maximum_tokens: int | None
    """Of an answer; None: the endpoint's default."""
    choices_per_prompt: int
    stops: tuple[str, ...]
    ignore_end: bool
    stream: bool
    include_usage: bool
    """At the end of a stream."""

    def generation(self, choice: int, maximum_new_tokens: int) -> GenerationSettings:
        """Of a prompt's choice of this number: with a seed, each draws from a stream of its own that the seed and the number decide."""
        return replace(of_sample(self.sampling, choice), maximum_new_tokens=maximum_new_tokens)


def read_model(fields: Fields, state: ServerState) -> ServedModel:
    """The model that a request names, out of those the server was started with. Raises ApiError 400 or 404."""
    name = fields.text("model")
    if not name:
        raise bad_request("model must name a model; GET /v1/models lists them.", "model")
    return find_model(name, state)


def find_model(name: str, state: ServerState) -> ServedModel:
    """Raises ApiError 404."""
    if (model := state.models.get(name)) is None:
        raise ApiError(404, f"The model {shown(name)} does not exist; GET /v1/models lists those that do.", "model", "model_not_found")
    return model


def read_parameters(fields: Fields, model: ServedModel, length_names: tuple[str, ...], least_tokens: int) -> Parameters:
    """`length_names`: what an endpoint calls the length of an answer, the one that wins first. Raises ApiError 400."""
    _refuse_unsupported(fields)
    choices = fields.integer("n", 1, CHOICES_PER_PROMPT) or 1
    if fields.integer("best_of", 1, CHOICES_PER_PROMPT) not in (None, choices):
        raise bad_request("best_of must equal n: all choices are returned.", "best_of")
    lengths = [_read_length(fields, name, least_tokens, model) for name in length_names]
    return Parameters(
        sampling=_read_sampling(fields, model.generation),
        maximum_tokens=next((length for length in lengths if length is not None), None),
        choices_per_prompt=choices,
        stops=read_stops(fields.get("stop")),
        ignore_end=fields.flag("ignore_eos"),
        stream=fields.flag("stream"),
        include_usage=fields.nested("stream_options").flag("include_usage"),
    )


def read_stops(value: object) -> tuple[str, ...]:
    """The strings at which an answer ends. Raises ApiError 400."""
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOP_STRINGS:
        raise bad_request(f"stop must be a string or a list of at most {STOP_STRINGS}.", "stop")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= STOP_STRING_CHARACTERS:
            raise bad_request(f"stop must hold strings of 1 to {STOP_STRING_CHARACTERS} characters, not {shown(stop)}.", "stop")
    return tuple(stops)


def _read_length(fields: Fields, name: str, least_tokens: int, model: ServedModel) -> int | None:
    length = fields.integer(name, least_tokens, _MAXIMUM_LENGTH)
    if length is not None and length > model.context_tokens:
        raise too_long(f"{name} of {length}", model.context_tokens, name)
    return length


def _read_sampling(fields: Fields, default: GenerationSettings) -> GenerationSettings:
    top_k = fields.integer("top_k", -1, _MAXIMUM_TOP_K)
    seed = fields.integer("seed", -_SEEDS, _SEEDS - 1)
    given: dict[str, Any] = {
        "temperature": fields.number("temperature", 0, MAXIMUM_TEMPERATURE),
        "top_p": fields.number("top_p", 0, 1, above=True),
        "top_k": 0 if top_k == -1 else top_k,
        "min_p": fields.number("min_p", 0, 1),
        "repetition_penalty": fields.number("repetition_penalty", 0, _MAXIMUM_PENALTY, above=True),
        "seed": None if seed is None else seed % _SEEDS,
    }
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _refuse_unsupported(fields: Fields) -> None:
    for name in ("presence_penalty", "frequency_penalty"):
        if fields.number(name, -2, 2):
            raise bad_request(f"{name} is not supported; repetition_penalty is.", name)
    for name in ("logit_bias", "suffix"):
        if fields.get(name):
            raise bad_request(f"{name} is not supported.", name)
    if fields.nested("response_format").get("type") not in (None, "text"):
        raise bad_request("response_format must be text: this server does not force a form on an answer.", "response_format")
