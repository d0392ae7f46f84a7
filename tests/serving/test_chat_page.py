"""The Chat page in a real browser against the real server, with models that say what the test wants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from fledge.inference.worker import EngineThread
from fledge.serving.application import create_application
from fledge.serving.keys import ApiKeys
from fledge.serving.pages import pages_router
from fledge.serving.served import ServedModel
from fledge.serving.settings import ServerSettings
from tests.serving.browser import NARROW, Browser, nameless_controls
from tests.serving.payloads import PAYLOADS
from tests.serving.rigged import RiggedEngine, served, small_tokenizer
from tests.serving.running import listening, new_client, tiny_model, tiny_tokenizer


@dataclass
class Site:
    """A server with two models, and how it is reached."""

    address: str
    first: RiggedEngine
    second: RiggedEngine


def application(models: dict[str, RiggedEngine], keys: tuple[str, ...] = ()) -> Any:
    speaking = [served(name, engine) for name, engine in models.items()]
    return create_application(ServerSettings(), speaking, public_routers=[pages_router(["chat"])], keys=ApiKeys(keys))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return small_tokenizer()


@pytest.fixture
def site(tokenizer: Any) -> Iterator[Site]:
    first, second = RiggedEngine(tokenizer), RiggedEngine(tokenizer)
    with listening(application({"small": first, "large": second})) as address:
        yield Site(address, first, second)


def say(page: Any, text: str) -> None:
    page.locator("#model").wait_for()
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def have_two_answers(page: Any) -> None:
    for number in (1, 2):
        say(page, f"Question {number}")
        page.locator(".answer", has_text=f"Answer {number}.").wait_for()
        wait_until_done(page)


def answers(page: Any) -> list[str]:
    return [text.strip() for text in page.locator(".answer .text").all_text_contents()]


def wait_until_done(page: Any) -> None:
    page.get_by_role("button", name="Send").wait_for()


def test_an_answer_comes_in_pieces_and_can_be_stopped(site: Site, browser: Browser) -> None:
    words = " ".join(f"word{number}" for number in range(400))
    site.first.texts, site.first.pause_seconds = iter([words, "Answer 2."]), 0.02
    with browser.page(site.address) as page:
        say(page, "Tell me everything.")
        page.locator(".answer .text", has_text="word3").wait_for()
        early = answers(page)[0]
        page.locator(".answer .text", has_text="word9").wait_for()
        assert page.locator(".answer[aria-busy=true]").count() == 1
        page.keyboard.press("Escape")
        page.get_by_text("Stopped.").wait_for()
        [stopped] = answers(page)
        assert words.startswith(stopped) and len(early) <= len(stopped) < len(words) / 2
        page.wait_for_timeout(200)
        assert answers(page) == [stopped] and site.first.cancelled == {1}
        say(page, "Go on.")
        page.get_by_text("Answer 2.", exact=True).first.wait_for()
        assert f"{stopped}<|im_end|>" in site.first.prompts()[1], "it is told what it has said"


def test_an_answer_is_given_again_and_a_question_is_changed(site: Site, browser: Browser) -> None:
    with browser.page(site.address) as page:
        page.get_by_label("Seed").fill("7")
        for number in (1, 2):
            say(page, f"Question {number}")
            page.locator(".answer", has_text=f"Answer {number}.").wait_for()
        page.get_by_role("button", name="Regenerate").click()
        page.locator(".answer", has_text="Answer 3.").wait_for()
        assert answers(page) == ["Answer 1.", "Answer 3."]
        assert site.first.prompts()[2] == site.first.prompts()[1]
        wait_until_done(page)
        page.get_by_role("button", name="Copy").last.click()
        page.get_by_role("button", name=re.compile("Copied|Selected")).wait_for()
        assert [request.generation.seed for request in site.first.requests] == [7, 7, 7 + 0x9E3779B97F4B]
        wait_until_done(page)
        page.get_by_role("button", name="Edit").first.click()
        page.get_by_label("Your question").fill("Another question")
        page.keyboard.press("Enter")
        page.locator(".answer", has_text="Answer 4.").wait_for()
        assert answers(page) == ["Answer 4."], "what followed is forgotten"
        assert "Question 1" not in site.first.prompts()[3] and "Another question" in site.first.prompts()[3]


def test_two_models_answer_side_by_side(site: Site, browser: Browser) -> None:
    site.second.texts = iter(["Quite another one.", "And again."])
    with browser.page(site.address) as page:
        page.get_by_label("Compare with").select_option("large")
        say(page, "What are you?")
        page.get_by_text("Quite another one.", exact=True).first.wait_for()
        assert answers(page) == ["Answer 1.", "Quite another one."]
        left, right = [answer.bounding_box() for answer in page.locator(".answer").all()]
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
        wait_until_done(page)
        say(page, "And now?")
        page.get_by_text("And again.", exact=True).first.wait_for()
        assert "Quite another one." in site.second.prompts()[1] and "Answer 1." not in site.second.prompts()[1], "each goes on from its own"
        wait_until_done(page)
        site.second.texts = iter(["And once more."])
        page.locator(".turn:last-child .answer").last.get_by_role("button", name="Regenerate").click()
        page.get_by_text("And once more.", exact=True).first.wait_for()
        assert answers(page)[2:] == ["Answer 2.", "And once more."], "the other one stays"
        page.set_viewport_size(NARROW)
        upper, lower = [answer.bounding_box() for answer in page.locator(".turn:last-child .answer").all()]
        assert upper["y"] + upper["height"] <= lower["y"] and upper["x"] == lower["x"]
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


RENAME_LAST_MODEL = """name => {
    const kept = JSON.parse(localStorage.getItem("fledge.conversations"));
    kept[0].turns.at(-1).answers[0].model = name;
    localStorage.setItem("fledge.conversations", JSON.stringify(kept));
}"""


def test_26_27_markup_in_any_text_is_shown_and_does_nothing(tokenizer: Any, browser: Browser) -> None:
    everything = "\n".join(PAYLOADS)
    name = PAYLOADS[0]
    engine = RiggedEngine(tokenizer, iter([everything, "Fine."]))
    with listening(application({name: engine})) as address, browser.page(address, allowed_errors=("404",)) as page:
        say(page, everything)
        wait_until_done(page)
        say(page, "And?")
        page.get_by_text("Fine.", exact=True).first.wait_for()
        assert page.locator(".answer .text").first.text_content() == everything
        assert page.locator(".question .text").first.text_content() == everything
        assert page.locator(".answer h2").first.text_content() == name
        page.reload()
        page.locator("#list .open").click()
        assert page.locator(".answer .text").first.text_content() == everything, "what was kept is text too"
        page.evaluate(RENAME_LAST_MODEL, PAYLOADS[20])
        page.reload()
        page.locator("#list .open").click()
        page.get_by_role("button", name="Regenerate").click()
        page.get_by_role("alert").filter(has_text=PAYLOADS[20]).wait_for()
        made = (
            "script:not([src^='/static/']), img, iframe, object, embed, svg, math, video, audio, base, style, .turn a, .turn form, #list a"
        )
        assert page.locator(made).count() == 0


def test_settings_reach_the_model_and_wrong_ones_do_not(site: Site, browser: Browser) -> None:
    values = {"Temperature": "0.5", "Top-k": "7", "Top-p": "0.5", "Min-p": "0.1", "Most tokens": "3", "Seed": "11"}
    with browser.page(site.address) as page:
        for label, value in values.items():
            page.get_by_label(label, exact=True).fill(value)
        page.get_by_label("System prompt").fill("Be brief.")
        say(page, "Hello")
        page.locator(".answer .text", has_text="A").first.wait_for()
        wait_until_done(page)
        [request] = site.first.requests
        used = request.generation
        assert (used.temperature, used.top_k, used.top_p, used.min_p, used.maximum_new_tokens, used.seed) == (0.5, 7, 0.5, 0.1, 3, 11)
        assert "system\nBe brief." in site.first.prompts()[0]
        page.reload()
        assert page.get_by_label("Min-p").input_value() == "0.1", "they are kept"
        page.get_by_label("Temperature").fill("-1")
        say(page, "Hello again")
        assert page.locator("#setting-temperature[aria-invalid=true]:focus").count() == 1
        assert page.get_by_label("Message").input_value() == "Hello again" and len(site.first.requests) == 1


def test_a_question_that_cannot_be_sent_again_forgets_nothing(site: Site, browser: Browser) -> None:
    with browser.page(site.address) as page:
        have_two_answers(page)
        page.get_by_label("Temperature").fill("-1")
        page.get_by_role("button", name="Edit").first.click()
        page.get_by_label("Your question").fill("Another question")
        page.get_by_role("button", name="Send again").click()
        assert page.locator("#setting-temperature[aria-invalid=true]:focus").count() == 1
        page.get_by_label("Temperature").fill("")
        say(page, "Question 3")
        page.locator(".answer", has_text="Answer 3.").wait_for()
        assert answers(page) == ["Answer 1.", "Answer 2.", "Answer 3."]
        assert "Answer 1." in site.first.prompts()[2]


def test_an_answer_that_does_not_come_leaves_the_former_one(site: Site, browser: Browser) -> None:
    with browser.page(site.address, allowed_errors=("400",)) as page:
        have_two_answers(page)
        page.get_by_label("Most tokens").fill("99999")
        page.get_by_role("button", name="Regenerate").last.click()
        page.get_by_role("alert").filter(has_text="maximum context length").wait_for()
        wait_until_done(page)
        assert answers(page) == ["Answer 1.", "Answer 2."]
        assert page.get_by_text("the oldest turns were left out").count() == 0, "no turn is in the way of an answer"
        page.get_by_role("button", name="Edit").first.click()
        page.get_by_label("Your question").fill("Another question")
        page.get_by_role("button", name="Send again").click()
        page.get_by_role("alert").filter(has_text="maximum context length").wait_for()
        wait_until_done(page)
        assert answers(page) == ["Answer 1.", "Answer 2."]
        assert page.get_by_label("Message").input_value() == "Another question"
        page.reload()
        page.locator("#list .open").click()
        assert answers(page) == ["Answer 1.", "Answer 2."]


def test_a_page_that_is_left_during_an_answer_has_the_question(site: Site, browser: Browser) -> None:
    site.first.texts, site.first.pause_seconds = iter(["word " * 4_000]), 0.02
    with browser.page(site.address) as page:
        say(page, "Tell me everything.")
        page.locator(".answer .text", has_text="word").wait_for()
        page.reload()
        page.locator("#list .open", has_text="Tell me everything.").click()
        assert page.locator(".question .text").all_text_contents() == ["Tell me everything."]


def test_answers_keep_a_quarter_of_the_context_and_name_the_limit(tokenizer: Any, browser: Browser) -> None:
    engine = RiggedEngine(tokenizer, context_tokens=320)
    with listening(application({"small": engine})) as address, browser.page(address, allowed_errors=("400",)) as page:
        for number in (1, 2, 3, 4, 5):
            say(page, f"Question {number}: " + "x" * 70)
            page.locator(".answer", has_text=f"Answer {number}.").wait_for()
            wait_until_done(page)
        assert "Question 1" not in engine.prompts()[-1] and "Question 4" in engine.prompts()[-1]
        assert min(request.generation.maximum_new_tokens for request in engine.requests) >= 80
        page.get_by_role("button", name="New conversation").click()
        engine.texts = iter(["a b c " * 200] * 2)
        say(page, "Talk")
        page.get_by_text("Cut off: the model's context is full.").wait_for()
        wait_until_done(page)
        page.get_by_label("Most tokens").fill("5")
        page.get_by_role("button", name="Regenerate").click()
        page.get_by_text("Cut off: the most tokens were reached. Settings allow more.").wait_for()


def test_28_conversations_stay_in_the_browser_until_they_are_deleted(site: Site, browser: Browser) -> None:
    with browser.page(site.address) as page:
        for number in (1, 2):
            say(page, f"Talk {number}")
            page.locator(".answer", has_text=f"Answer {number}.").wait_for()
            wait_until_done(page)
            page.get_by_role("button", name="New conversation").click()
        page.reload()
        assert page.locator("#list .open").all_text_contents() == ["Talk 2", "Talk 1"]
        page.get_by_role("button", name="Talk 1", exact=True).click()
        assert answers(page) == ["Answer 1."]
        page.get_by_role("button", name="Delete: Talk 1").click()
        assert answers(page) == [] and page.locator("#list .open").all_text_contents() == ["Talk 2"]
        page.get_by_role("button", name="Delete all").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete all").click()
        page.get_by_text("None yet.").wait_for()
        assert page.evaluate("localStorage.getItem('fledge.conversations')") is None
        assert page.url == f"{site.address}/", "nothing of it is in the address"


@pytest.mark.parametrize(
    "kept",
    [
        '[{"id": "1", "turns": [{"question": 5, "answers": null}]}]',
        '[{"id": "1", "turns": [{"question": "a", "answers": [{"model": "small"}]}]}]',
        '[{"id": "1", "turns": [null]}, null, 5]',
        '{"id": 1}',
        "[",
    ],
)
def test_28_damaged_conversations_are_passed_over(site: Site, browser: Browser, kept: str) -> None:
    with browser.page(site.address) as page:
        page.evaluate("kept => localStorage.setItem('fledge.conversations', kept)", kept)
        page.reload()
        page.get_by_text("None yet.").wait_for()
        say(page, "Hello")
        page.locator(".answer", has_text="Answer 1.").wait_for()
        wait_until_done(page)
        assert page.locator("#list .open").all_text_contents() == ["Hello"]


def test_what_goes_wrong_is_said_and_a_full_context_forgets_the_oldest_turns(tokenizer: Any, browser: Browser) -> None:
    engine = RiggedEngine(tokenizer, context_tokens=320)
    with listening(application({"small": engine})) as address, browser.page(address, allowed_errors=("400",)) as page:
        page.get_by_label("Most tokens").fill("60")
        for number in (1, 2, 3, 4):
            say(page, f"Question {number}: " + "x" * 90)
            page.locator(".answer", has_text=f"Answer {number}.").wait_for()
            wait_until_done(page)
        assert page.get_by_text("the oldest turns were left out").count() >= 1
        assert ["Question 1" in prompt for prompt in engine.prompts()] == [True, True, False, False]
        assert all("Question 3" in prompt for prompt in engine.prompts()[2:])
        page.get_by_role("button", name="New conversation").click()
        say(page, "x" * 1000)
        page.get_by_role("alert").filter(has_text="maximum context length").wait_for()
        wait_until_done(page)


def test_28_the_key_is_asked_for_and_kept_for_the_tab_only(tokenizer: Any, browser: Browser) -> None:
    engine = RiggedEngine(tokenizer)
    with listening(application({"small": engine}, keys=("secret-key",))) as address, browser.page(address, allowed_errors=("401",)) as page:
        page.get_by_role("dialog").get_by_label("Key").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_text("That key was not accepted.").wait_for()
        page.get_by_role("dialog").get_by_label("Key").fill("secret-key")
        page.keyboard.press("Enter")
        page.locator("#model").wait_for()
        say(page, "Hello")
        page.locator(".answer", has_text="Answer 1.").wait_for()
        stored = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie, location.href]")
        assert ["secret-key" in one for one in stored] == [False, True, False, False]


def test_a_real_model_says_on_the_page_what_it_says_to_any_client(browser: Browser) -> None:
    tokenizer = tiny_tokenizer()
    thread = EngineThread(Engine(tiny_model(), tokenizer.vocabulary_size, tokenizer.end_ids(answers=True)))
    thread.start()
    try:
        model = ServedModel("tiny", thread, tokenizer, 256, GenerationSettings(temperature=0, maximum_new_tokens=40), 1_700_000_000)
        shown = create_application(ServerSettings(), [model], public_routers=[pages_router(["chat"])], keys=ApiKeys(()))
        with listening(shown) as address, new_client(address) as client, browser.page(address) as page:
            asked = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
            told = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"]
            say(page, "hello")
            page.locator("#announcement", has_text="tiny:").wait_for(state="attached")
            assert answers(page) == [told.strip()]
    finally:
        thread.stop(30)


def test_everything_can_be_done_with_keys_and_has_a_name(site: Site, browser: Browser) -> None:
    with browser.page(site.address, NARROW) as page:
        page.locator("#model").wait_for()
        assert page.locator("#message:focus").count() == 1
        page.keyboard.type("one")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("two")
        page.keyboard.press("Enter")
        page.locator(".answer", has_text="Answer 1.").wait_for()
        wait_until_done(page)
        assert "one\ntwo" in site.first.prompts()[0]
        page.locator("#announcement", has_text="small: Answer 1.").wait_for(state="attached")
        page.locator("main").focus()
        passed: list[str] = []
        while len(passed) < 20 and "send" not in passed:
            page.keyboard.press("Tab")
            passed.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", passed[-1]
        order = ["new", "Conversations", "Settings", "model", "other", "turns", "Edit", "Copy", "Regenerate", "message", "send"]
        assert [name for name in passed if name in order] == order
        assert nameless_controls(page) == []
        page.locator("summary", has_text="Settings").focus()
        page.keyboard.press("Enter")
        page.get_by_label("Temperature").wait_for()
        assert nameless_controls(page) == []
