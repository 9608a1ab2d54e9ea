"""What goes wrong in a schedule, by seed: which kinds, how often, when, and where.

Each decision hangs on (seed, place, visit) alone, so that taking one fault away leaves the others where they were.
"""

import dataclasses
import hashlib
import math
import random
from collections import Counter
from typing import Any, Final

HOUR: Final = 3600.0
FAMILIES: Final = {
    "lose_request": (0.0, 0.15),
    "lose_answer": (0.0, 0.15),
    "status": (0.0, 0.15),
    "cut": (0.0, 0.10),
    "stall": (0.0, 0.02),
    "slow": (0.0, 0.10),
    "late_head": (0.0, 0.15),
    "drop_tx": (0.0, 0.30),
    "wrong_bytes": (0.0, 0.50),
}
"""Faults of single requests and transactions, and the range of their rates."""
SPELLS: Final = (
    "outage",
    "no_blocks",
    "restart",
    "clock",
    "crash",
    "stop",
    "reorg",
    "pause",
    "second",
    "forget",
    "dark",
    "fees",
    "disk",
    "cap",
)
"""Faults that have a time, or a number of their own."""
RARE: Final = {"second": 0.1, "forget": 0.1, "cap": 0.25, "pause": 0.25, "dark": 0.2, "fees": 0.2, "disk": 0.1}
"""How many schedules have them, where it isn't two of five."""
JOB_COST: Final = 12_400_000_000_000_000
"""What a job of these schedules reserves at most, fee and gas, in neuron."""


@dataclasses.dataclass
class Spell:
    """A fault with a beginning and an end."""

    kind: str
    start: float
    end: float
    host: str = ""
    how: str = ""
    amount: float = 0.0


