"""What a provider is said to take for a model is what it takes, and no more."""

import json
from decimal import Decimal

import pytest

from tests.devnet.conftest import MODEL
from zg_async import ConfigError, DatasetError
from zg_async.devnet.provider_rules import Refused
from zg_async.devnet.provider_rules import check_params as provider_takes
from zg_async.managers.dataset import check_dataset
from zg_async.wire.rows import check_training_params, decimal_text

ROWS = {
    "instruction": {"instruction": "Say one.", "input": "", "output": "one"},
    "messages": {"messages": [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "one"}]},
    "text": {"text": "one"},
}


def written(values):
    return "{" + ", ".join(f'"{name}": {decimal_text(value)}' for name, value in values.items()) + "}"


def both_take(text):
    try:
        check_training_params(text)
        ours = True
    except ConfigError:
        ours = False
    try:
        provider_takes(text)
        theirs = True
    except Refused:
        theirs = False
    assert ours == theirs, text
    return ours


@pytest.mark.goal("DIS-04")
async def test_parameters_formats_and_size_are_told_for_a_model_at_a_provider_and_hold_there(
    devnet, broker, provider, tmp_path
):
    other = devnet.providers[1]["address"]
    devnet.control("settings", provider=0, models=[{"name": "house-model", "hash": "0x" + "ab" * 32}])
    devnet.control("settings", provider=1, price_per_token=3 * 10**12)
    try:
        limits = await broker.fine_tuning.model_limits(provider, MODEL)
        own = await broker.fine_tuning.model_limits(provider, "house-model")
        dear = await broker.fine_tuning.model_limits(other, MODEL)
        with pytest.raises(ConfigError, match="unknown model"):
            await broker.fine_tuning.model_limits(other, "house-model")
    finally:
        devnet.control("settings", provider=0, models=[])
        devnet.control("settings", provider=1, price_per_token=10**12)
    assert (limits.provider, limits.model.name, own.model.provider) == (provider, MODEL, provider)
    assert (limits.price_per_token, dear.price_per_token) == (10**12, 3 * 10**12)

    middle = {p.name: p.minimum if p.maximum is None else p.maximum for p in limits.parameters}
    middle["max_steps"] = Decimal(7)
    assert both_take(written(middle))
    for limit in limits.parameters:
        step = Decimal(1) if limit.is_whole else Decimal("0.0000001")
        inside = [limit.minimum, limit.maximum or Decimal(10**6)]
        outside = [limit.minimum - step, *([] if limit.maximum is None else [limit.maximum + step]), *limit.excluded]
        assert [both_take(written({**middle, limit.name: value})) for value in inside] == [True, True]
        assert not any(both_take(written({**middle, limit.name: value})) for value in outside)
        assert not both_take(written({name: value for name, value in middle.items() if name != limit.name}))
        if limit.is_whole:
            assert not both_take(written({**middle, limit.name: limit.minimum + Decimal("0.5")}))
    assert not both_take(written({**middle, "lora_r": Decimal(8)}))

    for format_ in limits.storage_formats:
        path = tmp_path / f"{format_}.jsonl"
        path.write_text("".join(json.dumps(ROWS[format_]) + "\n" for _ in range(3)))
        report = await check_dataset(path, tee=format_ in limits.dataset_formats)
        assert (report.is_ok, report.format) == (True, format_)
        if format_ in limits.dataset_formats:
            await broker.fine_tuning.upload_dataset_to_tee(provider, path)
        else:
            with pytest.raises(DatasetError, match="0G Storage"):
                await broker.fine_tuning.upload_dataset_to_tee(provider, path)
    assert set(limits.storage_formats) == set(ROWS)
    settings = devnet.control("settings", provider=0)["settings"][0]
    assert limits.max_dataset_bytes == settings["maximum_dataset_bytes"]
