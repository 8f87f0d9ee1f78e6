"""Certificates for a fleet: who the user is to hosts, and who each host is to the user.

There are two authorities. Hosts trust what the user's signed, which is the user alone; the user trusts what the hosts'
signed. So no host can pass for the user to another host, nor for another host to the user, whose certificate is under
its own name. The authorities' own keys never leave the folder.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tare.bench.errors import MissingToolError, TareError
from tare.bench.fleet.credentials import Credentials

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_AUTHORITY, _CERTIFICATE, _KEY = "authority.pem", "certificate.pem", "key.pem"
_SKEW = timedelta(days=1)
"""Certificates are valid from a day ago: clocks of hosts that are not exact yet."""


def make_keys(folder: Path, hosts: Sequence[str], days: int) -> Iterator[str]:
    """Make what is missing or has expired: two authorities, a certificate of the user's, one of each host's.

    Returns a line for each that was made, and what to do with them. Raises TareError, OSError.
    """
    for place in (folder, folder / "authorities", folder / "hosts"):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        place.chmod(0o700)
    authorities = {
        side: _authority(folder / "authorities" / side, f"tare fleet {side}", days) for side in ("user", "hosts")
    }
    sides = [
        ("user", folder / "user", "user", "hosts"),
        *((name, folder / "hosts" / name, "hosts", "user") for name in hosts),
    ]
    for name, place, by, trusted in sides:
        if _is_valid(place, authorities[by][0]):
            continue
        certificate, key = authorities[by]
        _issue(place, name, certificate, key, days)
        _write(place / _AUTHORITY, _pem(authorities[trusted][0]))
        yield f"made {place}"
    yield f"user's side: tare fleet run SUITE --keys {folder}"
    yield f"each host: its folder {folder / 'hosts'}/NAME; hosts that are started over SSH get theirs by themselves"


def require_credentials(folder: Path, name: str = "") -> Credentials:
    """The credentials in a folder that ``make_keys`` made. Raises TareError if they are not there, or have expired.

    With the ``name`` of a host, also if they are another host's.
    """
    found = Credentials(folder / _AUTHORITY, folder / _CERTIFICATE, folder / _KEY)
    remedy = "make them with `tare fleet keys --hosts hosts.toml`"
    try:
        certificate = _load_certificate(found.certificate)
        found.key.read_bytes()
        found.authority.read_bytes()
    except OSError as error:
        raise TareError(
            f"the keys of the fleet cannot be read: {error.filename}: {error.strerror}", remedy=remedy
        ) from None
    except ValueError as error:
        raise TareError(f"{found.certificate} is no certificate: {error}", remedy=remedy) from None
    whose = _name_of(certificate)
    if name and whose != name:
        raise TareError(
            f"{found.certificate} is the certificate of {whose!r}, and this host is {name!r}", remedy=remedy
        )
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        expired = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        remedy = "`tare fleet keys` makes new ones where they have expired; check the clock too"
        raise TareError(f"the certificate of {whose} expired on {expired} ({found.certificate})", remedy=remedy)
    if now < certificate.not_valid_before_utc:
        begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise TareError(
            f"the certificate of {whose} is valid from {begins} on, by this clock later", remedy="set the clock"
        )
    return found


def _authority(folder: Path, name: str, days: int) -> "tuple[x509.Certificate, EllipticCurvePrivateKey]":
    if not _is_valid(folder, None):
        _issue(folder, name, None, None, days)
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key((folder / _KEY).read_bytes(), None)
        return _load_certificate(folder / _CERTIFICATE), key  # type: ignore[return-value]  # made here, of this kind
    except ValueError as error:
        raise TareError(f"{folder}: {error}", remedy="remove that folder, and make all keys again") from None


def _is_valid(folder: Path, issuer: "x509.Certificate | None") -> bool:
    """Whether a certificate and its key are there, from this issuer, for another day at least."""
    with contextlib.suppress(OSError, ValueError):
        found = _load_certificate(folder / _CERTIFICATE)
        named = issuer is None or (found.issuer == issuer.subject and _signed(found, issuer))
        return named and (folder / _KEY).exists() and found.not_valid_after_utc > datetime.now(UTC) + _SKEW
    return False


def _signed(certificate: "x509.Certificate", issuer: "x509.Certificate") -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _issue(
    folder: Path, name: str, issuer: "x509.Certificate | None", signer: "EllipticCurvePrivateKey | None", days: int
) -> None:
    """A key and its certificate in a folder; without an issuer it is an authority of its own."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), critical=True
        )
    )
    certificate = builder.sign(key if signer is None else signer, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(folder / _KEY, private)
    _write(folder / _CERTIFICATE, _pem(certificate))


def _load_certificate(path: Path) -> "x509.Certificate":
    try:
        from cryptography import x509
    except ImportError as error:
        raise MissingToolError(
            "fleets need a library that is not installed: cryptography",
            remedy="install tare with its extra: pipx install './[fleet]' (from the checkout)",
        ) from error
    return x509.load_pem_x509_certificate(path.read_bytes())


def _name_of(certificate: "x509.Certificate") -> str:
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _pem(certificate: "x509.Certificate") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, content: bytes) -> None:
    """A file for its owner alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
