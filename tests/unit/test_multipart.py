import pytest

from zg_async.transport.multipart import MultipartForm, plain_filename


def test_the_length_is_known_beforehand():
    form = MultipartForm({"signature": "0x1", "timestamp": "2"}, file_field="file", filename="a.jsonl", file_size=100)
    assert form.content_length == len(form.head) + 100 + len(form.tail)


def test_every_form_has_its_own_boundary():
    forms = [MultipartForm({}, file_field="file", filename="a.jsonl", file_size=0) for _ in range(2)]
    assert forms[0].content_type != forms[1].content_type


@pytest.mark.parametrize("name", ["", 'a".jsonl', "a\r\nb", "../x", "é"])
def test_a_name_that_would_break_its_header_is_refused(name):
    with pytest.raises(ValueError, match="plain"):
        MultipartForm({}, file_field="file", filename=name, file_size=0)


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("train.jsonl", "train.jsonl"),
        ("train.JSON", "train.JSON"),
        ("my data-1.jsonl", "my data-1.jsonl"),
        ("train.txt", "train.jsonl"),
        ("train", "train.jsonl"),
        ("трейн.json", "file.json"),
        ('a"b.jsonl', "file.jsonl"),
        (".jsonl", "file.jsonl"),
        ("..", "file.jsonl"),
        ("", "file.jsonl"),
        ("x" * 300, "file.jsonl"),
    ],
)
def test_a_file_goes_under_a_plain_name_with_an_accepted_ending(name, sent):
    assert plain_filename(name, extensions=(".jsonl", ".json")) == sent
