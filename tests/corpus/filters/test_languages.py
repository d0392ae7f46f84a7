# ruff: noqa: RUF001
from __future__ import annotations

import importlib.util

import pyarrow as pa
import pytest

from fledge.core.errors import ConfigError, MachineError
from fledge.core.installing import install_hint
from fledge.corpus.document import Document
from fledge.corpus.filters import languages
from fledge.corpus.filters.quality import QualityFilter
from fledge.corpus.filters.settings import QualitySettings

TEXTS = {
    "en": "The harbour of the old town lies between two hills, and that is why the wind hardly ever reaches the boats in it.",
    "de": "Der Hafen der alten Stadt liegt zwischen zwei Hügeln, und deshalb erreicht der Wind die Boote darin so gut wie nie.",
    "ru": "Старая гавань лежит между двумя холмами, и поэтому ветер почти никогда не доходит до стоящих в ней лодок.",
    "zh": "这座古老的港口位于两座小山之间，因此海风几乎从来吹不到停泊在里面的渔船，冬天也十分温暖。",
}


def no_document(position: int) -> Document:
    raise AssertionError(position)


def array(*texts: str) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def test_languages_are_told_apart() -> None:
    found, confidences = languages.identify(array(*TEXTS.values()))
    assert found == list(TEXTS)
    assert all(0.65 < confidence <= 1 for confidence in confidences)


def test_only_the_beginning_counts() -> None:
    text = (TEXTS["en"] + " ") * 20
    assert len(text) > languages.LOOKED_AT_CHARACTERS
    assert languages.identify(array(text + TEXTS["ru"] * 100)) == languages.identify(array(text))
    # Cut by characters, not by bytes.
    assert languages.identify(array(TEXTS["zh"] * 50))[0] == ["zh"]


def test_documents_in_other_languages_are_dropped() -> None:
    judge = QualityFilter(QualitySettings(languages=("en", "zh")))
    verdicts = judge(array(*TEXTS.values()), no_document)
    assert [verdicts.names[code - 1] if code else "" for code in verdicts.reason] == ["", "language", "language", ""]
    assert verdicts.languages == list(TEXTS)
    assert verdicts.failed == {"language": 2}


def test_documents_of_no_clear_language_are_dropped() -> None:
    unclear = array("12 34 56", TEXTS["en"])
    _, (low, high) = languages.identify(unclear)
    between = (low + high) / 2
    for confidence, dropped in ((between, [1, 0]), (0.0, None), (1.0, [1, 1])):
        verdicts = QualityFilter(QualitySettings(languages=("en",), language_confidence=confidence))(unclear, no_document)
        assert dropped is None or verdicts.reason.tolist() == dropped


def test_a_language_the_model_does_not_know_is_refused() -> None:
    judge = QualityFilter(QualitySettings(languages=("en", "xx")))
    with pytest.raises(ConfigError, match="names 'xx'"):
        judge(array("text"), no_document)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MachineError) as raised:
        QualityFilter(QualitySettings(languages=("en",)))
    assert raised.value.remedy == install_hint("langid")
    assert QualityFilter(QualitySettings(preset="web")).identity["languages"] is None


def test_identity_names_the_version() -> None:
    wanted, confidence, version = QualityFilter(QualitySettings(languages=("zh", "en"))).identity["languages"]
    assert (wanted, confidence) == (["en", "zh"], 0.65)
    assert version.startswith("py3langid ")
