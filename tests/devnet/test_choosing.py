"""Providers ranked with reasons, all looked at at once."""

import pytest

from tests.devnet.conftest import MODEL, open_broker

pytestmark = pytest.mark.slow


@pytest.mark.goal("DIS-05", part="ranking with reasons, the same each time")
@pytest.mark.goal("DIS-02", part="reachability, latency and queue")
async def test_the_ranking_is_stable_and_says_why(devnet, tmp_path):
    addresses = {p["address"] for p in devnet.providers}
    async with open_broker(devnet, None, tmp_path) as reader:
        first = await reader.fine_tuning.choose(MODEL)
        mine = [c for c in first if c.service.provider in addresses]
        assert all(c.fits and c.probe.pending == 0 and 0 <= c.probe.latency < 5 for c in mine)
        assert "0 tasks ahead" in mine[0].reasons
        again = await reader.fine_tuning.choose(MODEL)
        assert [c.service.provider for c in again] == [c.service.provider for c in first]
        prices = [(c.service.price_per_token, c.service.provider) for c in mine]
        assert prices == sorted(prices)
        for wish, text in (
            ({"max_price": 0}, "is above 0"),
            ({"min_gpu": 10**6}, "not 1000000"),
            ({"model": "no-such-model"}, "unknown model"),
        ):
            refused = await reader.fine_tuning.choose(**wish)
            assert all(not c.fits and text in " ".join(c.reasons) for c in refused if c.service.provider in addresses)
        devnet.control("stop", provider=0)
        try:
            last = (await reader.fine_tuning.choose(MODEL, timeout_seconds=2.0))[-1]
        finally:
            devnet.control("start", provider=0)
        assert (last.fits, last.probe.pending) == (False, None)
        assert last.service.provider == devnet.providers[0]["address"]
        assert "doesn't answer" in last.reasons[0]
