"""Datasets of the hub that Fledge knows by name, and how much of each lies in the cache.

The figures are for choosing, not for checking. They were taken in November 2026 from what is publicly archived of the datasets' cards,
file lists and loaders, not from the live hub; sizes are of the files as downloaded. Round figures not named here are estimates.

- fineweb: the card's table of crawls as of v1.1 (43,057 GB, 15,835 billion tokens of GPT-2); later crawls come on top. The sizes of
  the samples of 10 and 100 billion tokens are the card's, the rows of the first are counted. The card's 388 GB for 350 billion
  cannot be (a count by its authors gave 362 billion tokens); size and rows are scaled from the smaller samples.
- fineweb-edu: the rows of sample/10BT are counted, its 14 files have about 2 GB each; the larger samples are scaled from it.
- c4: `download_size` and `num_examples` of the card; c4-multilingual: the card.
- wikipedia: the rows are counted. gutenberg: 37 files; the column TEXT and the licence are on the card.
- pile-uncopyrighted: 30 files; the size is that of the whole Pile, scaled as its test file was (338 of 460 MB).
- conversations and preferences: rows as their cards count them; sizes of the files are estimates.
- dclm: documents and tokens of the card. cc-news: the sizes of its five files.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fledge.core.console import format_bytes, format_count
from fledge.core.errors import DataError
from fledge.corpus.sources.hub import listings
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import cache_path, is_whole
from fledge.corpus.sources.settings import FORMS_OF, Content, Form, HubSource, Source


@dataclass(frozen=True)
class Preset:
    """A dataset by name. Figures are approximate; None is unknown."""

    name: str
    repository: str
    files: str
    """A glob within the repository; `*` stays within a folder, `**` does not."""
    license: str
    size_bytes: float
    documents: float | None
    tokens: float | None
    description: str
    fields: dict[str, str] = field(default_factory=dict)
    """Fields of the form that have another name there."""
    content: Content = "documents"
    form: Form | None = None
    is_gated: bool = False
    """Whether the hub gives it only to an account that has accepted its terms."""


_FINEWEB, _FINEWEB_EDU, _C4 = "HuggingFaceFW/fineweb", "HuggingFaceFW/fineweb-edu", "allenai/c4"
_ODC_BY = "ODC-BY 1.0, terms of Common Crawl"

_CONVERSATIONS = (
    Preset(
        "alpaca",
        "tatsu-lab/alpaca",
        "data/*.parquet",
        "CC BY-NC 4.0",
        24.2e6,
        52_002,
        None,
        "instructions with answers of text-davinci-003",
        content="conversations",
        form="instructions",
    ),
    Preset(
        "dolly",
        "databricks/databricks-dolly-15k",
        "databricks-dolly-15k.jsonl",
        "CC BY-SA 3.0",
        13.1e6,
        15_011,
        None,
        "instructions with answers written by people",
        {"input": "context", "output": "response"},
        "conversations",
        "instructions",
    ),
    Preset(
        "lima",
        "GAIR/lima",
        "train.jsonl",
        "CC BY-NC-SA, see the dataset's card",
        2.9e6,
        1_030,
        None,
        "few and careful conversations; the hub asks for consent first",
        {"messages": "conversations"},
        "conversations",
        is_gated=True,
    ),
    Preset(
        "oasst1",
        "OpenAssistant/oasst1",
        "data/*.parquet",
        "Apache-2.0",
        41.6e6,
        88_838,
        None,
        "trees of ranked messages in 35 languages, of which the best threads are taken; one of them: language: en",
        {"language": "lang"},
        "conversations",
        "tree",
    ),
    Preset(
        "ultrachat",
        "HuggingFaceH4/ultrachat_200k",
        "data/train_sft-*.parquet",
        "MIT",
        732e6,
        207_865,
        None,
        "dialogues of two models",
        content="conversations",
    ),
    Preset(
        "gsm8k",
        "openai/gsm8k",
        "main/train-*.parquet",
        "MIT",
        2.3e6,
        7_473,
        None,
        "grade school mathematics, worked out",
        {"instruction": "question", "output": "answer"},
        "conversations",
        "instructions",
    ),
)
_PREFERENCES = (
    Preset(
        "orca-dpo-pairs",
        "Intel/orca_dpo_pairs",
        "orca_rlhf.jsonl",
        "Apache-2.0",
        36.3e6,
        12_859,
        None,
        "answers of GPT-4 and, worse, of Llama 2",
        {"prompt": "question"},
        "preferences",
    ),
    Preset(
        "hh-rlhf",
        "Anthropic/hh-rlhf",
        "*-base/train.jsonl.gz",
        "MIT",
        29e6,
        86_000,
        None,
        "dialogues that people judged for help and for harm",
        content="preferences",
        form="dialogues",
    ),
    Preset(
        "ultrafeedback",
        "HuggingFaceH4/ultrafeedback_binarized",
        "data/train_prefs-*.parquet",
        "MIT",
        226e6,
        61_135,
        None,
        "answers of many models, judged by GPT-4",
        content="preferences",
    ),
)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("fineweb", _FINEWEB, "data/*/*.parquet", _ODC_BY, 43.1e12, 23e9, 15.8e12, "English web pages, cleaned and deduplicated"),
        Preset("fineweb-10bt", _FINEWEB, "sample/10BT/*.parquet", _ODC_BY, 27.6e9, 14_868_862, 10e9, "a sample of fineweb"),
        Preset("fineweb-100bt", _FINEWEB, "sample/100BT/*.parquet", _ODC_BY, 277.4e9, 149e6, 100e9, "a sample of fineweb"),
        Preset("fineweb-350bt", _FINEWEB, "sample/350BT/*.parquet", _ODC_BY, 1.0e12, 540e6, 362e9, "a sample of fineweb"),
        Preset("fineweb-edu", _FINEWEB_EDU, "data/*/*.parquet", _ODC_BY, 3.8e12, 1.5e9, 1.3e12, "the pages of fineweb that teach best"),
        Preset("fineweb-edu-10bt", _FINEWEB_EDU, "sample/10BT/*.parquet", _ODC_BY, 28.5e9, 9_672_101, 10e9, "a sample of fineweb-edu"),
        Preset("fineweb-edu-100bt", _FINEWEB_EDU, "sample/100BT/*.parquet", _ODC_BY, 286e9, 97e6, 100e9, "a sample of fineweb-edu"),
        Preset("fineweb-edu-350bt", _FINEWEB_EDU, "sample/350BT/*.parquet", _ODC_BY, 1.0e12, 340e6, 350e9, "a sample of fineweb-edu"),
        Preset("c4", _C4, "en/c4-train.*.json.gz", _ODC_BY, 326e9, 364_868_892, 156e9, "English web pages of 2019, cleaned by rules"),
        Preset("c4-realnews", _C4, "realnewslike/c4-train.*.json.gz", _ODC_BY, 15.4e9, 13_799_838, None, "the news among c4"),
        Preset(
            "c4-multilingual",
            _C4,
            "multilingual/c4-??.tfrecord-*.json.gz",
            _ODC_BY,
            9.7e12,
            None,
            None,
            "web pages, languages with a code of two letters; one of them: files: multilingual/c4-de.tfrecord-*.json.gz",
        ),
        Preset(
            "wikipedia",
            "wikimedia/wikipedia",
            "20231101.en/*.parquet",
            "CC BY-SA 3.0 and GFDL",
            11.7e9,
            6_407_814,
            4.5e9,
            "English articles as plain text; other languages: files: 20231101.de/*.parquet",
        ),
        Preset(
            "gutenberg",
            "sedthh/gutenberg_english",
            "data/train-*.parquet",
            "public domain in the USA; collection: MIT",
            10.7e9,
            48_000,
            4.5e9,
            "English books of Project Gutenberg; one document is a whole book",
            {"text": "TEXT"},
        ),
        Preset(
            "pile-uncopyrighted",
            "monology/pile-uncopyrighted",
            "train/*.jsonl.zst",
            "various, see the dataset's card",
            331e9,
            None,
            None,
            "The Pile without its parts under copyright (Books3, OpenWebText2, ...)",
        ),
        Preset(
            "dclm",
            "mlfoundations/dclm-baseline-1.0-parquet",
            "filtered/**/*.parquet",
            "CC BY 4.0, terms of Common Crawl",
            7e12,
            3e9,
            4e12,
            "English web pages of Common Crawl, chosen by a classifier (DataComp-LM)",
        ),
        Preset(
            "cc-news",
            "vblagoje/cc_news",
            "plain_text/*.parquet",
            "unknown",
            1.12e9,
            708_241,
            None,
            "English news of Common Crawl, 2017 to 2019",
        ),
        *_CONVERSATIONS,
        *_PREFERENCES,
    )
}


@dataclass(frozen=True)
class Dataset:
    """What a hub source reads."""

    repository: str
    files: str
    fields: dict[str, str]
    license: str
    form: Form | None

    def form_of(self, content: Content) -> Form:
        """How its rows hold the content."""
        return self.form or FORMS_OF[content][0]


def dataset_of(source: HubSource) -> Dataset:
    """The dataset of a hub source: its preset, with what the source says itself. Raises DataError for an unknown or another preset."""
    if source.preset is None:
        return Dataset(source.repository or "", source.files or "", source.fields, source.license, source.form)
    preset = PRESETS.get(source.preset)
    if preset is None:
        close = difflib.get_close_matches(source.preset, PRESETS, n=1)
        raise DataError(
            f"source {source.name}: there is no preset {source.preset!r} (there are {', '.join(PRESETS)})",
            f"{f'did you mean {close[0]}? Else ' if close else ''}name one of them, or give repository and files; "
            "look with: fledge corpus --list",
        )
    if preset.content != source.content:
        problem = f"source {source.name}: preset {source.preset} holds {preset.content}, and the source says {source.content}"
        raise DataError(problem, f"set content: {preset.content}")
    given = source.license
    license = preset.license if given == HubSource.__dataclass_fields__["license"].default else given
    return Dataset(preset.repository, source.files or preset.files, {**preset.fields, **source.fields}, license, source.form or preset.form)


def license_of(source: Source) -> str:
    """The licence for the data card: what the source states, else what is known of its preset."""
    return dataset_of(source).license if isinstance(source, HubSource) else source.license


@dataclass(frozen=True)
class Holding:
    """How much of a preset lies in the cache."""

    preset: Preset
    state: Literal["nothing", "partial", "complete"]
    files: int
    size_bytes: int
    """Of whole files."""
    expected_files: int | None
    """Known once all files of the preset were looked up."""


def holdings(cache_folder: Path) -> list[Holding]:
    """How much of each preset lies in the cache; complete are all files of the last list that was made of the whole preset."""
    return [_holding(preset, cache_folder) for preset in PRESETS.values()]


def preset_bytes(preset: Preset, cache_folder: Path) -> int:
    """Of the whole files of a preset that lie in the cache."""
    return _holding(preset, cache_folder).size_bytes


def listing(cache_folder: Path) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The presets as a table, columns and rows, with what of them lies in the cache."""
    columns = ("name", "size", "documents", "tokens", "licence", "content", "downloaded", "what it is")
    rows = [
        (
            held.preset.name,
            format_bytes(held.preset.size_bytes),
            "-" if held.preset.documents is None else format_count(held.preset.documents),
            "-" if held.preset.tokens is None else format_count(held.preset.tokens),
            held.preset.license,
            held.preset.content,
            _downloaded(held),
            f"{held.preset.description} ({held.preset.repository})",
        )
        for held in holdings(cache_folder)
    ]
    return columns, rows


