"""Questions to several models at once, Ctrl-C in the middle, and what of a conversation fits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from fledge.core.errors import DataError, NumericsError
from fledge.corpus.document import Message
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.tokens.chat import render
from fledge.tokens.tokenizer import Tokenizer
from fledge.verbs.chatting.answering import Interruption, Question, answer
from fledge.verbs.chatting.conversation import Conversation, prompt_ids
from fledge.verbs.chatting.speakers import Speaker, open_speaker
from tests.verbs.chatting.conftest import MakeCheckpoint

GREEDY = GenerationSettings(temperature=0, maximum_new_tokens=10)


@pytest.fixture
def speaker(make_checkpoint: MakeCheckpoint) -> Speaker:
    return open_speaker(str(make_checkpoint()), EngineSettings(slots=2))


def question(speaker: Speaker, text: str, settings: GenerationSettings = GREEDY) -> Question:
    return Question(speaker, render(speaker.tokenizer, [Message("user", text)], answer_follows=True).ids, settings)


def test_questions_are_answered_together_as_they_are_alone(speaker: Speaker) -> None:
    questions = [question(speaker, text) for text in ("row 1", "the next one", "hello to you all")]
    alone = [answer([one])[0] for one in questions]
    shown: dict[int, str] = {}
    ended: list[int] = []

    def show(place: int, text: str) -> None:
        shown[place] = shown.get(place, "") + text

    assert answer(questions, show, ended=lambda place, _: ended.append(place)) == alone
    assert [shown.get(place, "") for place in range(3)] == [one.text for one in alone]
    assert sorted(ended) == [0, 1, 2]


def test_an_interruption_keeps_what_has_come_and_leaves_nothing_behind(speaker: Speaker) -> None:
    long = question(speaker, "row 1", GenerationSettings(temperature=0, maximum_new_tokens=200))
    with Interruption() as interruption:
        [cut] = answer([long], lambda place, text: os.kill(os.getpid(), signal.SIGINT) if not interruption.asked else None, interruption)
    assert cut.finish == "cancelled" and 0 < cut.tokens < 20
    load = speaker.engine.load
    assert (load.running, load.waiting) == (0, 0)
    [whole] = answer([long])
    assert cut.text and whole.text.startswith(cut.text) and len(whole.text) > len(cut.text)


def test_the_second_ctrl_c_is_what_it_always_is() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interruption():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_broken_model_is_an_error_of_the_user_s_kind(speaker: Speaker) -> None:
    speaker.engine.model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(NumericsError, match="could not answer"):
        answer([question(speaker, "row 1")])


def test_the_oldest_turns_are_left_out_and_the_instruction_stays(tokenizer: Tokenizer) -> None:
    talk = Conversation("Be brief.")
    for number in range(6):
        talk.ask(f"row {number} of the table holds words")
        talk.answer(f"it holds {number}")
    talk.ask("and now?")
    everything, none_left_out = prompt_ids(talk, tokenizer, 4096)
    assert none_left_out == 0
    for context_tokens in range(len(everything) // 2, len(everything) + 100, 7):
        ids, left_out = prompt_ids(talk, tokenizer, context_tokens)
        assert len(ids) <= context_tokens - context_tokens // 4
        text = tokenizer.decode(ids)
        assert "Be brief." in text and "and now?" in text and ("row 0" in text) == (left_out == 0)
    with pytest.raises(DataError, match="longer than the model's context of 20 tokens"):
        prompt_ids(talk, tokenizer, 20)


def test_a_question_without_an_answer_can_be_asked_again_and_is_not_told(tokenizer: Tokenizer) -> None:
    talk = Conversation()
    assert talk.withdraw() is None
    talk.ask("a")
    talk.answer("  \n")
    assert talk.messages == []
    talk.ask("b")
    assert prompt_ids(talk, tokenizer, 4096)[0] == render(tokenizer, [Message("user", "b")], answer_follows=True).ids
    talk.answer(" c ")
    assert talk.messages == [Message("user", "b"), Message("assistant", "c")]
    assert (talk.withdraw(), talk.withdraw(), talk.withdraw()) == ("b", "a", None)


def test_a_checkpoint_carries_its_generation(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    opened = open_speaker(str(make_checkpoint()), EngineSettings(slots=2))
    assert (opened.generation.temperature, opened.generation.maximum_new_tokens) == (0.9, 12)
