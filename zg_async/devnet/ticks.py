"""Regular looks of the devnet's many actors, laid together: waking up costs more than most looks themselves."""

import math

from zg_async.clock import Clock

_LEAST = 0.001


async def next_tick(clock: Clock, interval: float) -> None:
    """Wait until the clock's next multiple of an interval, in seconds; everybody with the same interval meets there."""
    interval = max(interval, _LEAST)
    await clock.sleep(interval - math.fmod(clock.monotonic(), interval))
