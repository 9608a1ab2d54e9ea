import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zg_async.wire.strict_json import BadJsonError, decode_json

LIMIT = 1024 * 1024
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.slow
@given(VALUES)
def test_ordinary_json_comes_out_as_from_the_standard_library(value):
    text = json.dumps(value)
    assert decode_json(text, limit=LIMIT) == json.loads(text)
    assert decode_json(json.dumps(value, ensure_ascii=False).encode(), limit=LIMIT) == value


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_only_the_declared_error_is_raised(data):
    with contextlib.suppress(BadJsonError):
        decode_json(data, limit=150)


@pytest.mark.goal("HRD-10", part="refusals")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON at line 1"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'"\xff"', "not UTF-8"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"x":{"a":1,"\\u0061":2}}', "twice"),
        (b"NaN", "no JSON number"),
        (b"[-Infinity]", "no JSON number"),
        (b"1e999", "too large"),
        (str(2**256 + 1).encode(), "above"),
        (str(-(2**256) - 1).encode(), "above"),
        (b"9" * 5000, "above"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udc00":1}', "surrogate"),
        (b'["\\ud83d x"]', "surrogate"),
        ("\ud800", "surrogate"),
        (b"[1] 2", "not JSON"),
        (b'"a\nb"', "not JSON"),
    ],
)
def test_what_is_refused(text, reason):
    with pytest.raises(BadJsonError, match=reason):
        decode_json(text, limit=LIMIT)


def test_what_is_allowed_at_the_edges():
    assert decode_json(str(2**256), limit=LIMIT) == 2**256
    assert decode_json(b'"\\ud83d\\ude80"', limit=LIMIT) == "🚀"
    assert decode_json(b"[" * 64 + b"]" * 64, limit=LIMIT) is not None
    assert decode_json(json.dumps(["[" * 100]), limit=LIMIT) == ["[" * 100]
    assert decode_json(json.dumps(['\\"[{' * 100]), limit=LIMIT) == ['\\"[{' * 100]


def test_size_is_limited_in_bytes():
    assert decode_json("[0]", limit=3) == [0]
    with pytest.raises(BadJsonError, match="larger than 3"):
        decode_json('"é"', limit=3)


@pytest.mark.parametrize("data", [b"[" * 65 + b"]" * 65, b"[" * 500_000, b'{"a":' * 100_000, b'["x",' * 65])
def test_deep_nesting_is_refused_before_it_is_parsed(data):
    with pytest.raises(BadJsonError, match="deeper than 64"):
        decode_json(data, limit=LIMIT)


@pytest.mark.parametrize(
    "data",
    [b'"' + b'\\"' * 400_000 + b"[" * 200, b'"' * 500_001 + b"[" * 100, b"{" + b'"\\' * 400_000, b"-" * 900_000],
)
def test_hostile_text_is_refused_in_linear_time(data):
    started = time.process_time()
    with pytest.raises(BadJsonError):
        decode_json(data, limit=LIMIT)
    assert time.process_time() - started < 1.0
