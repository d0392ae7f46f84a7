from __future__ import annotations

import ipaddress
import random

import pyarrow as pa
import pytest

from fledge.corpus.filters.cleaning import Cleaner
from fledge.corpus.filters.personal_data import EMAIL_MASK, IPV4_MASK, IPV6_MASK, PHONE_MASK
from fledge.corpus.filters.settings import CleaningStep


def masked(text: str, step: CleaningStep) -> str:
    texts = pa.array([f"Before, {text}", text], pa.large_string())
    cleaned, changed = Cleaner((step,))(texts)
    assert cleaned[0].as_py() == f"Before, {cleaned[1].as_py()}"
    assert changed[step] == 2 * (cleaned != texts)
    return str(cleaned[1].as_py())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("foo@bar.com", "{}"),
        ("Write to first.last+tag@sub.example.co.uk.", "Write to {}."),
        ("<a_b-c@x.de>, 'd@x.de'", "<{}>, '{}'"),
        ("mailto:o'brien@x.ie?subject=hello", "mailto:{}?subject=hello"),
        ("почта: иван@пример.рф,", "почта: {},"),
        ("user@münchen.de a@xn--mnchen-3ya.xn--p1ai", "{} {}"),
        ("请发送至foo@bar.com联系我们", "请发送至{}联系我们"),
        ("foo@bar.com으로 보내", "{}으로 보내"),
        ("a@b.com,c@d.org;e@f.net", "{},{};{}"),
        ("x@y@b.com", "x@{}"),
        ("1234567@qq.com", "{}"),
        ("王@例子.中国", "{}"),
        ("请联系foo@例子.中国。", "请联系{}。"),
        ("请联系王小明@例子.公司查询", "请联{}查询"),
        ("写信\uff1a王小明@example.com, 多谢", "写信\uff1a{}, 多谢"),
        ("info@例子.com联系我们.cn", "{}联系我们.cn"),
        ("田中@メール.みんなへ", "{}へ"),
        ("अजय@डाटा.भारत", "{}"),
        ("δοκιμή@παράδειγμα.ελ", "{}"),
    ],
)
def test_email_addresses_are_masked(text: str, expected: str) -> None:
    assert masked(text, "email") == expected.replace("{}", EMAIL_MASK)


