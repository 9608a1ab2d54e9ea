"""A maker of TDX machines: quotes of version 4 with a whole chain of certificates, and the collateral to check them.

Everything hangs on a root of the devnet's own, which a verifier takes as a parameter in place of Intel's. Sources:
Intel TDX DCAP quoting library API (quote format), Intel SGX PCK certificate and CRL profile, Intel provisioning
certification service API v4 (TCB info, QE identity).
"""

import datetime as dt
import functools
import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote as percent

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import NameOID

FMSPC: Final = bytes.fromhex("90c06f000000")
PCE_ID: Final = bytes(2)
QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
TEE_TCB_SVN: Final = bytes([5, 1, 4]) + bytes(13)
"""What the devnet's TDX modules call their own version, at the beginning of a TD report."""
TCB_EVALUATION: Final = 17
_SGX: Final = "1.2.840.113741.1.13.1"
_CPU_SVN: Final = bytes([4] * 16)
_PCE_SVN: Final = 13
_QE_ISV_SVN: Final = 4
_QE_SIGNER: Final = hashlib.sha256(b"devnet qe signer").digest()
_QE_ATTRIBUTES: Final = bytes.fromhex("11000000000000000000000000000000")
_FRESH: Final = dt.timedelta(days=30)
_BEGIN: Final = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_END: Final = dt.datetime(2060, 1, 1, tzinfo=dt.UTC)


class TdxMaker:
    """A manufacturer: one root, one intermediate, one platform, one TCB signer."""

    def __init__(self, seed: bytes | None = None) -> None:
        """Make keys and certificates.

        Args:
            seed: The same seed makes the same keys, though not the same certificates; None: any.
        """
        self._seed = secrets.token_bytes(32) if seed is None else seed
        self._keys = {name: self._key(name) for name in ("root", "ca", "pck", "tcb", "attestation")}
        self.root = self._certificate("SGX Root CA", "root", issuer=None)
        self._ca = self._certificate("SGX PCK Platform CA", "ca", issuer=self.root)
        self._pck = self._certificate("SGX PCK Certificate", "pck", issuer=self._ca, leaf=_sgx_extension())
        self._tcb = self._certificate("SGX TCB Signing", "tcb", issuer=self.root, leaf=b"")

    @property
    def root_der(self) -> bytes:
        """The root certificate: what a verifier has to be given."""
        return self.root.public_bytes(serialization.Encoding.DER)

    # --- quotes

    def sign_quote(self, header_and_body: bytes) -> bytes:
        """Complete a quote: its signature, the quoting enclave's report, and the certificates.

        Args:
            header_and_body: 48 bytes of header, 584 of TD report.
        """
        numbers = self._keys["attestation"].public_key().public_numbers()
        public = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        auth = bytes(range(32))
        report = _qe_report(hashlib.sha256(public + auth).digest())
        chain = _pem(self._pck, self._ca, self.root)
        qe = report + self._sign("pck", report) + len(auth).to_bytes(2, "little") + auth + _block(5, chain)
        tail = self._sign("attestation", header_and_body) + public + _block(6, qe)
        return header_and_body + len(tail).to_bytes(4, "little") + tail

    # --- collateral

    def pck_crl(self, now: float, *, revoked: bool = False) -> bytes:
        """Return the platform CA's list of revoked certificates, DER; `revoked`: the platform is on it."""
        return self._crl(self._ca, "ca", now, [self._pck.serial_number] if revoked else [])

    def root_crl(self, now: float) -> bytes:
        """Return the root's list of revoked certificates, DER."""
        return self._crl(self.root, "root", now, [])

    def tcb_info(self, now: float, *, status: str = "UpToDate", evaluation: int = TCB_EVALUATION) -> str:
        """Return the signed TCB info.

        Args:
            now: Its time of issue, Unix seconds; it holds for 30 days.
            status: What to say of the devnet's platform.
            evaluation: The number of the evaluation of data.
        """
        level = {
            "tcb": {
                "sgxtcbcomponents": [{"svn": svn} for svn in _CPU_SVN],
                "pcesvn": _PCE_SVN,
                "tdxtcbcomponents": [{"svn": svn} for svn in TEE_TCB_SVN],
            },
            "tcbDate": "2024-03-13T00:00:00Z",
            "tcbStatus": status,
            **({} if status == "UpToDate" else {"advisoryIDs": ["INTEL-SA-00000"]}),
        }
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        levels = [{"tcb": {"isvsvn": 2}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}]
        info = {
            "id": "TDX",
            "version": 3,
            **_validity(now),
            "fmspc": FMSPC.hex().upper(),
            "pceId": PCE_ID.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": evaluation,
            "tdxModule": module,
            "tdxModuleIdentities": [{"id": "TDX_01", **module, "tcbLevels": levels}],
            "tcbLevels": [level],
        }
        return self._signed("tcbInfo", info)

    def qe_identity(self, now: float, *, evaluation: int = TCB_EVALUATION) -> str:
        """Return the signed identity of the quoting enclave."""
        level = {"tcb": {"isvsvn": _QE_ISV_SVN}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "UpToDate"}
        identity = {
            "id": "TD_QE",
            "version": 2,
            **_validity(now),
            "tcbEvaluationDataNumber": evaluation,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": _QE_ATTRIBUTES.hex().upper(),
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": _QE_SIGNER.hex().upper(),
            "isvprodid": 2,
            "tcbLevels": [level],
        }
        return self._signed("enclaveIdentity", identity)

    def pck_chain(self) -> str:
        """Return the CRL issuer's certificates as a PCCS writes them into a header."""
        return percent(_pem(self._ca, self.root).decode())

    def tcb_chain(self) -> str:
        """Return the TCB signer's certificates as a PCCS writes them into a header."""
        return percent(_pem(self._tcb, self.root).decode())

    # --- keys and certificates

    def _key(self, name: str) -> ec.EllipticCurvePrivateKey:
        number = int.from_bytes(hashlib.sha256(self._seed + name.encode()).digest(), "big")
        return ec.derive_private_key(number % (2**255) + 1, ec.SECP256R1())

    def _sign(self, name: str, data: bytes) -> bytes:
        r, s = decode_dss_signature(self._keys[name].sign(data, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def _signed(self, name: str, value: Any) -> str:
        text = json.dumps(value, separators=(",", ":"))
        return f'{{"{name}":{text},"signature":"{self._sign("tcb", text.encode()).hex()}"}}'

    def _certificate(
        self, subject: str, key: str, *, issuer: x509.Certificate | None, leaf: bytes | None = None
    ) -> x509.Certificate:
        name = _name(subject)
        public = self._keys[key].public_key()
        signer = {"tcb": "root", "ca": "root", "pck": "ca", "root": "root"}[key]
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name if issuer is None else issuer.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
            .add_extension(x509.BasicConstraints(ca=leaf is None, path_length=None), critical=True)
            .add_extension(_usage(is_ca=leaf is None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._keys[signer].public_key()), critical=False
            )
            .add_extension(_distribution(), critical=False)
        )
        if leaf:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), leaf)
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._keys[signer], hashes.SHA256())

    def _crl(self, issuer: x509.Certificate, key: str, now: float, serials: Sequence[int]) -> bytes:
        time = dt.datetime.fromtimestamp(now, dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(time - dt.timedelta(days=1))
            .next_update(time + _FRESH)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._keys[key].public_key()), critical=False
            )
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(time)
            builder = builder.add_revoked_certificate(revoked.build())
        return builder.sign(self._keys[key], hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@functools.cache
def devnet_maker() -> TdxMaker:
    """Return the maker that all providers of this process share."""
    return TdxMaker(b"zg devnet")


def _validity(now: float) -> dict[str, str]:
    issued = dt.datetime.fromtimestamp(int(now), dt.UTC) - dt.timedelta(hours=1)
    return {"issueDate": f"{issued:%Y-%m-%dT%H:%M:%SZ}", "nextUpdate": f"{issued + _FRESH:%Y-%m-%dT%H:%M:%SZ}"}


def _qe_report(report_data: bytes) -> bytes:
    """Lay an SGX report of the quoting enclave out: 384 bytes."""
    return (
        _CPU_SVN
        + bytes(4)  # MISCSELECT
        + bytes(12 + 16)
        + _QE_ATTRIBUTES
        + hashlib.sha256(b"devnet quoting enclave").digest()
        + bytes(32)
        + _QE_SIGNER
        + bytes(32 + 64)
        + (2).to_bytes(2, "little")  # product
        + _QE_ISV_SVN.to_bytes(2, "little")
        + bytes(2 + 42 + 16)
        + report_data.ljust(64, b"\0")
    )


def _block(kind: int, data: bytes) -> bytes:
    return kind.to_bytes(2, "little") + len(data).to_bytes(4, "little") + data


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"Intel {common}"),  # verifiers tell the CAs by their names
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "zg devnet, not Intel"),
        ]
    )


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=not is_ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _distribution() -> x509.CRLDistributionPoints:
    where = x509.UniformResourceIdentifier("https://devnet.invalid/root.crl")
    return x509.CRLDistributionPoints([x509.DistributionPoint([where], None, None, None)])


