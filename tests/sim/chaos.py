"""What goes wrong in a schedule, by seed: which kinds, how often, when, and where.

Each decision hangs on (seed, place, visit) alone, so that taking one fault away leaves the others where they were.
"""

import dataclasses
import hashlib
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
SPELLS: Final = ("outage", "no_blocks", "restart", "clock", "crash", "stop")
"""Faults that have a time, or a number of their own."""


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

    def __post_init__(self) -> None:
        rng = random.Random(f"plan {self.seed}")
        self.wallets = rng.choice([1, 1, 2])
        self.providers = rng.choice([1, 2, 3])
        self.jobs = rng.choice([1, 1, 2, 3])
        self.lock_time = rng.choice([3600, 3600, 7200, 43_200])
        self.ack_timeout = rng.choice([6 * HOUR, 48 * HOUR])
        self.window = min(self.ack_timeout, self.lock_time // 2)
        self.tick = rng.choice([15.0, 30.0])
        self.block_time = rng.choice([0.0, 1.0, 5.0, 15.0])
        """0: each transaction has its block at once."""
        self.train_seconds = rng.choice([0.0, 0.0, 60.0, 240.0])
        self.look = rng.choice([30.0, 90.0, 90.0])
        """Seconds between two looks of the guardian."""
        self.head_pause = rng.choice([2.0, 10.0, 10.0])
        """Most seconds between two looks for a new block."""
        self.named = rng.random() < 0.6
        """Whether jobs name their provider."""
        self.on_unverified = rng.choice([None, None, "acknowledge_unverified", "forfeit"])
        self.durable = rng.random() < 0.15
        """Whether journal and outbox are files."""
        self.heal_at = rng.uniform(0.3, 1.5) * (self.window + 1800)
        on = [name for name in (*FAMILIES, *SPELLS) if rng.random() < 0.4]
        if self.only is not None:
            on = [self.only] if self.only != "none" else []
        self.rates = {
            name: rng.uniform(*limits) if name in on and name not in self.without else 0.0
            for name, limits in FAMILIES.items()
        }
        self.spells: list[Spell] = []
        for name in SPELLS:
            drawn = getattr(self, f"_{name}")(random.Random(f"{name} {self.seed}"))
            if name in on and name not in self.without:
                self.spells += drawn
        self.families = on

    def of(self, kind: str) -> list[Spell]:
        return [spell for spell in self.spells if spell.kind == kind]

    # --- spells

    def _when(self, rng: random.Random, longest: float) -> tuple[float, float]:
        start = rng.uniform(0, self.heal_at)
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
            start = rng.uniform(0, self.heal_at)
            host = f"provider {rng.randrange(self.providers)}"
            spells.append(Spell("restart", start, start + rng.uniform(1, 120), host=host))
        return spells

    def _clock(self, rng: random.Random) -> list[Spell]:
        steps = [rng.choice([-40.0, 40.0, -600.0, 600.0, 86_400.0]) for _ in range(rng.randint(1, 2))]
        return [Spell("clock", *self._when(rng, 1200.0), amount=step) for step in steps]

    def _crash(self, rng: random.Random) -> list[Spell]:
        """Each process that begins dies at this point of its life."""
        return [
            Spell("crash", int(10 ** rng.uniform(0, 2.9)), 0.0, amount=self._downtime(rng))
            for _ in range(rng.randint(1, 5))
        ]

    def _stop(self, rng: random.Random) -> list[Spell]:
        return [
            Spell("stop", rng.uniform(0, self.heal_at), 0.0, amount=self._downtime(rng))
            for _ in range(rng.randint(1, 2))
        ]

    def _downtime(self, rng: random.Random) -> float:
        return rng.choice([1.0, 1.0, 60.0, 0.5 * self.window, 0.9 * self.window]) * rng.uniform(0.5, 1.0)


class Chaos:
    """Decides while a schedule runs, and remembers what it did."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.healed = False
        self.fired: list[str] = []
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
