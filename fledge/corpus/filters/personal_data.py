"""Personal data: e-mail addresses, IP addresses and telephone numbers become ones that belong to nobody.

The one idea: a mask is a well-formed address or number that is reserved for examples, as FineWeb masks e-mail addresses (Penedo et
al. 2024, arXiv:2406.17557), so the text stays natural. What is found is found by its form alone; a number that could as well be a
date, a version, an ISBN or a decimal stays, unless a word before it says what it is. The suspects are patterns for RE2 that find at
least as much as the steps do.
"""

from __future__ import annotations

import functools
import ipaddress
import re

EMAIL_MASK = "email@example.com"  # RFC 2606
IPV4_MASK = "192.0.2.1"  # RFC 5737
IPV6_MASK = "2001:db8::1"  # RFC 3849
PHONE_MASK = "555-0100"  # reserved for fiction by the North American Numbering Plan

# Letters, digits and `_` of scripts that put spaces between words. In the others, and in Korean with its particles, an address
# follows a word without a space and must not swallow it.
_WORD = "[^\\W\u0e00-\u0fff\u1000-\u11ff\u1780-\u17ff\u3040-\u31ff\u3400-\u9fff\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef]"
_SPACE = "[ \xa0\u2000-\u200a\u202f\u205f]"
_COLON = "[:\uff1a]"
_DASH = "[-\u2010-\u2013\u2212]"
# Between digits: one space, point, slash or dash, or a bracket with one of them.
_BETWEEN = rf"(?:{_SPACE}?\(|\)(?:{_SPACE}|{_DASH}|/)?|{_SPACE}|{_DASH}|[./])"
_CUE = (
    "(?:tel(?:e?fon[eo]?|e?phone|é?fono|efoon|efonu?)?|t[ée]l(?:[ée]phone)?|(?:tele)?fax"
    "|(?:mobile|mobil|móvil|cell|phone|fon|handy)(?: (?:number|phone|no[.]?|nr[.]?))?|cellulare|celular|тел(?:ефон)?|моб|факс|τηλ"
    "|电话|電話|传真|傳真|手机|手機|携帯(?:電話)?|전화|팩스|휴대폰|هاتف|تلفن|फ़ोन|โทร)"
)
# Letters and digits of the others.
_UNSPACED = f"(?!{_WORD})\\w"
# With the vowel signs of India and of Arabic, which are none of \w.
_SPACED = f"(?:{_WORD}|[\u064b-\u065f\u0900-\u0963\u0966-\u0dff])"
# Top-level domains in scripts without spaces, from the IANA root zone: text may follow them at once.
_UNSPACED_TOP = (
    "(?:中国|中國|香港|台湾|台灣|澳門|新加坡|公司|网络|網絡|网站|网址|中文网|在线|集团|商城|商店|世界|信息|企业|机构|政务|公益|移动|手机|我爱你"
    "|みんな|コム|ストア|クラウド|한국|닷컴|닷넷|삼성|ไทย|คอม|ລາວ)"
)
_VERSION_PART = 32
"""The first two parts of a version are below."""
_CUE_CHARACTERS = 60
"""How far before an address is looked for a word that says what it is."""
_LEAST_BARE_DIGITS = 10
"""Of a number without any space or dash."""
_LEAST_ASIAN_DIGITS = 10
"""Fewer in the same form are dates: 01-02-2003."""
_LONGEST_LOCAL_PART = 64  # RFC 5321
_LONGEST_UNSPACED_NAME = 4
"""Of a name in a script without spaces; few people have a longer one in Chinese, Japanese or Korean."""

EMAIL_SUSPECT = "[^ \t\n]@[^ \t\n@]+[.][^ \t\n]"
ADDRESS_SUSPECT = r"\d\.\d{1,3}\.\d{1,3}\.\d|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]*:"
PHONE_SUSPECT = (
    rf"(?i)(?:{_CUE}[.]?{_SPACE}?{_COLON}?{_SPACE}{{0,2}}[+(]?|[+]{_SPACE}?\(?)\p{{Nd}}(?:{_BETWEEN}?\p{{Nd}}){{6}}"
    r"|\p{Nd}{3}(?:[-.]|\) ?)\p{Nd}{3}[-. ]\p{Nd}{4}|[01]\p{Nd}{1,3}-\p{Nd}{2,4}-\p{Nd}{4}"
)


def mask_emails(text: str) -> str:
    """Every e-mail address, also international ones (RFC 6530); not `name@2x.png`, nor what has no top-level domain.

    Where words run together nothing shows where the name before the @ begins: at most four characters are taken for it.
    """
    # From the @ outwards: a pattern that begins with the name would be tried at every word.
    parts, end = [], 0
    for domain in _domain().finditer(text):
        at = domain.start()
        name = _reversed_name(domain["unspaced"] is not None).match(text[max(end, at - _LONGEST_LOCAL_PART) : at][::-1])
        if name:
            parts += [text[end : at - name.end()], EMAIL_MASK]
            end = domain.end()
    return "".join([*parts, text[end:]])


def mask_addresses(text: str) -> str:
    """Every IP address that is public: private, loopback and documentation addresses point at nobody.

    What could be a version number, both first parts below 32 (8.8.8.8), is masked only behind a word such as `IP` or `ping`.
    """
    return _address().sub(_masked_address, text)


def mask_phones(text: str) -> str:
    """Telephone numbers in international form, in the forms of North America and East Asia, or behind a word such as `Tel.`."""
    return _phone().sub(_masked_phone, text)


