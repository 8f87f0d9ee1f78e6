"""Certificates: what is made, who trusts whom, and one message for each that cannot be used."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("cryptography")

from tare.bench.errors import TareError
from tare.bench.fleet import keys
from tare.bench.fleet.keys import make_keys, require_credentials


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "fleet-keys"
    assert len(list(make_keys(folder, ["a", "b"], 30))) == 5
    return folder


def connects(client, server) -> bool:
    """Whether two sides finish a handshake that both check, without a network."""
    sides = []
    for given, purpose in ((client, ssl.Purpose.SERVER_AUTH), (server, ssl.Purpose.CLIENT_AUTH)):
        context = ssl.create_default_context(purpose, cafile=str(given.authority))
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(str(given.certificate), str(given.key))
        sides.append(context)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = sides[0].wrap_bio(back, there)
    theirs = sides[1].wrap_bio(there, back, server_side=True)
    waiting = {ours, theirs}
    try:
        for _ in range(10):
            for side in tuple(waiting):
                try:
                    side.do_handshake()
                    waiting.discard(side)
                except ssl.SSLWantReadError:
                    pass
        ours.read(1)
    except ssl.SSLWantReadError:
        return not waiting
    except ssl.SSLError:
        return False
    return False


def test_only_user_and_hosts_know_one_another(folder):
    user, a, b = (require_credentials(folder / name) for name in ("user", "hosts/a", "hosts/b"))
    assert connects(a, user)
    assert not connects(a, b)
    assert not connects(user, user)


def test_keys_are_for_their_owner_alone(folder):
    assert {path.stat().st_mode & 0o077 for path in folder.rglob("*")} == {0}


def test_what_is_there_is_kept_and_a_new_host_added(tmp_path):
    list(make_keys(tmp_path / "k", ["a"], 30))
    before = (tmp_path / "k/hosts/a/key.pem").read_bytes()
    assert [line for line in make_keys(tmp_path / "k", ["a", "c"], 30) if line.startswith("made")] == [
        f"made {tmp_path}/k/hosts/c"
    ]
    assert (tmp_path / "k/hosts/a/key.pem").read_bytes() == before


def test_an_expired_certificate_is_named_and_made_again(tmp_path, monkeypatch):
    folder = tmp_path / "k"
    list(make_keys(folder, ["a"], 30))

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(UTC) + timedelta(days=31)

    monkeypatch.setattr(keys, "datetime", Later)
    with pytest.raises(TareError, match="the certificate of a expired on") as raised:
        require_credentials(folder / "hosts/a", "a")
    assert "tare fleet keys" in raised.value.remedy
    list(make_keys(folder, ["a"], 30))
    require_credentials(folder / "hosts/a", "a")


def test_one_message_for_what_cannot_be_used(folder, tmp_path):
    with pytest.raises(TareError, match="cannot be read"):
        require_credentials(tmp_path)
    with pytest.raises(TareError, match="is the certificate of 'a', and this host is 'b'"):
        require_credentials(folder / "hosts/a", "b")
    (tmp_path / "certificate.pem").write_text("nonsense")
    with pytest.raises(TareError, match="is no certificate"):
        require_credentials(tmp_path)
