"""``tare image``. What is slow to import is imported by the command that runs."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tare.bench.cli.guard import guard, make_app
from tare.bench.readable import readable

if TYPE_CHECKING:
    from tare.bench.image import ImageStore, Listed
    from tare.bench.model import Image

app = make_app("image", "Build, list, verify, import and remove images.")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object; progress goes to stderr.")]
Reference = Annotated[str, typer.Argument(metavar="IMAGE", help="A name, or the first digits of a digest.")]


@app.command()
def build(
    suite: Annotated[
        Path | None, typer.Argument(help="Suite whose packages the image needs; those of every workload without.")
    ] = None,
    *,
    package: Annotated[list[str] | None, typer.Option("--package", "-p", help="A further package; repeatable.")] = None,
    debian: Annotated[str, typer.Option(help="The Debian release.")] = "bookworm",
    as_json: AsJson = False,
) -> None:
    """Build the image of a suite, or find it in the cache. Needs root; takes about 40 s."""
    with guard():
        from tare.bench.image import Recipe
        from tare.bench.ready_suites import find_suite
        from tare.bench.registry import find_backends, find_workloads
        from tare.bench.session import defects_named
        from tare.bench.suite import read_suite

        workloads = find_workloads()
        if suite is not None:
            spec = read_suite(find_suite(suite), find_backends(), workloads)
            with defects_named("packages"):
                wanted = set(spec.packages())
        else:
            wanted = {package for workload in workloads.loaded.values() for package in workload.packages}
        recipe = Recipe.of({*wanted, *(package or ())}, suite=debian)
        with _store() as images:
            image = images.build(recipe, _say)
        _print_image(image, as_json=as_json)


@app.command("list")
def list_(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list, with every package's version.")] = False,
) -> None:
    """List the images in the cache, and why one cannot be used."""
    with guard():
        import msgspec

        with _store() as images:
            listed = images.list()
        if as_json:
            typer.echo(msgspec.json.format(msgspec.json.encode([_as_data(item) for item in listed])).decode())
            return
        for item in listed:
            typer.echo(readable(_describe(item)))
        if not listed:
            typer.echo("There is no image yet; `tare image build` makes one.")


@app.command()
def verify(image: Reference, *, as_json: AsJson = False) -> None:
    """Compare every byte of an image with what was recorded when it was made."""
    with guard():
        with _store() as images:
            found = images.verify(image)
        if as_json:
            _print_image(found, as_json=True)
        else:
            typer.echo(f"{found.digest} is as it was made")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A root file system tar, an OCI archive or a docker archive.")],
    *,
    name: Annotated[str, typer.Option(help="What to call the image; the file's name unless given.")] = "",
    max_size: Annotated[str, typer.Option(help="Refuse an archive that holds more bytes.")] = "32GiB",
    max_members: Annotated[int, typer.Option(min=1, help="Refuse an archive with more files.")] = 1_000_000,
    max_depth: Annotated[int, typer.Option(min=1, help="Refuse paths of more names.")] = 100,
    max_ratio: Annotated[
        int, typer.Option(min=1, help="Refuse an archive that holds more than this times its own size (and 64 MiB).")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """Import a root file system that was made elsewhere: all of it, or nothing if it is damaged."""
    with guard():
        from tare.bench.image import ArchiveLimits

        limits = ArchiveLimits(_size("--max-size", max_size), max_members, max_depth, max_ratio)
        with _store() as images:
            image = images.import_archive(file, name=name, limits=limits, progress=_say)
        _print_image(image, as_json=as_json)
        if image.guest_problem:
            _say(f"the vm backend cannot use it: {image.guest_problem}")


@app.command()
def remove(image: Reference, *, as_json: AsJson = False) -> None:
    """Remove an image from the cache, a broken one too."""
    with guard():
        with _store() as images:
            digest = images.remove(image)
        typer.echo(json.dumps({"removed": digest}) if as_json else f"removed {digest}")


def _size(option: str, given: str) -> int:
    from tare.bench.units import parse_size

    try:
        return parse_size(given)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


@contextlib.contextmanager
def _store() -> "Iterator[ImageStore]":
    from tare.bench.cleaning import clean_up
    from tare.bench.image import ImageStore
    from tare.bench.ledger import Ledger
    from tare.bench.locations import cache_directory, ledger_directory

    # What an interrupted build left takes as much room as an image; its owner is dead, so nobody misses it.
    if failure := clean_up().failure():
        _say(str(failure))
    with Ledger(ledger_directory()) as ledger:
        yield ImageStore(cache_directory(), ledger)


def _say(step: str) -> None:
    typer.echo(readable(step), err=True)


def _print_image(image: "Image", *, as_json: bool) -> None:
    from tare.bench.units import format_size

    if as_json:
        fields = ("digest", "name", "size_bytes", "kernel_version", "guest_problem")
        data = {field: getattr(image, field) for field in fields} | {"directory": str(image.directory)}
        typer.echo(json.dumps(data, indent=2))
        return
    typer.echo(f"{image.digest}  {readable(image.name)}  {format_size(image.size_bytes)}  in {image.directory}")


def _describe(item: "Listed") -> str:
    """A line that can be cut into columns, and a line on where the image comes from."""
    from tare.bench.units import format_size

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


def _as_data(item: "Listed") -> dict[str, Any]:
    import msgspec

    description = msgspec.to_builtins(item.description) or {}
    for internal in ("format", "probes", "files"):
        description.pop(internal, None)
    named = {"digest": item.digest, "names": item.names, "directory": str(item.directory)}
    return {**description, **named, "complete": not item.problem, "problem": item.problem}
