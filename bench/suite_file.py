"""The sections of a suite file with their defaults and ranges, and how a file becomes them.

Nothing here looks at this machine. Whatever is wrong is one message with the file, the key and what is allowed.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, field, inspect

from tare.bench.errors import SuiteError
from tare.bench.model import Envelope
from tare.bench.settings import DEFAULT_MARGIN
from tare.bench.units import ByteRate, Duration, Size, decode_quantity

_T = TypeVar("_T")

Count = Annotated[int, Meta(ge=1)]
CpuCount = Annotated[int, Meta(ge=1, le=8192, description="the most that Linux has")]
Name = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", description="text without control characters")]
Share = Annotated[float, Meta(ge=0, lt=1, description="a share such as 0.02")]
Quantile = Annotated[float, Meta(gt=0, lt=1)]
Precision = Annotated[float, Meta(ge=0, lt=1, description="a share such as 0.02, or 0: no precision")]


_ARCHIVE = re.compile(r"\.(tar|tgz|oci)(\.(gz|bz2|xz|zst))?$")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the sections of a suite file: unknown keys are refused."""


class SuiteHead(Section, frozen=True):
    """``[suite]``: what the report is called and says it asks."""

    name: Name
    description: str = ""


class ImageSection(Section, frozen=True):
    """``[image]``: packages beyond what the workloads declare, or the image to use.

    ``use`` is the name or digest of one that is here, or the path of an archive to import, relative to the suite's
    folder. ``image = "..."`` is short for it.
    """

    packages: tuple[str, ...] = ()
    use: str = ""

    @property
    def is_archive(self) -> bool:
        """Whether ``use`` is a path."""
        return "/" in self.use or _ARCHIVE.search(self.use) is not None

    def located(self, folder: Path) -> "ImageSection":
        """The same with the path of an archive made absolute."""
        path = str((folder / Path(self.use).expanduser()).absolute())
        return msgspec.structs.replace(self, use=path) if self.is_archive else self


class EnvelopeSection(Section, frozen=True):
    """``[envelope]``: the resources of an instance, under the names that ``Envelope`` has for them.

    ``cpus`` is a number of CPUs, or a list of host CPU numbers; ``storage`` a folder.
    """

    cpus: CpuCount | Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)] = 1
    memory_bytes: Size = field(default=Size("512MiB"), name="memory")
    scratch_bytes: Size = field(default=Size("256MiB"), name="scratch")
    pids_max: Annotated[int, Meta(ge=16)] = field(default=512, name="pids")
    storage: str = ""
    swap_bytes: Size = field(default=Size("0"), name="swap")
    cpu_quota: Annotated[float, Meta(ge=0.01)] | None = None
    cpu_weight: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    io_read_bytes_per_s: ByteRate | None = None
    io_write_bytes_per_s: ByteRate | None = None
    io_read_ops_per_s: Count | None = None
    io_write_ops_per_s: Count | None = None

    def on(self, cpus: tuple[int, ...]) -> Envelope:
        """The envelope on these CPUs of a host."""
        limits = {name: getattr(self, name) for name in Envelope.__struct_fields__ if name != "cpus"}
        plain = {name: int(value) if isinstance(value, Size) else value for name, value in limits.items()}
        return Envelope(cpus, **plain)


class Sampling(Section, frozen=True):
    """``[sampling]``: blocks, fresh instances of a cell in a block, iterations in an instance, warm-ups before them.

    With a ``precision`` (0 or None: without), ``blocks`` is the least, and more follow until the leading metric of each
    cell is known so exactly, ``max_time`` of measuring is spent, or ``max_blocks`` were run. A ``seed`` of None is
    drawn when the suite is bound to a host. ``prime``: each workload runs once on each backend before the first block.
    """

    seed: Annotated[int, Meta(ge=0)] | None = None
    blocks: Count = 5
    instances: Count = 1
    iterations: Count = 3
    warmup: Annotated[int, Meta(ge=0)] = 1
    precision: Precision | None = None
    max_time: Duration = Duration("10m")
    max_blocks: int | None = None
    prime: bool = True


class ReportSection(Section, frozen=True):
    """``[report]``: the margin of metrics that have none of their own, and the backend that others are compared with.

    Without a ``baseline``: bare metal if there is any, else the first backend. ``emulated``: results of guests under
    software emulation are told apart, in the report's appendix, or compared with the others.
    """

    margin: Share = DEFAULT_MARGIN
    baseline: str = ""
    emulated: Literal["apart", "compare"] = "apart"


