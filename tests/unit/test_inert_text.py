"""Text from outside through each of the seven ways it can reach a person: it shows, and does nothing."""

import csv
import datetime as dt
import io
import json
import logging
import unicodedata

import pytest
from rich.console import Console

from tests.unit.test_showing import TAGS, Reader, service
from zg_async.cli.job_view import JobView, JsonLines
from zg_async.cli.main import _Ending
from zg_async.cli.opening import HERE
from zg_async.cli.output import emit, note, print_json, table
from zg_async.cli.task_view import TaskScreen
from zg_async.errors import ProviderError
from zg_async.jobs import events as ev
from zg_async.jobs.batch import BatchResult, BatchRow
from zg_async.jobs.live import state_html
from zg_async.jobs.state import JobState
from zg_async.logs import JsonLogFormatter, get_logger
from zg_async.managers.task_changes import WatchWarning
from zg_async.showing import record_html
from zg_async.wire.provider_api import rejected

AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PROVIDER = "0x" + "aB" * 20
SEQUENCES = (
    "2J", "1;1H", "31m", "0m", "8m", "?25l", "?1049h", "6n", "10A", "3K", "1000D", "200~", "?1000h", "20t", "!p", "4h",
)  # fmt: skip
CSI = [start + end for start in ("\x1b[", "\x9b") for end in SEQUENCES]
OSC = [
    f"{start}{body}{end}"
    for start in ("\x1b]", "\x9d")
    for body in ("0;title", "2;title", "8;;http://x.example", "52;c;cm0gLXJm", "9;note", "1337;File=:A", "777;x")
    for end in ("\x07", "\x1b\\", "\x9c")
]  # fmt: skip
CONTROLS = [f"a{chr(code)}b" for code in [*range(32), *range(127, 160)]]
TURNED = [f"a{c}gpj.exe" for c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"]
UNSEEN = [f"a{c}b" for c in "\u200b\u200c\u200d\u2060\ufeff\u00ad\u2028\u2029\ud800\udfff\ue000\U000e0041\U000f0000"]
MARKUP = ["[red]x[/red]", "x[/y]", "[/]", "[link=http://x.example]a[/link]", "[bold", "[@click=app.quit]x[/]", "\\[x]"]
HTML = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></table><b>", "<svg onload=alert(1)>", "<!--",
    "\"onmouseover='x' a=\"", "&lt;script&gt;", "javascript:alert(1)", "<a href='javascript:x'>y</a>", "<style>*{}",
    "<iframe src=//x>", "]]><x>", "<plaintext>", "<base href=//x>", "<meta http-equiv=refresh content=0>", "'><form>",
    "<math><mi//xlink:href='data:x,<script>'>",
]  # fmt: skip
LINES = ["a\nb", "a\r\nb", "a\rerror: all is well", "a\n2026-01-01 INFO paid", "a\n\n\n", "\r", "\x0b\x0c", "a\x85b"]
FORMULAS = [
    "=1+1", "+1", "-1+2", "@SUM(A1)", "=HYPERLINK(\"http://x.example\")", "=cmd|'/c calc'!A1", "\t=1", "\r=1", " =1",
    "|calc", "\uff1d1+1", "\uff0b1", "=1\";\"=2", "\n=1", '"=1"', ",=1", ";=1", "-2+3+cmd|' /C calc'!A0", "\u00a0=1",
]  # fmt: skip
LARGE = ["x" * 10**6, "\x1b" * 10**6, "<b>" * 350_000, "=" * 10**6, "\U000f0000" * 10**6]
TEXTS = [*CSI, *OSC, *CONTROLS, *TURNED, *UNSEEN, *MARKUP, *HTML, *LINES, *FORMULAS, *LARGE]
BAD = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
MOST = 200_000
"""Characters that a sink shows at most, however long the text is."""


def check(sink: str, shown: str) -> None:
    bad = {c for c in set(shown) if c != "\n" and unicodedata.category(c) in BAD}
    assert not bad, sink
    assert len(shown) < MOST, sink


def test_there_are_200_of_them():
    assert len(set(TEXTS)) >= 200


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\u202ex", "\x9b", "x" * MOST])
def test_what_gets_through_would_be_found(text):
    with pytest.raises(AssertionError):
        check("any", text)


@pytest.mark.goal("HRD-14", part="table")
def test_in_a_table(capsys):
    for text in TEXTS:
        lines = table([("name", text)], title="x").split("\n")
        assert len(lines) == 4
        row = BatchRow(name=text, model=text, dataset=text, status="failed", error=text)
        rows = BatchResult((row,)).table().split("\n")
        assert len(rows) == 2
        emit(HERE, "x", {}, lambda text=text: text[:1000])
        note(HERE, text[:1000])
        printed = capsys.readouterr()
        for part in (*lines, *rows, printed.out, printed.err):
            check("table", part)


