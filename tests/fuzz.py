"""Bends good inputs of every parser of outside bytes: `python -m tests.fuzz [--seed N] [--seconds S] [TARGET ...]`.

A plan says which example to take and what to change in it. A parser may raise its declared errors and nothing else,
within 100 ms of its own time and 64 MiB, each for every MiB of input begun; memory is measured in one of 16 executions.
In the suite Hypothesis draws a few plans, and shrinks what fails to the fewest changes. The command draws its own from
the seed, which costs a fraction of that, and prints how many it ran of each; one that hangs ends it with a traceback.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import gc
import os
import pathlib
import random
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator, Sequence

from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

MIB = 2**20
SECONDS = 0.1
MEMORY = 64 * MIB
EVERY = 16
"""One execution in so many is measured in memory."""
HANG = 60.0
"""Seconds after which the command gives up on a batch of plans."""
BATCH = 100
WORDS = (
    b"", b"\0", b"\xff\xff\xff\xff", b"\x80" + bytes(31), b"\xff" * 32, b'"', b"\\", b"{", b"[", b"]", b"}", b",", b":",
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"99999999999999999999", b"1" * 400, b'{"a":1}', b"[[]]", b"\n",
    b"\r", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xae", b"\x1b[31m", b"data: ", b"data:\n\n", b"0x", b"=", b"|",
    b"PK\3\4", b"PK\5\6", b"../", b"event", b"index", b"id", b" ", b"'", b"loss",
)  # fmt: skip


@dataclasses.dataclass
class Tally:
    """What was run of a target."""

    executions: int = 0
    refused: int = 0
    slowest: float = 0.0
    peak: int = 0


class OverLimitError(AssertionError):
    """A parser took too long, or too much memory."""


def bent(plan: bytes, seeds: Sequence[bytes]) -> bytes:
    """Read a plan: which good input to take, and one to seven changes of five bytes each; or bytes as they are."""
    if not plan or plan[0] == 255:
        return plan[1:]
    data = bytearray(seeds[plan[0] % len(seeds)])
    changes = (1, 1, 2, 7)[plan[1] % 4]
    for start in range(2, min(len(plan) - 4, 2 + 5 * changes), 5):
        kind, size, word = plan[start], plan[start + 3], WORDS[plan[start + 4] % len(WORDS)]
        at = int.from_bytes(plan[start + 1 : start + 3], "big") % (len(data) + 1)
        match kind % 7:
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << size % 8]) if at < len(data) else b""
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = word
            case 3:
                data[at : at + len(word)] = word
            case 4:
                data[at:at] = data[at : at + size] * (1 + size % 5)
            case 5:
                del data[at:]
            case 6:  # a value of JSON in another's place
                end = next((i for i in range(at, len(data)) if data[i] in b",]}"), len(data))
                begin = max((i for i in range(max(at - 300, 0), at) if data[i] in b":[,"), default=0)
                data[begin + 1 : end] = word
    return bytes(data)


def execute(name: str, data: bytes, tally: Tally, *, measured: bool) -> None:
    """Feed one input to a target, and look at what it took: of memory if `measured`, else of time.

    Raises:
        OverLimitError: It took too long or too much.
        Exception: What a parser must not raise.
    """
    from tests.fuzz_targets import TARGETS

    target = TARGETS[name]
    pieces = max(1.0, len(data) / MIB)
    tally.executions += 1
    if measured:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        _once(target, data, tally)
        peak = tracemalloc.get_traced_memory()[1] - before
        tally.peak = max(tally.peak, peak)
        if peak > MEMORY * pieces:
            raise OverLimitError(f"{name}: {peak} bytes for an input of {len(data)}")
        return
    took = _once(target, data, tally)
    for _ in range(3):  # the collector, or the machine, may have been in the way
        if took <= SECONDS * pieces:
            break
        gc.collect()
        took = min(took, _once(target, data, tally))
    tally.slowest = max(tally.slowest, took)
    if took > SECONDS * pieces:
        raise OverLimitError(f"{name}: {took:.3f} s for an input of {len(data)}")


@contextlib.contextmanager
def measuring(wanted: bool) -> Iterator[None]:
    """Trace memory meanwhile. Each time costs CPython some that it never gives back, so it isn't done often."""
    if wanted:
        tracemalloc.start()
    try:
        yield
    finally:
        if wanted:
            tracemalloc.stop()


def resident() -> float:
    """Return the MiB that this process holds now."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def _once(target, data: bytes, tally: Tally) -> float:  # type: ignore[no-untyped-def]
    started = time.thread_time()
    try:
        target.run(data)
    except target.errors:
        tally.refused += 1
    return time.thread_time() - started


def campaign(name: str, *, examples: int, number: int = 0) -> Tally:
    """Run a target's good inputs and so many others; the same number gives the same inputs."""
    from tests.fuzz_targets import TARGETS

    tally, seeds = Tally(), TARGETS[name].seeds
    for example in seeds:
        execute(name, example, tally, measured=False)
    if tally.refused:
        raise AssertionError(f"{name}: a good input is refused")

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.binary(min_size=16, max_size=41))
    def run(plan: bytes) -> None:
        data = bent(plan, seeds)
        note(f"the input was {data[:2000]!r}")
        measured = zlib.crc32(data) % EVERY == 0
        with measuring(measured):
            execute(name, data, tally, measured=measured)

    run()
    return tally


def spree(name: str, *, number: int, seconds: float, most: int) -> tuple[Tally, str]:
    """Run a target until either bound; the same number gives the same inputs. Returns what failed as well, if any."""
    from tests.fuzz_targets import TARGETS

    tally, seeds, drawn = Tally(), TARGETS[name].seeds, random.Random(f"{name}/{number}")
    until = time.monotonic() + seconds
    while tally.executions < most and time.monotonic() < until:
        faulthandler.dump_traceback_later(HANG, exit=True)
        measured = tally.executions // BATCH % EVERY == 0
        with measuring(measured):
            for _ in range(min(BATCH, most - tally.executions)):
                plan = drawn.randbytes(drawn.randrange(16, 42))
                try:
                    execute(name, bent(plan, seeds), tally, measured=measured)
                except Exception as error:  # noqa: BLE001 - the whole point
                    return tally, f"{type(error).__name__}: {str(error)[:300]}; the plan was {plan.hex()}"
    faulthandler.cancel_dump_traceback_later()
    return tally, ""


def main(arguments: list[str]) -> int:
    from tests.fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--executions", type=int, default=1_000_000, help="at most, of each target")
    options = parser.parse_args(arguments)
    names = options.targets or list(TARGETS)
    warnings.simplefilter("ignore")
    failed, total, until, began = 0, 0, time.monotonic() + options.seconds, resident()
    for left, name in zip(range(len(names), 0, -1), names, strict=True):
        share = max(0.0, until - time.monotonic()) / left  # what quick targets leave goes to the others
        tally, problem = spree(name, number=options.seed, seconds=share, most=options.executions)
        failed += bool(problem)
        total += tally.executions
        print(
            f"{name:<20}{tally.executions:>9} executions {tally.refused:>9} refused  slowest "
            f"{tally.slowest * 1000:6.1f} ms  peak {tally.peak / MIB:6.2f} MiB  {problem or 'ok'}",
            flush=True,
        )
    print(
        f"{total} executions, {failed} targets failed; {began:.0f} MiB resident at the beginning, {resident():.0f} now"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