class MetricSection(Section, frozen=True):
    """``[metric."fio/read.iops"]``: a metric's own margin, and quantiles to estimate in addition to its median."""

    margin: Share | None = None
    quantile: Quantile | tuple[Quantile, ...] = ()


class RequirementSection(Section, frozen=True):
    """``[[requirement]]``: what an instance has to do to be of use; the report says which backends do.

    Either a ``metric`` (as in ``[metric]``; with ``params`` only those cells) with ``at_most`` or ``at_least``, a bound
    with its unit (``50ms``, ``20 MiB``) or in the base unit, or with ``loses_at_most``, a share of the baseline; or the
    ``instances`` that the host has to hold, the memory that one more may take, or a kernel of its own.
    """

    name: Name = ""
    metric: str = ""
    params: Mapping[str, Any] = {}
    at_most: float | str | None = None
    at_least: float | str | None = None
    loses_at_most: Share | None = None
    instances: Count | None = None
    memory_per_instance: Size | None = None
    own_kernel: bool = False

    def __post_init__(self) -> None:
        bounds = [name for name in ("at_most", "at_least", "loses_at_most") if getattr(self, name) is not None]
        others = [name for name in ("instances", "memory_per_instance", "own_kernel") if getattr(self, name)]
        if len(bounds) + len(others) != 1:
            raise ValueError(
                "states one of at_most, at_least, loses_at_most, instances, memory_per_instance, own_kernel"
            )
        if bounds and not self.metric:
            raise ValueError(f"{bounds[0]} needs the metric that it bounds")
        if others and (self.metric or self.params):
            raise ValueError(f"{others[0]} is about no metric")


class FleetSection(Section, frozen=True):
    """``[fleet]``: of many hosts, those that the suite is for: of these types, with all these labels."""

    types: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}


class BackendSection(Section, frozen=True):
    """``[[backend]]``: ``type`` is a registered backend, ``name`` what this suite calls it (the type unless given).

    ``image`` is the name or digest of an image of its own, in place of the suite's.
    """

    type: str
    name: Name = ""
    image: str = ""
    options: Mapping[str, Any] = {}


class ExperimentSection(Section, frozen=True):
    """``[[experiment]]``: a procedure, the workload it needs, and counts where they differ from ``[sampling]``."""

    kind: str
    workload: str = ""
    params: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    blocks: Count | None = None
    instances: Count | None = None
    iterations: Count | None = None
    warmup: Annotated[int, Meta(ge=0)] | None = None
    precision: Precision | None = None
    max_blocks: int | None = None


