"""The messages of KEDA's ``externalscaler.proto``, described here, so that no generated code is kept.

Must not depend on what they are used for. Numbers and types are those of KEDA 2.19; deprecated whole numbers are sent
beside the floats, for versions before those.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "externalscaler"
_Field = descriptor_pb2.FieldDescriptorProto
_TEXT, _WHOLE, _FLOAT, _BOOL = _Field.TYPE_STRING, _Field.TYPE_INT64, _Field.TYPE_DOUBLE, _Field.TYPE_BOOL

# By message, its fields in the order of their numbers from 1: a name with its type or, in a list, what it repeats.
_MESSAGES: Final[dict[str, list[tuple[str, Any]]]] = {
    "ScaledObjectRef": [("name", _TEXT), ("namespace", _TEXT), ("scalerMetadata", "map")],
    "IsActiveResponse": [("result", _BOOL)],
    "MetricSpec": [("metricName", _TEXT), ("targetSize", _WHOLE), ("targetSizeFloat", _FLOAT)],
    "GetMetricSpecResponse": [("metricSpecs", ["MetricSpec"])],
    "GetMetricsRequest": [("scaledObjectRef", "ScaledObjectRef"), ("metricName", _TEXT)],
    "MetricValue": [("metricName", _TEXT), ("metricValue", _WHOLE), ("metricValueFloat", _FLOAT)],
    "GetMetricsResponse": [("metricValues", ["MetricValue"])],
}


def _described() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="externalscaler.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, start=1):
            _add(message, field, number, kind)
    return file


def _add(message: Any, name: str, number: int, kind: Any) -> None:
    repeated = isinstance(kind, list) or kind == "map"
    field = message.field.add(
        name=name, number=number, label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    )
    if kind == "map":
        entry = message.nested_type.add(name="ScalerMetadataEntry")
        entry.options.map_entry = True
        for place, part in enumerate(("key", "value"), start=1):
            _add(entry, part, place, _TEXT)
        kind = f"{message.name}.{entry.name}"
    kind = kind[0] if isinstance(kind, list) else kind
    if isinstance(kind, str):
        field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
    else:
        field.type = kind


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_described())


def _class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


ScaledObjectRef: Final = _class("ScaledObjectRef")
IsActiveResponse: Final = _class("IsActiveResponse")
MetricSpec: Final = _class("MetricSpec")
GetMetricSpecResponse: Final = _class("GetMetricSpecResponse")
GetMetricsRequest: Final = _class("GetMetricsRequest")
MetricValue: Final = _class("MetricValue")
GetMetricsResponse: Final = _class("GetMetricsResponse")
