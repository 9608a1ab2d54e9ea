"""Images, edits and speech of a local server. A client's form is read and written anew, so that its bytes are ours."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aiohttp import web

from zg_async.errors import ConfigError
from zg_async.managers.media import ImageAnswer
from zg_async.serve.budget import image_bound, speech_bound
from zg_async.serve.gate import PassedOnError, read_form, read_json
from zg_async.serve.upstreams import ProviderUpstream, Upstream

if TYPE_CHECKING:
    from zg_async.serve.proxy import Proxy

_OWN = frozenset({"provider", "verify", "image", "file"})


class MediaRoutes:
    """The routes besides chat; only providers serve them."""

    def __init__(self, proxy: "Proxy") -> None:
        """Share a proxy's upstreams, budget and broker."""
        self._proxy = proxy

    def routes(self) -> list[web.RouteDef]:
        """Return the routes."""
        return [
            web.post("/v1/images/generations", self._generate),
            web.post("/v1/images/edits", self._edit),
            web.post("/v1/audio/transcriptions", self._transcribe),
        ]

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        fields = _checked(await read_json(request))
        prompt = _text(fields, "prompt")

        async def ask(upstream: Upstream) -> web.StreamResponse:
            address, model = _provider(upstream)
            inference, proxy = self._proxy.broker.inference, self._proxy
            service = await inference.recent_service(address)
            with proxy.budget.reserve(image_bound(service, _count(fields))) as held:
                made = await inference.generate_images(address, prompt, model=model, verify=proxy.verify, **fields)
                held.spent = made.fee
            return _reply(upstream, made)

        return await self._proxy.first_that_answers(ask, providers_only=True)

    async def _edit(self, request: web.Request) -> web.StreamResponse:
        fields, files = await _form(request)
        prompt, image = _text(fields, "prompt"), _file(files, "image")

        async def ask(upstream: Upstream) -> web.StreamResponse:
            address, model = _provider(upstream)
            inference, proxy = self._proxy.broker.inference, self._proxy
            service = await inference.recent_service(address)
            with proxy.budget.reserve(image_bound(service, _count(fields))) as held:
                made = await inference.edit_images(address, prompt, image, model=model, verify=proxy.verify, **fields)
                held.spent = made.fee
            return _reply(upstream, made)

        return await self._proxy.first_that_answers(ask, providers_only=True)

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        fields, files = await _form(request)
        file = _file(files, "file")

        async def ask(upstream: Upstream) -> web.StreamResponse:
            address, model = _provider(upstream)
            inference, proxy = self._proxy.broker.inference, self._proxy
            service = await inference.recent_service(address)
            with proxy.budget.reserve(speech_bound(service, len(file))) as held:
                said = await inference.transcribe(address, file, model=model, verify=proxy.verify, **fields)
                held.spent = said.fee
            return web.json_response(said.raw, headers={"x-provider-address": upstream.id})

        return await self._proxy.first_that_answers(ask, providers_only=True)


def _provider(upstream: Upstream) -> tuple[str, str | None]:
    if not isinstance(upstream, ProviderUpstream):
        raise ConfigError(f"{upstream.id} is a plain endpoint and serves chat only")
    return upstream.address, upstream.model


def _reply(upstream: Upstream, made: ImageAnswer) -> web.Response:
    return web.json_response(made.raw, headers={"x-provider-address": upstream.id})


async def _form(request: web.Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    fields, files, _ = await read_form(request)
    return _checked(fields), files


def _checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    if own := _OWN & fields.keys():
        raise PassedOnError(400, f"{sorted(own)[0]}: not as a text field")
    return {name: value for name, value in fields.items() if name != "model"}


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.pop(name, None)
    if not isinstance(value, str) or not value:
        raise PassedOnError(400, f"{name}: field required")
    return value


def _file(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise PassedOnError(400, f"{name}: a file is required")
    return files[name]


def _count(fields: Mapping[str, Any]) -> int:
    text = str(fields.get("n", 1))
    return max(int(text), 1) if text.isascii() and text.isdigit() and len(text) < 5 else 1
