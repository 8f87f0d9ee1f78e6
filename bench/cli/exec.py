"""``tare exec``: one command in a fresh instance of any backend."""

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import typer

from tare.bench.catalogue import Builtin
from tare.bench.cli.guard import complain
from tare.bench.cli.values import suite_of_options, typed_values
from tare.bench.errors import BackendError, ExitCode, SuiteError, UnavailableError, UnsupportedError
from tare.bench.image import ImageStore
from tare.bench.interfaces import BackendContext, Instance
from tare.bench.ledger import Ledger
from tare.bench.limits_met import why_failed
from tare.bench.locations import cache_directory, ledger_directory, work_directory
from tare.bench.model import Command, Completed, Envelope, Image, InstanceSpec
from tare.bench.registry import Plugins, find_backends
from tare.bench.session import closing, defects_named, describe_backend, probe_backend, start_workplace
from tare.bench.suite import Suite, bind_suite, resolve_suite
from tare.bench.units import Duration

PLACE = Path("tare exec")
"""What errors name as the place of a suite that was made from options."""


class InstanceRequest(msgspec.Struct, frozen=True):
    """The instance that was asked for on the command line. ``envelope`` and ``options`` as a suite would have them."""

    backend: str
    envelope: Mapping[str, Any]
    image: str
    options: tuple[str, ...] = ()

    def suite(self) -> Suite:
        """A suite of one backend, resolved as any other. Raises SuiteError that names the option."""
        source = {
            "suite": {"name": "exec"},
            "envelope": self.envelope,
            "backend": [{"type": self.backend, "options": typed_values("--option", self.options)}],
            "experiment": [{"kind": Builtin.BOOT}],
        }
        with suite_of_options(PLACE):
            return bind_suite(resolve_suite(source, PLACE, find_backends(), Plugins("workload", {}, {})))


def exec_command(request: InstanceRequest, argv: Sequence[str], *, timeout: str, stdin: bool) -> int:
    """Run ``argv`` in an instance; returns the exit code to end with."""
    try:
        timeout_s = Duration(timeout)
    except ValueError as error:
        raise SuiteError("--timeout", str(error)) from None
    if not argv or not argv[0]:
        raise SuiteError("COMMAND", "the command is missing or empty; name it after --")
    suite = request.suite()
    command = Command(tuple(argv), timeout_s=timeout_s, stdin=sys.stdin.buffer.read() if stdin else b"")
    with start_instance(suite, request.image) as (instance, _), defects_named("execute"):
        completed = instance.execute(command)
    return _pass_on(command, completed, suite.envelope)


def explain_command(request: InstanceRequest) -> int:
    """Print how the backend would start an instance; nothing is started, and no privileges are needed."""
    suite = request.suite()
    (choice,) = suite.backends
    work = work_directory() / secrets.token_hex(3)
    with Ledger(ledger_directory()) as ledger:
        with defects_named(choice.type.__name__):
            backend = choice.type(BackendContext(ledger, work, cache_directory(), choice.options, ()))
        try:
            root = _find_image(ImageStore(cache_directory(), ledger), request.image)
        except UnavailableError:  # what stands for it in a path does as well here
            root = Image("", "", Path("IMAGE"), Path("IMAGE/rootfs"), None, None, None, "", {}, 0)
        with defects_named("explain"):
            lines = backend.explain(InstanceSpec(f"{work.name}-exec", root, suite.envelope))
    if not lines:
        raise UnsupportedError(f"{choice.name} does not explain how it starts instances")
    for line in lines:
        typer.echo(line, sys.stdout)  # the stream as it is: typer writes UTF-8 where a terminal has ASCII
    return ExitCode.OK


@contextlib.contextmanager
def start_instance(suite: Suite, image: str) -> Iterator[tuple[Instance, Image]]:
    """A fresh instance of the suite's one backend with all that it needs; everything is undone on exit."""
    (choice,) = suite.backends
    with start_workplace(suite, complain) as context, contextlib.ExitStack() as stack:
        backend, here = probe_backend(choice, context)
        if not here.available:
            raise UnavailableError(f"{choice.name} does not work here: {here.reason}", remedy=here.remedy)
        root = _find_image(ImageStore(cache_directory(), context.ledger), image)
        stack.enter_context(closing(backend))
        description = describe_backend(backend, root, suite.envelope)
        if sys.stderr.isatty():
            typer.echo(f"{description.label}, image {root.digest[:12]}", sys.stderr)
        try:
            spec = InstanceSpec(f"tare-{context.work_directory.name}-exec", root, suite.envelope)
            with contextlib.ExitStack() as started:
                with defects_named("start"):
                    instance = started.enter_context(backend.start(spec))
                yield instance, root
        except BackendError as error:
            if error.evidence:
                typer.echo(error.evidence, sys.stderr)
            raise


def _find_image(images: ImageStore, wanted: str) -> Image:
    if wanted:
        return images.get(wanted)
    newest = next((listed for listed in images.list() if not listed.problem), None)
    if newest is None:
        how = "tare image build" if os.geteuid() == 0 else "`tare image import FILE`, or as root `tare image build`"
        raise UnavailableError("there is no image yet", remedy=how)
    return images.get(newest.digest)


def _pass_on(command: Command, completed: Completed, envelope: Envelope) -> int:
    for stream, name, printed in ((sys.stdout, "stdout", completed.stdout), (sys.stderr, "stderr", completed.stderr)):
        if name in completed.whole:
            shutil.copyfileobj(completed.whole[name], stream.buffer)
        else:
            stream.buffer.write(printed)
        stream.flush()
    met = completed.oom_kills or completed.pids_refused
    if completed.returncode in {None, 126, 127} or completed.timed_out or (completed.returncode and met):
        complain(why_failed(command, completed, envelope))
    if completed.signal is not None and not completed.timed_out:
        return 128 + completed.signal
    return completed.returncode if completed.returncode is not None else ExitCode.ENVIRONMENT