@dataclasses.dataclass
class Plan:
    """One schedule, before it begins. `without` leaves faults out by their names."""

    seed: int
    without: frozenset[str] = frozenset()
    only: str | None = None
    small: bool = False
    """Whether it has one job at one provider, and a short window: it costs a third of another one."""

    def __post_init__(self) -> None:
        rng = random.Random(f"plan {self.seed}")
        self.wallets = rng.choice([1, 1, 2])
        self.providers = rng.choice([1, 1, 2, 2, 3])
        self.jobs = rng.choice([1, 1, 1, 2, 2, 3])
        self.lock_time = rng.choice([3600, 3600, 7200, 43_200])
        if self.small:
            self.wallets = self.providers = self.jobs = 1
            self.lock_time = 3600
        self.ack_timeout = rng.choice([6 * HOUR, 48 * HOUR])
        self.window = min(self.ack_timeout, self.lock_time // 2)
        self.tick = rng.choice([1.0, 2.0, 5.0])
        self.block_time = rng.choice([0.0, 1.0, 5.0, 15.0])
        """0: each transaction has its block at once."""
        self.train_seconds = rng.choice([0.0, 0.0, 10.0, 60.0])
        self.look = rng.choice([30.0, 90.0, 200.0])
        """Seconds between two looks of the guardian."""
        self.head_pause = rng.choice([5.0, 10.0, 20.0])
        """Most seconds between two looks for a new block."""
        self.head_first = rng.choice([0.05, 0.4, 0.4])
        """Seconds to the second look after something was sent."""
        self.poll_first = rng.choice([0.5, 2.0, 2.0])
        """Seconds between two looks at a task that has just changed."""
        self.confirmations = rng.choice([2, 3, 4, 6])
        """How deep a transaction lies that is done with: a reorg replaces fewer blocks."""
        self.named = rng.random() < 0.6
        """Whether jobs name their provider."""
        self.on_unverified = rng.choice([None, None, "acknowledge_unverified", "forfeit"])
        self.durable = rng.random() < 0.1 and not self.small
        """Whether journal and outbox are files."""
        self.root = rng.choice(["keccak", "keccak", "storage"])
        """Which hash of a model goes on chain."""
        self.heal_at = rng.uniform(0.3, 1.5) * (self.window + 1800)
        on = [name for name in (*FAMILIES, *SPELLS) if rng.random() < RARE.get(name, 0.4)]
        if self.only is not None:
            on = [self.only] if self.only != "none" else []
        on = [name for name in on if name not in self.without]
        self.durable = self.durable or "second" in on or "disk" in on  # only a file has a lease, or a disk
        self.rates = {name: rng.uniform(*limits) if name in on else 0.0 for name, limits in FAMILIES.items()}
        self.spells: list[Spell] = []
        for name in SPELLS:
            if name in on and name != "cap":
                self.spells += getattr(self, f"_{name}")(random.Random(f"{name} {self.seed}"))
        self.cap, self.cap_amount = "", 0
        if "cap" in on:
            self._cap(random.Random(f"cap {self.seed}"))
        self.families = on

    def of(self, kind: str) -> list[Spell]:
        return [spell for spell in self.spells if spell.kind == kind]

    # --- spells

    def _moment(self, rng: random.Random) -> float:
        """Soon, most times: a job that nothing hinders is done within a minute or two."""
        return rng.choice([10.0, 40.0, 200.0, self.heal_at]) * rng.random()

    def _when(self, rng: random.Random, longest: float) -> tuple[float, float]:
        start = self._moment(rng)
        return start, min(start + rng.choice([5.0, 60.0, 600.0, longest]) * rng.uniform(0.2, 1.0), self.heal_at)

    def _outage(self, rng: random.Random) -> list[Spell]:
        hosts = ["chain", *(f"provider {number}" for number in range(self.providers))]
        spells = []
        for _ in range(rng.randint(1, 4)):
            start, end = self._when(rng, 0.95 * self.window)
            spells.append(Spell("outage", start, end, host=rng.choice(hosts), how=rng.choice(["refuse", "silent"])))
        return spells

    def _no_blocks(self, rng: random.Random) -> list[Spell]:
        return [Spell("no_blocks", *self._when(rng, 1200.0)) for _ in range(rng.randint(1, 3))]

    def _restart(self, rng: random.Random) -> list[Spell]:
        spells = []
        for _ in range(rng.randint(1, 2)):
            start = self._moment(rng)
            host = f"provider {rng.randrange(self.providers)}"
            spells.append(Spell("restart", start, start + rng.uniform(1, 120), host=host))
        return spells

    def _clock(self, rng: random.Random) -> list[Spell]:
        steps = [rng.choice([-40.0, 40.0, -600.0, 600.0, 86_400.0]) for _ in range(rng.randint(1, 2))]
        return [Spell("clock", *self._when(rng, 1200.0), amount=step) for step in steps]

    def _crash(self, rng: random.Random) -> list[Spell]:
        """Each process that begins dies at this point of its life, or at this one of its signings, say."""
        spells = []
        for _ in range(rng.randint(1, 5)):
            where, most = rng.choice([("", 800), ("", 800), ("signing", 8), ("commit", 50), ("provider", 50)])
            point = int(10 ** rng.uniform(0, math.log10(most)))
            spells.append(Spell("crash", point, 0.0, how=where, amount=self._downtime(rng)))
        return spells

    def _stop(self, rng: random.Random) -> list[Spell]:
        return [Spell("stop", self._moment(rng), 0.0, amount=self._downtime(rng)) for _ in range(rng.randint(1, 2))]

    def _reorg(self, rng: random.Random) -> list[Spell]:
        """So many seconds after so many transactions of the user were sent, the newest blocks are replaced."""
        return [
            Spell(
                "reorg",
                rng.randint(1, 3 * self.jobs + 1),
                rng.choice([0.05, 0.5, 10.0]) * rng.random(),
                how=rng.choice(["keep", "drop", "drop"]),
                amount=rng.randint(1, self.confirmations - 1),
            )
            for _ in range(rng.randint(1, 3))
        ]

    def _pause(self, rng: random.Random) -> list[Spell]:
        """A process stands still, as SIGSTOP lets it."""
        starts = sorted(self._moment(rng) for _ in range(rng.randint(1, 2)))
        return [Spell("pause", start, start + self._suspend(rng)) for start in starts]

    def _suspend(self, rng: random.Random) -> float:
        return rng.choice([10 ** rng.uniform(0, 2.8)] * 9 + [8 * HOUR])

    def _dark(self, rng: random.Random) -> list[Spell]:
        """From a delivery on, a host is away for most of the window."""
        return [
            Spell(
                "dark",
                rng.randint(1, self.jobs),
                self.window * rng.uniform(0.3, 0.95),
                host=rng.choice(["chain", "provider"]),
                how=rng.choice(["refuse", "silent"]),
            )
        ]

    def _fees(self, rng: random.Random) -> list[Spell]:
        """Blocks are dear."""
        return [Spell("fees", *self._when(rng, 3600.0), amount=rng.choice([2.0, 4.0, 10.0]))]

    def _disk(self, rng: random.Random) -> list[Spell]:
        """From this write of journal or outbox on, for so long, none comes through."""
        return [
            Spell(
                "disk", int(10 ** rng.uniform(0, 2.3)), 10 ** rng.uniform(-1, 2.5), how=rng.choice(["full", "broken"])
            )
            for _ in range(rng.randint(1, 3))
        ]

    def _second(self, rng: random.Random) -> list[Spell]:
        """Another runner on the same files; to have it take over, the first stands still for longer than a lease."""
        start = self._moment(rng)
        spells = [Spell("second", start, start + rng.choice([100.0, 1000.0, 1e6]))]
        if rng.random() < 0.7:
            at = start + 20.0 * rng.random()
            spells.append(Spell("pause", at, at + rng.uniform(50.0, 600.0)))
        return spells

    def _forget(self, rng: random.Random) -> list[Spell]:
        """A provider loses its tasks."""
        return [Spell("forget", self._moment(rng), 0.0, host=f"provider {rng.randrange(self.providers)}")]

    def _cap(self, rng: random.Random) -> None:
        """Bound what may be spent: for a job, for all jobs, or by day; for some bounds not all jobs find room."""
        self.cap = rng.choice(["job", "batch", "day"])
        jobs = 1 if self.cap == "job" else rng.randint(1, self.jobs)
        self.cap_amount = int(JOB_COST * (jobs - 1 + rng.choice([0.9, 1.0, 1.03, 1.06, 1.25, 1.6])))

    def _downtime(self, rng: random.Random) -> float:
        return rng.choice([1.0, 1.0, 60.0, 0.5 * self.window, 0.9 * self.window]) * rng.uniform(0.5, 1.0)


class Chaos:
    """Decides while a schedule runs, and remembers what it did."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.healed = False
        self.fired: list[str] = []
        self.blows: list[tuple[str, float, float]] = []
        """Which host was struck from when to when."""
        self._visits: Counter[str] = Counter()

    def draw(self, site: str) -> float:
        """A number in [0, 1) that belongs to this visit of this place."""
        self._visits[site] += 1
        text = f"{self.plan.seed}/{site}/{self._visits[site]}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56

    def strikes(self, family: str, site: str) -> bool:
        rate = self.plan.rates[family]
        if not rate or self.healed:
            return False
        place = f"{family}:{site}"
        name = f"{place}:{self._visits[place] + 1}"
        if self.draw(place) >= rate or name in self.plan.without:
            return False
        self.fired.append(name)
        return True

    def choose(self, site: str, options: Any) -> Any:
        return options[int(self.draw(site) * len(options))]
