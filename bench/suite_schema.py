"""The JSON schema of suite files, made from the types that read them, so that editors complete and check suites.

It holds the plug-ins of this installation: options of backends and experiments, parameters of workloads.
msgspec's own schemas cannot be used: they refuse structs whose defaults are sizes or durations.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import inspect

from tare.bench.registry import find_backends, find_experiments, find_workload_kinds, find_workloads
from tare.bench.suite_file import BackendSection, ExperimentSection, SuiteFile
from tare.bench.units import Duration, Size

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum", "pattern": "pattern"}
_PLAIN: Mapping[type, dict[str, Any]] = {
    inspect.AnyType: {},
    inspect.BoolType: {"type": "boolean"},
    inspect.FloatType: {"type": "number"},
    inspect.IntType: {"type": "integer"},
    inspect.NoneType: {"type": "null"},
    inspect.StrType: {"type": "string"},
}


def suite_schema() -> dict[str, Any]:
    """A schema of draft 2020-12. What only a host or a combination of keys decides is not in it."""
    schema = _of(inspect.type_info(SuiteFile))
    options = {name: _dimensions(backend.Options) for name, backend in find_backends().loaded.items()}
    settings = {name: _dimensions(experiment.Options) for name, experiment in find_experiments().loaded.items()}
    params = {name: _dimensions(workload.Params) for name, workload in find_workloads().loaded.items()}
    backend, experiment = (schema["properties"][name]["items"] for name in ("backend", "experiment"))
    backend["allOf"] = _rules(BackendSection, "type", "options", options)
    experiment["allOf"] = _rules(ExperimentSection, "kind", "options", settings)
    experiment["allOf"] += _rules(ExperimentSection, "workload", "params", params)
    schema["properties"]["image"] = {"anyOf": [schema["properties"]["image"], {"type": "string"}]}
    kinds = [_of_class(kind.Section) for _, kind in sorted(find_workload_kinds().loaded.items())]
    schema["properties"]["workload"]["items"] = {"anyOf": kinds}
    return {"$schema": DIALECT, "title": "A suite of tare", **schema}


def _of_class(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return _of(inspect.type_info(struct))


def _of(kind: inspect.Type) -> dict[str, Any]:
    """The schema of what msgspec reads as ``kind``. Raises TypeError for a type that no suite has."""
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return {**_of(inner), **(extra or {})}
        case inspect.StructType():
            return _of_struct(kind)
        case inspect.EnumType(cls=cls):
            return {"enum": [one.value for one in cls]}
        case inspect.LiteralType(values=values):
            return {"enum": list(values)}
        case inspect.UnionType(types=types):
            return {"anyOf": [_of(one) for one in types]}
        case inspect.CustomType(cls=cls):
            return _of_quantity(cls)
    return _of_container(kind)


def _of_container(kind: inspect.Type) -> dict[str, Any]:
    match kind:
        case inspect.DictType(value_type=value):
            return {"type": "object", "additionalProperties": _of(value)}
        case inspect.TupleType(item_types=items):
            return {"type": "array", "prefixItems": [_of(one) for one in items], "items": False}
        case inspect.CollectionType(item_type=item, min_length=least):
            return {"type": "array", "items": _of(item), **({"minItems": least} if least else {})}
    limits = {word: found for name, word in _LIMITS.items() if (found := getattr(kind, name, None)) is not None}
    if type(kind) not in _PLAIN:
        raise TypeError(f"a suite has no {type(kind).__name__}")
    return {**_PLAIN[type(kind)], **limits}


def _of_struct(kind: inspect.StructType) -> dict[str, Any]:
    fields = {one.encode_name: _with_default(_of(one.type), one.default) for one in kind.fields}
    required = [one.encode_name for one in kind.fields if one.required]
    closed = {"additionalProperties": False} if kind.forbid_unknown_fields else {}
    return {"type": "object", "properties": fields, **({"required": required} if required else {}), **closed}


def _with_default(schema: dict[str, Any], default: Any) -> dict[str, Any]:
    """``schema`` with a default that a suite could write; sections as defaults are told by their own fields."""
    if default is msgspec.NODEFAULT or isinstance(default, msgspec.Struct):
        return schema
    return {**schema, "default": msgspec.to_builtins(default, enc_hook=str)}


def _of_quantity(kind: type) -> dict[str, Any]:
    if issubclass(kind, Size):
        return {"type": ["string", "integer"], "description": "bytes: a number, or a text such as 512MiB"}
    if issubclass(kind, Duration):
        return {"type": "string", "description": "a duration such as 500ms, 90s or 10m"}
    raise TypeError(f"a suite has no {kind.__name__}")


def _dimensions(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """A struct where each field may also be a list of its values: one cell, or one backend, a value."""
    schema = _of_class(struct)
    fields = {
        name: {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
        for name, one in schema["properties"].items()
    }
    return {**schema, "properties": fields}


def _rules(section: type[msgspec.Struct], key: str, subject: str, schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One rule a name: where ``key`` of the section has it, ``subject`` is as the schema of that name says."""
    assert {key, subject} <= set(section.__struct_encode_fields__)
    return [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"properties": {subject: schema}},
        }
        for name, schema in sorted(schemas.items())
    ]
