"""`fledge tokenizer --compare`, `--encode`, `--decode` and their files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import sentencepiece

sys.path.append(str(Path(__file__).parent))

from token_artifacts import make_tokenizer

from fledge.core import artifact
from fledge.core.errors import ArtifactError, ConfigError, DataError
from fledge.tokens.importing import import_tokenizer
from fledge.tokens.sentencepiece_models import train_llama_model
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import open_tokenizer
from fledge.tokens.trainers import train_tokenizer
from fledge.verbs.comparison_text import given_text, held_out_text
from fledge.verbs.tokenizers import Use, tokenizer_folder, use_tokenizers


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(make_tokenizer(tmp_path / "run" / "tokenizer").path)


def test_two_tokenizers_are_compared_on_files(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    train_tokenizer(TokenizerSettings(vocabulary_size=270), ["a list of values " * 20], other)
    (tmp_path / "a.txt").write_text("list returns a new copy")
    (tmp_path / "b.jsonl").write_text('{"text": "a value"}\n{"text": "größer"}\n')
    use = Use(
        compare=True,
        text=(str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")),
        json=tmp_path / "out.json",
        picture=tmp_path / "out.html",
    )
    use_tokenizers(use, [place, str(other)], False)
    told = json.loads((tmp_path / "out.json").read_text())["tokenizers"]
    expected = [sum(len(open_tokenizer(folder).encode(text)) for text in ("a value", "größer")) for folder in (place, other)]
    assert [one["sources"][str(tmp_path / "b.jsonl")]["tokens"] for one in told] == expected
    assert told[0]["total"]["text_bytes"] == len("list returns a new copya valuegrößer".encode())
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")
    printed = capsys.readouterr().out
    assert f"{told[1]['total']['bytes_per_token']:.3f}" in printed
    assert "characters / bytes per token" in printed


def test_without_files_the_held_out_documents_are_taken(tmp_path: Path) -> None:
    corpus, tokenizer = tmp_path / "run" / "corpus" / "documents", tmp_path / "run" / "tokenizer"
    with artifact.build(corpus, artifact.request("corpus", {"content": "documents"})) as (partial, _):
        for split in ("train", "validation"):
            row = {"text": f"{split} text", "id": "1", "source": "web", "group": "g"}
            (partial / f"{split}-00000.jsonl").write_text(json.dumps(row) + "\n")
    wanted = artifact.request("tokenizer", {}, {"corpus.0": artifact.open_artifact(corpus)})
    with artifact.build(tokenizer, wanted) as (partial, _):
        train_tokenizer(TokenizerSettings(vocabulary_size=260), ["some text"], partial)
    found = held_out_text([tmp_path, tokenizer])
    assert found is not None
    assert found.sources == {"web": ["validation text"]}
    assert held_out_text([make_tokenizer(tmp_path / "alone").path]) is None


def test_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "other.jsonl").write_text('{"body": "x"}\n' * 3)
    for name in ("empty.txt", "latin.txt", "other.jsonl", "absent.txt"):
        with pytest.raises(DataError, match=name.partition(".")[0]):
            given_text([str(tmp_path / name)])
    with pytest.raises(ConfigError, match="is an address"):
        given_text(["https://example.org/a.txt"])


def test_encoding_and_decoding_print_what_the_tokenizer_says(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = open_tokenizer(place)
    use_tokenizers(Use(encode="a välue"), [place], False)
    printed = capsys.readouterr().out
    assert json.loads(printed) == tokenizer.encode("a välue")
    for ids in (printed, printed.strip()[1:-1].replace(" ", "")):
        use_tokenizers(Use(decode=ids), [place], False)
        assert capsys.readouterr().out == "a välue\n"
    use_tokenizers(Use(decode=str(tokenizer.end_of_text)), [place], False)
    assert capsys.readouterr().out == "<|endoftext|>\n"


def test_an_imported_model_of_sentencepiece_encodes_and_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As CodeLlama's is used: ids by its own library, `1,2,3` decoded with the names of control tokens."""
    (tmp_path / "tokenizer.model").write_bytes(train_llama_model(600, [topics[name] for name in sorted(topics)[:20]]))
    folder = tmp_path / "imported"
    import_tokenizer(TokenizerSettings(kind="import", path=str(tmp_path / "tokenizer.model"), template="plain"), folder)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    text = "def naïve(x):\n    return x  # 你好"
    use_tokenizers(Use(encode=text), [str(folder)], False)
    assert json.loads(capsys.readouterr().out) == theirs.encode(text)
    use_tokenizers(Use(decode=",".join(map(str, theirs.encode(text)))), [str(folder)], False)
    assert capsys.readouterr().out.strip() == text
    use_tokenizers(Use(decode="1,2"), [str(folder)], False)
    assert capsys.readouterr().out.strip() == "<s></s>"


