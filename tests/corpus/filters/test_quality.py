# ruff: noqa: RUF001
from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from fledge.corpus.document import Document
from fledge.corpus.filters.quality import QualityFilter, Verdicts
from fledge.corpus.filters.rules import RULES
from fledge.corpus.filters.settings import QualitySettings

ENGLISH = """The harbour of the old town lies between two hills, and that is why the wind hardly ever reaches the boats in it.
Every morning the fishermen come back with what they have caught, and they sell it to whoever happens to be awake by then.
Most of them have been doing so since they were children, with their fathers first and later with nets of their own.
Nobody in the town remembers a year in which the harbour was empty for longer than a week. It is said to bring bad luck.
Visitors who want to see the boats should be there before six, because by seven there is nothing left but empty crates."""

RUSSIAN = """Старая гавань лежит между двумя холмами, и поэтому ветер почти никогда не доходит до стоящих в ней лодок.
Каждое утро рыбаки возвращаются с уловом и продают его всем, кто к этому времени уже проснулся и вышел из дома.
Большинство из них занимается этим с детства, сначала вместе с отцами, а потом со своими собственными сетями.
Никто в городе не помнит года, в котором гавань пустовала бы дольше недели. Говорят, что это приносит несчастье.
Тем, кто хочет увидеть лодки, надо приходить до шести, потому что в семь там остаются только пустые ящики."""

ARABIC = """يقع الميناء القديم بين تلتين ولذلك لا تكاد الرياح تصل إلى القوارب الراسية فيه طوال أيام السنة كلها.
يعود الصيادون كل صباح بما اصطادوه ويبيعونه لكل من استيقظ في ذلك الوقت المبكر وخرج من بيته إلى الشاطئ.
يعمل معظمهم في هذه المهنة منذ الطفولة، مع آبائهم في البداية ثم بشباكهم الخاصة بعد ذلك بسنوات قليلة.
لا يتذكر أحد في المدينة عاما كان فيه الميناء خاليا أكثر من أسبوع. ويقال إن ذلك يجلب الحظ السيئ للناس.
على من يريد رؤية القوارب أن يأتي قبل السادسة لأنه لا يبقى في السابعة سوى الصناديق الفارغة على الرصيف."""

CHINESE = """这座古老的港口位于两座小山之间，因此海风几乎从来吹不到停泊在里面的渔船，冬天也十分温暖。
每天早晨渔民们带着捕到的鱼回来，卖给那个时候已经醒来的人，剩下的就送到附近城市的市场上去。
他们当中的大多数人从小就做这一行，起初跟着父亲出海，后来便用自己攒钱买来的渔网独自工作。
城里没有人记得哪一年港口空了一个星期以上。老人们常说，空荡荡的港口会给全镇带来不好的运气。
想看渔船的游客应该在六点以前到达，因为到了七点钟码头上就只剩下空箱子和几只懒洋洋的猫了。"""

JAPANESE = """この古い港は二つの丘のあいだにあるので、強い風が停泊している船のところまで届くことはほとんどない。
毎朝漁師たちは獲れた魚を持って帰り、その時間にもう起きている人に売り、残りは近くの町の市場へ運んでいく。
彼らの多くは子どものころからこの仕事をしていて、はじめは父親と一緒に、のちには自分の網を使って働いてきた。
港が一週間より長く空になった年を覚えている人は町にはいない。それは不幸を招くと昔から言われているからだ。
船を見たい人は六時より前に来るべきである。七時になれば、桟橋には空の箱のほかに何も残っていないだろう。"""