class SuiteFile(Section, frozen=True):
    """A suite file as written."""

    suite: SuiteHead
    backend: tuple[BackendSection, ...]
    experiment: tuple[ExperimentSection, ...]
    image: ImageSection = ImageSection()
    envelope: EnvelopeSection = EnvelopeSection()
    sampling: Sampling = Sampling()
    report: ReportSection = ReportSection()
    metric: Mapping[str, MetricSection] = {}
    requirement: tuple[RequirementSection, ...] = ()
    fleet: FleetSection = FleetSection()
    workload: tuple[Mapping[str, Any], ...] = ()
    """``[[workload]]``: the suite's own, each with the keys of its kind (``WorkloadKind``)."""

    def written(self) -> dict[str, Any]:
        """The suite as a file of it would have it, defaults filled in: sizes and durations as they were given."""
        return msgspec.to_builtins(self, enc_hook=str)  # type: ignore[no-any-return]  # a struct is a dict then


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises SuiteError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise SuiteError(str(path), "there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(str(path), f"cannot be read: {error}") from None
    except RecursionError:
        raise SuiteError(str(path), "has tables or lists that are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and what int() says of thousands of digits
        raise SuiteError(str(path), f"is not TOML: {error}") from None


def read_source(path: Path) -> dict[str, Any]:
    """A suite as its file has it: TOML, or JSON if the name ends so, as other programs write it. Raises SuiteError."""
    if path.suffix != ".json":
        return read_toml(path)
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SuiteError(str(path), f"cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise SuiteError(str(path), "is not a JSON object")
    return found


def convert(value: Any, kind: type[_T], path: Path, key: str) -> _T:
    """``value``, which stands at ``key`` in ``path``, as a ``kind``. Raises SuiteError with the key at fault."""
    try:
        return msgspec.convert(value, kind, dec_hook=decode_quantity)
    except msgspec.ValidationError as error:
        problem, _, where = str(error).partition(" - at `$")
        found, wanted, given = _at(where.rstrip("`"), inspect.type_info(kind), value)
        place = f"{key}{found}".lstrip(".") or "top level"
        remedy = None
        if unknown := _UNKNOWN.fullmatch(problem):
            problem = f"unknown key {unknown[1]}"
            remedy = f"known keys: {', '.join(_keys_of(wanted)) or 'none'}"
        elif problem.startswith("Invalid enum value") and isinstance(chosen := _member(wanted, _CHOICES), _CHOICES):
            known = [one.value for one in chosen.cls] if isinstance(chosen, inspect.EnumType) else chosen.values
            problem = f"must be one of {', '.join(map(str, known))}, not {given!r}"
        elif (allowed := _allowed(wanted)) and _NOT_ALLOWED.match(problem):
            problem = f"must be {allowed}, not {given!r}"
        raise SuiteError(f"{path}: {place}", problem, remedy=remedy) from None


_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]|\[\.\.\.\]")
_UNKNOWN = re.compile(r"Object contains unknown field (`.*`)")
_CHOICES = (inspect.EnumType, inspect.LiteralType)
_NOT_ALLOWED = re.compile(r"Expected `\w+` ([<>]|matching)")


def _at(where: str, kind: inspect.Type, value: Any) -> tuple[str, inspect.Type, Any]:
    """The place that msgspec calls ``where`` with the names that it leaves out, its type, and what stands there."""
    place = ""
    for step in _STEP.finditer(where):
        name: str | int | None = step["name"] or (int(step["index"]) if step["index"] else None)
        match _member(kind, inspect.StructType if step["name"] else _CONTAINERS):
            case inspect.StructType(fields=fields):
                kind = next(one.type for one in fields if one.encode_name == name)
            case inspect.DictType(value_type=kind):
                name = _first_at_fault(value, kind)
            case inspect.TupleType(item_types=kinds):
                kind = kinds[int(step["index"])]
            case inspect.CollectionType(item_type=kind):
                pass
        if name is None:
            return place + where[step.start() :], inspect.AnyType(), None
        place += step[0] if step["name"] or step["index"] else f'."{name}"'
        value = value[name]
    return place, kind, value


_CONTAINERS = (inspect.CollectionType, inspect.DictType, inspect.TupleType)


def _member(kind: inspect.Type, wanted: Any) -> inspect.Type:
    """The type itself, without what describes it; of a union the first that is one of the ``wanted``."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        return next((one for one in (_member(one, wanted) for one in kind.types) if isinstance(one, wanted)), kind)
    return kind


def _first_at_fault(values: Mapping[str, Any], kind: inspect.Type) -> str | None:
    """The key whose value is no ``kind`` (a struct)."""
    found = _member(kind, inspect.StructType)
    if isinstance(found, inspect.StructType):
        for name, value in values.items():
            try:
                msgspec.convert(value, found.cls, dec_hook=decode_quantity)
            except msgspec.ValidationError:
                return name
    return None


def _keys_of(kind: inspect.Type) -> list[str]:
    found = _member(kind, inspect.StructType)
    return [one.encode_name for one in found.fields] if isinstance(found, inspect.StructType) else []


def _allowed(kind: inspect.Type) -> str:
    """The range of a number, and what describes a value, in words; empty where anything may stand there."""
    if isinstance(kind, inspect.UnionType):
        return next((words for one in kind.types if (words := _allowed(one))), "")
    if isinstance(kind, inspect.Metadata):
        bounds, described = _allowed(kind.type), (kind.extra_json_schema or {}).get("description", "")
        return f"{bounds} ({described})" if bounds and described else bounds or described
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return ""
    if kind.ge is not None and kind.le is not None:
        return f"from {kind.ge:g} to {kind.le:g}"
    limits = {"at least": kind.ge, "more than": kind.gt, "at most": kind.le, "less than": kind.lt}
    return " and ".join(f"{words} {bound:g}" for words, bound in limits.items() if bound is not None)