def test_variants_of_superbpe_are_compared_with_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What each saves against the first one is said, whichever way it goes: with few entries superwords cost words."""
    texts = [topics[name] for name in sorted(topics)[:40]]
    (tmp_path / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    asked = {"words": {"kind": "byte_bpe"}, "t90": {"kind": "superbpe", "transition": 0.9}, "t60": {"kind": "superbpe", "transition": 0.6}}
    for name, options in asked.items():
        train_tokenizer(TokenizerSettings(vocabulary_size=1_024, **options), texts, tmp_path / name)  # type: ignore[arg-type]
    use = Use(compare=True, text=(str(tmp_path / "text.txt"),), json=tmp_path / "out.json")
    use_tokenizers(use, [str(tmp_path / name) for name in asked], False)
    told = json.loads((tmp_path / "out.json").read_text())["tokenizers"]
    words, late, early = (one["total"]["tokens"] for one in told)
    assert late < words < early
    printed = capsys.readouterr().out
    assert f"{1 - late / words:+.2%}" in printed and f"{1 - early / words:+.2%}" in printed
    assert all(f"{one['total']['bytes_per_token']:.3f}" in printed for one in told)


def test_files_are_encoded_and_decoded_line_by_line(place: str, tmp_path: Path) -> None:
    texts = ["a value", "", "größer 你好", " spaces "]
    plain, lines = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    plain.write_text("\n".join(texts) + "\n", encoding="utf-8")
    lines.write_text("".join(json.dumps(text if number % 2 else {"text": text}) + "\n" for number, text in enumerate(texts)))
    for source in (plain, lines):
        use_tokenizers(Use(encode_file=source, output=tmp_path / "ids.jsonl"), [place], False)
        ids = [json.loads(line) for line in (tmp_path / "ids.jsonl").read_text().splitlines()]
        assert ids == [open_tokenizer(place).encode(text) for text in texts]
    use_tokenizers(Use(decode_file=tmp_path / "ids.jsonl", output=tmp_path / "back.jsonl"), [place], False)
    assert [json.loads(line) for line in (tmp_path / "back.jsonl").read_text(encoding="utf-8").splitlines()] == texts


@pytest.mark.parametrize(
    ("content", "action", "words"),
    [
        (b"fine\n\xff\n", "encode_file", "line 2: not UTF-8 \\(byte 0\\)"),
        (b"[1]\n[1, 99999]\n", "decode_file", "line 2: 99999 is no id"),
        (b"[1]\n[-1]\n", "decode_file", "line 2: -1 is no id"),
        (b"[true]\n", "decode_file", "line 1: no JSON list of whole numbers"),
        (b"nonsense\n", "decode_file", "line 1"),
        (b"[1] \xff\n", "decode_file", "line 1: not UTF-8"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(place: str, tmp_path: Path, content: bytes, action: str, words: str) -> None:
    (tmp_path / "in").write_bytes(content)
    use = Use(output=tmp_path / "out", **{action: tmp_path / "in"})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        use_tokenizers(use, [place], False)
    assert not (tmp_path / "out").exists()


def test_a_line_of_json_that_is_no_text_is_named(place: str, tmp_path: Path) -> None:
    for line, words in (("3", "neither a JSON string"), ('{"body": "x"}', "neither"), ('"\\ud800"', "half of a UTF-16 pair")):
        (tmp_path / "in.jsonl").write_text(line + "\n")
        with pytest.raises(DataError, match=f"line 1: {words}|line 1: not valid Unicode: {words}"):
            use_tokenizers(Use(encode_file=tmp_path / "in.jsonl", output=tmp_path / "out"), [place], False)


def test_files_that_are_absent_or_the_same_are_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        use_tokenizers(Use(encode_file=tmp_path / "absent", output=tmp_path / "out"), [place], False)
    (tmp_path / "same").write_text("text\n")
    with pytest.raises(ConfigError, match="is the file that is read"):
        use_tokenizers(Use(encode_file=tmp_path / "same", output=tmp_path / "same"), [place], False)
    assert (tmp_path / "same").read_text() == "text\n"


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (Use(encode="a", decode="1"), "--encode and --decode cannot be had at once"),
        (Use(compare=True, encode=""), "--compare and --encode"),
        (Use(encode="a", text=("x",)), "--text means nothing without --compare"),
        (Use(encode="a", picture=Path("x")), "--picture means nothing"),
        (Use(output=Path("x")), "--output means nothing without --encode-file or --decode-file"),
        (Use(decode_file=Path("x")), "--decode-file needs to know where to write"),
        (Use(decode="1,x"), "is no list of ids"),
    ],
)
def test_contradictions_are_explained(place: str, use: Use, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        use_tokenizers(use, [place], False)


def test_the_number_of_places_must_fit(place: str) -> None:
    with pytest.raises(ConfigError, match="nothing to be compared with"):
        use_tokenizers(Use(compare=True), [place], False)
    for places in ([], [place, place]):
        with pytest.raises(ConfigError, match=f"--encode works with one tokenizer, not {len(places)}"):
            use_tokenizers(Use(encode="a"), places, False)
    with pytest.raises(DataError, match="99999 is no id"):
        use_tokenizers(Use(decode="99999"), [place], False)


def test_a_tokenizer_is_found_by_its_folder_or_its_run(place: str, tmp_path: Path) -> None:
    assert tokenizer_folder(place, False) == tokenizer_folder(str(tmp_path / "run"), False) == Path(place)
    with pytest.raises(ArtifactError, match="holds no tokenizer"):
        tokenizer_folder(str(tmp_path / "nowhere"), False)
