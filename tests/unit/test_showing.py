"""Records in a notebook and as rows: everything outside is inert there, secrets are left out, amounts stay exact."""

import dataclasses
import datetime as dt
import html.parser
import sys

import pytest

from zg_async import Records, to_frame, to_rows
from zg_async.errors import ConfigError
from zg_async.jobs import events as ev
from zg_async.jobs.batch import BatchResult, BatchRow
from zg_async.jobs.live import notebook_display, state_html
from zg_async.jobs.state import JobState, fold
from zg_async.showing import Shown, curve_svg, record_html, records_html
from zg_async.wire.metric_series import MetricSeries
from zg_async.wire.records import FineTuningService, Quota, SessionToken
from zg_async.wire.task_log import Metric

PROVIDER = "0x" + "aB" * 20
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"onmouseover='x' a=\"",
    "</td></table><b>",
    "&lt;script&gt;",
    "\x1b[2J\x1b]0;x\x07",
    "\u202egnp.exe",
    "javascript:alert(1)",
    "\ud800",
    "x" * 100_000,
]
TAGS = {"table", "caption", "tr", "th", "td", "b", "i", "br", "svg", "text", "polyline"}


class Reader(html.parser.HTMLParser):
    """Collects the tags, attributes and text of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.data = set(), set(), ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.data += data


def service(text="", **changes):
    quota = Quota(cpu_count=8, node_memory=64, gpu_count=1, node_storage=500, gpu_type=text)
    fields = {"url": text, "models": (text,), "additional_info": text, "quota": quota} | changes
    given = {f.name for f in dataclasses.fields(FineTuningService)}
    rest = {"provider": PROVIDER, "price_per_token": 10**12, "occupied": False, "tee_signer_address": PROVIDER}
    rest |= {"tee_signer_acknowledged": True}
    return FineTuningService(**{k: v for k, v in (rest | fields).items() if k in given})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Anything(Shown):
    name: object = None
    fee: int = 0
    raw: str = dataclasses.field(default="", repr=False)


@pytest.mark.goal("NBK-01", part="outside text is escaped")
@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_from_outside_is_text_and_nothing_else(text):
    failed = JobState(
        failure=ev.JobFailed(stage=text, code=text, message=text, hint=text),
        retry=ev.StageRetrying(stage=text, attempt=1, code=text, message=text, retry_at=dt.datetime.now(dt.UTC)),
        cancel_reason=text,
    )
    for shown in (
        record_html(service(text)),
        records_html([service(text), service(text)]),
        Anything(name={text: text})._repr_html_(),
        Anything(name=[text, [text]])._repr_html_(),
        state_html(failed),
        BatchResult((BatchRow(name=text, model=text, dataset=text, status=text, error=text),))._repr_html_(),
        curve_svg([1.0, 2.0], title=text),
    ):
        read = Reader(shown)
        assert read.tags <= TAGS
        assert not {a for a in read.attributes if a.startswith("on") or a in ("src", "href")}
        assert not any(ord(c) < 32 or c == "\u202e" or "\ud800" <= c <= "\udfff" for c in read.data)
        assert len(shown) < 20_000


def test_hidden_fields_are_in_neither():
    token = SessionToken(
        provider=PROVIDER,
        token_id=1,
        generation=0,
        created_at=dt.datetime.now(dt.UTC),
        expires_at=None,
        raw_token="app-sk-secret",
    )
    assert "app-sk-secret" not in record_html(token) + repr(to_rows([token]))
    assert to_rows([Anything(raw="secret")]) == [{"name": None, "fee": 0}]


@pytest.mark.goal("NBK-01", part="records and sequences of them render")
def test_a_record_shows_its_fields_and_a_sequence_a_line_each():
    one = Reader(service()._repr_html_())
    assert "FineTuningService" in one.data
    assert "0.000001 0G" in one.data
    many = Records([service(), service()])
    assert Reader(many._repr_html_()).data.count(PROVIDER) == 4  # provider and signer
    assert (many, many[1:], isinstance(many, tuple)) == ((service(), service()), (service(),), True)
    assert "none" in Records()._repr_html_()
    assert "and 50 more" in Records([Anything()] * 250)._repr_html_()


@pytest.mark.goal("NBK-03", part="rows")
def test_rows_are_flat_plain_and_exact():
    (row,) = Records([service("a", models=("m", "n"))]).to_rows()
    assert (row["price_per_token"], row["quota.gpu_count"], row["models"]) == (10**12, 1, ["m", "n"])
    assert to_rows([Anything(name=b"\1\2", fee=2**70)]) == [{"name": "0x0102", "fee": 2**70}]
    event = ev.TaskDelivered(root_hash="0x1", ack_deadline=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    assert to_rows([event])[0]["ack_deadline"] == event.ack_deadline
    with pytest.raises(TypeError):
        to_rows(["no record"])


@pytest.mark.goal("NBK-03", part="data frame")
def test_a_frame_has_a_column_for_each_field():
    pytest.importorskip("pandas")
    frame = to_frame([Metric(step=n, loss=1 / n) for n in (1, 2, 4)])
    assert list(frame["loss"]) == [1.0, 0.5, 0.25]
    assert list(Records([Anything(fee=2**70)]).to_frame()["fee"]) == [2**70]


@pytest.mark.goal("NBK-03", part="without pandas")
def test_without_pandas_the_advice_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        to_frame([Anything()])


@pytest.mark.parametrize("values", [[], [float("nan")], [float("inf"), float("-inf")]])
def test_a_curve_of_nothing_is_nothing(values):
    assert curve_svg(values, title="x") == ""


@pytest.mark.parametrize(
    "values", [[1.0], [2.0, 2.0, 2.0], [1e308, -1e300, 5.0], list(range(10_000)), [0.5, float("nan")]]
)
def test_a_curve_stays_inside_its_frame(values):
    text = curve_svg(values, title="loss")
    points = text.split('points="')[1].split('"')[0].split()
    assert 1 <= len(points) <= 400
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= 560
        assert 0 <= y <= 160
    series = MetricSeries()
    series.points = [Metric(step=1, loss=float(v)) for v in values]
    assert series._repr_html_() == text


def test_a_jobs_steps_are_marked_when_they_are_done():
    def marks(*events):
        return state_html(fold([dataclasses.replace(e, seq=n) for n, e in enumerate(events, 1)])).count("✓")

    checked = ev.DatasetChecked(keccak256="0x1", size=1, rows=1, row_format="text")
    assert [marks(), marks(checked)] == [0, 1]
    deadline = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    state = JobState(delivered=ev.TaskDelivered(root_hash="0x1", ack_deadline=deadline))
    assert "0 h 30 min left" in state_html(state, now=deadline - dt.timedelta(minutes=30))
    assert "before 2026-01-02 00:00 UTC" in state_html(state)


def test_outside_of_a_notebook_there_is_no_display():
    assert notebook_display() is None
