"""Personal data: e-mail addresses, IP addresses and telephone numbers become ones that belong to nobody.

The one idea: a mask is a well-formed address or number that is reserved for examples, as FineWeb masks e-mail addresses (Penedo et
al. 2024, arXiv:2406.17557), so the text stays natural. What is found is found by its form alone; a number that could as well be a
date, a version, an ISBN or a decimal stays. The suspects are patterns for RE2 that find at least as much as the steps do.
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
_VERSION_PART = 32
"""The first two parts of a version are below."""
_LEAST_BARE_DIGITS = 10
"""Of an international number without any space or dash."""
_LEAST_ASIAN_DIGITS = 10
"""Fewer in the same form are dates: 01-02-2003."""
_LONGEST_LOCAL_PART = 64  # RFC 5321

EMAIL_SUSPECT = "[^ \t\n]@[^ \t\n@]+[.][^ \t\n]"
ADDRESS_SUSPECT = r"\d\.\d{1,3}\.\d{1,3}\.\d|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]*:"
PHONE_SUSPECT = (
    rf"(?i)(?:{_CUE}[.]?{_SPACE}?{_COLON}?{_SPACE}{{0,2}}[+(]?|[+]{_SPACE}?\(?)\p{{Nd}}(?:{_BETWEEN}?\p{{Nd}}){{6}}"
    r"|\p{Nd}{3}(?:[-.]|\) ?)\p{Nd}{3}[-. ]\p{Nd}{4}|[01]\p{Nd}{1,3}-\p{Nd}{2,4}-\p{Nd}{4}"
)


def mask_emails(text: str) -> str:
    """Every e-mail address, also international ones; not `name@2x.png`, nor what has no top-level domain."""
    # From the @ outwards: a pattern that begins with the name would be tried at every word.
    parts, end = [], 0
    for domain in _domain().finditer(text):
        at = domain.start()
        name = _reversed_name().match(text[max(end, at - _LONGEST_LOCAL_PART) : at][::-1])
        if name:
            parts += [text[end : at - name.end()], EMAIL_MASK]
            end = domain.end()
    return "".join([*parts, text[end:]])


def mask_addresses(text: str) -> str:
    """Every IP address that is public: private, loopback and documentation addresses point at nobody."""
    return _address().sub(_masked_address, text)


def mask_phones(text: str) -> str:
    """Telephone numbers in international form, in the forms of North America and East Asia, or behind a word such as `Tel.`."""
    return _phone().sub(_masked_phone, text)


@functools.cache
def _domain() -> re.Pattern[str]:
    labels = rf"(?:(?:{_WORD}|-){{1,63}}\.){{1,10}}"
    top = rf"(?:xn--[a-z0-9-]{{2,59}}|(?:(?![\d_]){_WORD}){{2,24}})(?!{_WORD})"
    return re.compile(rf"@(?!\d+x\.){labels}{top}")


@functools.cache
def _reversed_name() -> re.Pattern[str]:
    return re.compile(rf"(?:{_WORD}|[.+%'-])*{_WORD}")


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
    is_version = max(address.packed[:2]) < _VERSION_PART
    return IPV4_MASK if address.is_global and not is_version else text


@functools.cache
def _phone() -> re.Pattern[str]:
    before = rf"(?<!{_WORD})(?<![.,;/+@#$€£%=-])(?<!\d{_SPACE})"
    after = rf"(?!{_WORD}|{_BETWEEN}?\d|[,:]\d|[@%€$£])"
    # Without a colon only what begins like a number that is dialled.
    cue = rf"(?P<cue>(?<!\w){_CUE}[.]?{_SPACE}?(?:{_COLON}{_SPACE}{{0,2}}|(?=[0(+]|8{_SPACE}?\()))"
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