THAI = """ท่าเรือเก่าตั้งอยู่ระหว่างเนินเขาสองลูก ลมแรงจึงแทบไม่เคยพัดมาถึงเรือที่จอดอยู่ข้างในเลยตลอดทั้งปี.
ทุกเช้าชาวประมงกลับมาพร้อมกับปลาที่จับได้ และขายให้กับทุกคนที่ตื่นแล้วในเวลานั้น ส่วนที่เหลือส่งไปตลาด.
ส่วนใหญ่ทำงานนี้มาตั้งแต่เด็ก ตอนแรกทำกับพ่อ ต่อมาก็ใช้อวนของตัวเองออกทะเลไปด้วยกันหลายคนทุกคืน.
ไม่มีใครในเมืองจำได้ว่าปีไหนท่าเรือว่างนานกว่าหนึ่งสัปดาห์ เพราะว่ากันว่าจะนำโชคร้ายมาสู่ทุกครอบครัว.
ใครอยากดูเรือควรมาก่อนหกโมงเช้า เพราะพอเจ็ดโมงก็จะเหลือแต่ลังเปล่าวางอยู่บนสะพานปลาเท่านั้นเอง."""


def no_document(position: int) -> Document:
    raise AssertionError(f"asked for document {position} without an own rule")


def judged(texts: Sequence[str], **settings: Any) -> Verdicts:
    return QualityFilter(QualitySettings(**settings))(pa.array(texts, pa.large_string()), no_document)


def reasons(verdicts: Verdicts) -> list[str]:
    return ["" if code == 0 else verdicts.names[code - 1] for code in verdicts.reason]


def numbered(words: int, prefix: str = "word") -> str:
    return " ".join(f"{prefix}{number:05}" for number in range(words))


BOTH_SIDES: list[tuple[str, str, str, dict[str, float]]] = [
    # rule, a text that fails it, one that just does not, other thresholds
    ("gopher_minimum_words", numbered(49) + " -- !", numbered(50), {}),
    ("gopher_maximum_words", numbered(6), numbered(5) + " -- !", {"gopher_maximum_words": 5}),
    ("gopher_minimum_word_length", "abc de", "abc de fghi --", {}),
    ("gopher_maximum_word_length", "abcdefghij klmnopqrstu", "abcdefghij klmnopqrst --", {}),
    ("gopher_hash_symbols", numbered(8) + " #", numbered(9) + " #", {}),
    ("gopher_ellipsis_symbols", numbered(9) + "...", numbered(9) + " …", {}),
    ("gopher_bullet_lines", "- a\n" * 19 + "b", "  • a\n" * 9 + "b", {}),
    ("gopher_ellipsis_lines", "a…\na... \nb\nb\nb\nb", "a...\nb\nb\nb", {}),
    ("gopher_letter_words", "a b c 4", "a b c d 5", {}),
    ("gopher_stop_words", "the The of, the", "the of", {}),
    ("gopher_repetition_duplicate_paragraphs", "a\nb\n\na\nb\n\nc", "a\nb\n\na\nb\n\nc\n\nd", {}),
    ("gopher_repetition_duplicate_paragraph_characters", "abcde\n\nabcde\n\nklmno", "abcde\n\nabcde\n\nklmnopqrstuvwxyz", {}),
    ("gopher_repetition_duplicate_lines", "a\na\nb", "a\na\n\nb\nc", {}),
    ("gopher_repetition_duplicate_line_characters", "abcde\nabcde\nklmno", "abcde\nabcde\nklmnopqrstuvwxyz", {}),
    # 2 of "aa bb" are 10 of 49 and of 51 characters
    ("gopher_repetition_top_2_gram", "aa bb cc aa bb " + "x" * 34, "aa bb cc aa bb " + "x" * 36, {}),
    ("gopher_repetition_top_3_gram", "a b c d a b c " + "x" * 41, "a b c d a b c " + "x" * 42, {}),
    ("gopher_repetition_top_4_gram", "a b c d e a b c d " + "x" * 69, "a b c d e a b c d " + "x" * 70, {}),
    *(
        (f"gopher_repetition_duplicate_{n}_grams", f"{run} 0 {run} {'x' * (room - 1)}", f"{run} 0 {run} {'x' * (room + 1)}", {})
        for n, share in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1))
        for run in (" ".join("abcdefghij"[:n]),)
        for room in (round(n / share - (2 * (2 * n - 1) + 4)),)
    ),
    ("c4_lorem_ipsum", "A Lorem Ipsum text", "lorem text ipsum", {}),
    ("c4_curly_bracket", "a { b", "a } b", {}),
    ("c4_sentences", "One. Two. Three.\nFour", "One. Two. Three.\nFour! Five", {}),
    ("fineweb_line_punctuation", "end.\n" + "open\n" * 8, "end.\n" + "open\n" * 7, {}),
    ("fineweb_short_lines", "x" * 30 + "\nshort\nshort\n" + "y" * 31, "short\nshort\n" + "y" * 31, {}),
    ("fineweb_duplicate_line_characters", "ab\nab\n" + "x" * 195, "ab\nab\n" + "x" * 196, {}),
    ("fineweb_newlines", "a b c\n" * 3, "a b c\n" * 3 + "d", {}),
]


