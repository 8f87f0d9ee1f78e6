"""What the commands of ``tare image`` do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import typer

from tare.bench.cleaning import clean_up
from tare.bench.image import ImageStore, Listed, Recipe
from tare.bench.ledger import Ledger
from tare.bench.locations import cache_directory, ledger_directory
from tare.bench.model import Image
from tare.bench.registry import find_backends, find_workloads
from tare.bench.suite import read_suite
from tare.bench.units import format_size


def build_command(suite: Path | None, packages: tuple[str, ...], debian: str) -> None:
    """Build or find an image and print its digest. Raises TareError."""
    workloads = find_workloads()
    if suite is not None:
        wanted = set(read_suite(suite, find_backends(), workloads).packages())
    else:
        wanted = {package for workload in workloads.loaded.values() for package in workload.packages}
    recipe = Recipe.of({*wanted, *packages}, suite=debian)
    with _store() as images:
        image = images.build(recipe, _say)
    _print_image(image)


def import_command(file: Path, name: str) -> None:
    """Import an archive and print its digest. Raises TareError."""
    with _store() as images:
        image = images.import_archive(file, name=name, progress=_say)
    _print_image(image)
    if image.guest_problem:
        typer.echo(f"the vm backend cannot use it: {image.guest_problem}", err=True)


def list_command(*, as_json: bool) -> None:
    """Print every image, as text or as JSON."""
    with _store() as images:
        listed = images.list()
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode([_as_data(item) for item in listed])).decode())
        return
    for item in listed:
        typer.echo(_describe(item))
    if not listed:
        typer.echo("There is no image yet; `tare image build` makes one.")


def verify_command(reference: str) -> None:
    """Check an image in full and say that it is whole. Raises ImageError if it is not."""
    with _store() as images:
        image = images.verify(reference)
    typer.echo(f"{image.digest} is as it was made")


def remove_command(reference: str) -> None:
    """Remove an image and say which. Raises ImageError."""
    with _store() as images:
        digest = images.remove(reference)
    typer.echo(f"removed {digest}")


@contextlib.contextmanager
def _store() -> Iterator[ImageStore]:
    # What an interrupted build left takes as much room as an image; its owner is dead, so nobody misses it.
    if failure := clean_up().failure():
        _say(str(failure))
    with Ledger(ledger_directory()) as ledger:
        yield ImageStore(cache_directory(), ledger)


def _say(step: str) -> None:
    typer.echo(step, err=True)


def _print_image(image: Image) -> None:
    typer.echo(f"{image.digest}  {image.name}  {format_size(image.size_bytes)}  in {image.directory}")


def _describe(item: Listed) -> str:
    """A line that can be cut into columns, and a line on where the image comes from."""
    description = item.description
    names = " ".join(item.names) or "-"
    if description is None:
        return f"{item.digest[:12] or '-':12}  {names}\n    {item.problem}"
    recipe = description.recipe
    made = description.built_utc[:16].replace("T", " ")
    size = format_size(description.size_bytes)
    made_of = f"{recipe.suite}: {' '.join((*recipe.packages, *recipe.python_packages))}" if recipe else ""
    lines = [
        f"{item.digest[:12]}  {names:20}  {made}  {size:>8}  kernel {description.kernel_version or 'none'}",
        f"    {made_of or f'imported: {description.origin}'}",
    ]
    if item.problem:
        lines.append(f"    {item.problem}")
    elif description.guest_problem:
        lines.append(f"    no guest: {description.guest_problem}")
    return "\n".join(lines)


def _as_data(item: Listed) -> dict[str, Any]:
    description = msgspec.to_builtins(item.description) or {}
    for internal in ("format", "probes", "files"):
        description.pop(internal, None)
    named = {"digest": item.digest, "names": item.names, "directory": str(item.directory)}
    return {**description, **named, "complete": not item.problem, "problem": item.problem}
