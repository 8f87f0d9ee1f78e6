"""A copy of tare with what it imports, for whoever cannot read this checkout and environment: another user, a guest."""

import re
import shutil
from importlib.metadata import Distribution, distribution
from pathlib import Path

import tare

ROOT = Path(tare.__file__).parent
PYTHON_ONLY = shutil.ignore_patterns("__pycache__")


def requirements(name: str, seen: dict[str, Distribution]) -> dict[str, Distribution]:
    """A distribution and all that it needs on this interpreter, extras and other platforms left out."""
    if name not in seen:
        seen[name] = found = distribution(name)
        for line in found.requires or ():
            needed, _, condition = line.partition(";")
            if not condition:
                requirements(re.split(r"[^\w.-]", needed)[0].lower(), seen)
    return seen


def ship(folder: Path, *needed: str) -> Path:
    """Make ``folder`` a place for PYTHONPATH: tare with its entry points, and these distributions with theirs.

    ``tare`` itself is copied without its requirements: most are large, and few commands need them.
    """
    shutil.copytree(ROOT, folder / "tare", ignore=PYTHON_ONLY)
    ours = distribution("tarebench")
    metadata = folder / f"tarebench-{ours.version}.dist-info"
    metadata.mkdir()
    # In a checkout it may be the egg-info that is found first, where the same text has another name.
    described = ours.read_text("METADATA") or ours.read_text("PKG-INFO")
    for name, text in (("METADATA", described), ("entry_points.txt", ours.read_text("entry_points.txt"))):
        assert text, f"{ours} has no {name}"
        (metadata / name).write_text(text)
    found: dict[str, Distribution] = {}
    for name in needed:
        requirements(name, found)
    for dist in found.values():
        for file in dist.files or ():
            path = Path(str(dist.locate_file(file)))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder
