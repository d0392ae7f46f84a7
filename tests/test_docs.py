"""The pages hold what is true: commands that parse, lines that Fledge says, links that lead somewhere."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest
import typer.main

from fledge import cli
from fledge.recipe import find_recipe, load_recipe
from tests.command_line import Fledge

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FEWEST_LETTERS = 12
"""Of a message that stand in the source as they are; a message that is all values is recognised in anything."""


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_lines(page: Path) -> Iterator[str]:
    """Of fenced and of indented blocks, lines that end in a backslash joined."""
    fenced, held = False, ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            held += line.strip().removesuffix("\\")
            if line.strip().startswith("- exec "):  # in YAML the next line goes on
                held += " "
            elif not line.rstrip().endswith("\\"):
                yield held
                held = ""


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))


START = re.compile(
    r"(?:\$ |!)?(?:exec |srun (?:bash -c '.*?exec )?)?(?:\w+=\S+ )*"
    r"(?:(?:uv run|docker run .*?|(?:(?:- exec )?torchrun|accelerate launch) .*?-m) )?(?:\S*/)?fledge (?=[a-z])"
)
"""What stands before the verb of a command: nothing, variables, or another program that starts it."""


def block_commands(page: Path) -> Iterator[str]:
    """The commands of a page's blocks, without what a # explains and what Fledge says."""
    for line in code_lines(page):
        if not re.match(r"(?:error|warning|fix): ", line):
            yield from (part.strip() for part in re.split(r"\s(?:&&|\|\||;)\s|;\s|(?<!2>)\||\s&$|\s&\s", re.split(r"(?:^|\s+)#", line)[0]))


def commands(page: Path) -> list[list[str]]:
    """The words after `fledge` of each command in a page's blocks, as a shell would give them."""
    return words_of(block_commands(page))


def mentioned(page: Path) -> list[list[str]]:
    """The same of the commands inside its sentences and tables."""
    return words_of(inline_code(page))


def words_of(parts: Iterable[str]) -> list[list[str]]:
    """Of what begins as a command, the words after `fledge`."""
    found = []
    for part in parts:
        start = START.match(part)
        if start is None:
            continue
        # What explains stands behind three spaces, which also bring arguments below each other.
        verb, _, rest = part[start.end() :].removesuffix("'" if start[0].count("'") % 2 else "").partition(" ")
        given = " ".join([verb, re.split(r"\s{3,}", rest.strip())[0]])
        plain = re.sub(r"\s+(?:2?>&?1?\s*\S*|<\s*\S+)$", "", given)
        found.append([word if not word.startswith("$") else "1" for word in shlex.split(plain)])
    return found


def not_understood(page: Path, known: Iterable[str]) -> list[str]:
    """Lines of blocks that name Fledge and one of its verbs as words, and that are not read as a command."""
    names = re.compile(rf"(?<![\w./-])fledge (?:{'|'.join(known)})(?![\w-])")
    return [part for part in block_commands(page) if names.search(part) and not START.match(part)]


@pytest.fixture(scope="module")
def verbs() -> dict[str, click.Command]:
    group = typer.main.get_command(cli._application())
    return group.commands  # type: ignore[attr-defined]  # a group of verbs


