"""Sending to a stub of the hub with the hub's own client: nothing twice, nothing damaged, no secret anywhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from fledge.core import artifact, disk
from fledge.core.errors import ConfigError, DataError, MachineError
from fledge.publish.pulling import pull
from fledge.publish.pushing import push
from tests.command_line import Fledge, expect_error

from .hub_stub import READ_TOKEN, TOKEN, Fault, HubStub
from .results import content, tree, write_artifact, write_corpus, write_model, write_tokenizer, write_tokens


def send(folder: Path, name: str = "me/small") -> str:
    return push(folder, name, None, False, "main")


@pytest.mark.parametrize("part_bytes", [None, 25_000])
def test_a_model_a_corpus_and_tokens_come_back_as_they_were(hub: HubStub, fledge: Fledge, tmp_path: Path, part_bytes: int | None) -> None:
    hub.part_bytes = part_bytes
    run = tmp_path / "runs" / "run"
    write_corpus(run / "corpus" / "documents")
    write_tokens(run / "pack" / "documents", write_tokenizer(run / "tokenizer"))
    write_model(run / "pretrain" / "checkpoints" / "step-000005")
    for place, name, kind, where in (
        ("run@5", "me/model", "models", "pretrain/checkpoints/step-000005"),
        ("runs/run/corpus/documents", "me/corpus", "datasets", "corpus/documents"),
        ("runs/run/pack/documents", "me/tokens", "datasets", ""),
    ):
        outcome = fledge("push", place, name)
        assert outcome.exit_code == 0 and name in outcome.said, outcome.noted
        assert list(hub.repos) == [f"{kind}/{name}"]
        outcome = fledge("pull", name, f"back/{name}")
        assert outcome.exit_code == 0 and "as their manifests say" in outcome.said, outcome.noted
        expected = tree(run / where) if where else {name: one for name, one in tree(run).items() if name.startswith(("pack", "tok"))}
        assert tree(tmp_path / "back" / name) == expected
        verified = fledge("verify", f"back/{name}" + ("" if where else "/pack/documents"))
        assert verified.exit_code == 0 and "every byte is as it was written" in verified.said
        hub.repos.clear()


def test_what_the_hub_has_is_not_sent_again(hub: HubStub, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", shards=3)
    send(tmp_path / "corpus")
    first_bytes, commits = hub.received_bytes, len(hub.repos["datasets/me/small"].commits)
    assert first_bytes == 3 * 60_000
    assert "was there already" in send(tmp_path / "corpus")
    assert hub.received_bytes == first_bytes and len(hub.repos["datasets/me/small"].commits) == commits
    # Content that lies there under another name is not sent either.
    write_artifact(tmp_path / "other", "corpus", {"train-00007.parquet": content(1), "new.parquet": content(9)})
    send(tmp_path / "other")
    assert hub.received_bytes == first_bytes + 60_000


def test_what_the_artifact_before_had_goes_and_what_others_added_stays(hub: HubStub, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", shards=3)
    send(tmp_path / "corpus")
    repo = hub.repos["datasets/me/small"]
    repo.commit({**repo.files, "README.md": b"# by hand\n"}, "main", "by hand")
    write_corpus(tmp_path / "smaller", shards=2)
    send(tmp_path / "smaller")
    assert repo.files.keys() - {".gitattributes"} == {*tree(tmp_path / "smaller"), "README.md"}
    pull("me/small", tmp_path / "back", "dataset", "main")
    assert tree(tmp_path / "back") == tree(tmp_path / "smaller")


def test_an_upload_that_breaks_off_goes_on_with_what_is_missing(hub: HubStub, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", shards=3)
    # The client's own patience is six attempts, after which ours begins.
    hub.fail("^PUT ", *[Fault(read_bytes=1_000)] * 3, *[Fault(status=500)] * 3, *[Fault(read_bytes=1_000)] * 3)
    send(tmp_path / "corpus")
    assert hub.received_bytes == 3 * 60_000
    pull("me/small", tmp_path / "back", None, "main")
    assert tree(tmp_path / "back") == tree(tmp_path / "corpus")


def test_only_so_often_is_tried_and_the_next_push_sends_the_rest(hub: HubStub, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", shards=2)
    hub.fail(f"^PUT /lfs/{hashlib.sha256(content(1)).hexdigest()}", *[Fault(status=503)] * 100)
    with pytest.raises(MachineError, match=r"status 503.*attempts"):
        send(tmp_path / "corpus")
    assert hub.received_bytes == 60_000 and len(hub.repos["datasets/me/small"].commits) == 1
    hub.faults.clear()
    send(tmp_path / "corpus")
    assert hub.received_bytes == 2 * 60_000


@pytest.mark.parametrize("pattern", ["POST .*create", "GET .*tree", "POST .*preupload", "POST .*batch", "POST .*commit"])
@pytest.mark.parametrize("fault", [Fault(status=500), Fault(status=429), Fault(read_bytes=1)], ids=["500", "429", "cut"])
def test_every_request_is_tried_again(hub: HubStub, tmp_path: Path, pattern: str, fault: Fault) -> None:
    write_model(tmp_path / "model")
    hub.fail(pattern, fault, fault)
    send(tmp_path / "model")
    assert not hub.faults and hub.repos["models/me/small"].files.keys() > tree(tmp_path / "model").keys()


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubStub, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    hub.fail("POST .*commit", Fault(after=True))
    send(tmp_path / "model")
    made = artifact.open_artifact(tmp_path / "model").id[:12]
    assert hub.repos["models/me/small"].messages == ["initial commit", f"checkpoint {made} of step 5"]


@pytest.mark.parametrize("status", [409, 412])
def test_a_commit_that_somebody_else_was_before_is_made_on_top_of_theirs(hub: HubStub, tmp_path: Path, status: int) -> None:
    write_model(tmp_path / "model")
    hub.fail("POST .*commit", Fault(status=status))
    send(tmp_path / "model")
    assert len(hub.asked("POST .*commit")) == 2


def test_what_arrives_damaged_is_found_and_sent_again(hub: HubStub, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    hub.fail("POST .*commit", Fault(flips=True))
    send(tmp_path / "model")
    assert hub.repos["models/me/small"].files.items() > tree(tmp_path / "model").items()
    hub.repos.clear()
    hub.fail("POST .*commit", *[Fault(flips=True)] * 5)
    with pytest.raises(DataError, match="arrived damaged"):
        send(tmp_path / "model")


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("pattern", ["POST .*create", "POST .*preupload", "POST .*commit"])
def test_a_refusal_is_final(hub: HubStub, tmp_path: Path, pattern: str, status: int) -> None:
    write_model(tmp_path / "model")
    hub.fail(pattern, Fault(status=status, says=f"no, {TOKEN}"))
    with pytest.raises(DataError) as caught:
        send(tmp_path / "model")
    assert str(status) in caught.value.problem and TOKEN not in str(caught.value)
    assert len(hub.asked(pattern)) == 1
    assert "HF_TOKEN" in caught.value.remedy or status == 404


def test_a_token_that_may_only_read_is_told(hub: HubStub, fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    expect_error(fledge("push", "model", "me/small"), 3, "does not let this machine write", "403", "HF_TOKEN")
    assert len(hub.asked("create")) == 1 and not hub.received_bytes


def test_without_a_token_nothing_is_asked(hub: HubStub, fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model")
    monkeypatch.delenv("HF_TOKEN")
    expect_error(fledge("push", "model", "me/small"), 5, "no token of the hub", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    expect_error(fledge("push", "model", "small"), 2, "small is no repository", "OWNER/NAME")
    assert not hub.requests


def test_what_the_hub_says_is_told_without_the_token(hub: HubStub, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    hub.fail("POST .*commit", Fault(status=400, says=f"no space for {TOKEN} and hf_AnotherToken"))
    with pytest.raises(DataError, match=r"no space for \(token\) and \(token\)"):
        send(tmp_path / "model")


def test_a_gguf_file_is_a_model(hub: HubStub, fledge: Fledge, tmp_path: Path) -> None:
    files = {"model.gguf": content(3), "Modelfile": b"FROM ./model.gguf\n"}
    for name, written in files.items():
        disk.write_bytes(tmp_path / "exported" / name, written)
    assert fledge("push", "exported", "me/small").exit_code == 0
    assert fledge("pull", "me/small", "back").exit_code == 0
    assert tree(tmp_path / "back") == files


def test_a_card_that_the_hub_does_not_understand_is_told(hub: HubStub, fledge: Fledge, tmp_path: Path) -> None:
    disk.write_bytes(tmp_path / "model" / "config.json", b"{}")
    disk.write_bytes(tmp_path / "model" / "README.md", b"---\nlicense: wrong\n---\n")
    expect_error(fledge("push", "model", "me/small"), 3, "model me/small does not take this", "license is wrong")
    disk.write_bytes(tmp_path / "model" / "README.md", b"---\nlicense: mit\n---\n")
    assert fledge("push", "model", "me/small").exit_code == 0
    assert hub.repos["models/me/small"].files.keys() == {".gitattributes", "README.md", "config.json"}


def test_no_secret_is_written_or_said(hub: HubStub, fledge: Fledge, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_model(tmp_path / "model")
    hub.fail("^PUT ", Fault(status=500))
    hub.fail("POST .*create", Fault(status=401, says=TOKEN), Fault())
    push = ("push", "model", "me/small")
    outcomes = [fledge(*push), fledge(*push, "--log-level", "debug"), fledge("pull", "me/small", "back")]
    assert [outcome.exit_code for outcome in outcomes] == [3, 0, 0]
    said = "".join(outcome.said + outcome.noted for outcome in outcomes) + caplog.text
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    sent = b"".join(b"".join(repo.files.values()) for repo in hub.repos.values())
    assert TOKEN not in said and "/lfs/" not in said
    assert TOKEN.encode() not in written + sent
    assert str(tmp_path).encode() not in sent


def test_a_private_repository_and_a_branch_are_made(hub: HubStub, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    push(tmp_path / "model", "me/hidden", "dataset", False, "v2")
    repo = hub.repos["datasets/me/hidden"]
    assert repo.private and repo.branches["v2"] != repo.branches["main"]
    assert repo.files.keys() == {".gitattributes"} and "config.json" in (repo.at("v2") or {})
    pull("me/hidden", tmp_path / "back", None, "v2")
    assert tree(tmp_path / "back") == tree(tmp_path / "model")


def test_what_is_there_stays_as_visible_as_it_is_and_that_is_told(hub: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model")
    for is_made_public in (True, False):
        hub.repos.clear()
        push(tmp_path / "model", "me/small", None, is_made_public, "main")
        assert hub.repos["models/me/small"].private != is_made_public and "is there already" not in capsys.readouterr().err
        push(tmp_path / "model", "me/small", None, not is_made_public, "main")
        said = " ".join(capsys.readouterr().err.split())
        assert ("everybody can read what is sent there" if is_made_public else "--public does not change that") in said
        assert hub.repos["models/me/small"].private != is_made_public


def test_offline_mode_of_the_hub_is_named(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    write_model(tmp_path / "model")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE"):
        send(tmp_path / "model")
    assert not hub.requests


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep", "3"), ("--keep means nothing without --watch",)),
        (("--watch", "--kind", "dataset"), ("--kind dataset cannot be had with --watch",)),
    ],
)
def test_options_without_effect_are_refused(fledge: Fledge, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    expect_error(fledge("push", "run", "me/small", *options), 2, *words)


def test_only_a_run_is_watched(hub: HubStub, fledge: Fledge, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    expect_error(fledge("push", "./model", "me/small", "--watch"), 2, "is no run but a result of one", "--watch")
    expect_error(fledge("push", "demo@best", "me/small", "--watch"), 2, "is no run but a result of one")
    assert not hub.requests


def test_only_models_and_datasets_are_sent(hub: HubStub, fledge: Fledge, tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    expect_error(fledge("push", "tokenizer", "me/small"), 4, "is a tokenizer, which is neither a model nor a dataset")
    expect_error(fledge("push", "nowhere", "me/small"), 4, "no run or checkpoint nowhere")
    with pytest.raises(ConfigError, match="no repository"):
        push(tmp_path / "tokenizer", "a/b/c", None, False, "main")
