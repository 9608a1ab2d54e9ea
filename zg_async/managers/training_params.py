"""Training parameters as users give them: a file, JSON text or a mapping."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from zg_async.errors import ConfigError
from zg_async.transport.files import SourceFile, shown
from zg_async.wire.rows import check_training_params


class RawParams(str):
    """JSON text that goes to the provider as it is, unchecked: for a provider with other rules than today's."""

    __slots__ = ()


TrainingParamsSource = str | os.PathLike[str] | Mapping[str, object]
_LIMIT: Final = 64 * 1024


def read_training_params(source: TrainingParamsSource) -> str:
    """Read and check training parameters. Blocks.

    Args:
        source: A file's path, a mapping of the five parameters, or JSON text (it starts with `{`).

    Returns:
        JSON text as the provider takes it: a file's or text's own spelling is kept, a mapping is written without
        exponents, `RawParams` are not touched.

    Raises:
        TrainingParamsError: A parameter is missing, unknown or out of range.
        ConfigError: The file can't be read.
    """
    if isinstance(source, RawParams):
        return str(source)
    if isinstance(source, Mapping):
        return check_training_params(source).to_json()
    text = source if isinstance(source, str) and source.lstrip().startswith("{") else _read(Path(source).expanduser())
    check_training_params(text)
    return text


def _read(path: Path) -> str:
    file = SourceFile(path)
    try:
        if file.size > _LIMIT:
            raise ConfigError(
                f"{shown(path)} has {file.size:,} bytes: that's no file of training parameters",
                hint="Give a JSON file with the five parameters",
            )
        return file.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)} is not UTF-8", hint="Save it in that encoding") from error
    finally:
        file.close()
