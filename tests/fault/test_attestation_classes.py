"""Genuine-looking evidence of many wrong kinds, most of it signed under the right root: only the right one passes."""

import copy
import datetime as dt
import json
from urllib.parse import unquote

import pytest

from tests.tee_kit import MAKER, NOW, encoded, fields, good_report, judged
from zg_async.devnet import tdx
from zg_async.devnet.tdx import TdxMaker

OTHER = TdxMaker(b"another maker")
LONG_AGO, SOON = dt.datetime(2019, 1, 1, tzinfo=dt.UTC), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
LATER, LAST = dt.datetime(2040, 1, 1, tzinfo=dt.UTC), dt.datetime(2045, 1, 1, tzinfo=dt.UTC)


class Case:
    """A report and its collateral, of parts that can be exchanged; what is changed is signed again."""

    def __init__(self) -> None:
        self.maker = copy.copy(MAKER)
        self.maker._keys = dict(MAKER._keys)
        self.tcb = self.qe = self.body = self.qe_report = self.quote = lambda _: None
        self.collateral = lambda _: None
        self.now = NOW

    def judged(self):
        report = fields(good_report().body)
        raw = bytearray(bytes.fromhex(report["quote"])[:632])
        self.body(raw)
        quote = bytearray(self._signed_quote(bytes(raw)))
        self.quote(quote)
        return judged(encoded({**report, "quote": bytes(quote).hex()}), header=None, collateral=self._collateral())

    def _signed_quote(self, head: bytes) -> bytes:
        with pytest.MonkeyPatch.context() as patch:
            lay_out = tdx._qe_report

            def bent(data: bytes) -> bytes:
                report = bytearray(lay_out(data))
                self.qe_report(report)
                return bytes(report)

            patch.setattr(tdx, "_qe_report", bent)
            return self.maker.sign_quote(head)

    def _collateral(self) -> dict:
        texts = {}
        for name, text, edit in (
            ("tcbInfo", self.maker.tcb_info(self.now), self.tcb),
            ("enclaveIdentity", self.maker.qe_identity(self.now), self.qe),
        ):
            value = json.loads(text)[name]
            edit(value)
            signed = self.maker._signed(name, value)
            texts[name] = (json.dumps(value, separators=(",", ":")), json.loads(signed)["signature"])
        found = {
            "pck_crl_issuer_chain": unquote(self.maker.pck_chain()),
            "root_ca_crl": self.maker.root_crl(self.now).hex(),
            "pck_crl": self.maker.pck_crl(self.now).hex(),
            "tcb_info_issuer_chain": unquote(self.maker.tcb_chain()),
            "tcb_info": texts["tcbInfo"][0],
            "tcb_info_signature": texts["tcbInfo"][1],
            "qe_identity_issuer_chain": unquote(self.maker.tcb_chain()),
            "qe_identity": texts["enclaveIdentity"][0],
            "qe_identity_signature": texts["enclaveIdentity"][1],
            "pck_certificate_chain": None,
        }
        self.collateral(found)
        return found


def tcb(**changes):
    return lambda case: setattr(case, "tcb", lambda value: value.update(changes))


def tcb_level(**changes):
    return lambda case: setattr(case, "tcb", lambda value: value["tcbLevels"][0].update(changes))


def tcb_part(name, **changes):
    return lambda case: setattr(case, "tcb", lambda value: value["tcbLevels"][0]["tcb"].update({name: changes["to"]}))


def module(**changes):
    return lambda case: setattr(case, "tcb", lambda value: value["tdxModuleIdentities"][0].update(changes))


def qe(**changes):
    return lambda case: setattr(case, "qe", lambda value: value.update(changes))


def patched(part, start, data):
    def change(raw: bytearray) -> None:
        raw[start : start + len(data)] = data

    return lambda case: setattr(case, part, change)


def collateral(**changes):
    return lambda case: setattr(case, "collateral", lambda value: value.update(changes))


def other_key(name):
    return lambda case: case.maker._keys.update({name: OTHER._keys[name]})


def certificate(name, subject, key, issuer, leaf=None, begin=None, end=None):
    """Put another certificate in a place of the chain."""

    def change(case) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tdx, "_BEGIN", begin or tdx._BEGIN)
            patch.setattr(tdx, "_END", end or tdx._END)
            above = {"root": MAKER.root, "ca": MAKER._ca, None: None}[issuer]
            setattr(case.maker, name, case.maker._certificate(subject, key, issuer=above, leaf=leaf))

    return change


def replaced(name, other):
    return lambda case: setattr(case.maker, name, other)


def of_time(seconds):
    return lambda case: setattr(case, "now", NOW + seconds)


def mixed(level):
    return {"tcbLevels": [{"tcb": {"isvsvn": level}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}]}