def test_every_rule_that_drops_documents_is_tried() -> None:
    assert sorted(name for name, *_ in BOTH_SIDES) == sorted(one.name for one in RULES if one.drops == "documents")


@pytest.mark.parametrize(("rule", "failing", "passing", "thresholds"), BOTH_SIDES, ids=[name for name, *_ in BOTH_SIDES])
def test_both_sides_of_the_threshold(rule: str, failing: str, passing: str, thresholds: dict[str, float]) -> None:
    verdicts = judged([failing, passing], add=(rule,), thresholds=thresholds)
    assert reasons(verdicts) == [rule, ""]
    assert verdicts.failed == {rule: 1}
    assert verdicts.texts.to_pylist() == [failing, passing]


LINES: list[tuple[str, str, str]] = [
    ("c4_long_words", "a " + "x" * 1_001 + "\nb " + "x" * 1_000, "b " + "x" * 1_000),
    ("c4_citations", "a[1] b[edit] c[citation needed] d[] e[x]\n[2] f", "a b c d e[x]\n f"),
    ("c4_terminal_punctuation", 'a.\nb\nc!\nd?\ne"\nf...\ng,\nh。\ni”', 'a.\nc!\nd?\ne"\nh。\ni”'),
    ("c4_words_per_line", "one two\n\n  three four five  \nx", "three four five"),
    ("c4_javascript", "plain\nenable JavaScript now\njava script", "plain\njava script"),
    ("c4_policy", "our Privacy Policy\ncookies\nwe use cookies\nTerms of Use here\nterms", "cookies\nterms"),
]


@pytest.mark.parametrize(("rule", "text", "left"), LINES, ids=[name for name, *_ in LINES])
def test_line_rules(rule: str, text: str, left: str) -> None:
    verdicts = judged([text, "another plain one."], add=(rule,))
    assert verdicts.texts.to_pylist() == [left, "another plain one."]
    assert verdicts.reason.tolist() == [0, 0]
    gone = len(text.split("\n")) - len(left.split("\n")) - text.count("\n\n")
    assert verdicts.removed_lines == {rule: 2 if rule == "c4_citations" else gone}


def test_later_rules_see_the_lines_that_are_left() -> None:
    # Without the lines that C4 removes half of the text is a repeated line; with them it is little.
    text = (
        "Twice in the text it stands.\nTwice in the text it stands.\n"
        + "javascript is needed to read the next few lines of this page.\n" * 90
    )
    without = judged([text], add=("fineweb_duplicate_line_characters",), thresholds={"fineweb_duplicate_line_characters": 0.99})
    assert reasons(without) == [""]
    together = judged([text], add=("c4_javascript", "fineweb_short_lines"))
    assert reasons(together) == ["fineweb_short_lines"]
    assert reasons(judged([text], add=("fineweb_short_lines",))) == [""]


