"""Control calls against real servers that behave badly."""

import contextlib
import gzip
import logging
import socket
import ssl
import sys
import traceback

import aiohttp
import anyio
import pytest
from aiohttp import web

from tests.http_server import raw_serving, serving
from zg_async.errors import (
    ClosedError,
    ConfigError,
    EndpointRefusedError,
    ProviderError,
    ProviderRejectedError,
    ProviderReplyError,
    ProviderUnavailableError,
)
from zg_async.transport.egress import Egress, JudgingResolver
from zg_async.transport.http import KIB, Http, HttpSettings
from zg_async.transport.retry import RetryPolicy

FAST = RetryPolicy(attempts=3, base=0.0)


def client(clock, **settings):
    return Http(settings=HttpSettings(allow_hosts=("127.0.0.1",), retry=FAST, **settings), clock=clock)


async def test_a_reply_is_read_whole(clock):
    async def handler(request):
        return web.json_response({"a": [1, 2]}, headers={"X-One": "1"})

    async with serving(handler) as base, client(clock) as http:
        reply = await http.request("GET", f"{base}/v1/quote?legacy=true")
    assert reply.json() == {"a": [1, 2]}
    assert (reply.status, reply.headers["x-one"], reply.endpoint) == (200, "1", "GET /v1/quote")


async def test_nothing_is_asked_compressed_and_no_cookie_is_kept(clock):
    seen = []

    async def handler(request):
        seen.append((request.headers.get("Accept-Encoding"), request.headers.get("Cookie")))
        answer = web.Response(text="ok")
        answer.set_cookie("track", "1")
        return answer

    async with serving(handler) as base, client(clock) as http:
        for _ in range(2):
            await http.request("GET", base)
    assert seen == [("identity", None)] * 2


@pytest.mark.goal("ERR-03")
@pytest.mark.parametrize(
    ("status", "body", "kind", "excerpt"),
    [
        (400, b'{"error":"unsupported model"}', "application/json", "unsupported model"),
        (400, b'{"error":"plain but JSON"}', "text/plain", "plain but JSON"),
        (403, b"<html><body>Forbidden\x1b[2J by nginx</body></html>", "text/html", "Forbidden\\x1b[2J by nginx"),
        (404, b"404 page not found", "text/plain", "404 page not found"),
        (418, b"", "text/plain", ""),
        (400, b"\xff\xfe not text", "application/octet-stream", "not text"),
        (400, b"[1, 2", "application/json", "[1, 2"),
        (500, b'{"error":"Internal Server Error"}', "application/json", "Internal Server Error"),
        (502, b"<h1>Bad Gateway</h1>", "text/html", "Bad Gateway"),
        (503, b"", "text/plain", ""),
    ],
)
async def test_a_refusal_shows_status_endpoint_and_excerpt_whatever_its_body(clock, status, body, kind, excerpt):
    async def handler(request):
        return web.Response(status=status, body=body, content_type=kind)

    async with serving(handler) as base, client(clock) as http:
        with pytest.raises(ProviderError) as caught:
            await http.request("GET", f"{base}/v1/task/x?signature=0xdead", provider="0xab")
    error = caught.value
    assert error.status == status
    assert error.endpoint == "GET /v1/task/x"
    assert error.provider == "0xab"
    assert excerpt in error.body
    assert str(status) in str(error)
    assert excerpt in str(error)
    assert "/v1/task/x" in str(error)
    assert "0xdead" not in str(error)
    assert "\x1b" not in str(error)
    assert error.retryable == (status >= 500)


@pytest.mark.goal("HRD-12", part="redirects")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.goal("SEC-06", part="redirects")
@pytest.mark.parametrize("secret", ["body", "header", "signed", "token"])
async def test_a_request_with_body_token_or_signature_is_never_redirected(clock, status, secret):
    seen = []

    async def handler(request):
        seen.append(request.path)
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    parts = {
        "body": {"method": "POST", "json": {"signature": "0x1"}, "idempotent": True},
        "token": {"method": "GET", "headers": {"Session-Token": "t"}},
        "header": {"method": "GET", "headers": {"Authorization": "Bearer t"}},
        "signed": {"method": "GET", "signed": True},
    }[secret]
    async with serving(handler) as base, client(clock) as http:
        with pytest.raises(ProviderRejectedError, match="redirect"):
            await http.request(url=f"{base}/here", **parts)
    assert seen == ["/here"]


