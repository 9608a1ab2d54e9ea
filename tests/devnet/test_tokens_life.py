"""A session token: one provider, one host, a short life, in memory only, gone with the first revocation."""

import contextlib

import aiohttp
import pytest
from aiohttp import web

from tests.devnet.conftest import open_broker
from tests.http_server import serving
from zg_async import ConfigError, ProviderError
from zg_async.wire.signing import decode_session_token

pytestmark = pytest.mark.slow
HELLO = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


@pytest.mark.goal("HRD-26")
async def test_a_token_lives_shortly_for_one_provider_at_one_host_and_dies_with_a_revocation(
    devnet, broker, key, provider, tmp_path, monkeypatch
):
    inference, other = broker.inference, devnet.providers[1]["address"]
    await broker.ledger.ensure_funded(provider, "inference", "2")
    session = await inference.session_token(provider)

    # 1: no longer life than a provider's longest for such a token; 2: one provider
    fields, _, _ = decode_session_token(session.raw_token)
    assert 0 < fields.expires_at_ms - fields.timestamp_ms <= 24 * 3600 * 1000
    assert (fields.provider, fields.token_id) == (provider, 255)

    # 3: another provider's token is another, and each refuses the other's
    foreign = await inference.session_token(other)
    assert foreign.raw_token != session.raw_token
    url = (await inference.get_service_metadata(provider)).endpoint + "/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=HELLO, headers=foreign.headers) as reply:
        assert "different provider" in await reply.text()

    # 4: the token goes to the registered host only, whatever that answers
    seen = []

    async def elsewhere(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.json_response({})

    async with serving(elsewhere) as stranger:

        async def redirects(_request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": f"{stranger}/chat/completions"})

        async with serving(redirects) as moved:
            service = await inference.get_service(provider)
            with monkeypatch.context() as patch:

                async def registered(_provider: str):
                    return type(service)(**{f: getattr(service, f) for f in service.__slots__} | {"url": moved})

                patch.setattr(inference, "recent_service", registered)
                patch.setattr(inference, "get_service", registered)
                with pytest.raises(ProviderError):
                    await inference.chat(provider, "Hi")
    assert seen == []

    # 5: in memory only; 6: an API key isn't kept either; 7: no repr tells one
    api_key = await inference.create_api_key(provider)
    files = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert not any(b"app-sk-" in text or session.raw_token[20:60].encode() in text for text in files)
    listed = await inference.list_api_keys(provider)
    assert not any("app-sk-" in repr(thing) for thing in (session, api_key, listed, inference._tokens))

    # 8: less than an hour left is too little
    with monkeypatch.context() as patch:
        patch.setattr(type(broker.clock), "now", lambda _: fields.timestamp_ms / 1000 + 23.5 * 3600)
        renewed = await inference.session_token(provider)
        assert renewed.raw_token != session.raw_token
    inference.forget_session(provider)
    session = await inference.session_token(provider)

    # 9: a revocation drops what was cached; a key just revoked is never handed out again
    await inference.revoke_api_key(provider, api_key.token_id)
    with pytest.raises(ConfigError, match="revoked"):
        await inference.create_api_key(provider, token_id=api_key.token_id)
    assert (await inference.create_api_key(provider)).token_id != api_key.token_id
    await inference.revoke_all_tokens(provider)
    assert (await inference.session_token(provider)).generation == session.generation + 1

    # 10: one that another program revoked is dropped at the first refusal
    async with open_broker(devnet, key, tmp_path / "state") as program:
        await program.inference.revoke_all_tokens(provider)
    with contextlib.suppress(ProviderError):
        await inference.chat(provider, "Hi", max_tokens=1)
    assert (await inference.session_token(provider)).generation == session.generation + 2
