"""Logging: records know what they belong to; what looks like a secret, or isn't text, is gone before a handler sees it.

Standard `logging`, loggers below `zg_async`; the library prints nothing and configures nothing. Each record has the
attributes `job_id`, `task_id`, `provider` and `request_id`, empty when unknown, for formats such as
`%(levelname)s %(job_id)s %(message)s`; `JsonLogFormatter` writes them as fields.

Secrets aren't handed to loggers in the first place. The filter is the second line: session tokens, signatures,
authorization headers, and users and passwords in URLs have a form; a private key has none of its own (64 hex digits are
also every hash), so nothing ever logs one.
"""

import datetime as dt
import json
import logging
import re
from typing import Any, Final

from zg_async.correlation import FIELDS, correlation
from zg_async.text import printable, printable_lines

_HIDDEN: Final = "<hidden>"
_LONGEST: Final = 16_000
"""Characters of a message, or of a traceback's line."""
_SECRETS: Final = (
    (re.compile(r"app-sk-[A-Za-z0-9+/=_-]{8,}"), f"app-sk-{_HIDDEN}"),
    (
        re.compile(r"(?i)\b(authorization\b['\"]?\s*[:=]\s*)(?:b?['\"])?(?:(?:bearer|basic)\s+)?[^\s'\",}]+"),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=_.~-]{16,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(://)[^\s/@'\"]+@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"(?i)(?<![0-9a-f])(?:0x)?[0-9a-f]{130}(?![0-9a-f])"), f"0x{_HIDDEN}"),
)


def redacted(text: str) -> str:
    """Return a text without what has the form of a secret."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class _Stamp(logging.Filter):
    """Stamps and cleans every record of the loggers it stands in front of."""

    _formatter = logging.Formatter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record through, stamped and clean."""
        known = correlation()
        for name in FIELDS:
            if not hasattr(record, name):
                setattr(record, name, printable(known.get(name, "")))
        text = record.getMessage()
        if (clean := printable(redacted(text), limit=_LONGEST)) != text:
            record.msg, record.args = clean, None
        if record.exc_info and not record.exc_text:
            trace = redacted(self._formatter.formatException(record.exc_info))
            record.exc_text = printable_lines(trace, limit=_LONGEST)
        return True


_STAMP: Final = _Stamp()


def get_logger(name: str) -> logging.Logger:
    """Return a logger of this package, by its full name, with the filter in front of it."""
    logger = logging.getLogger(name)
    logger.addFilter(_STAMP)
    return logger


class JsonLogFormatter(logging.Formatter):
    """Writes each record as one JSON object: `time`, `level`, `logger`, `message`, what it belongs to, `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, ""))}
        if record.exc_info:
            line["exception"] = record.exc_text or redacted(self.formatException(record.exc_info))
        return json.dumps(line)