@pytest.mark.goal("HRD-12", part="redirects")
async def test_a_plain_get_follows_redirects_within_its_origin(clock):
    async def handler(request):
        if request.path != "/3":
            raise web.HTTPFound(f"/{int(request.path[1:]) + 1}")
        return web.Response(text="there")

    async with serving(handler) as base, client(clock) as http:
        assert (await http.request("GET", f"{base}/0")).text == "there"


@pytest.mark.goal("HRD-12", part="redirects")
async def test_the_fourth_redirect_is_refused(clock):
    async def handler(request):
        raise web.HTTPFound(f"/{int(request.path[1:]) + 1}")

    async with serving(handler) as base, client(clock) as http:
        with pytest.raises(ProviderRejectedError, match="3 redirects"):
            await http.request("GET", f"{base}/0")


@pytest.mark.goal("HRD-12", part="redirects")
@pytest.mark.parametrize(
    "to", ["http://localhost:1/", "https://127.0.0.1/", "//evil.example/", "http://[", "", "data:,x"]
)
async def test_a_redirect_to_another_origin_is_refused(clock, to):
    async def handler(request):
        return web.Response(status=302, headers={"Location": to})

    async with serving(handler) as base, client(clock) as http:
        with pytest.raises(ProviderRejectedError):
            await http.request("GET", f"{base}/0")


@pytest.mark.goal("HRD-12", part="caps")
@pytest.mark.goal("SEC-07", part="replies over HTTP")
@pytest.mark.parametrize("announced", [True, False])
async def test_a_reply_over_its_limit_is_refused_without_reading_it_all(clock, announced):
    sent = 0

    async def handler(request):
        nonlocal sent
        answer = web.StreamResponse()
        if announced:
            answer.content_length = 64 * 2**20
        await answer.prepare(request)
        for _ in range(1024):
            await answer.write(bytes(2**16))
            sent += 2**16
        return answer

    async with serving(handler) as base, client(clock) as http:
        with pytest.raises(ProviderReplyError, match="more than 1000 bytes"):
            await http.request("GET", base, limit=1000)
    assert sent < 32 * 2**20


@pytest.mark.goal("HRD-12", part="caps")
async def test_a_compressed_bomb_is_refused_unopened(clock):
    bomb = gzip.compress(bytes(20 * 2**20))

    async def handler(request):
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with serving(handler) as base, client(clock) as http:
        with pytest.raises(ProviderReplyError, match="compressed"):
            await http.request("GET", base, limit=2**20)


@pytest.mark.goal("HRD-12", part="caps")
async def test_a_huge_error_body_is_cut(clock):
    async def handler(request):
        return web.Response(status=400, text="x" * 2**21)

    async with serving(handler) as base, client(clock) as http:
        with pytest.raises(ProviderRejectedError) as caught:
            await http.request("GET", base)
    assert len(str(caught.value)) < 5000


@pytest.mark.goal("HRD-12", part="caps")
async def test_huge_headers_are_refused(clock):
    answer = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n"
    async with raw_serving(answer) as (base, _), client(clock) as http:
        with pytest.raises(ProviderUnavailableError):
            await http.request("POST", base)


@pytest.mark.goal("TX-04", part="over HTTP")
async def test_an_idempotent_call_is_repeated_and_another_never(clock):
    calls = 0

    async def handler(request):
        nonlocal calls
        calls += 1
        return web.Response(status=503)

    async with serving(handler) as base, client(clock) as http:
        for method, idempotent, expected in (("GET", None, 3), ("POST", True, 3), ("POST", None, 1), ("GET", False, 1)):
            calls = 0
            with pytest.raises(ProviderUnavailableError):
                await http.request(method, base, idempotent=idempotent)
            assert calls == expected


@pytest.mark.goal("TX-04")
async def test_calls_are_repeated_with_jitter_by_wish_and_within_a_budget_and_never_blindly(clock):
    script, seen = [], []

    async def handler(request):
        seen.append(request.method)
        status, headers = script.pop(0) if script else (503, {})
        return web.Response(status=status, headers=headers)

    async with serving(handler) as base:
        settings = HttpSettings(allow_hosts=("127.0.0.1",), retry=RetryPolicy(attempts=4, base=1.0))
        async with Http(settings=settings, clock=clock) as http:
            script[:] = [(503, {}), (503, {}), (503, {"Retry-After": "9"}), (200, {})]
            await http.request("GET", base)
            first, second, third = clock.slept
            assert 0 <= first <= 1
            assert 0 <= second <= 2
            assert 9 <= third <= 13
            seen.clear()
            with pytest.raises(ProviderUnavailableError):
                await http.request("POST", base, json={"nonce": "1"})
            assert seen == ["POST"]
            seen.clear()
            for _ in range(30):
                with pytest.raises(ProviderUnavailableError):
                    await http.request("GET", base, policy=RetryPolicy(attempts=4, base=0.0))
            assert 30 < len(seen) < 60