def parse(verbs: dict[str, click.Command], words: list[str]) -> None:
    """Raises click's errors for a verb, an option or a number of arguments that there is not."""
    if words[0] not in verbs:
        raise click.UsageError(f"there is no verb {words[0]}")
    verbs[words[0]].make_context(words[0], list(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_in_the_pages_exists(page: Path, verbs: dict[str, click.Command]) -> None:
    wrong = []
    for is_whole, words in [*((True, words) for words in commands(page)), *((False, words) for words in mentioned(page))]:
        try:
            parse(verbs, words)
        except Exception as error:  # of typer's own copy of click or of click, each with its classes
            # A sentence may name a verb or an option without what belongs to it.
            if is_whole or type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage"):
                wrong.append(f"fledge {shlex.join(words)}: {getattr(error, 'message', error)}")
    assert not wrong, "\n".join(wrong)
    assert not_understood(page, verbs) == []


@pytest.mark.slow
def test_what_is_worked_through_works(fledge: Fledge) -> None:
    """One command after the other, as someone who migrates types them."""
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    block = page.partition("Worked through")[2].partition("```sh\n")[2].partition("```")[0]
    typed = words_of(block.splitlines())
    assert len(typed) == len(block.splitlines()) > 5
    for words in typed:
        ended = fledge(*words)
        assert ended.exit_code == 0, (words, ended.noted)


@pytest.mark.parametrize("words", [["fly"], ["plan", "quickstart", "--no-such"], ["merge", "one"], ["board", "--port", "many"]])
def test_a_command_that_does_not_exist_is_noticed(words: list[str], verbs: dict[str, click.Command]) -> None:
    with pytest.raises(Exception, match=r"."):
        parse(verbs, words)


@pytest.mark.parametrize(
    "line",
    [
        "uv run fledge fly",
        "docker run --rm -v a:/b fledge fly",
        "torchrun --nproc-per-node 4 -m fledge fly",
        "accelerate launch -m fledge fly",
    ],
)
def test_a_command_that_another_program_starts_is_read(line: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```sh\n{line}\n```\nAnd `{line}`.\n")
    assert commands(page) == mentioned(page) == [["fly"]]


def test_a_line_that_is_not_read_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nnohup fledge fly away\nls # before fledge fly\n```\n")
    assert not_understood(page, ["fly"]) == ["nohup fledge fly away"]


def test_commands_are_found_in_blocks() -> None:
    assert ["chat", "quickstart"] in commands(ROOT / "README.md")
    assert ["run", "recipes/own-text.yaml", "corpus.sources.0.path=FILE"] in commands(ROOT / "README.md")


MIGRATION = ROOT / "docs" / "migration.md"


def test_what_the_page_of_other_systems_names_exists() -> None:
    """Options in its tables are options, and sources are sources; its commands are read as those of every page."""
    spans = [span.replace("'", "") for span in inline_code(MIGRATION)]
    pages = (MIGRATION, ROOT / "docs" / "troubleshooting.md", ROOT / "docs" / "cloud.md")
    lines = [*spans, *(shlex.join(words).replace("'", "") for page in pages for words in commands(page))]
    option = re.compile(r"(tokenizer|pack|pretrain|sft|dpo)\.[\w.]+=(?!null)")
    overrides = {word for line in lines for word in split_values(line) if option.match(word)}
    assert len(overrides) > 25
    for override in overrides:
        load_recipe(find_recipe("quickstart"), ["sft.start_from=x", *companions(override), override])
    sources = [span for span in spans if span.startswith("{kind: ") and "name:" in span]
    assert len(sources) > 6
    for source in sources:
        load_recipe(find_recipe("quickstart"), [f"corpus.sources=[{source}]"])


def split_values(span: str) -> list[str]:
    """Words of a command line, a value in braces being one."""
    return re.findall(r"[^\s{]*\{[^}]*\}|\S+", span)


def companions(override: str) -> list[str]:
    """What has to be changed along with a value."""
    stage = override.partition(".")[0]
    if "budget" in override:
        return [f"{stage}.steps=null"]
    if ".lora" in override:
        return [f"{stage}.optimizer={{kind: adamw}}"]
    if "validate_every_epochs" in override:
        return [f"{stage}.validate_every_steps=null"]
    return ["tokenizer={kind: import, path: x}"] if override.startswith(("tokenizer.kind=import", "tokenizer.path")) else []


def said_in_source() -> list[re.Pattern[str]]:
    """Every text in the package, with a gap for each value in it."""
    patterns = set()
    for path in sorted((ROOT / "fledge").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else None for part in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value]
            else:
                continue
            letters = sum(len(str(part)) for part in parts if part is not None)
            if letters >= FEWEST_LETTERS:
                patterns.add("".join(".*" if part is None else re.escape(str(part)) for part in parts))
    return [re.compile(pattern) for pattern in patterns]


@pytest.fixture(scope="module")
def sayings() -> list[re.Pattern[str]]:
    return said_in_source()


def is_said(text: str, sayings: list[re.Pattern[str]]) -> bool:
    """Whether a text of the package is this line, or the beginning of it that ends where another message is put in."""
    return any(saying.fullmatch(text) for saying in sayings)


def quoted(page: Path) -> list[str]:
    lines = (re.fullmatch(r"(?:error|warning|fix): (.*)", line) for line in code_lines(page))
    return [found[1] for found in lines if found]


def test_what_the_page_of_troubles_quotes_is_said(sayings: list[re.Pattern[str]]) -> None:
    lines = quoted(ROOT / "docs" / "troubleshooting.md")
    assert len(lines) > 40
    assert [line for line in lines if not is_said(line, sayings)] == []


def test_a_line_that_nobody_says_is_noticed(sayings: list[re.Pattern[str]]) -> None:
    assert not is_said("the port 8000 is taken by somebody", sayings)
    assert not is_said("port 8000 of 127.0.0.1 is taken", sayings)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = {target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target}
    assert [target for target in sorted(targets) if not (page.parent / target).exists()] == []
