"""Tokens by the provider's rule, with small tokenizers trained here: the models' own can't be had offline."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from zg_async import ConfigError, DatasetError
from zg_async.managers import tokens as tokens_module
from zg_async.managers.tokens import count_tokens

TEXTS = ["Say hello to the world", "hello there", "Ünïcödé 漢字 🙂", "42", "True", "the quick brown fox"] * 20
INSTRUCTION = [
    {"instruction": "Say hello", "input": "", "output": "hello there"},
    {"instruction": "Translate", "input": "Ünïcödé 漢字 🙂", "output": "the quick brown fox", "id": "not counted"},
    {"instruction": "Only this one"},
    {"instruction": 42, "input": True, "output": ["the world", {"key": "hello", "n": 1.5}, None]},
]
MESSAGES = [
    {
        "messages": [
            {"role": "system", "content": "never counted"},
            {"role": "user", "content": "an earlier turn"},
            {"role": "assistant", "content": "an earlier answer"},
            {"role": "user", "content": "Say hello"},
            {"role": "assistant", "content": "hello there"},
        ]
    },
    {"messages": [{"role": "user", "content": "the quick brown fox"}]},
]
TEXT = [{"text": "Say hello to the world"}, {"text": "Ünïcödé 漢字 🙂"}]
COUNTED = {
    "instruction": [
        *("Say hello", "", "hello there"),
        *("Translate", "Ünïcödé 漢字 🙂", "the quick brown fox"),
        *("Only this one", "", ""),
        *("42", "True", "the world", "hello", "1.5"),
    ],
    "messages": ["Say hello", "", "hello there", "the quick brown fox", "", ""],
    "text": ["", "", "", "", "", ""],
    "text by its hash": ["Say hello to the world", "Ünïcödé 漢字 🙂"],
}
"""What the rule encodes, value by value, written down by hand."""


def byte_level():
    """As Qwen's: NFC, byte-level BPE, no special tokens."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    return made


def with_specials():
    """As BERT's: a token at each end, also of an empty text."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    ids = [(name, made.token_to_id(name)) for name in special[1:]]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    made.enable_truncation(4)  # a file may say so; the provider counts whole texts
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.goal("DAT-04", part="golden set, exact with a tokenizer, honest range without")
@pytest.mark.parametrize("make", [byte_level, with_specials])
@pytest.mark.parametrize(
    ("name", "rows", "tee"),
    [
        ("instruction", INSTRUCTION, True),
        ("messages", MESSAGES, True),
        ("text", TEXT, True),
        ("text by its hash", TEXT, False),
    ],
)
async def test_a_count_follows_the_providers_rule_and_lies_in_the_range(tmp_path, make, name, rows, tee):
    tokenizer = make()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer.no_truncation()
    dataset = write(tmp_path / "train.jsonl", rows)
    count = await count_tokens(dataset, tokenizer=tmp_path / "tokenizer.json", tee=tee)
    expected = sum(len(tokenizer.encode(text)) for text in COUNTED[name])
    assert (count.low, count.high, count.likely, count.rows) == (expected, expected, expected, len(rows))
    assert count.is_exact
    assert count.method == "tokenizer"
    bounds = await count_tokens(dataset, tee=tee)
    assert bounds.low <= expected <= bounds.high
    assert bounds.low <= bounds.likely <= bounds.high
    assert bounds.method == "bytes"
    assert bounds.high > 0
    assert bounds.low > 0 or name == "text"


async def test_a_byte_level_tokenizer_without_merges_is_the_upper_end_without_special_tokens(tmp_path):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([], trainers.BpeTrainer(vocab_size=256, initial_alphabet=alphabet, show_progress=False))
    made.save(str(tmp_path / "tokenizer.json"))
    dataset = write(tmp_path / "train.jsonl", [{"instruction": "漢字", "input": "", "output": "ab"}])
    assert (await count_tokens(dataset, tokenizer=tmp_path / "tokenizer.json")).high == 8
    assert (await count_tokens(dataset)).high == 8 + 3 * tokens_module.SPECIAL_TOKENS


async def test_files_that_are_no_tokenizer_or_dataset_are_named(tmp_path):
    dataset = write(tmp_path / "train.jsonl", INSTRUCTION)
    with pytest.raises(ConfigError, match="no tokenizer file"):
        await count_tokens(dataset, tokenizer=tmp_path / "none.json")
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        await count_tokens(dataset, tokenizer=dataset)
    with pytest.raises(ConfigError, match="can't read the dataset"):
        await count_tokens(tmp_path / "none.jsonl")
    dataset.write_text("[1]\n")
    with pytest.raises(DatasetError, match="line 1"):
        await count_tokens(dataset)


async def test_without_the_extra_a_tokenizer_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(ConfigError) as caught:
        await count_tokens(write(tmp_path / "train.jsonl", TEXT), tokenizer=tmp_path / "t.json")
    assert "zg-async[tokens]" in caught.value.hint


@pytest.mark.parametrize(
    "line", [b"[" * 200_000, b'{"text": "a", "text": "b"}', b'{"text": NaN}', b'{"text": "' + b"x" * 2**21]
)
async def test_a_row_that_is_no_strict_json_is_named(tmp_path, line):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DatasetError, match="line 2"):
        await count_tokens(path)