# --- the SGX extension of a platform's certificate


def _sgx_extension() -> bytes:
    svns = [_field(f"{_SGX}.2.{n}", _integer(svn)) for n, svn in enumerate(_CPU_SVN, start=1)]
    tcb = [*svns, _field(f"{_SGX}.2.17", _integer(_PCE_SVN)), _field(f"{_SGX}.2.18", _octets(_CPU_SVN))]
    flags = [_field(f"{_SGX}.7.{n}", b"\x01\x01\x00") for n in (1, 2, 3)]  # dynamic platform, cached keys, SMT
    return _sequence(
        _field(f"{_SGX}.1", _octets(hashlib.sha256(b"devnet ppid").digest()[:16])),
        _field(f"{_SGX}.2", _sequence(*tcb)),
        _field(f"{_SGX}.3", _octets(PCE_ID)),
        _field(f"{_SGX}.4", _octets(FMSPC)),
        _field(f"{_SGX}.5", b"\x0a\x01\x01"),  # scalable
        _field(f"{_SGX}.6", _octets(hashlib.sha256(b"devnet platform").digest()[:16])),
        _field(f"{_SGX}.7", _sequence(*flags)),
    )


def _tagged(tag: int, data: bytes) -> bytes:
    size = len(data)
    length = bytes([size]) if size < 128 else bytes([0x82]) + size.to_bytes(2, "big")
    return bytes([tag]) + length + data


def _sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def _octets(data: bytes) -> bytes:
    return _tagged(0x04, data)


def _integer(number: int) -> bytes:
    return _tagged(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _field(oid: str, value: bytes) -> bytes:
    first, second, *rest = (int(part) for part in oid.split("."))
    encoded = bytes([first * 40 + second])
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(number & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return _sequence(_tagged(0x06, encoded), value)
