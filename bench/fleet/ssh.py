"""Starts workers on hosts over SSH."""

import asyncio
import os
import shlex
from pathlib import Path
from typing import Any

import asyncssh

from tare.bench.errors import TareError
from tare.bench.fleet.hosts import Host
from tare.bench.fleet.on_host import last_message
from tare.bench.readable import readable

_CONNECT_S = 20.0
_START_S = 60.0
_NOT_FOUND = 127
_KEYS = ".config/tare/fleet-keys"
"""On the host, below the user's home: the folder of its own certificate."""


class SshStarter:
    """Starts the worker of a host as its SSH user. ``keys`` is the folder that ``tare fleet keys`` made."""

    def __init__(self, keys: Path | None) -> None:
        self._keys = keys

    async def start(self, host: Host, address: str) -> None:
        """Start the worker of a host, unless it is there already. Raises TareError with what SSH or tare says."""
        options = _options(host)
        try:
            async with asyncio.timeout(_START_S), asyncssh.connect(host.address, **options) as connection:
                argv = f"{host.tare} fleet worker {shlex.quote(address)} --name {shlex.quote(host.name)} --detach"
                if self._keys is not None:
                    argv += f" --keys {shlex.quote(await self._send_keys(connection, host))}"
                done = await connection.run(argv, stdin=asyncssh.DEVNULL)
        except TimeoutError:
            raise TareError(f"SSH to {_at(host)}: no answer", remedy="is it up, and is its address right?") from None
        except asyncssh.HostKeyNotVerifiable as error:
            raise TareError(
                f"SSH to {_at(host)}: its host key is not known: {error.reason}",
                remedy=f"connect once with ssh, or add the key to {host.known_hosts or '~/.ssh/known_hosts'}",
            ) from error
        except asyncssh.PermissionDenied as error:
            raise TareError(f"SSH to {_at(host)} was refused: {error.reason}", remedy="check user and key") from error
        except (asyncssh.Error, asyncssh.KeyImportError, OSError, ValueError) as error:
            raise TareError(f"SSH to {_at(host)}: {_said(error)}", remedy="check address, port and key") from error
        if done.exit_status:
            raise _failed(host, int(done.exit_status), readable(str(done.stderr or done.stdout or "")).strip())

    async def _send_keys(self, connection: Any, host: Host) -> str:
        """Copy a host's own certificate to it; the folder there."""
        assert self._keys is not None
        ours = self._keys / "hosts" / host.name
        if not (ours / "key.pem").exists():
            raise TareError(f"{host.name} has no certificate in {self._keys}", remedy="run `tare fleet keys` again")
        async with connection.start_sftp_client() as sftp:
            folder = f"{await sftp.realpath('.')}/{_KEYS}/{host.name}"
            await sftp.makedirs(folder, asyncssh.SFTPAttrs(permissions=0o700), exist_ok=True)
            for file in sorted(ours.iterdir()):
                await sftp.remove(f"{folder}/{file.name}") if await sftp.exists(f"{folder}/{file.name}") else None
                async with sftp.open(f"{folder}/{file.name}", "xb", asyncssh.SFTPAttrs(permissions=0o600)) as there:
                    await there.write(file.read_bytes())
        return str(folder)


def _said(error: Exception) -> str:
    """What an error comes down to: asyncio puts numbers and addresses into the text of the system's."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return os.strerror(error.errno) if error.errno > 0 else error.strerror
    return readable(str(error))


def _options(host: Host) -> dict[str, Any]:
    """How asyncssh connects; as ssh does where the hosts file says nothing, without ssh's own configuration."""
    stated = {"username": host.user, "client_keys": [host.key] if host.key else [], "known_hosts": host.known_hosts}
    usual = {
        "port": host.port,
        "connect_timeout": _CONNECT_S,
        "config": [],
        "agent_path": os.environ.get("SSH_AUTH_SOCK"),
    }
    return usual | {name: value for name, value in stated.items() if value}


def _failed(host: Host, code: int, said: str) -> TareError:
    last = last_message(said) or f"exit code {code}"
    if code == _NOT_FOUND:
        return TareError(
            f"there is no `{host.tare}` on {host.name}: {last}",
            remedy='install tare there, or say where it is: tare = "/path/to/tare" in the hosts file',
        )
    return TareError(f"the worker of {host.name} did not start: {last}")


def _at(host: Host) -> str:
    return f"{host.user}@{host.address}:{host.port}" if host.user else f"{host.address}:{host.port}"
