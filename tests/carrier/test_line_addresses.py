"""L6: which peer addresses can name a line at all, and the map against a naive model (L5, X-03b)."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carrier.lines.addresses import AddressRefused, Prefix, parse_peer
from carrier.lines.domain import (
    FOREVER_S,
    GatewayRow,
    Line,
    LineMap,
    PrefixRow,
    Refusal,
    RefusalCode,
    authenticate,
)
from carrier.lines.tables import MAP_AGE_S_MAX, AccessType, Region
from wire.errors import FormatError
from wire.ids import CustomerId

LINES = [
    Line(number, CustomerId.parse(f"CAF{number:010d}"), Region.EAST, AccessType.HIKARI_NEXT)
    for number in range(1, 4)
]


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.1",
        "::ffff:192.0.2.1",
        "::ffff:c000:201",
        "0:0:0:0:0:ffff:c000:0201",
        "::ffff:0:192.0.2.1",
        "64:ff9b::192.0.2.1",
        "64:ff9b:1::1",
        "2002:c000:201::1",
        "2001:0:1::1",
        "fe80::1",
        "fe80::1%eth0",
        "2001:db8:1:100::1%eth0",
        "ff02::1",
        "2001:db8:1:100::1/64",
        "[2001:db8:1:100::1]",
        "2001:db8:1:100::1 ",
        "2001:db8:1:100::1\0",
        "2001:db8:1:100::g",
        "",
        "localhost",
        "２００１:db8::1",
    ],
)
def test_L6_form_that_names_no_line_is_refused(text):
    assert isinstance(parse_peer(text), AddressRefused)


def test_L6_only_the_prefix_counts_not_the_interface_id():
    keys = {
        parse_peer(text) for text in ("2001:db8:1:100::1", "2001:DB8:1:100:ffff::", "2001:db8:1:100:1:2:3:4")
    }
    assert keys == {0x2001_0DB8_0001_0100}


@given(st.text(max_size=60))
def test_L6_any_text_is_answered_and_never_raises(text):
    answer = parse_peer(text)
    if not isinstance(answer, AddressRefused):
        assert answer == int(ipaddress.IPv6Address(text)) >> 64


@pytest.mark.parametrize(
    "text",
    [
        "2001:db8::/31",
        "2001:db8::/65",
        "2001:db8::1/64",
        "2002:c000::/48",
        "64:ff9b:1::/48",
        "fe80::/64",
        "::ffff:0:0/96",
        "192.0.2.0/24",
        "2001:db8:zz::/48",
        "",
    ],
)
def test_prefix_that_can_belong_to_no_line_is_refused(text):
    with pytest.raises(FormatError):
        Prefix.parse(text)


@pytest.mark.parametrize("text", ["2001:db8:1:100::/56", "2001:db8:1:1ff::/64", "2001:db8::/32"])
def test_prefix_reads_back_as_written(text):
    assert Prefix.parse(text).text == text


PREFIXES = st.builds(
    lambda low, length: Prefix((0x2001_0DB8_0000_0000 | low) & ~((1 << (64 - length)) - 1), length),
    st.integers(0, 2**18 - 1),
    st.sampled_from([46, 48, 56, 64]),
)
ROWS = st.builds(
    lambda prefix, line, start, life: PrefixRow(prefix, line, start, start + life),
    PREFIXES,
    st.sampled_from([1, 2, 3]),
    st.integers(0, 50),
    st.integers(0, 50),
)


@given(st.lists(ROWS, max_size=25), st.integers(0, 2**18 - 1), st.integers(0, 110))
def test_L5_map_finds_the_longest_valid_prefix_like_the_naive_model(rows, low, now_s):
    """Even when rows overlap (the registry forbids it), the longest match decides."""
    key = 0x2001_0DB8_0000_0000 | low
    holding = [
        row
        for row in rows
        if row.prefix.key <= key <= row.prefix.last and row.valid_from <= now_s < row.valid_to
    ]
    longest = max((row.prefix.length for row in holding), default=None)
    expected = {row.line_id for row in holding if row.prefix.length == longest}
    found = LineMap.build(1, LINES, rows, ()).find(key, now_s)
    assert (found is None) == (not expected)
    assert found is None or found.line_id in expected


def line_map(**times):
    row = PrefixRow(Prefix.parse("2001:db8:1:100::/56"), 1, **{"valid_from": 100, **times})
    return LineMap.build(1, LINES, [row], [GatewayRow(b"g" * 32, 1, 100, 200)])


@pytest.mark.parametrize(
    ("peer", "now_s", "age_s", "code"),
    [
        ("2001:db8:1:1ff::5", 100, 0, None),
        ("2001:db8:1:1ff::5", 10**9, MAP_AGE_S_MAX, None),
        ("2001:db8:1:200::5", 100, 0, RefusalCode.LINE_UNKNOWN),
        ("2001:db8:1:ff::5", 100, 0, RefusalCode.LINE_UNKNOWN),
        ("2001:db8:1:100::5", 99.9, 0, RefusalCode.LINE_UNKNOWN),
        ("::ffff:192.0.2.1", 100, 0, RefusalCode.ADDRESS_FORM),
        ("2001:db8:1:100::5", 100, MAP_AGE_S_MAX + 0.1, RefusalCode.MAP_STALE),
    ],
)
def test_authenticate_answers_each_case(peer, now_s, age_s, code):
    answer = authenticate(line_map(), peer, now_s=now_s, map_age_s=age_s)
    assert (answer.code if isinstance(answer, Refusal) else None) == code
    if code is None:
        assert answer == LINES[0]


def test_L3_end_of_validity_is_exclusive():
    ended = line_map(valid_to=200)
    assert ended.find(0x2001_0DB8_0001_0100, 199.999) == LINES[0]
    assert ended.find(0x2001_0DB8_0001_0100, 200) is None


@pytest.mark.parametrize(
    ("key", "line_id", "now_s", "expected"),
    [
        (b"g" * 32, 1, 100, True),
        (b"g" * 32, 2, 100, False),
        (b"x" * 32, 1, 100, False),
        (b"g" * 32, 1, 200, False),
        (b"g" * 32, 1, 99, False),
    ],
)
def test_gateway_counts_only_on_its_line_while_its_contract_runs(key, line_id, now_s, expected):
    assert line_map(valid_to=FOREVER_S).gateway_on_line(key, line_id, now_s) is expected
