"""``tare exec``: one command in a fresh instance of any backend."""

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import typer

from tare.bench.cli.guard import complain
from tare.bench.errors import BackendError, ExitCode, SuiteError, UnavailableError, UnsupportedError
from tare.bench.image import ImageStore
from tare.bench.interfaces import Backend, BackendContext, Instance
from tare.bench.ledger import Ledger, clean, raise_if_failed
from tare.bench.limits_met import why_failed
from tare.bench.locations import cache_directory, ledger_directory, work_directory
from tare.bench.model import Command, Completed, Envelope, Image, InstanceSpec
from tare.bench.registry import find_backends
from tare.bench.session import keep_off, work_folder
from tare.bench.units import parse_duration, parse_size


def exec_command(
    name: str,
    argv: list[str],
    *,
    memory: str,
    cpus: int,
    image: str,
    timeout: str,
    stdin: bool,
    options: Sequence[str] = (),
) -> int:
    """Run ``argv`` in an instance of the backend ``name``; returns the exit code to end with."""
    timeout_s = _seconds(timeout)
    if not argv:
        raise SuiteError("COMMAND", "what to run is missing, after --")
    backend_type, envelope = find_backends().get(name), _envelope(memory, cpus)
    command = Command(tuple(argv), timeout_s=timeout_s, stdin=sys.stdin.buffer.read() if stdin else b"")
    with start_instance(backend_type, memory=memory, cpus=cpus, image=image, options=options) as (instance, _):
        completed = instance.execute(command)
    return _pass_on(command, completed, envelope)


def explain_command(name: str, *, memory: str, cpus: int, image: str, options: Sequence[str] = ()) -> int:
    """Print how the backend ``name`` would start an instance; nothing is started, and no privileges are needed."""
    backend_type, envelope = find_backends().get(name), _envelope(memory, cpus)
    work = work_directory() / secrets.token_hex(3)
    with Ledger(ledger_directory()) as ledger:
        chosen = _options(backend_type, options)
        backend = backend_type(BackendContext(ledger, work, cache_directory(), chosen, ()))
        try:
            root = _find_image(ImageStore(cache_directory(), ledger), image)
        except UnavailableError:  # what stands for it in a path does as well here
            root = Image("", "", Path("IMAGE"), Path("IMAGE/rootfs"), None, None, None, "", {}, 0)
        lines = backend.explain(InstanceSpec(f"{work.name}-exec", root, envelope))
    if not lines:
        raise UnsupportedError(f"{name} does not tell how it starts instances")
    for line in lines:
        typer.echo(line)
    return ExitCode.OK


def _options(backend_type: type[Backend], given: Sequence[str]) -> msgspec.Struct:
    """The backend's options from ``name=value`` of the command line. Raises SuiteError."""
    named = dict(text.partition("=")[::2] for text in given)
    try:
        return msgspec.convert(named, backend_type.Options, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(backend_type.Options.__struct_fields__) or "none"
        raise SuiteError("--option", f"{error}; the options of {backend_type.name} are: {known}") from None


@contextlib.contextmanager
def start_instance(
    backend_type: type[Backend], *, memory: str, cpus: int, image: str, options: Sequence[str] = ()
) -> Iterator[tuple[Instance, Image]]:
    """A fresh instance with all that it needs, as the command line gives it; everything is undone on exit."""
    name, envelope = backend_type.name, _envelope(memory, cpus)
    if envelope.memory_bytes < backend_type.minimum_memory_bytes:
        least = backend_type.minimum_memory_bytes // 2**20
        raise SuiteError("--memory", f"{memory} is too little for {name}, which needs {least}MiB")
    chosen = _options(backend_type, options)
    try:
        backend_type.check(chosen, envelope)
    except ValueError as error:
        raise SuiteError("--option", str(error)) from None
    raise_if_failed(clean(ledger_directory()))
    housekeeping = keep_off(envelope.cpus)
    identity = secrets.token_hex(3)
    work = work_directory() / identity
    with Ledger(ledger_directory()) as ledger, work_folder(ledger, work), contextlib.ExitStack() as stack:
        context = BackendContext(ledger, work, cache_directory(), chosen, housekeeping)
        backend = backend_type(context)
        here = backend.probe()
        if not here.available:
            raise UnavailableError(f"{name} does not work here: {here.reason}", remedy=here.remedy)
        root = _find_image(ImageStore(cache_directory(), ledger), image)
        stack.callback(backend.close)
        description = backend.prepare(root, envelope)
        if sys.stderr.isatty():
            typer.echo(f"{description.label}, image {root.digest[:12]}", err=True)
        try:
            with backend.start(InstanceSpec(f"tare-{identity}-exec", root, envelope)) as instance:
                yield instance, root
        except BackendError as error:
            if error.evidence:
                typer.echo(error.evidence, err=True)
            raise


def _find_image(images: ImageStore, wanted: str) -> Image:
    if wanted:
        return images.get(wanted)
    newest = next((listed for listed in images.list() if not listed.problem), None)
    if newest is None:
        how = "tare image build" if os.geteuid() == 0 else "`tare image import FILE`, or as root `tare image build`"
        raise UnavailableError("there is no image yet", remedy=how)
    return images.get(newest.digest)


def _envelope(memory: str, cpus: int) -> Envelope:
    usable = sorted(os.sched_getaffinity(0))
    if not 1 <= cpus <= len(usable):
        raise SuiteError("--cpus", f"asks for {cpus} CPUs; this host offers {len(usable)}")
    try:
        size = parse_size(memory)
    except ValueError as error:
        raise SuiteError("--memory", str(error)) from None
    return Envelope(tuple(usable[-cpus:]), size, scratch_bytes=256 * 2**20, pids_max=512)


def _seconds(timeout: str) -> float:
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise SuiteError("--timeout", str(error)) from None


def _pass_on(command: Command, completed: Completed, envelope: Envelope) -> int:
    sys.stdout.buffer.write(completed.stdout)
    sys.stdout.flush()
    sys.stderr.buffer.write(completed.stderr)
    sys.stderr.flush()
    met = completed.oom_kills or completed.pids_refused
    if completed.returncode in {None, 126, 127} or completed.timed_out or (completed.returncode and met):
        complain(why_failed(command, completed, envelope))
    if completed.signal is not None and not completed.timed_out:
        return 128 + completed.signal
    return completed.returncode if completed.returncode is not None else ExitCode.ENVIRONMENT
