"""Local servers let in who knows the token, under a name of this machine, and no web page."""

import aiohttp
import pytest
from aiohttp import web

from zg_async.errors import ConfigError
from zg_async.serve.gate import MAX_BODY, Gate, listening, new_token

TOKEN = "t" * 32
GOOD = f"Bearer {TOKEN}"
CASES = [
    ({}, 401),
    ({"Authorization": "Bearer"}, 401),
    ({"Authorization": "Bearer " + TOKEN[:-1]}, 401),
    ({"Authorization": "Bearer " + TOKEN + "t"}, 401),
    ({"Authorization": TOKEN}, 401),
    ({"Authorization": "Basic " + TOKEN}, 401),
    ({"Cookie": f"token={TOKEN}"}, 401),
    ({"X-Api-Key": TOKEN}, 401),
    ({"Authorization": GOOD}, 200),
    ({"Authorization": GOOD.replace("Bearer", "bearer")}, 200),
    ({"Authorization": GOOD, "Host": "rebind.example"}, 421),
    ({"Authorization": GOOD, "Host": "rebind.example:80"}, 421),
    ({"Authorization": GOOD, "Host": "127.0.0.1.rebind.example"}, 421),
    ({"Authorization": GOOD, "Host": "localhost.rebind.example"}, 421),
    ({"Authorization": GOOD, "Host": "10.0.0.1"}, 421),
    ({"Authorization": GOOD, "Host": "0.0.0.0"}, 421),
    ({"Authorization": GOOD, "Host": ""}, 421),
    ({"Authorization": GOOD, "Host": "localhost"}, 200),
    ({"Authorization": GOOD, "Host": "[::1]:80"}, 200),
    ({"Authorization": GOOD, "Host": "box.example"}, 200),
    ({"Authorization": GOOD, "Origin": "https://evil.example"}, 403),
    ({"Authorization": GOOD, "Origin": "null"}, 403),
    ({"Authorization": GOOD, "Origin": "http://127.0.0.1"}, 403),
    ({"Authorization": GOOD, "Origin": "http://localhost:5173.evil.example"}, 403),
    ({"Authorization": GOOD, "Origin": "http://localhost:5173"}, 200),
]


@pytest.mark.goal("HRD-22", part="loopback, token, Host, Origin, no CORS")
async def test_only_the_token_and_a_name_of_this_machine_open_the_gate():
    assert len(CASES) >= 15
    gate = Gate(TOKEN, hosts=["box.example"], origins=["http://localhost:5173"])
    app = web.Application(middlewares=[gate.middleware], client_max_size=MAX_BODY)

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="in")

    app.router.add_route("*", "/{path:.*}", hello)
    async with listening(app, host="127.0.0.1", port=0) as url, aiohttp.ClientSession() as http:
        assert url.startswith("http://127.0.0.1:")
        for method in ("GET", "POST", "OPTIONS"):
            for headers, status in CASES:
                async with http.request(method, f"{url}/v1/models", headers=headers) as reply:
                    assert reply.status == status, (method, headers)
                    assert not [name for name in reply.headers if name.lower().startswith("access-control")]
                    assert TOKEN not in await reply.text()
        async with http.get(f"{url}/health") as reply:
            assert reply.status == 200


@pytest.mark.goal("HRD-22", part="loopback, token, Host, Origin, no CORS")
def test_tokens_are_random_and_never_short():
    assert len({new_token() for _ in range(100)}) == 100
    assert all(len(new_token()) >= 32 for _ in range(10))
    with pytest.raises(ConfigError, match="at least"):
        Gate("short")
