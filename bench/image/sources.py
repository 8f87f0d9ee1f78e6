"""The Debian archives that this host's apt uses, so that an image comes from where the host's packages do."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

_WANTED = ("URIs", "Suites", "Components", "Signed-By", "Trusted", "Check-Valid-Until", "Check-Date")
_OPTIONS = {name.lower(): name for name in _WANTED}


def find_debian_sources(suite: str, apt_folder: Path = Path("/etc/apt")) -> str | None:
    """The host's entries for Debian's own ``suite``, as deb822 text; None if it has none.

    Third-party archives that merely use Debian's suite names are left out: an entry counts if "debian" is in its
    address, ``main`` among its components, and its key, where one is stated, Debian's.
    """
    kept = []
    for stanza in _stanzas(apt_folder):
        suites = [name for name in stanza["Suites"].split() if name in (suite, f"{suite}-updates", f"{suite}-security")]
        key = stanza.get("Signed-By", "")
        foreign_key = bool(key) and "debian-archive" not in key
        if suites and "main" in stanza["Components"].split() and _is_debian(stanza["URIs"]) and not foreign_key:
            fields = {**stanza, "Types": "deb", "Suites": " ".join(suites), "Components": "main"}
            kept.append("".join(f"{name}: {fields[name]}\n" for name in ("Types", *_WANTED) if name in fields))
    return "\n".join(kept) or None


def _is_debian(addresses: str) -> bool:
    return bool(re.search(r"\bdebian(-security)?\b", addresses)) and "linux/debian" not in addresses


def _stanzas(apt_folder: Path) -> Iterator[Mapping[str, str]]:
    parts = apt_folder / "sources.list.d"
    for path in sorted([apt_folder / "sources.list", *parts.glob("*.list"), *parts.glob("*.sources")]):
        if not path.is_file():
            continue
        text = path.read_text("utf-8", errors="replace")
        stanzas = _parse_deb822(text) if path.suffix == ".sources" else _parse_one_line(text)
        yield from (stanza for stanza in stanzas if {"URIs", "Suites", "Components"} <= stanza.keys())


def _parse_deb822(text: str) -> Iterator[Mapping[str, str]]:
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in " \t" and last:
                fields[last] += f"\n{line}"
            elif ":" in line:
                name, _, value = line.partition(":")
                last = _OPTIONS.get(name.strip().lower(), name.strip())
                fields[last] = value.strip()
        enabled = fields.get("Enabled", "yes").lower() not in ("no", "false", "0")
        if enabled and "deb" in fields.get("Types", "").split():
            yield fields


def _parse_one_line(text: str) -> Iterator[Mapping[str, str]]:
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line.strip())
        if match is None:
            continue
        options, address, suite, components = match.groups()
        fields = {"URIs": address, "Suites": suite, "Components": components.strip()}
        for option in (options or "").split():
            name, _, value = option.partition("=")
            if name.lower() in _OPTIONS:
                fields[_OPTIONS[name.lower()]] = value.replace(",", " ")
        yield fields