def _holding(preset: Preset, cache_folder: Path) -> Holding:
    whole: tuple[InputFile, ...] | None = None
    present: dict[Path, int] = {}
    for found in listings(preset.repository, cache_folder):
        whole = found.files if found.glob == preset.files else whole
        for file in found.files:
            path = cache_path(file, cache_folder)
            if _matches(file.name, preset.files) and is_whole(path, file):
                present[path] = file.size_bytes
    if whole is not None and all(cache_path(file, cache_folder) in present for file in whole):
        return Holding(preset, "complete", len(whole), sum(file.size_bytes for file in whole), len(whole))
    return Holding(preset, "partial" if present else "nothing", len(present), sum(present.values()), None if whole is None else len(whole))


def _downloaded(held: Holding) -> str:
    if held.state == "nothing":
        return "nothing"
    of = f" of {held.expected_files:,}" if held.expected_files is not None else ""
    return f"{held.state}: {held.files:,}{of} files, {format_bytes(held.size_bytes)}"


def _matches(path: str, glob: str) -> bool:
    """Whether a path within a repository is one a preset's glob takes: `**/` any folders, `*` and `?` within one name."""
    known = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    pattern = re.sub(r"\*\*/|\*|\?|.", lambda found: known.get(found[0]) or re.escape(found[0]), glob)
    return re.fullmatch(pattern, path) is not None
