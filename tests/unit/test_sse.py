"""Server-sent events and chat chunks."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zg_async.wire.sse import ChatAssembler, ChatChunk, ChatDelta, ChatStreamParser, SseParser, StreamError


def events(*pieces: bytes, **options) -> list[tuple[str, bytes]]:
    parser = SseParser(**options)
    found = [e for piece in pieces for e in parser.feed(piece)]
    return [(e.event, e.data) for e in [*found, *parser.finish()]]


def chunk(**choice) -> bytes:
    return b"data: " + json.dumps({"id": "c1", "model": "m", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def chunks(*pieces: bytes):
    parser = ChatStreamParser()
    found = [c for piece in pieces for c in parser.feed(piece)]
    return [*found, *parser.finish()], parser.done


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_any_line_end(end):
    text = end.join([b"data: a", b"data:b", b"", b": note", b"event: x", b"id: 7", b"retry: 1", b"data: c", b"", b""])
    assert events(text) == [("message", b"a\nb"), ("x", b"c")]


def test_a_byte_order_mark_and_unknown_fields_are_dropped():
    assert events(b"\xef\xbb\xbfdata: a\nfoo: b\nbar\n\n") == [("message", b"a")]


def test_an_event_without_data_is_none():
    assert events(b"event: ping\n\n\n\ndata\n\n") == [("message", b"")]


def test_the_last_blank_line_may_be_missing_but_not_the_end_of_a_line():
    assert events(b"data: a\n") == [("message", b"a")]
    assert events(b"data: a\n\ndata: b") == [("message", b"a")]
    assert events(b"data: [DONE]") == [("message", b"[DONE]")]


@given(
    st.lists(
        st.sampled_from([b"data: a", b"data:", b"data: \xc3\xa9", b": c", b"event: e", b"", b"", b"\r", b"\n", b"x"])
        | st.binary(max_size=12),
        max_size=30,
    ),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.data(),
)
def test_any_split_of_the_bytes_gives_the_same_events(lines, end, data):
    text = end.join(lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert events(*pieces) == events(text)
    assert events(*[text[i : i + 1] for i in range(len(text))]) == events(text)


def test_an_event_has_a_limit_also_without_any_line_end():
    for text in (b"x" * 200, b"data: " + b"x" * 200 + b"\n\n", b"data: " + b"x" * 60 + b"\ndata: " + b"x" * 60):
        with pytest.raises(StreamError, match="100 bytes"):
            events(*[text[i : i + 7] for i in range(0, len(text), 7)], event_limit=100)


def test_chunks_are_typed_and_end_with_the_mark():
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    found, done = chunks(
        chunk(delta={"role": "assistant", "content": ""}),
        b": keep-alive\n\nevent: message\n",
        chunk(delta={"content": "Hé"}),
        chunk(delta={"content": " du", "reasoning_content": "hm"}),
        chunk(delta={}, finish_reason="stop"),
        usage,
        b"data: [DONE]\n\n",
        chunk(delta={"content": "too late"}),
    )
    assert done
    assert "".join(d.content for c in found for d in c.deltas) == "Hé du"
    assert [c.usage and c.usage.prompt_tokens for c in found] == [None, None, None, None, 3]
    assembler = ChatAssembler()
    for one in found:
        assembler.add(one)
    answer = assembler.answer(response_key=None)
    assert (answer.content, answer.finish_reason, answer.id, answer.response_key) == ("Hé du", "stop", "c1", "c1")
    assert answer.raw["choices"][0]["message"]["reasoning_content"] == "hm"
    assert answer.raw["usage"]["total_tokens"] == 5


def test_a_stream_without_its_end_mark_is_not_done():
    found, done = chunks(chunk(delta={"content": "a"}), b'data: {"choices":[{"delta":{"con')
    assert (len(found), done) == (1, False)


def test_usage_of_zeros_is_none():
    found, _ = chunks(b'data: {"choices":[],"usage":{"prompt_tokens":0,"completion_tokens":0}}\n\n')
    assert found[0].usage is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"data: {\n\n", "can't be read"),
        (b"data: []\n\n", "no object"),
        (b"data: " + b"[" * 100 + b"\n\n", "nested"),
        (b'data: {"error":{"message":"out of \\u001b memory"}}\n\n', r"out of \\x1b memory"),
        (b'data: {"error":"gone"}\n\n', "gone"),
        (b'data: {"error":7}\n\n', "no reason"),
    ],
)
def test_what_cannot_be_read_is_one_error(text, match):
    with pytest.raises(StreamError, match=match):
        chunks(text)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda c: st.lists(c, max_size=3)), st.booleans())
def test_odd_chunks_never_raise_anything_else(value, inner):
    body = {"choices": [{"index": value, "delta": value, "finish_reason": value}], "usage": value}
    if inner:
        body["choices"][0]["delta"] = {"content": value, "tool_calls": value, "role": value}
    assembler = ChatAssembler()
    for one in chunks(b"data: " + json.dumps(body).encode() + b"\n\n")[0]:
        assembler.add(one)
    assembler.answer(response_key=None)


def test_several_answers_and_tool_calls_are_put_together():
    def piece(index, arguments, **more):
        return chunk(delta={"tool_calls": [{"index": index, "function": {"arguments": arguments}, **more}]})

    first = b'data: {"choices":[{"index":1,"delta":{"content":"other"}}]}\n\n'
    named = chunk(
        delta={"tool_calls": [{"index": 0, "id": "t1", "type": "function", "function": {"name": "f", "arguments": ""}}]}
    )
    assembler = ChatAssembler()
    for one in chunks(first, named, piece(0, '{"a"'), piece(0, ":1}"))[0]:
        assembler.add(one)
    raw = assembler.answer(response_key="k").raw
    assert [c["index"] for c in raw["choices"]] == [0, 1]
    assert raw["choices"][1]["message"]["content"] == "other"
    call = raw["choices"][0]["message"]["tool_calls"][0]
    assert (call["id"], call["function"]) == ("t1", {"name": "f", "arguments": '{"a":1}'})


def test_a_call_in_very_many_pieces_is_put_together_in_linear_time():
    piece = ChatDelta(tool_calls=({"index": 0, "function": {"name": "f", "arguments": "x" * 2000}},))
    assembler, started = ChatAssembler(), time.process_time()
    for _ in range(8000):
        assembler.add(ChatChunk(deltas=(piece,), usage=None, raw={}))
    call = assembler.answer(response_key=None).raw["choices"][0]["message"]["tool_calls"][0]
    assert len(call["function"]["arguments"]) == 16_000_000
    assert time.process_time() - started < 2
