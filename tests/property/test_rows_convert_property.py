"""Converting and converting back gives the row again, or the loss was told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zg_async.wire.rows_convert import RowShape, convert_row

settings.register_profile("no_clock", deadline=None)
settings.load_profile("no_clock")
WORDS = st.lists(
    st.sampled_from(["### Instruction:\n", "\n\n### Input:\n", "\n\n### Response:\n", "\n", "a", "é ", ""]), max_size=5
)
TEXT = st.text(max_size=8) | WORDS.map("".join)
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": TEXT})
CHAT = st.tuples(TEXT, TEXT).map(
    lambda pair: [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
)
ROWS = {
    RowShape.INSTRUCTION: st.fixed_dictionaries({"instruction": TEXT, "input": TEXT, "output": TEXT}),
    RowShape.PROMPT: st.fixed_dictionaries({"prompt": TEXT, "completion": TEXT}),
    RowShape.TEXT: st.fixed_dictionaries({"text": TEXT}),
    RowShape.MESSAGES: st.fixed_dictionaries({"messages": CHAT}),
}
ANY = st.one_of(*ROWS.values())


@pytest.mark.goal("DAT-03")
@given(ANY, st.sampled_from(RowShape))
def test_a_lossless_row_comes_back_as_it_was(row, to):
    converted = convert_row(row, to)
    if not converted.loss:
        assert convert_row(converted.row, converted.shape).row == row


@given(ANY, st.sampled_from(RowShape))
def test_the_new_row_has_the_shape_asked_for(row, to):
    again = convert_row(convert_row(row, to).row, to)
    assert (again.shape, again.loss) == (to, "")


@pytest.mark.goal("DAT-03")
@given(st.sampled_from([RowShape.PROMPT, RowShape.MESSAGES]).flatmap(ROWS.get), st.sampled_from(RowShape))
def test_questions_and_answers_lose_nothing_except_among_the_layouts_own_headings(row, to):
    converted = convert_row(row, to)
    assert not converted.loss or (to is RowShape.TEXT and "###" in str(row))


@given(st.fixed_dictionaries({"messages": st.lists(MESSAGE, min_size=1, max_size=4)}))
def test_messages_that_arent_one_question_and_its_answer_are_lossy(row):
    roles = [message["role"] for message in row["messages"]]
    if {"user", "assistant"} & set(roles):
        assert bool(convert_row(row, RowShape.PROMPT).loss) == (roles != ["user", "assistant"])
