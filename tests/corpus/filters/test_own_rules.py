from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from fledge.core.errors import ConfigError, DataError
from fledge.corpus.document import Document
from fledge.corpus.filters import own_rules

DOCUMENT = Document("some text", "a.txt:1", "notes", "group")


def written(folder: Path, code: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(code, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("answer", "reason"),
    [("True", None), ("False", ""), ("'too dull'", "too dull"), ("' two\\n lines '", "two lines"), ("'x' * 99", "x" * 60)],
)
def test_answers(tmp_path: Path, answer: str, reason: str | None) -> None:
    path = written(tmp_path, f"def rule(document):\n    return {answer}\n")
    found = own_rules.find(f"{path}:rule")
    assert found(DOCUMENT) == reason
    assert found.name == "own:rule"


def test_it_sees_the_document(tmp_path: Path) -> None:
    path = written(tmp_path, "def rule(document):\n    return f'{document.text} {document.id} {document.source} {document.group}'\n")
    assert own_rules.find(f"{path}:rule")(DOCUMENT) == "some text a.txt:1 notes group"


def test_the_example_in_the_documentation_works(tmp_path: Path) -> None:
    text = own_rules.__doc__ or ""
    code = text[text.index("    def no_changelogs") : text.index("It is called with")]
    path = written(tmp_path, "\n".join(line[4:] for line in code.splitlines()))
    rule = own_rules.find(f"{path}:no_changelogs")
    assert rule(Document("* Fix\n* Mend\nAll", "", "", "")) == "mostly entries of a changelog"
    assert rule(Document("* Fix\n* Mend\nAll", "", "wiki", "")) is None
    assert rule(Document("one line", "", "", "")) == ""
    assert rule(Document("two\nlines", "", "", "")) is None
    assert len(code.strip().splitlines()) <= 10


def test_a_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "def rule(document):\n    return True\n")
    monkeypatch.chdir(tmp_path)
    found = own_rules.find("mine.py:rule")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(found))(DOCUMENT) is None


def test_an_error_names_rule_file_line_and_document(tmp_path: Path) -> None:
    path = written(tmp_path, "def helper(text):\n    return text.no_such_thing\n\ndef rule(document):\n    return helper(document.text)\n")
    with pytest.raises(DataError) as raised:
        own_rules.find(f"{path}:rule")(DOCUMENT)
    for part in ("own rule rule", f"{path}, line 2", "'a.txt:1'", "'notes'", "AttributeError", "no_such_thing"):
        assert part in raised.value.problem
    assert "True, False or a reason" in raised.value.remedy


def test_an_exit_in_a_rule_ends_nothing_in_silence(tmp_path: Path) -> None:
    path = written(tmp_path, "import sys\n\ndef rule(document):\n    sys.exit(0)\n")
    with pytest.raises(DataError, match=r"line 4\) failed on document 'a\.txt:1' of source 'notes': SystemExit: 0"):
        own_rules.find(f"{path}:rule")(DOCUMENT)
    path = written(tmp_path, "def rule(document):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        own_rules.find(f"{path}:rule")(DOCUMENT)


def test_another_answer_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "def rule(document):\n    return 0.5\n\ndef nothing(document):\n    pass\n")
    for function, answer in (("rule", "0.5"), ("nothing", "None")):
        with pytest.raises(DataError, match=f"it returned {answer}"):
            own_rules.find(f"{path}:{function}")(DOCUMENT)


@pytest.mark.parametrize(
    ("code", "problem", "remedy"),
    [
        ("def other(document):\n    return True\n", "has no function rule", "it has: other"),
        ("rule = 3\n", "has no function rule", "it has: none"),
        ("import this_is_not_installed\n", "line 1: ModuleNotFoundError", "importable"),
        ("x = 1\ndef rule(document:\n", "line 2: SyntaxError", "importable"),
        ("x = 1\n\nraise ValueError('no')\n", "line 3: ValueError: no", "importable"),
        ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0", "importable"),
    ],
)
def test_a_file_that_does_not_hold_it(tmp_path: Path, code: str, problem: str, remedy: str) -> None:
    path = written(tmp_path, code)
    with pytest.raises(ConfigError) as raised:
        own_rules.find(f"{path}:rule")
    assert problem in raised.value.problem
    assert remedy in raised.value.remedy


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"names absent\.py, but {tmp_path}/absent\.py cannot be read: No such file") as raised:
        own_rules.find("absent.py:rule")
    assert "from the folder in which the command runs" in raised.value.remedy


def test_a_file_that_changes_is_another_rule(tmp_path: Path) -> None:
    path = written(tmp_path, "def rule(document):\n    return True\n")
    before = own_rules.find(f"{path}:rule")
    written(tmp_path, "def rule(document):\n    return False\n")
    after = own_rules.find(f"{path}:rule")
    assert before != after
    assert (before(DOCUMENT), after(DOCUMENT)) == (None, "")
    # Another process would have to load what the first one saw, and that is gone.
    own_rules._load.cache_clear()
    with pytest.raises(DataError, match="changed while it was in use"):
        before(DOCUMENT)


def test_a_change_of_the_same_size_in_the_same_second_is_seen(tmp_path: Path) -> None:
    answers = []
    for answer in ("1", "2", "3"):
        path = written(tmp_path, f"def rule(document):\n    return 'reason {answer}'\n")
        answers.append(own_rules.find(f"{path}:rule")(DOCUMENT))
    assert answers == ["reason 1", "reason 2", "reason 3"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_modules_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    rules = []
    for name, answer in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        path = written(tmp_path / name, f"def rule(document):\n    return {answer}\n")
        rules.append(own_rules.find(f"{path}:rule"))
    assert [rule(DOCUMENT) for rule in rules] == [None, ""]