def test_first_reason_in_fixed_order_and_all_that_fail_are_counted() -> None:
    short_and_hashed = numbered(30) + " # # # # # # # # # the of"
    verdicts = judged([short_and_hashed, ENGLISH, "{ " + ENGLISH], preset="web")
    assert reasons(verdicts) == ["gopher_minimum_words", "", "c4_curly_bracket"]
    assert verdicts.failed["gopher_hash_symbols"] == 1
    assert verdicts.failed["gopher_letter_words"] == 1
    assert "fineweb_line_punctuation" not in verdicts.failed


def test_the_order_of_reasons_does_not_depend_on_line_rules() -> None:
    both = "{ " + "open lines of text\n" * 9
    for line_rules in ((), ("c4_javascript",)):
        verdicts = judged([both, both[2:]], add=("c4_curly_bracket", "fineweb_line_punctuation", *line_rules))
        assert reasons(verdicts) == ["c4_curly_bracket", "fineweb_line_punctuation"]
        # Rules that see the same text count for themselves; FineWeb's see what line rules left of documents that C4 keeps.
        assert verdicts.failed == {"c4_curly_bracket": 1, "fineweb_line_punctuation": 1 if line_rules else 2}


def test_removed_lines_are_those_of_documents_that_stay() -> None:
    with_lines = ENGLISH + "\nWe use cookies on this page.\nBy the way"
    verdicts = judged([with_lines, "{ " + with_lines], preset="web", thresholds={"c4_words_per_line": 4})
    assert reasons(verdicts) == ["", "c4_curly_bracket"]
    assert {name: count for name, count in verdicts.removed_lines.items() if count} == {"c4_policy": 1, "c4_words_per_line": 1}
    assert verdicts.texts[0].as_py() == ENGLISH


def test_rules_are_skipped_and_thresholds_changed() -> None:
    short = ENGLISH.split("\n")[0]
    assert reasons(judged([short], preset="books")) == ["gopher_minimum_words"]
    assert reasons(judged([short], preset="books", skip=("gopher_minimum_words",))) == [""]
    assert reasons(judged([short], preset="books", thresholds={"gopher_minimum_words": 23})) == [""]
    assert reasons(judged([short], preset="books", thresholds={"gopher_minimum_words": 24})) == ["gopher_minimum_words"]


STOP_WORDS = {"Russian": ("и", "в", "не", "до"), "Arabic": ("في", "لا", "إلى", "من")}


@pytest.mark.parametrize("preset", ["web", "books", "docs", "code"])
@pytest.mark.parametrize(
    ("language", "text"),
    [("English", ENGLISH), ("Russian", RUSSIAN), ("Arabic", ARABIC), ("Chinese", CHINESE), ("Japanese", JAPANESE), ("Thai", THAI)],
)
def test_good_text_of_any_script_stays(language: str, text: str, preset: str) -> None:
    stop_words = {"stop_words": STOP_WORDS[language]} if language in STOP_WORDS else {}
    verdicts = judged([text, text.replace("\n", "\r\n"), text.replace("\n", "\n\n")], preset=preset, **stop_words)
    assert verdicts.failed == {}
    assert verdicts.texts[0].as_py() == text
    assert verdicts.names


def test_nothing_is_asked_for_and_nothing_is_given() -> None:
    verdicts = judged(["", "x"])
    assert (verdicts.reason.tolist(), verdicts.names, verdicts.failed, verdicts.removed_lines) == ([0, 0], (), {}, {})
    assert verdicts.languages is None
    assert judged([], preset="web").reason.tolist() == []


def test_an_empty_document_fails_what_asks_for_something() -> None:
    verdicts = judged(["", " \n\t\n "], preset="web")
    assert reasons(verdicts) == ["gopher_minimum_words", "gopher_repetition_duplicate_lines"]
    assert reasons(judged([""], add=("fineweb_line_punctuation",))) == ["fineweb_line_punctuation"]


