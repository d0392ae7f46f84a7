from __future__ import annotations

import random

import pyarrow as pa
import pytest

from fledge.corpus.filters.boilerplate import remove_boilerplate
from fledge.corpus.filters.cleaning import Cleaner

BOILERPLATE = (
    "We use cookies to give you the best experience on our site.",
    "This website uses cookies.",
    "By continuing to use this site you agree to our use of cookies",
    "Accept all cookies",
    "Cookie settings",
    "Diese Website verwendet Cookies, um Inhalte zu personalisieren.",
    "Ce site utilise des cookies.",
    "Utilizamos cookies propias y de terceros.",
    "Этот сайт использует файлы cookie.",
    "本网站使用cookie",
    "All rights reserved.",
    "© 2019 Example Inc. All Rights Reserved.",
    "Copyright (c) 2001-2004 Someone. All rights reserved.",
    "Alle Rechte vorbehalten. © Beispiel GmbH",
    "© 2020 \u2013 2024 The Example Foundation",
    "版权所有",
    "無断転載を禁じます",
    "Share this article:",
    "Share on Facebook",
    "Click to share on Twitter (Opens in new window)",
    "Auf Facebook teilen",
    "分享到微博",
    "Skip to main content",
    "Back to top",
    "Zum Inhalt springen",
    "Перейти к содержимому",
    "コンテンツへスキップ",
    "Home > Products > Shoes",
    "Home | About | Contact",
    "« Older posts",
    "Read more…",
    "Subscribe to our free weekly newsletter today!",
    "Please enable JavaScript to view the comments.",
    "Log in / Register",
    "Advertisement",
    "Terms of Service | Privacy Policy",
    "Page 3 of 12",
    "- Seite 4 -",
    "Fielding, et al.            Standards Track                    [Page 12]",
    "第 12 页",
)
TEXT = (
    "Cookies are baked for twelve minutes.",
    "We use cookies here as an example of state kept by a client, which is what the rest of this chapter will be about; the details "
    "are in the appendix, where every header is listed together with the version that brought it.",
    "Using cookies",
    "# All rights reserved.",
    "The film's credits say that all rights are reserved for its authors.",
    "Share your results with the rest of the class.",
    "Home is where the heart is.",
    "Home | sweet home",
    "Skip to the next chapter if you know all this.",
    "The next page shows the result.",
    "as was shown on page 12",
    "see [Page 12]",
    "Privacy",
    "Anzeige",
    "Accept",
    "| a | b | c |",
    "* Share",
    "日本語の文章です。",
)


@pytest.mark.parametrize("line", BOILERPLATE)
def test_lines_around_a_text_go(line: str) -> None:
    texts = pa.array([f"Before.\n  {line}\t\nAfter.", line, f"Before.\r\n\u2009{line.upper()}\xa0\r\nAfter."], pa.large_string())
    cleaned, changed = Cleaner(("boilerplate",))(texts)
    assert cleaned.to_pylist() == ["Before.\nAfter.", "", "Before.\r\nAfter."]
    assert changed == {"boilerplate": 3}


@pytest.mark.parametrize("line", TEXT)
def test_lines_of_a_text_stay(line: str) -> None:
    texts = pa.array([f"Before.\n{line}\nAfter.", line], pa.large_string())
    assert Cleaner(("boilerplate",))(texts)[0] == texts


def test_the_header_below_page_numbers_goes_if_it_is_repeated() -> None:
    pages = [f"Text of page {number}.\n\nSmith          Memo          [Page {number}]\n\nMemo on Things\n" for number in range(4)]
    text = "\n".join(pages)
    left = remove_boilerplate(text)
    assert [line for line in left.split("\n") if line] == [f"Text of page {number}." for number in range(4)]
    assert remove_boilerplate(left) == left
    twice = "\n".join(pages[:2])
    assert remove_boilerplate(twice).count("Memo on Things") == 2


def test_blank_lines_left_behind_are_tidied_if_asked() -> None:
    texts = pa.array(["One.\n\n\nAdvertisement\n\n\nTwo.\n\nBack to top\n"], pa.large_string())
    assert Cleaner(("boilerplate", "whitespace"))(texts)[0].to_pylist() == ["One.\n\n\nTwo."]


def test_no_line_takes_long_to_judge() -> None:
    numbers = random.Random(0)
    heads = [
        "home",
        "home >",
        "©",
        "© 2020",
        "copyright ",
        "by using ",
        "we use cookies",
        "terms of use",
        "share",
        "«",
        "page 1",
        "subscribe to our",
    ]
    lines = [(head + "".join(numbers.choices("|·>  ,-.&co", k=200)))[:199] + "!" for head in heads for _ in range(20)]
    lines += [
        (head + filler * 100)[:199] + "!" for head in heads for filler in (" ", "|", " | ", " , ", " & ", ">", ". ", "  a", "cookies ")
    ]
    assert len(remove_boilerplate("\n".join(lines)).split("\n")) >= len(lines) / 2