async def test_a_post_whose_answer_got_lost_is_not_repeated(clock):
    async with raw_serving(b"", b"", b"") as (base, requests), client(clock) as http:
        with pytest.raises(ProviderUnavailableError, match="closed without an answer"):
            await http.request("POST", base, json={})
    assert len(requests) == 1


@pytest.mark.goal("TX-04", part="one budget per host")
async def test_a_dead_provider_costs_its_own_budget_and_nobody_elses(clock):
    calls = {"dead": 0, "alive": 0}

    async def dead(request):
        calls["dead"] += 1
        return web.Response(status=503)

    async def alive(request):
        calls["alive"] += 1
        return web.Response(status=503 if calls["alive"] % 2 else 200)

    async with serving(dead) as bad, serving(alive) as good, client(clock) as http:
        for _ in range(50):
            with pytest.raises(ProviderUnavailableError):
                await http.request("GET", bad)
        assert calls["dead"] <= 50 + 21
        assert (await http.request("GET", good)).status == 200


@pytest.mark.parametrize(("wish", "waited"), [("7", True), ("-7", False), ("99999999", False), ("soon", False)])
async def test_retry_after_is_honoured_within_limits(clock, wish, waited):
    calls = 0

    async def handler(request):
        nonlocal calls
        calls += 1
        return web.Response(status=503 if calls == 1 else 200, headers={"Retry-After": wish})

    async with serving(handler) as base, client(clock) as http:
        await http.request("GET", base)
    assert (clock.monotonic() >= 7) == waited
    assert clock.monotonic() < 20


@pytest.mark.goal("TX-04", part="rate-limited routes")
async def test_a_429_on_a_limited_route_is_waited_out(clock):
    calls = 0

    async def handler(request):
        nonlocal calls
        calls += 1
        if calls < 3:
            return web.json_response({"error": "Too many requests. Please try again later."}, status=429)
        return web.Response(text="ok")

    async with serving(handler) as base, client(clock) as http:
        await http.request("GET", f"{base}/v1/quote", limited=True)
    assert calls == 3
    assert clock.monotonic() >= 20


async def test_limited_routes_of_one_provider_share_one_bucket(clock):
    times = []

    async def handler(request):
        times.append(clock.monotonic())
        return web.Response(text="ok")

    async with serving(handler) as base, client(clock) as http:
        for _ in range(4):
            await http.request("GET", f"{base}/v1/quote", limited=True)
        await http.request("GET", f"{base}/v1/model")
    assert times[:2] == [0, 0]
    assert times[2:4] == [pytest.approx(10.05), pytest.approx(20.1)]
    assert times[4] == times[3]


@pytest.mark.goal("HRD-12", part="idle and slow")
@pytest.mark.slow
async def test_a_silent_provider_ends_a_control_call(clock):
    async with raw_serving(b"", hold=30) as (base, _), client(clock, control_timeout=0.3) as http:
        with pytest.raises(ProviderUnavailableError, match="within the time-out"):
            await http.request("POST", base)


@pytest.mark.goal("HRD-12", part="idle and slow")
@pytest.mark.slow
async def test_a_dripping_provider_ends_a_control_call(clock):
    async def handler(request):
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b".")
            await anyio.sleep(0.05)

    async with serving(handler) as base, client(clock, control_timeout=0.4, idle_timeout=0.3) as http:
        with pytest.raises(ProviderUnavailableError):
            await http.request("POST", base)