def test_verdicts_do_not_depend_on_the_batch() -> None:
    texts = [ENGLISH, "short", CHINESE, ENGLISH + "\njavascript is needed for that", "", RUSSIAN, "{ " + ENGLISH]
    judge = QualityFilter(QualitySettings(preset="web"))
    together = judge(pa.array(texts, pa.large_string()), no_document)
    alone = [judge(pa.array([text], pa.large_string()), no_document) for text in texts]
    assert reasons(together) == [reasons(one)[0] for one in alone]
    kept = [position for position, code in enumerate(together.reason) if code == 0]
    assert [together.texts[position].as_py() for position in kept] == [alone[position].texts[0].as_py() for position in kept]
    sliced = judge(pa.array(["before", *texts, "after"], pa.large_string()).slice(1, len(texts)), no_document)
    assert reasons(sliced) == reasons(together)


def test_own_rules_come_last_and_see_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def short(document):\n"
        "    assert 'cookies' not in document.text\n"
        "    if document.id == 'refused':\n"
        "        return False\n"
        "    return True if len(document.text) < 500 else f'{len(document.text) // 100} hundred\\ncharacters'\n"
    )
    texts = [ENGLISH + "\nWe use cookies on this page.", "too short", ENGLISH, ENGLISH.rsplit("\n", 1)[0]]
    documents = [Document(text, f"id-{number}", "web", "") for number, text in enumerate(texts)]
    documents[2] = Document(ENGLISH, "refused", "web", "")
    judge = QualityFilter(QualitySettings(preset="web", skip=("c4_sentences",), own_rules=(f"{path}:short",)))
    verdicts = judge(pa.array(texts, pa.large_string()), documents.__getitem__)
    assert reasons(verdicts) == ["own:short: 5 hundred characters", "gopher_repetition_top_2_gram", "own:short", ""]


def test_reasons_of_an_own_rule_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def each(document):\n    return f'because of {document.id}'\n")
    documents = [Document("x", f"{number:03}", "web", "") for number in range(50)]
    judge = QualityFilter(QualitySettings(own_rules=(f"{path}:each",)))
    verdicts = judge(pa.array(["x"] * 50, pa.large_string()), documents.__getitem__)
    assert len(verdicts.failed) == 21
    assert verdicts.failed["own:each"] == 30
    assert reasons(verdicts)[0] == "own:each: because of 000"


def test_the_filter_can_be_sent_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def long(document):\n    return len(document.text) > 3\n")
    judge = QualityFilter(QualitySettings(preset="docs", own_rules=(f"{path}:long",)))
    copy = pickle.loads(pickle.dumps(judge))
    assert copy.identity == judge.identity
    texts = pa.array([ENGLISH, "x"], pa.large_string())
    assert (
        copy(texts, lambda _: Document("", "", "", "")).reason.tolist() == judge(texts, lambda _: Document("", "", "", "")).reason.tolist()
    )


def test_identity_tells_what_decides_the_verdicts(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def a(document):\n    return True\n")

    def identity(**settings: Any) -> Any:
        return QualityFilter(QualitySettings(**settings)).identity

    plain = identity(preset="web", own_rules=(f"{path}:a",))
    assert plain == identity(preset="web", own_rules=(f"{path}:a",), stop_words=("with", "have", "that", "and", "of", "to", "be", "the"))
    assert plain != identity(preset="web", own_rules=(f"{path}:a",), stop_words=("und",))
    assert plain != identity(preset="web", own_rules=(f"{path}:a",), thresholds={"c4_sentences": 4})
    assert plain != identity(preset="web")
    assert identity(preset="code") == identity(preset="code", stop_words=("und",))
    moved = tmp_path / "moved.py"
    moved.write_bytes(path.read_bytes())
    assert plain == identity(preset="web", own_rules=(f"{moved}:a",))
    path.write_text("def a(document):\n    return False\n")
    assert plain != identity(preset="web", own_rules=(f"{path}:a",))
