"""The collateral service of the devnet: the four GETs a verifier makes. Source: Intel PCCS API v4."""

import dataclasses
from typing import Final

from aiohttp import web

from zg_async.clock import Clock
from zg_async.devnet.tdx import FMSPC, TCB_EVALUATION, devnet_maker

PATHS: Final = ("sgx/certification/v4/", "tdx/certification/v4/")
STATUSES: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)


@dataclasses.dataclass(slots=True, kw_only=True)
class TeeSettings:
    """What the devnet's manufacturer says of the platform all its providers run on."""

    status: str = "UpToDate"
    """One of `STATUSES`."""
    evaluation: int = TCB_EVALUATION
    revoked: bool = False
    """Whether the platform's certificate is on the list of revoked ones."""
    age: float = 0.0
    """How old the collateral is, in seconds; more than 30 days is expired."""
    down: bool = False
    """Answer 503."""


class CollateralService:
    """Answers for the one platform there is."""

    def __init__(self, clock: Clock) -> None:
        """Serve collateral that is as old as the settings say."""
        self.settings = TeeSettings()
        self._clock = clock

    def answer(self, request: web.Request) -> web.Response:
        """Answer one of the four GETs."""
        settings, maker = self.settings, devnet_maker()
        if settings.down or request.method != "GET":
            return web.Response(status=503 if settings.down else 405)
        now = self._clock.now() - settings.age
        route = request.path.removeprefix("/")
        if route == "sgx/certification/v4/pckcrl" and request.query.get("ca") == "platform":
            body = maker.pck_crl(now, revoked=settings.revoked)
            return web.Response(body=body, headers={"SGX-PCK-CRL-Issuer-Chain": maker.pck_chain()})
        if route == "sgx/certification/v4/rootcacrl":
            return web.Response(text=maker.root_crl(now).hex())
        if route == "tdx/certification/v4/tcb" and request.query.get("fmspc", "").lower() == FMSPC.hex():
            text = maker.tcb_info(now, status=settings.status, evaluation=settings.evaluation)
            return _json(text, "TCB-Info-Issuer-Chain", maker.tcb_chain())
        if route == "tdx/certification/v4/qe/identity":
            text = maker.qe_identity(now, evaluation=settings.evaluation)
            return _json(text, "SGX-Enclave-Identity-Issuer-Chain", maker.tcb_chain())
        return web.Response(status=404)


def _json(text: str, header: str, chain: str) -> web.Response:
    return web.Response(text=text, content_type="application/json", headers={header: chain})