def of_status(status):
    return {"tcbLevels": [{"tcb": {"isvsvn": 1}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": status}]}


STATUSES = (
    "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate",
    "OutOfDateConfigurationNeeded", "Revoked", "Unknown",
)  # fmt: skip
SGX = tdx._sgx_extension()
DAY = 86_400
CASES = {
    **{f"TCB level {status}": tcb_level(tcbStatus=status) for status in STATUSES},
    **{f"enclave level {status}": qe(**of_status(status)) for status in STATUSES},
    **{f"module level {status}": module(**of_status(status)) for status in STATUSES},
    "TCB info of another platform": tcb(fmspc="00A06F050000"),
    "TCB info of another PCE": tcb(pceId="0001"),
    "TCB info of SGX": tcb(id="SGX"),
    "TCB info of an older form": tcb(version=2),
    "no TCB level": tcb(tcbLevels=[]),
    "PCE above": tcb_part("pcesvn", to=999),
    "processor above": tcb_part("sgxtcbcomponents", to=[{"svn": 255}] * 16),
    "TDX above": tcb_part("tdxtcbcomponents", to=[{"svn": 255}] * 16),
    "module by another signer": module(mrsigner="11" * 48),
    "module of other attributes": module(attributes="01" * 8),
    "module above": module(**mixed(99)),
    "no module identity": tcb(tdxModuleIdentities=[]),
    "collateral expired": of_time(-31 * DAY),
    "collateral of the future": of_time(40 * DAY),
    "enclave by another signer": qe(mrsigner="11" * 32),
    "enclave of another product": qe(isvprodid=1),
    "enclave of other attributes": qe(attributes="FF" * 16, attributesMask="FF" * 16),
    "enclave of another select": qe(miscselect="00000001"),
    "enclave above": qe(**mixed(99)),
    "identity of SGX's enclave": qe(id="QE"),
    "identity of another form": qe(version=1),
    "TCB info unsigned": collateral(tcb_info_signature="00" * 64),
    "identity unsigned": collateral(qe_identity_signature="00" * 64),
    "TCB info by another": other_key("tcb"),
    "attestation key not in the enclave's report": patched("qe_report", 320, bytes(32)),
    "enclave report by another signer": patched("qe_report", 128, b"\x11" * 32),
    "enclave report of another product": patched("qe_report", 256, b"\x01\x00"),
    "enclave report of an old enclave": patched("qe_report", 258, b"\x00\x00"),
    "enclave in debug mode": patched("qe_report", 48, b"\xff"),
    "TD in debug mode": patched("body", 48 + 120, b"\x01"),
    "TD with reserved attributes": patched("body", 48 + 120, b"\x02"),
    "TD that may see exceptions": patched("body", 48 + 120, bytes(8)),
    "module by a signer": patched("body", 48 + 64, b"\x11" * 48),
    "module with attributes": patched("body", 48 + 112, b"\x01"),
    "TDX below": patched("body", 48, bytes(16)),
    "SGX quote": patched("body", 4, bytes(4)),
    "quote of another version": patched("body", 0, b"\x03\x00"),
    "quote of another key type": patched("body", 2, b"\x03\x00"),
    "enclave of another vendor": patched("body", 12, bytes(16)),
    "quote changed after signing": patched("quote", 600, b"\xff"),
    "signature of zeros": patched("quote", 636, bytes(64)),
    "enclave report by another platform": other_key("pck"),
    "CA used as leaf": replaced("_pck", MAKER._ca),
    "root used as leaf": replaced("_pck", MAKER.root),
    "TCB signer used as leaf": replaced("_pck", MAKER._tcb),
    "leaf without the platform's data": certificate("_pck", "SGX PCK Certificate", "pck", "ca", b""),
    "leaf expired": certificate("_pck", "SGX PCK Certificate", "pck", "ca", SGX, LONG_AGO, SOON),
    "leaf not valid yet": certificate("_pck", "SGX PCK Certificate", "pck", "ca", SGX, LATER, LAST),
    "leaf signed by itself": certificate("_pck", "SGX PCK Certificate", "pck", None, SGX),
    "leaf of another maker": replaced("_pck", OTHER._pck),
    "CA expired": certificate("_ca", "SGX PCK Platform CA", "ca", "root", None, LONG_AGO, SOON),
    "CA of another maker": replaced("_ca", OTHER._ca),
    "no CA": replaced("_ca", MAKER.root),
    "TCB signer expired": certificate("_tcb", "SGX TCB Signing", "tcb", "root", b"", LONG_AGO, SOON),
    "TCB signer of another maker": replaced("_tcb", OTHER._tcb),
    "TCB signer is the platform CA": replaced("_tcb", MAKER._ca),
    "platform revoked": collateral(pck_crl=MAKER.pck_crl(NOW, revoked=True).hex()),
    "CA revoked": collateral(root_ca_crl=MAKER._crl(MAKER.root, "root", NOW, [MAKER._ca.serial_number]).hex()),
    "revocations of another maker": collateral(pck_crl=OTHER.pck_crl(NOW).hex()),
    "revocations expired": collateral(pck_crl=MAKER.pck_crl(NOW - 40 * DAY).hex()),
    "root's revocations expired": collateral(root_ca_crl=MAKER.root_crl(NOW - 40 * DAY).hex()),
    "root's revocations of another maker": collateral(root_ca_crl=OTHER.root_crl(NOW).hex()),
    "revocations of the root for the CA": collateral(pck_crl=MAKER.root_crl(NOW).hex()),
    "no revocations": collateral(pck_crl="", root_ca_crl=""),
}


def test_the_right_one_passes():
    result = Case().judged()
    assert result.verified, result.summary()


@pytest.mark.goal("HRD-08", part="classes of wrong evidence")
@pytest.mark.parametrize("name", CASES)
def test_no_wrong_one_passes(name):
    case = Case()
    CASES[name](case)
    result = case.judged()
    assert not result.verified, name
    assert {c.name for c in result.blocking} <= {
        "quote_signature", "tcb_level", "debug_off", "quote_format", "report_data", "signer", "rtmr0_2_replay",
        "rtmr3_replay", "mr_config_id", "compose_hash",
    }  # fmt: skip
    assert all(c.reason for c in result.blocking)


@pytest.mark.goal("HRD-08", part="classes of wrong evidence")
def test_there_are_as_many_classes_as_the_library_has_samples():
    assert len(CASES) >= 46
