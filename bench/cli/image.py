"""``tare image``: the options of its commands. What they do is in ``image_commands``, imported when one runs."""

from pathlib import Path
from typing import Annotated

import typer

from tare.bench.cli.guard import guard, make_app

app = make_app("image", "Build, list, verify, import and remove images.")

Reference = Annotated[str, typer.Argument(metavar="IMAGE", help="A name, or the first digits of a digest.")]


@app.command()
def build(
    suite: Annotated[
        Path | None, typer.Argument(help="The suite whose packages the image needs; every workload's unless given.")
    ] = None,
    *,
    package: Annotated[list[str] | None, typer.Option("--package", "-p", help="A further package; repeatable.")] = None,
    debian: Annotated[str, typer.Option(help="The Debian release.")] = "bookworm",
) -> None:
    """Build the image of a suite, or find it in the cache. Needs root; takes about 40 s."""
    with guard():
        from tare.bench.cli.image_commands import build_command

        build_command(suite, tuple(package or ()), debian)


@app.command("list")
def list_(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list, with every package's version.")] = False,
) -> None:
    """List the images in the cache, and why one cannot be used."""
    with guard():
        from tare.bench.cli.image_commands import list_command

        list_command(as_json=as_json)


@app.command()
def verify(image: Reference) -> None:
    """Compare every byte of an image with what was recorded when it was made."""
    with guard():
        from tare.bench.cli.image_commands import verify_command

        verify_command(image)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A root file system tar, an OCI archive or a docker archive.")],
    *,
    name: Annotated[str, typer.Option(help="What to call the image; the file's name unless given.")] = "",
) -> None:
    """Import a root file system that was made elsewhere. Needs root."""
    with guard():
        from tare.bench.cli.image_commands import import_command

        import_command(file, name)


@app.command()
def remove(image: Reference) -> None:
    """Remove an image from the cache, a broken one too."""
    with guard():
        from tare.bench.cli.image_commands import remove_command

        remove_command(image)