@pytest.mark.parametrize(
    "text",
    [
        "icon@2x.png",
        "@decorator.name",
        "lodash@4.17.21",
        "user@localhost",
        "a@b",
        "@",
        "a @ b.com",
        "@here.now",
        "x@.com",
        "r@2.5",
        "关注我们的消息@weibo.com",
        "小明@老师。com",
        "小明@老师.中x",
    ],
)  # fmt: skip
def test_what_is_no_email_address_stays(text: str) -> None:
    assert masked(text, "email") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("208.67.222.222", "192.0.2.1"),
        ("IP:93.184.216.34:80/path", "IP:192.0.2.1:80/path"),
        ("from 93.184.216.34.", "from 192.0.2.1."),
        ("地址93.184.216.34。", "地址192.0.2.1。"),
        ("::ffff:93.184.216.34", "::ffff:192.0.2.1"),
        ("2001:4860:4860::8888", "2001:db8::1"),
        ("IP: 8.8.8.8", "IP: 192.0.2.1"),
        ("ping 1.1.1.1", "ping 192.0.2.1"),
        ("IP address 8.8.4.4,", "IP address 192.0.2.1,"),
        ("host=5.9.7.3", "host=192.0.2.1"),
        ("Failed password from 5.9.7.3 port 22", "Failed password from 192.0.2.1 port 22"),
        ("服务器地址5.9.7.3。", "服务器地址192.0.2.1。"),
        ("服务器地址\uff1a5.9.7.3", "服务器地址\uff1a192.0.2.1"),
        ("[2a00:1450:4001:81B:0:0:0:200E]:443", "[2001:db8::1]:443"),
    ],
)
def test_public_ip_addresses_are_masked(text: str, expected: str) -> None:
    assert masked(text, "ip") == expected


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "192.168.1.44", "10.200.200.1", "192.0.2.77", "255.255.255.0", "0.0.0.0", "2001:db8::5", "fe80::1", "::1",
        "V8 5.0.71.57", "8.8.8.8", "ping 10.0.0.1", "chip 5.9.7.3", "from 5.0.71.57 to 5.0.72.1", "upgrade Chrome from 5.0.71.57",
        "IP cores version 5.0.71.57", "from 1.2.3.4 -> 1.2.3.5",
        "2.5.29.32", "1.3.6.1.4.1.311", "section 1.2.3.4", "v93.184.216.34", "999.93.184.216", "093.184.216.34",
        "12:30:45", "std::vector", "ab::cd", "2024:10:05", "2001:4860:4860::8888::1", "dead:beef:cafe:1:2:3:4:5",
    ],
)  # fmt: skip
def test_what_points_at_nobody_stays(text: str) -> None:
    assert masked(text, "ip") == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Call +49 30 901820 now", "Call {} now"),
        ("+1 (212) 555-0123", "{}"),
        ("+33 1 23 45 67 89.", "{}."),
        ("(+44 (0)20 7946 0958)", "({})"),
        ("WhatsApp:+4915112345678", "WhatsApp:{}"),
        ("+49\xa030\u2011901820", "{}"),
        ("(212) 555-0199 or 212-555-0199 or 212.555.0199", "{} or {} or {}"),
        ("1-800-555-1234", "{}"),
        ("Tel.: 030/1234567", "Tel.: {}"),
        ("Tel 030 1234567, Fax: 12 34 56 78", "Tel {}, Fax: {}"),
        ("Tél. : 01 23 45 67 89", "Tél. : {}"),
        ("Mobile number: 555 1234567", "Mobile number: {}"),
        ("тел. 8 (495) 123-45-67", "тел. {}"),
        ("電話:03-1234-5678まで", "電話:{}まで"),
        ("手机\uff1a138-1234-5678", "手机\uff1a{}"),
        ("电话 13812345678", "电话 {}"),
        ("我的电话13812345678。", "我的电话{}。"),
        ("我的手机: 138 1234 5678", "我的手机: {}"),
        ("phone 2125550199", "phone {}"),
        ("mobile 8613812345678 works", "mobile {} works"),
        ("هاتف: ٠٢١٢٣٤٥٦٧", "هاتف: {}"),
        ("02-1234-5678로 전화", "{}로 전화"),
    ],
)
def test_telephone_numbers_are_masked(text: str, expected: str) -> None:
    assert masked(text, "phone") == expected.replace("{}", PHONE_MASK)


@pytest.mark.parametrize(
    "text",
    [
        "1999 2000 2001 2002", "2019-10-05 12:33", "01-02-2003", "01.02.2003 15 Uhr", "Mobile: 2019/2020", "Tel: 05.10.2019", "10:30-12:45",
        "ISBN 978-3-16-148410-0", "ISBN 0-306-40615-2", "20190101123456", "12345678901234567890", "123-45-6789", "1 234 567 890",
        "version 1.2.3.4", "+1.23456789", "x = +12345678", "+20231012 x", "+10.5", "$212-555-0123", "3.14159265358979", "010 020 030 040",
        "iPhone 12 2000 2001", "(1) 2 3 4 5 6 7 8 9 10", "@@ -123,456 +7891,2345 @@", "550e8400-e29b-41d4-a716-446655440000", "telegram 1",
        "100.212-555-0199", "a212-555-0199", "phone 123456789", "phone 20190101123456",
        "microphone 2125550199", "订单 13812345678", "电话 13812345678.5元", "212-555-01999", "+49 30 1234567890123456",
    ],
)  # fmt: skip
def test_other_numbers_stay(text: str) -> None:
    assert masked(text, "phone") == text


def test_a_mask_belongs_to_nobody_and_is_not_masked_again() -> None:
    assert not ipaddress.ip_address(IPV4_MASK).is_global
    assert not ipaddress.ip_address(IPV6_MASK).is_global
    text = f"Tel.: {PHONE_MASK}, {EMAIL_MASK}, {IPV4_MASK}, {IPV6_MASK}"
    assert [masked(text, step) for step in ("email", "ip", "phone")] == [text] * 3


def test_the_share_of_public_addresses_that_is_taken_for_versions() -> None:
    numbers = random.Random(0)
    drawn = (ipaddress.IPv4Address(numbers.getrandbits(32)) for _ in range(6_000))
    public = [str(address) for address in drawn if address.is_global and not address.is_multicast]
    _, changed = Cleaner(("ip",))(pa.array(public, pa.large_string()))
    assert 1 - changed["ip"] / len(public) == pytest.approx(0.017, abs=0.004)
