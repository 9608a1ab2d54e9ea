"""Looks for secrets in whatever comes out of a run: eight spellings of each, in every kind of sink.

A `Canary` holds secrets and finds them in text or bytes. `Sinks` collects what a run puts out: logs of every library,
what it prints, shows, raises, writes, names, starts and sends.
"""

import asyncio
import base64
import contextlib
import dataclasses
import datetime as dt
import enum
import inspect
import io
import logging
import os
import pathlib
import re
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp

SPELLINGS = ("raw", "hex", "0x", "upper", "base64", "decimal", "reversed", "split")
_JUNK = re.compile(rb"[^0-9a-z]+")
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|udc([0-9a-f]{2})|([nrt\\'\"]))")


def spell(secret: bytes) -> dict[str, list[bytes]]:
    """Write a secret in each of the spellings, as a program would print it."""
    half = len(secret) // 2
    digits = secret.hex()
    return {
        "raw": [secret, repr(secret).encode(), repr(list(secret)).encode()],
        "hex": [digits.encode()],
        "0x": [b"0x" + digits.encode()],
        "upper": [digits.upper().encode(), b"0X" + digits.upper().encode()],
        "base64": [base64.b64encode(secret), base64.urlsafe_b64encode(secret), base64.b64encode(b"a" + secret)],
        "decimal": [str(int.from_bytes(secret, "big")).encode()],
        "reversed": [secret[::-1], secret[::-1].hex().encode(), digits[::-1].encode()],
        "split": [secret[:half], secret[half:], digits[:half].encode() + b"\n", secret.hex(" ", 4).encode()],
    }


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1] or match[2]
    return bytes([int(code, 16)]) if code else {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(match[3], match[3])


class Canary:
    """Secrets by name, and where they show."""

    def __init__(self, **secrets: bytes) -> None:
        self._needles: dict[bytes, tuple[str, str]] = {}
        self._squeezed: dict[bytes, tuple[str, str]] = {}
        for name, secret in secrets.items():
            self.add(name, secret)

    def add(self, name: str, secret: bytes) -> None:
        """Watch one more secret of at least 16 bytes."""
        if len(secret) < 16:
            raise ValueError("too short to be told from chance")
        third = base64.b64encode(b"\0" + secret)[4:-4], base64.b64encode(b"\0\0" + secret)[4:-4]
        safe = bytes.maketrans(b"+/", b"-_")
        for way, texts in spell(secret).items():
            for text in texts:
                self._needles.setdefault(text, (name, way))
        for text in (base64.b64encode(secret)[:-4], *third):
            self._needles.setdefault(text, (name, "base64"))
            self._needles.setdefault(text.translate(safe), (name, "base64"))
        digits, half = secret.hex().encode(), len(secret) // 2 * 2
        for way, text in (
            ("split", digits[:half]),
            ("split", digits[half:]),
            ("reversed", digits[::-1][:half]),
            ("reversed", secret[::-1].hex().encode()[:half]),
            ("decimal", str(int.from_bytes(secret, "big")).encode()),
            ("raw", "".join(map(str, secret)).encode()),
        ):
            self._squeezed.setdefault(text, (name, way))

    def find(self, data: str | bytes) -> list[tuple[str, str]]:
        """Return secret and spelling of what is found, also inside `repr`; digits through any separators."""
        raw = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
        plain = _ESCAPE.sub(_unescape, raw)
        found = set[tuple[str, str]]()
        for view in {raw, plain, _ESCAPE.sub(_unescape, plain)}:
            found |= {what for needle, what in self._needles.items() if needle in view}
            squeezed = _JUNK.sub(b"", view.lower().replace(b"0x", b""))
            found |= {what for needle, what in self._squeezed.items() if needle in squeezed}
        return sorted(found)

    def quick(self, text: str) -> bool:
        """Whether a text holds a secret in one of the common spellings; cheap."""
        raw = text.encode("utf-8", "surrogateescape")
        return any(needle in raw for needle in self._needles)


class LogSink(logging.Handler):
    """Every record of every library, formatted with arguments and exception, as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = io.StringIO()
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.text.write(self.format(record) + f" {record.args!r}\n")


_processes: list[str] = []
_watches: list["SuiteWatch"] = []
_audited = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.spawn"):
        _processes.append(repr(arguments))
        for watch in _watches:
            watch.child(event, arguments)


def _install_audit() -> None:
    """Listen to what processes are started; there is no way to stop that again."""
    global _audited
    if not _audited:
        sys.addaudithook(_audit)
        _audited = True


def _started_by_package() -> bool:
    """Whether a frame of the package is among the callers: tests may hand keys to the programs they start."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if f"{os.sep}zg_async{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def shown_locals(error: BaseException, *, beyond: tuple[str, ...] = ()) -> str:
    """Write a traceback as tools do that show locals; frames of the files named in `beyond` are left out."""
    parts, seen = [], set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        todo += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
        parts += [repr(one), str(one), *getattr(one, "__notes__", ()), repr(vars(one))]
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if not frame.f_code.co_filename.endswith(beyond or ("\0",)):
                parts.append(f"{frame.f_code.co_qualname}: {_locals(frame)}")
    return "\n".join(parts)


def _locals(frame: types.FrameType) -> str:
    shown = []
    for name, value in frame.f_locals.items():
        with contextlib.suppress(Exception):
            shown.append(f"{name}={value!r}")
    return ", ".join(shown)


class Sinks:
    """Where a secret could come out of a run. Enter it around the run, then `leaks(canary)`."""

    def __init__(self, *folders: pathlib.Path) -> None:
        self.folders = folders
        self.logs = LogSink()
        self.shown = io.StringIO()
        self.errors = io.StringIO()
        self.tracebacks = io.StringIO()
        self.requests: list[tuple[str, str]] = []
        """URL, and headers with body."""
        self.warned: list[warnings.WarningMessage] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.printed: Callable[[], bytes] = lambda: b""
        """Set it to what reads the captured standard output and error."""
        self.allowed: Callable[[str, str], bool] = lambda url, secret: False
        """Whether the server of a URL may be told a secret."""
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Sinks":
        _install_audit()
        _processes.clear()
        self._stack.enter_context(self._logging())
        self.warned = self._stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        self._stack.enter_context(self._requesting())
        self._stack.enter_context(self._tasking())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        root, names = logging.getLogger(), list(logging.Logger.manager.loggerDict)
        levels = {log: log.level for log in (root, *map(logging.getLogger, names))}
        for log in levels:
            log.setLevel(logging.DEBUG)
        root.addHandler(self.logs)
        try:
            yield
        finally:
            root.removeHandler(self.logs)
            for log, level in levels.items():
                log.setLevel(level)

    @contextlib.contextmanager
    def _requesting(self) -> Iterator[None]:
        send = aiohttp.ClientRequest.__init__

        def recorded(request: Any, method: str, url: Any, *arguments: Any, **options: Any) -> None:
            body = options.get("data")
            body = getattr(body, "_value", body)
            body = body.decode("utf-8", "surrogateescape") if isinstance(body, bytes) else repr(body)
            self.requests.append((str(url), f"{options.get('headers')!r} {body}"))
            send(request, method, url, *arguments, **options)

        aiohttp.ClientRequest.__init__ = recorded  # type: ignore[method-assign]
        try:
            yield
        finally:
            aiohttp.ClientRequest.__init__ = send  # type: ignore[method-assign]

    @contextlib.contextmanager
    def _tasking(self) -> Iterator[None]:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            yield
            return
        debug, factory = loop.get_debug(), loop.get_task_factory()

        def make(loop: Any, work: Any, **options: Any) -> asyncio.Task[Any]:
            task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **options)
            self.tasks.append(task)
            return task

        loop.set_debug(True)
        loop.set_task_factory(make)
        try:
            yield
        finally:
            loop.set_debug(debug)
            loop.set_task_factory(factory)

    def show(self, *values: object) -> None:
        """Take in values as users show them: repr, str, format, notebook, and each public attribute."""
        for value in values:
            self._show(value, 3)

    def _show(self, value: object, depth: int) -> None:
        self.shown.write(f"{value!r} {value!s} {value:}\n" if not isinstance(value, bytes) else f"{value!r}\n")
        for method in ("_repr_html_", "_repr_pretty_", "_repr_mimebundle_", "__rich_repr__", "__rich__"):
            if (render := getattr(value, method, None)) is not None and not inspect.signature(render).parameters:
                self.shown.write(f"{render()!r}\n")
        if depth and not isinstance(value, _PLAIN):
            for name in dir(value):
                if not name.startswith("_") and f"{type(value).__name__}.{name}" not in _SECRETS:
                    with contextlib.suppress(Exception):
                        part = inspect.getattr_static(value, name)
                        part = getattr(value, name) if not isinstance(part, types.FunctionType) else None
                        if part is not None:
                            self._show(part, depth - 1)

    def caught(self, error: BaseException, *, beyond: tuple[str, ...] = ("tests/canary.py",)) -> None:
        """Take in an error as it is printed, and as tools print it that show locals."""
        self.errors.write("".join(traceback.format_exception(error)))
        self.errors.write(f"{error!r} {error!s} {error:}\n")
        for value in vars(error).values():
            self._show(value, 1)
        self.tracebacks.write(shown_locals(error, beyond=beyond) + "\n")

    def contents(self) -> Mapping[str, str | bytes]:
        """Return what came out, by sink."""
        files = {f"file {p.name}": p.read_bytes() for f in self.folders for p in f.rglob("*") if p.is_file()}
        names = "\n".join(str(p) for f in self.folders for p in f.rglob("*"))
        return {
            "logs": self.logs.text.getvalue(),
            "printed": self.printed(),
            "shown objects": self.shown.getvalue(),
            "errors": self.errors.getvalue(),
            "tracebacks with locals": self.tracebacks.getvalue(),
            "warnings": "\n".join(f"{w.message!r} {w.source!r}" for w in self.warned),
            "task names": "\n".join(repr(t) for t in self.tasks),
            "child processes": "\n".join(_processes),
            "own command line": " ".join(sys.argv),
            "environment": "\n".join(f"{k}={v}" for k, v in os.environ.items()),
            "file names": names,
            "URLs": "\n".join(url for url, _ in self.requests),
            **files,
        }

    def leaks(self, canary: Canary) -> list[tuple[str, str, str]]:
        """Return sink, secret and spelling of everything that came out and shouldn't have."""
        found = [(sink, *what) for sink, text in self.contents().items() for what in canary.find(text)]
        for url, sent in self.requests:
            found += [(f"request to {url}", s, w) for s, w in canary.find(sent) if not self.allowed(url, s)]
        return sorted(set(found))


_SECRETS = frozenset({"SessionToken.raw_token", "SessionToken.headers"})
"""Attributes whose only purpose is to hand out a secret; `repr` leaves them out."""
_PLAIN = (str, bytes, int, float, bool, type(None), dt.datetime, enum.Enum, pathlib.Path, type, types.ModuleType)


def public_fields(value: object) -> dict[str, object]:
    """Return a record's fields."""
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}  # type: ignore[arg-type]


class SuiteWatch(logging.Handler):
    """Looks for the keys and tokens of a whole test run wherever that is cheap.

    In every log record, in arguments and environment of each child that the package starts, and at the end in each
    journal, outbox and audit log that a test has left.
    """

    _STORES = re.compile(r"\.(sqlite|head|audit)|audit.*\.jsonl|completion\.json|config\.json")
    _LOOKS_SECRET = re.compile(r"[0-9a-fA-F]{64}|app-sk-[A-Za-z0-9+/=_-]{8,}")

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.secrets: set[str] = set()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.getMessage()} {record.args!r}"
        if record.exc_info and record.exc_info[1]:
            text += "".join(traceback.format_exception(record.exc_info[1]))
        if self.holds(text):
            self.found.append(f"{record.name}: {record.msg!r}")

    def child(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Look at a child that is being started."""
        if _started_by_package():
            given = arguments[-1] if event != "os.system" else None
            environment = dict(os.environ if given is None else given)
            environment.pop("ZG_OWNER_KEY", None)  # is meant for it: `devnet up --attach` takes the owner's key so
            if self.holds(f"{arguments[:-1]!r} {environment!r}"):
                self.found.append(f"child process: {arguments[0]!r}")

    def holds(self, text: str) -> bool:
        """Whether a text holds a key or token that is known."""
        return any(match.lower() in self.secrets for match in self._LOOKS_SECRET.findall(text))

    def in_files(self, folder: pathlib.Path) -> list[str]:
        """Return the journals, outboxes and audit logs below a folder that hold a key or token."""
        found = []
        for path in folder.rglob("*"):
            ours = self._STORES.search(path.name) and path.parent.name != ".0g-compute-cli"  # the peers' is as it is
            if ours and path.is_file() and self.holds(path.read_bytes().decode("latin-1")):
                found.append(str(path))
        return found

    def know(self, secret: str | bytes | bytearray) -> None:
        """Watch for one more secret."""
        self.secrets.add(secret.lower() if isinstance(secret, str) else bytes(secret).hex())

    @contextlib.contextmanager
    def installed(self) -> Iterator["SuiteWatch"]:
        """Listen, and learn of each key that becomes a signer and of each token."""
        from zg_async.transport.signer import LocalSigner
        from zg_async.wire import signing

        make, encode = LocalSigner.__init__, signing.encode_session_token

        def made(signer: Any, key: bytearray, **options: Any) -> None:
            secret = bytes(key)
            make(signer, key, **options)
            if len(set(secret)) > 4:  # what repeats is nobody's secret, and other tests' data, hashes and salts
                self.know(secret)

        def encoded(raw: str, signature: bytes) -> str:
            token = encode(raw, signature)
            self.know(token)
            return token

        _install_audit()
        _watches.append(self)
        library = logging.getLogger("zg_async")
        level = library.level
        logging.getLogger().addHandler(self)
        library.setLevel(logging.DEBUG)
        LocalSigner.__init__, signing.encode_session_token = made, encoded  # type: ignore[method-assign]
        try:
            yield self
        finally:
            _watches.remove(self)
            LocalSigner.__init__, signing.encode_session_token = make, encode  # type: ignore[method-assign]
            library.setLevel(level)
            logging.getLogger().removeHandler(self)