@functools.cache
def _domain() -> re.Pattern[str]:
    # A label is of one sort of scripts, so that the words behind an address are not taken for more of it.
    labels = rf"(?:(?:(?:{_SPACED}|-){{1,63}}|(?:{_UNSPACED}){{1,63}})\.){{1,10}}"
    top = rf"(?:xn--[a-z0-9-]{{2,59}}|(?:(?![\d_]){_SPACED}){{2,24}})(?!{_SPACED})|(?P<unspaced>{_UNSPACED_TOP})"
    return re.compile(rf"@(?!\d+x\.){labels}(?:{top})")


@functools.cache
def _reversed_name(is_certain: bool) -> re.Pattern[str]:
    """`is_certain`: the domain alone shows an address, so a name without spaces need not stand alone."""
    border = "" if is_certain else r"(?!\w)"
    return re.compile(rf"(?:{_SPACED}|[.+%'-])*{_SPACED}|(?:{_UNSPACED}){{1,{_LONGEST_UNSPACED_NAME}}}{border}")


@functools.cache
def _address() -> re.Pattern[str]:
    version_4 = r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)"
    version_6 = r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,7}[0-9A-Fa-f]{0,4}(?![\w:])"
    return re.compile(f"{version_4}|{version_6}", re.ASCII)


def _masked_address(found: re.Match[str]) -> str:
    text = found[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv6Address):
        return IPV6_MASK if address.is_global else text
    # 5.0.71.57 is a version, 2.5.29.32 an object identifier. Of all public addresses 1.7 % look like that and stay.
    is_version = max(address.packed[:2]) < _VERSION_PART and not _is_called_address(found)
    return IPV4_MASK if address.is_global and not is_version else text


def _is_called_address(found: re.Match[str]) -> bool:
    """Whether a word directly before says so; `from` does, but not where one version follows another."""
    before = found.string[max(0, found.start() - _CUE_CHARACTERS) : found.start()]
    cue = _address_cue().search(before)
    if cue is None or cue["origin"] is None:
        return cue is not None
    return not (_upgrade().search(before) or _next_version().match(found.string, found.end()))


@functools.cache
def _address_cue() -> re.Pattern[str]:
    words = r"(?<!\w)(?:ip(?:v4)?|ping|addr(?:ess)?|adresse|direcci[óo]n|indirizzo|host|адрес|(?P<origin>from))|地址|アドレス|주소"
    return re.compile(rf"(?:{words})(?:\s|{_COLON}|[='\"`(\[]){{0,3}}\Z", re.IGNORECASE)


@functools.cache
def _upgrade() -> re.Pattern[str]:
    return re.compile(r"(?:updat|upgrad|downgrad|migrat|mov|bump|chang|version|releas)\w*\W+(?:\w+\W+){0,2}from\W+\Z", re.IGNORECASE)


@functools.cache
def _next_version() -> re.Pattern[str]:
    return re.compile(r"\s+(?:to|through|until|up)\b|\s*(?:->|\u2192)")


@functools.cache
def _phone() -> re.Pattern[str]:
    before = rf"(?<!{_WORD})(?<![.,;/+@#$€£%=-])(?<!\d{_SPACE})"
    after = rf"(?!{_WORD}|{_BETWEEN}?\d|[,:]\d|[@%€$£])"
    # Without a colon only what begins like a number that is dialled, or is as long as one and shorter than a date with time.
    cue = rf"(?P<cue>(?<!{_WORD}){_CUE}[.]?{_SPACE}?(?:{_COLON}{_SPACE}{{0,2}}|(?=[0(+]|8{_SPACE}?\(|\d{{{_LEAST_BARE_DIGITS},13}}(?!\d))))"
    behind_cue = rf"{cue}[+(]?\d(?:{_BETWEEN}?\d){{6,14}}"
    international = rf"(?P<international>\+{_SPACE}?\(?[1-9](?:{_BETWEEN}?\d){{7,14}})"
    north_american = rf"(?:\(?1\)?[-. ])?(?:\([2-9]\d\d\){_SPACE}?|[2-9]\d\d(?P<mark>[-.]))[2-9]\d\d(?(mark)(?P=mark)|[-. ])\d{{4}}"
    asian = r"(?P<asian>(?:0\d{1,3}-\d{2,4}|1[3-9]\d-\d{4})-\d{4})"
    return re.compile(rf"(?:{behind_cue}|{before}(?:{international}|{north_american}|{asian})){after}", re.IGNORECASE)


def _masked_phone(found: re.Match[str]) -> str:
    cue = found["cue"] or ""
    number = found[0].removeprefix(cue)
    digits = sum(character.isdecimal() for character in number)
    is_decimal = number.count(".") == 1 and len(number.removeprefix("+")) == digits + 1
    is_bare = found["international"] is not None and digits < _LEAST_BARE_DIGITS and number[1:].isdecimal()
    is_short = found["asian"] is not None and digits < _LEAST_ASIAN_DIGITS
    return found[0] if is_decimal or is_bare or is_short or _date().match(number) else cue + PHONE_MASK


@functools.cache
def _date() -> re.Pattern[str]:
    day = r"\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2}"
    return re.compile(rf"(?:{day})(?!\d|[./-]\d)|(?:19|20)\d\d(?:{_DASH}|/)(?:19|20)\d\d(?!\d)")