@contextlib.asynccontextmanager
async def _nobody_accepts():
    """A port whose queue of connections is full, so that the next one isn't answered."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.goal("TX-05", part="separate time-outs")
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses connections")
async def test_each_time_out_ends_a_call_alone(clock):
    async def dripping(request):
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b".")
            await anyio.sleep(0.05)

    async def call(base, *, read_timeout=None, **time_outs):
        long = {"connect_timeout": 30, "idle_timeout": 30, "control_timeout": 30}
        async with client(clock, **{**long, **time_outs}) as http:
            with pytest.raises(ProviderUnavailableError) as caught:
                async with http.exchange("POST", base, read_timeout=read_timeout) as answer:
                    await answer.reply(limit=KIB)
        return str(caught.value)

    with anyio.fail_after(20):
        async with _nobody_accepts() as base:
            assert "connect" in await call(base, connect_timeout=0.3)
        async with raw_serving(b"", hold=30) as (base, _):
            assert "idle" in await call(base, idle_timeout=0.3)
            assert "idle" in await call(base, read_timeout=0.3)
        async with serving(dripping) as base:
            assert "within the time-out" in await call(base, control_timeout=0.3)


async def test_no_connection_is_named(clock):
    async with client(clock) as http:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(ProviderUnavailableError, match="Connection refused"):
                await http.request("POST", f"http://127.0.0.1:{taken.getsockname()[1]}/v1?key=s3cret")


async def test_rubbish_instead_of_http_is_an_unavailable_provider(clock):
    async with raw_serving(b"SSH-2.0-OpenSSH_9\r\n") as (base, _), client(clock) as http:
        with pytest.raises(ProviderUnavailableError, match="isn't HTTP"):
            await http.request("POST", base)


async def test_an_answer_cut_short_is_an_unavailable_provider(clock):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
    async with raw_serving(answer) as (base, _), client(clock) as http:
        with pytest.raises(ProviderUnavailableError, match="cut short"):
            await http.request("POST", base)


async def test_no_error_leaks_a_header_a_query_or_a_foreign_exception(clock):
    answers = [b"", b"SSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"HTTP/1.1 401 No\r\n\r\n{}"]
    async with raw_serving(*answers) as (base, _), client(clock) as http:
        for _ in answers:
            with pytest.raises(ProviderError) as caught:
                await http.request(
                    "POST",
                    f"{base}/x?key=CANARY-query",
                    headers={"Authorization": "CANARY-token"},
                    json={"s": "CANARY"},
                )
            error = caught.value
            assert error.__cause__ is None
            assert error.__context__ is None
            assert "CANARY" not in str(error) + repr(error) + "".join(traceback.format_exception(error))


@pytest.mark.goal("SEC-06", part="addresses")
async def test_a_name_that_resolves_to_a_private_address_is_refused_at_connect_time(clock):
    async with Http(settings=HttpSettings(retry=FAST), clock=clock) as http:
        with pytest.raises(EndpointRefusedError, match="isn't public") as caught:
            await http.request("GET", "https://localhost/v1/quote", provider="0xab")
    assert "allow_hosts=('localhost',)" in str(caught.value)
    assert caught.value.provider == "0xab"


@pytest.mark.goal("SEC-06")
async def test_a_providers_url_has_to_be_https_and_public_unless_allowed_and_posts_are_not_redirected(clock):
    seen = []

    async def handler(request):
        seen.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with serving(handler) as base:
        port = base.rpartition(":")[2]
        async with Http(clock=clock) as http:
            for url in (base, f"https://127.0.0.1:{port}", f"https://localhost:{port}", f"http://localhost:{port}"):
                with pytest.raises(EndpointRefusedError):
                    await http.request("GET", f"{url}/v1/quote")
        assert seen == []
        async with Http(settings=HttpSettings(allow_hosts=(f"127.0.0.1:{port}",)), clock=clock) as http:
            for more in ({"json": {"signature": "0x"}}, {"signed": True}, {"headers": {"Authorization": "t"}}):
                with pytest.raises(ProviderRejectedError, match="redirect"):
                    await http.request("POST" if "json" in more else "GET", f"{base}/x", **more)
    assert seen == ["/x"] * 3


async def test_a_resolver_keeps_only_public_addresses():
    class Names(aiohttp.abc.AbstractResolver):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            return [{"host": a} for a in ("10.0.0.1", "8.8.8.8", "64:ff9b::a00:1")]

        async def close(self):
            pass

    resolver = JudgingResolver(Egress())
    await resolver.close()
    resolver._resolver = Names()
    assert await resolver.resolve("provider.example", 443) == [{"host": "8.8.8.8"}]


async def test_a_literal_private_address_is_refused_without_a_connection():
    async with raw_serving() as (base, requests), Http() as http:
        with pytest.raises(EndpointRefusedError):
            await http.request("GET", base)
        with pytest.raises(EndpointRefusedError):
            await http.request("GET", base.replace("http:", "https:"))
    assert requests == []


@pytest.mark.goal("TX-05", part="proxy")
async def test_everything_goes_through_the_proxy_and_only_names_are_judged(clock, caplog):
    seen = []

    async def handler(request):
        seen.append((str(request.raw_path), request.headers.get("Proxy-Authorization", "")[:6]))
        return web.Response(text="by proxy")

    async with serving(handler) as base:
        settings = HttpSettings(
            proxy=base.replace("://", "://user:CANARY@"), allow_hosts=("provider.example:80",), retry=FAST
        )
        with caplog.at_level(logging.DEBUG):
            async with Http(settings=settings, clock=clock) as http:
                assert (await http.request("GET", "http://provider.example/v1/model")).text == "by proxy"
                with pytest.raises(EndpointRefusedError):
                    await http.request("GET", "https://metadata.google.internal/")
    assert seen == [("http://provider.example/v1/model", "Basic ")]
    assert caplog.text.count("behind a proxy") == 1
    assert "CANARY" not in caplog.text


@pytest.mark.parametrize("proxy", ["http://user:CANARY@", "http://user:CANARY@h:99999"])
def test_a_proxys_password_is_in_no_message(proxy):
    with pytest.raises(ConfigError) as caught:
        Http(settings=HttpSettings(proxy=proxy))
    assert "CANARY" not in "".join(traceback.format_exception(caught.value)) + repr(HttpSettings(proxy=proxy))


async def test_a_dead_proxy_is_named_without_its_password(clock):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"http://user:CANARY@127.0.0.1:{taken.getsockname()[1]}"
        async with Http(settings=HttpSettings(proxy=proxy), clock=clock) as http:
            with pytest.raises(ProviderUnavailableError) as caught:
                await http.request("POST", "https://provider.example/")
    assert "CANARY" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.goal("TX-05", part="custom CA")
@pytest.mark.slow
async def test_an_own_certificate_authority_is_trusted_if_given_and_not_otherwise(clock, tmp_path):
    trust, context = _authority(tmp_path)

    async def handler(request):
        return web.Response(text="safe")

    async with serving(handler, ssl_context=context) as base:
        async with client(clock, ca_file=str(trust)) as http:
            assert (await http.request("GET", base)).text == "safe"
        async with client(clock) as http:
            with pytest.raises(ProviderUnavailableError, match="certificate"):
                await http.request("POST", base)


def _authority(folder):
    import datetime as dt
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, secret = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    return pem, context


@pytest.mark.parametrize("content", [None, b"no PEM"])
def test_a_useless_ca_file_is_a_config_error(tmp_path, content):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="certificate authorities"):
        Http(settings=HttpSettings(ca_file=str(path)))


@pytest.mark.goal("TX-05", part="one pooled session")
async def test_calls_share_connections(clock):
    peers = set()

    async def handler(request):
        peers.add(request.transport.get_extra_info("peername"))
        return web.Response(text="ok")

    async with serving(handler) as base, client(clock) as http:
        for _ in range(10):
            await http.request("GET", base)
    assert len(peers) == 1


async def test_a_session_of_the_callers_is_used_and_left_open(clock):
    async def handler(request):
        return web.Response(text=request.headers["X-Mine"])

    async with serving(handler) as base, aiohttp.ClientSession(headers={"X-Mine": "yes"}) as session:
        async with Http(session=session, settings=HttpSettings(allow_hosts=("127.0.0.1",)), clock=clock) as http:
            assert (await http.request("GET", base)).text == "yes"
        assert not session.closed
        with pytest.raises(ClosedError):
            await http.request("GET", base)


async def test_use_before_open_and_after_close_says_so(clock):
    http = client(clock)
    with pytest.raises(ClosedError, match="not open"):
        await http.request("POST", "http://127.0.0.1/")
    await http.open()
    await http.open()
    await http.aclose()
    await http.aclose()
    with pytest.raises(ClosedError, match="closed"):
        await http.request("POST", "http://127.0.0.1/")
    with pytest.raises(ClosedError):
        await http.open()


async def test_an_answer_of_any_status_can_be_had_as_it_is(clock):
    async def handler(request):
        return web.json_response({"state": "failed"}, status=404)

    async with serving(handler) as base, client(clock) as http:
        reply = await http.request("GET", base, raw_status=True)
    assert (reply.status, reply.json()) == (404, {"state": "failed"})


async def test_unreadable_json_is_a_reply_error_with_an_excerpt(clock):
    async def handler(request):
        return web.Response(text='{"a": NaN}')

    async with serving(handler) as base, client(clock) as http:
        reply = await http.request("GET", base)
        with pytest.raises(ProviderReplyError, match="NaN"):
            reply.json()


async def test_cancelling_a_call_leaves_no_connection(clock):
    gone = anyio.Event()

    async def handler(request):
        try:
            await anyio.sleep(30)
        finally:
            gone.set()

    async with serving(handler) as base, client(clock) as http:
        with anyio.move_on_after(0.05) as scope:
            await http.request("GET", base)
        assert scope.cancelled_caught
        with anyio.fail_after(2):
            while http.session.connector._acquired:
                await anyio.lowlevel.checkpoint()
