"""Boilerplate: whole lines that belong to the page around a text, not to the text.

The one idea: a short list of patterns, each of which must fit a whole line of at most 200 characters, so that a sentence that
mentions cookies stays. The same list, as one expression, first tells RE2 which documents to look at (about 600 MB per CPU second).
It is meant for web pages; what sets lines apart there and is rare in prose was collected from the page furniture of common
content management systems, in the languages most frequent on the web.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

_MAXIMUM_LINE_CHARACTERS = 200
_RUNNING_HEADER_PAGES = 3

_RIGHTS = (
    "all rights reserved|alle rechte vorbehalten|tous droits réservés|todos los derechos reservados|todos os direitos reservados"
    "|tutti i diritti(?: sono)? riservati|alle rechten voorbehouden|wszelkie prawa zastrzeżone|все права защищены"
    "|tüm haklar\u0131 sakl\u0131d\u0131r"
    "|版权所有|版權所有|保留所有权利|著作権所有|無断転載(?:を禁じます|禁止)|모든 권리 보유|جميع الحقوق محفوظة"
)
_DASH = "[-\u2013\u2014]"
_BACKWARD, _FORWARD = "[<\xab\u2039\u2190]", "[>\xbb\u203a\u2192]"
_NETWORKS = "(?:facebook|twitter|x|whatsapp|linkedin|reddit|pinterest|telegram|instagram|tumblr|e-?mail|vk|вконтакте|line|weibo)"
_SITE = (
    r"(?:(?:this|our) (?:web)?-?(?:site|page)|we|(?:diese|unsere) (?:web)?-?(?:site|seite)|wir|ce site(?: web)?|nous"
    r"|(?:este|nuestro) sitio(?: web)?|este site|(?:questo|il nostro) sito(?: web)?|deze (?:web)?site|wij)"
)
_USES = (
    "(?:uses?|may use|verwende[nt]|benutz(?:t|en)|setz(?:t|en)|nutz(?:t|en)|utilis(?:e|ons)|utiliza(?:mos)?|usa(?:mos)?|utilizziamo"
    "|gebruik(?:t|en)?)"
)
_LEGAL = (
    "(?:terms (?:of (?:use|service)|(?:and|&) conditions)|privacy(?: policy| notice)?|datenschutz(?:erklärung)?|impressum|mentions légales)"
)

_PATTERNS = (
    # Cookie notices and the buttons below them.
    rf"(?:{_SITE} {_USES}|utilizamos|usamos|utilizziamo|usiamo) (?:des |las |les |i )?cookies?\b.*",
    r"(?:by|when you) (?:continu|us|brows|visit)ing\b.*\bcookies?\b.*",
    r"(?:accept|allow|reject|decline|manage|customi[sz]e)(?: all)? cookies?(?: settings| preferences)?|(?:accept|reject|decline) all",
    r"cookie[ -](?:policy|settings|preferences|notice|consent|richtlinie|einstellungen)",
    r"(?:alle )?cookies (?:akzeptieren|ablehnen|accepteren|weigeren)|(?:tout )?accepter les cookies|aceptar (?:todas las )?cookies",
    r"ta strona (?:używa|korzysta z|wykorzystuje)(?: plik[ió]w?)? cookie.*|(?:этот|наш|данный) сайт использует (?:файлы )?cookie.*",
    r"本(?:网站|網站|サイト).*cookie.*|当サイトでは.*(?:cookie|クッキー).*",
    # Notices of rights: the formula alone, or with a copyright sign or word before or behind it.
    rf"(?:{_RIGHTS})[\s.!]*",
    rf"(?:©|\(c\)|copyright|&copy;).*(?:{_RIGHTS})[\s.!]*",
    rf"(?:{_RIGHTS})[\s.,-]*(?:©|\(c\)|copyright).*",
    rf"©[\s]*(?:19|20)[0-9][0-9](?:[\s]*{_DASH}[\s]*(?:19|20)[0-9][0-9])?[\s,]*[^.!?]{{0,60}}",
    # Share buttons.
    rf"(?:click to )?(?:share|tweet|pin|post|like us|follow us|find us|join us)(?: this)?(?: article| post| page| story)?"
    rf" (?:on|via|to|with|by) {_NETWORKS}(?: \(opens in new window\))?",
    r"share this(?: article| post| page| story| entry)?[\s]*:?|tweet this|pin it",
    rf"(?:auf|bei|über|per) {_NETWORKS} teilen|partager (?:sur|par) {_NETWORKS}|compartir (?:en|por) {_NETWORKS}",
    rf"condividi su {_NETWORKS}|(?:compartilhar|partilhar) (?:no|na|em|via|por) {_NETWORKS}",
    rf"поделиться (?:в|на) {_NETWORKS}|分享到.{{0,20}}",
    # Navigation.
    r"(?:skip|jump) to (?:main )?(?:content|navigation|search|footer)|(?:back|return|go|scroll) to (?:the )?top(?: of (?:the )?page)?",
    r"toggle (?:navigation|menu|search|sidebar)|navigation menu",
    r"zum (?:haupt)?inhalt(?: springen)?|zum seitenanfang|nach oben|aller au contenu(?: principal)?|haut de (?:la )?page",
    r"(?:ir|saltar) al contenido(?: principal)?|volver arriba|vai al contenuto|torna su|(?:ir|pular) para o conteúdo|voltar ao topo",
    r"(?:ga|spring) naar (?:de )?inhoud|przejdź do treści|перейти к (?:основному )?содерж(?:имому|анию)|наверх",
    r"跳(?:到|至|转到|轉到)(?:主要)?(?:内容|內容)|コンテンツへスキップ|返回顶部|回到頂部|ページの?トップへ(?:戻る)?",
    rf"home[\s]*{_FORWARD}.{{1,120}}|home[\s]*(?:[|·•][^|·•]{{1,40}}){{2,}}",
    rf"{_BACKWARD}*[\s]*(?:previous|older|next|newer) (?:posts?|articles?|page|entries)[\s]*{_FORWARD}*",
    rf"(?:continue reading|read more|read the full (?:story|article))(?:[\s]|[.…]|{_FORWARD})*",
    # What asks for something else than reading.
    r"(?:subscribe|sign up)(?: (?:now|here|today))? (?:to|for) (?:our|the)(?: free)?(?: [^\s]+)? newsletter.*",
    r"(?:please )?enable javascript\b.*|javascript (?:is|must be|seems to be|needs to be) (?:currently )?(?:disabled|enabled|required)\b.*",
    r"(?:log|sign) in(?: (?:or|/|\|) (?:sign up|register|create (?:an )?account))|advertisement|sponsored (?:content|links)",
    rf"{_LEGAL}(?:[\s]*[|·•&][\s]*(?:{_LEGAL}|cookie policy|contact(?: us)?|imprint))+",
)
_PAGE_NUMBERS = (
    r"(?:.*[\s][\s])?\[page [0-9]{1,5}\]",
    rf"{_DASH}?[\s]*(?:page|seite|página|pagina|strona|стр[.]|страница) [0-9]{{1,5}}"
    rf"(?:[\s]*(?:of|/|von|sur|de|di|van|z|из)[\s]*[0-9]{{1,5}})?[\s]*{_DASH}?",
    "第[\\s]*[0-9]{1,5}[\\s]*[页頁](?:[\\s]*[/,\uff0c共]{1,2}[\\s]*[0-9]{1,5}[\\s]*[页頁])?",
)

SUSPECT = rf"(?im)^[\s]*(?:{'|'.join(_PATTERNS + _PAGE_NUMBERS)})[\s]*$".replace(r"\s", r"\s\v\x1c-\x1f\x85\p{Z}")
"""For RE2, whose `\\s` is ASCII only: texts in which it finds nothing keep all of their lines."""


def remove_boilerplate(text: str) -> str:
    """The text without such lines, without page numbers that stand alone, and without the header that is repeated below them."""
    lines = text.split("\n")
    stripped = [line.strip() for line in lines]
    page_ends = [place for place, line in enumerate(stripped) if _fits(_page_number(), line)]
    gone = {*page_ends, *_running_headers(stripped, page_ends)}
    gone.update(place for place, line in enumerate(stripped) if _fits(_boilerplate(), line))
    return "\n".join([line for place, line in enumerate(lines) if place not in gone]) if gone else text


def _running_headers(lines: list[str], page_ends: list[int]) -> list[int]:
    """Places of the first line of a page, where at least three pages begin with the same one."""
    last = -1
    first_lines = []
    for end in page_ends:
        place = next((place for place in range(end + 1, len(lines)) if lines[place]), last)
        if place not in {last, *page_ends}:
            first_lines.append(place)
    repeated = Counter(lines[place] for place in first_lines)
    return [place for place in first_lines if repeated[lines[place]] >= _RUNNING_HEADER_PAGES]


def _fits(pattern: re.Pattern[str], line: str) -> bool:
    return 0 < len(line) <= _MAXIMUM_LINE_CHARACTERS and pattern.fullmatch(line) is not None


@functools.cache
def _boilerplate() -> re.Pattern[str]:
    return re.compile("|".join(_PATTERNS), re.IGNORECASE)


@functools.cache
def _page_number() -> re.Pattern[str]:
    return re.compile("|".join(_PAGE_NUMBERS), re.IGNORECASE)
