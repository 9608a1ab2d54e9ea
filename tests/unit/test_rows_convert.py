"""Rows in another shape."""

import json

import pytest

from zg_async.cli.main import run
from zg_async.errors import ConfigError
from zg_async.wire.rows import MAX_LINE
from zg_async.wire.rows_convert import BadRowError, RowConverter, RowShape, convert_row

PLAIN = {"instruction": "Name a colour.", "input": "", "output": "Green."}
FULL = {"instruction": "Translate.", "input": "rouge", "output": "red"}
CHAT = {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Green."}]}
PROMPT = {"prompt": "Name a colour.", "completion": "Green."}
TEXT = {"text": "### Instruction:\nName a colour.\n\n### Response:\nGreen."}
SAME = {RowShape.INSTRUCTION: PLAIN, RowShape.MESSAGES: CHAT, RowShape.PROMPT: PROMPT, RowShape.TEXT: TEXT}


@pytest.mark.goal("DAT-03")
@pytest.mark.parametrize("to", RowShape)
@pytest.mark.parametrize("shape", RowShape)
def test_each_shape_becomes_each_other_and_back(shape, to):
    converted = convert_row(SAME[shape], to)
    assert (converted.row, converted.shape, converted.loss) == (SAME[to], shape, "")
    assert convert_row(converted.row, shape).row == SAME[shape]


def test_an_input_stays_apart_in_the_trainers_layout_only():
    text = convert_row(FULL, RowShape.TEXT)
    assert text.row == {"text": "### Instruction:\nTranslate.\n\n### Input:\nrouge\n\n### Response:\nred"}
    assert (text.loss, convert_row(text.row, RowShape.INSTRUCTION).row) == ("", FULL)
    prompt = convert_row(FULL, RowShape.PROMPT)
    assert prompt.row == {"prompt": "Translate.\n\nrouge", "completion": "red"}
    assert "input begins" in prompt.loss


def test_any_other_text_is_an_output_without_instruction():
    converted = convert_row({"text": "Once upon a time"}, RowShape.INSTRUCTION)
    assert converted.row == {"instruction": "", "input": "", "output": "Once upon a time"}
    assert (converted.loss, convert_row(converted.row, RowShape.TEXT).row) == ("", {"text": "Once upon a time"})


def chat(*turns):
    return {"messages": [{"role": role, "content": role} for role in turns]}


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (chat("system", "user", "assistant"), "only the last"),
        (chat("user", "assistant", "user", "assistant"), "only the last"),
        (chat("assistant", "user"), "only the last"),
        ({"messages": [{**m, "name": "x"} for m in CHAT["messages"]]}, "besides role and content"),
        ({**PLAIN, "source": "web"}, "source would be dropped"),
        ({**PLAIN, "input": "x"}, "input begins"),
    ],
)
def test_what_would_get_lost_is_told(row, told):
    assert told in convert_row(row, RowShape.PROMPT).loss


def test_an_instruction_that_looks_like_the_layout_is_lossy_as_text():
    row = {"instruction": "a\n\n### Response:\nb", "input": "", "output": "c"}
    assert "layout" in convert_row(row, RowShape.TEXT).loss


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"question": "a"},
        {"instruction": 5},
        {"prompt": ["a"]},
        {"text": {}},
        {"messages": None},
        {"messages": []},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": ["user"], "content": "a"}]},
        {"messages": [1]},
    ],
)
@pytest.mark.parametrize("to", RowShape)
def test_rows_without_a_known_shape_are_refused(row, to):
    with pytest.raises(BadRowError):
        convert_row(row, to)


def test_pieces_of_any_size_give_the_same_rows():
    data = b"\n".join(json.dumps(row).encode() for row in (PLAIN, CHAT, TEXT)) + b"\r\n\n" + json.dumps(PROMPT).encode()
    for size in (1, 7, 1000):
        converter = RowConverter(RowShape.INSTRUCTION)
        out = b"".join(converter.feed(data[at : at + size]) for at in range(0, len(data), size))
        rest, report = converter.finish()
        assert [json.loads(line) for line in (out + rest).splitlines()] == [PLAIN] * 4
        assert (report.rows, report.bad_rows, report.lossy_rows, len(report.shapes)) == (4, 0, 0, 4)


def test_bad_lines_are_named_by_their_numbers():
    converter = RowConverter(RowShape.TEXT)
    converter.feed(b'\n{"text": "a"}\n[1]\n{"text": "\xff"}\n{"text": "' + b"a" * MAX_LINE + b'"}\n')
    _, report = converter.finish()
    assert [note.row for note in report.bad] == [3, 4, 5]
    assert (report.rows, report.bad_rows) == (4, 3)


def test_a_renamed_key_that_no_row_has_is_an_error():
    converter = RowConverter(RowShape.TEXT, rename={"body": "text"})
    converter.feed(b'{"text": "a"}\n')
    with pytest.raises(ConfigError, match="body"):
        converter.finish()


# --- the command


def convert(tmp_path, rows, *words):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run(["dataset", "convert", str(source), str(tmp_path / "out.jsonl"), *words])


def written(tmp_path):
    return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_questions_and_answers_become_instructions_by_their_new_names(tmp_path, capsys):
    rows = [{"question": "How many?", "answer": "Two\n#### 2"}] * 3
    words = ["--map", "question=instruction", "--map", "answer=output", "--json"]
    assert convert(tmp_path, rows, "--to", "instruction", *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["shapes"], report["to"]) == (3, {"instruction": 3}, "instruction")
    assert written(tmp_path) == [{"instruction": "How many?", "output": "Two\n#### 2"}] * 3


def test_lossy_rows_are_named_and_refused_unless_agreed_to(tmp_path, capsys):
    rows = [PLAIN, FULL, PLAIN, FULL]
    assert convert(tmp_path, rows, "--to", "messages") != 0
    told = capsys.readouterr().err
    assert "row 2" in told
    assert "row 4" in told
    assert "--lossy" in told
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert convert(tmp_path, rows, "--to", "messages", "--lossy") == 0
    assert "row 2" in capsys.readouterr().out
    assert len(written(tmp_path)) == 4
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_there_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "out.jsonl").write_text("precious")
    assert convert(tmp_path, [PLAIN], "--to", "text") == 8
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "precious"


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [PLAIN, [1]]])
def test_files_that_cant_be_converted_leave_nothing(tmp_path, rows, capsys):
    assert convert(tmp_path, rows, "--to", "text", "--lossy") != 0
    assert "in.jsonl" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_mapping_without_two_keys_is_a_usage_error(tmp_path, capsys):
    assert convert(tmp_path, [PLAIN], "--to", "text", "--map", "question") == 2
    assert "--map answer=output" in capsys.readouterr().err


def test_a_folder_that_isnt_there_is_an_error(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text(json.dumps(PLAIN))
    words = ["dataset", "convert", str(tmp_path / "in.jsonl"), str(tmp_path / "no" / "out"), "--to", "text"]
    assert run(words) == 8
    assert "can't write" in capsys.readouterr().err