@pytest.mark.goal("HRD-14", part="JSON")
def test_in_json(capsys):
    for text in TEXTS:
        print_json("x", {"name": text})
        JsonLines()._print({"name": text})
        shown = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["name"] for line in shown] == [text, text]  # nothing is lost
        assert all(line.isprintable() for line in shown)


@pytest.mark.goal("HRD-14", part="HTML")
def test_in_html():
    for text in TEXTS:
        row = BatchRow(name=text, model=text, dataset=text, status=text, error=text)
        failed = JobState(failure=ev.JobFailed(stage=text, code=text, message=text, hint=text), cancel_reason=text)
        for shown in (record_html(service(text)), BatchResult((row,))._repr_html_(), state_html(failed)):
            read = Reader(shown)
            assert read.tags <= TAGS
            assert read.attributes <= {"style", "class", "colspan"}
            check("HTML", read.data)


@pytest.mark.goal("HRD-14", part="CSV")
def test_in_csv():
    for text in TEXTS:
        row = BatchRow(name=text, model=text, dataset=text, status=text, job_id=text, provider=text, error=text)
        written = BatchResult((row,)).to_csv()
        check("CSV", written)
        head, cells = csv.reader(io.StringIO(written))
        assert len(cells) == len(head)
        assert not [cell for cell in cells if cell.strip()[:1] in tuple("=+-@|\uff1d\uff0b\uff0d\uff20")]
    assert "-0.5" in BatchResult((BatchRow(name="a", model="b", dataset="c", status="d", final_loss=-0.5),)).to_csv()


@pytest.mark.goal("HRD-14", part="log")
def test_in_a_log():
    logger, plain, lines = get_logger("zg_async.test_inert"), io.StringIO(), io.StringIO()
    handlers = [logging.StreamHandler(plain), logging.StreamHandler(lines)]
    handlers[0].setFormatter(logging.Formatter("%(levelname)s %(provider)s %(message)s"))
    handlers[1].setFormatter(JsonLogFormatter())
    logger.handlers, logger.propagate = handlers, False
    for text in TEXTS:
        for written in (plain, lines):
            written.seek(0)
            written.truncate()
        logger.warning("the provider says %s", text)
        for written in (plain, lines):
            assert written.getvalue().count("\n") == 1
            check("log", written.getvalue()[-MOST + 1 :])
            assert len(written.getvalue()) < MOST
        try:
            raise ProviderError(text, provider=text)
        except ProviderError:
            logger.exception("it failed")
        check("log", plain.getvalue()[-MOST + 1 :])


@pytest.mark.goal("HRD-14", part="progress")
async def test_in_progress(capsys):
    view, screen = JobView(), io.StringIO()
    terminal = JobView()
    terminal._console = Console(file=screen, force_terminal=True, color_system=None, width=100)
    watched = TaskScreen(HERE, PROVIDER, "6b607314-88b0-4fef-91e7-43227a54de57")
    for text in TEXTS:
        retrying = ev.StageRetrying(stage="train", attempt=1, code="x", message=text, retry_at=AT)
        for one in (view, terminal):
            one.working("train", text)
            await one.event(retrying, None)
            await one.event(ev.JobFailed(stage="train", code="x", message=text, hint=text), None)
            one.chat(text, text, None)
        watched.change(
            WatchWarning(message=text, id="w", source="provider", task_id="t", provider=PROVIDER, at=AT, cursor="c")
        )
        printed = capsys.readouterr()
        check("progress", printed.out + printed.err)
        check("terminal", screen.getvalue())
        screen.seek(0)
        screen.truncate()


@pytest.mark.goal("HRD-14", part="error")
def test_in_an_error(capsys):
    for text in TEXTS:
        refused = rejected(400, json.dumps({"error": text}), provider=PROVIDER, endpoint="GET /v1/x")
        for error in (
            refused,
            rejected(500, text, provider=PROVIDER, endpoint="GET /v1/x"),
            ProviderError(text, hint=text),
        ):
            check("error", str(error))
            _Ending(as_json=True, debug=False).of(error)
            printed = capsys.readouterr()
            assert printed.err.count("\n") == 1
            check("error", printed.err + printed.out)
        assert _Ending(as_json=False, debug=False).of(ValueError(text)) == 70
        check("bug", capsys.readouterr().err)
