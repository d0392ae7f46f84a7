"""Small token sets for all tests of training, written once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# The assembly is a program too, so it is a file beside the tests, found as a program of this folder would find it.
sys.path.append(str(Path(__file__).parent))

from training_assembly import make_scores, training_settings, write_token_set

from fledge.corpus.document import Content
from fledge.tokens.shards import TokenSet, open_token_set


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Toy matrices are slower on two threads, much slower when the other core is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Two sources of continuous documents, about 1,500 and 400 tokens."""
    return write_token_set(tmp_path_factory.mktemp("documents"), "documents", {"manual": 75, "letters": 20})


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Forty rows of one or two conversations."""
    return write_token_set(tmp_path_factory.mktemp("conversations"), "conversations", {"questions": 40})


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Thirty rows of one pair each."""
    return write_token_set(tmp_path_factory.mktemp("preferences"), "preferences", {"pairs": 30})


@pytest.fixture(scope="session")
def scores(preferences: TokenSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preferences under the initial model of seed 0."""
    return make_scores(tmp_path_factory.mktemp("scores") / "score", preferences, training_settings(sequence_length=None))


@pytest.fixture
def token_set_of(documents: TokenSet, conversations: TokenSet, preferences: TokenSet) -> Callable[[Content], TokenSet]:
    """The token set of a content."""
    sets = {"documents": documents, "conversations": conversations, "preferences": preferences}
    return lambda content: open_token_set(sets[content].folder)
