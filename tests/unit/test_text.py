"""Outside text is shown so that it can't do anything."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zg_async.text import hidden, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, Übergröße, 東京, 👍", "plain text, Übergröße, 東京, 👍"),
        ("a\nb\r\tc", r"a\x0ab\x0d\x09c"),
        ("\x1b[2J\x1b[31mred", r"\x1b[2J\x1b[31mred"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        (
            "\x1b]8;;http://evil\x1b\\click\x1b]8;;\x1b\\",
            r"\x1b]8;;http://evil\x1b" + "\\" + r"click\x1b]8;;\x1b" + "\\",
        ),
        ("\x9b31m", r"\x9b31m"),
        ("\x9d0;t\x9c", r"\x9d0;t\x9c"),
        ("\x00\x7f\x08", r"\x00\x7f\x08"),
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),
        ("\u2066x\u2069\u200b\u200d\ufeff", r"\u2066x\u2069\u200b\u200d\ufeff"),
        ("a\u2028b\u2029c", r"a\u2028b\u2029c"),
        ("\ud800", r"\ud800"),
        ("\U000e0041\U000f0000", r"\U000e0041\U000f0000"),
    ],
)
def test_what_moves_hides_or_reverses_becomes_visible(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(), max_size=300))
def test_no_control_or_format_character_gets_through(text):
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    shown.encode()  # no lone surrogates either


def test_long_text_is_cut_and_says_so():
    assert printable("x" * 201) == "x" * 200 + "…"
    assert printable("x" * 200) == "x" * 200
    assert printable("abcdef", limit=3) == "abc…"


def test_a_flood_of_control_characters_stays_bounded():
    assert len(printable("\U000f0000" * 10**6)) <= 200 * 10 + 1


@pytest.mark.goal("SEC-03", part="what shows itself")
@pytest.mark.parametrize("secret", ["app-sk-abc", b"\x01\x02", bytearray(b"\x01")])
def test_a_hidden_secret_is_the_same_value_but_no_repr_tells_it(secret):
    kept = hidden(secret)
    assert kept == secret
    assert hash(kept) == hash(bytes(secret) if isinstance(secret, bytearray) else secret)
    assert repr({"a": [kept]}) == "{'a': [<hidden>]}"


def test_what_is_no_text_is_left_alone_and_hidden_text_travels_as_json():
    assert hidden(5) == 5
    assert json.dumps({"signature": hidden("0xab")}) == '{"signature": "0xab"}'
