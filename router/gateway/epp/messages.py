"""The messages between a proxy and an external processor, and those of gRPC's health checks, as protobuf classes.

Made from a table of the fields that are used, by the public definitions of ``envoy.service.ext_proc.v3`` and
``grpc.health.v1``; others are skipped when a message is read. They are in a pool of their own, so that another package
in the same process may have the whole of Envoy's API. Must not depend on gRPC.
"""

from typing import Any, Final

from google.protobuf import struct_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

FULL_DUPLEX_STREAMED: Final = 4
OVERWRITE: Final = 2  # of HeaderValueOption.append_action: replace the header, or add it
PROCESSOR: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
HEALTH: Final = "grpc.health.v1.Health"
SERVING: Final = 1
NOT_SERVING: Final = 2
SERVICE_UNKNOWN: Final = 3

_PACKAGE: Final = "headroom.epp"  # a name of the pool's own: on the wire there are only numbers
_SCALARS: Final = {
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "enum": FieldDescriptorProto.TYPE_INT32,  # the same on the wire
}
_STRUCT: Final = "google.protobuf.Struct"
_REPEATED: Final = "*"  # before a type

# message -> fields, each with its number and type; those before "|" are the alternatives of one oneof
_FIELDS: Final[dict[str, str]] = {
    "HeaderValue": "key=1:string value=2:string raw_value=3:bytes",
    "HeaderMap": "headers=1:*HeaderValue",
    "HeaderValueOption": "header=1:HeaderValue append_action=3:enum",
    "HttpHeaders": "headers=1:HeaderMap end_of_stream=3:bool",
    "HttpBody": "body=1:bytes end_of_stream=2:bool",
    "HttpTrailers": "trailers=1:HeaderMap",
    "MetadataEntry": "key=1:string value=2:google.protobuf.Struct",  # what a map of structs has one of for each key
    "Metadata": "filter_metadata=1:*MetadataEntry",
    "ProtocolConfiguration": "request_body_mode=1:enum response_body_mode=2:enum",
    "ProcessingRequest": (
        "request_headers=2:HttpHeaders response_headers=3:HttpHeaders request_body=4:HttpBody response_body=5:HttpBody "
        "request_trailers=6:HttpTrailers response_trailers=7:HttpTrailers | "
        "metadata_context=8:Metadata attributes=9:*MetadataEntry protocol_config=11:ProtocolConfiguration"
    ),
    "HeaderMutation": "set_headers=1:*HeaderValueOption remove_headers=2:*string",
    "StreamedBodyResponse": "body=1:bytes end_of_stream=2:bool",
    "BodyMutation": "streamed_response=3:StreamedBodyResponse",
    "CommonResponse": "header_mutation=2:HeaderMutation body_mutation=3:BodyMutation clear_route_cache=5:bool",
    "HeadersResponse": "response=1:CommonResponse",
    "BodyResponse": "response=1:CommonResponse",
    "TrailersResponse": "header_mutation=1:HeaderMutation",
    "HttpStatus": "code=1:enum",
    "ImmediateResponse": "status=1:HttpStatus headers=2:HeaderMutation body=3:bytes details=5:string",
    "ProcessingResponse": (
        "request_headers=1:HeadersResponse response_headers=2:HeadersResponse request_body=3:BodyResponse "
        "response_body=4:BodyResponse request_trailers=5:TrailersResponse response_trailers=6:TrailersResponse "
        "immediate_response=7:ImmediateResponse | dynamic_metadata=8:google.protobuf.Struct"
    ),
    "HealthCheckRequest": "service=1:string",
    "HealthCheckResponse": "status=1:enum",
}
_ONEOFS: Final = {"ProcessingRequest": "request", "ProcessingResponse": "response"}


def _described() -> FileDescriptorProto:
    file = FileDescriptorProto(name="headroom/epp.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        if name in _ONEOFS:
            message.oneof_decl.add(name=_ONEOFS[name])
        alternatives, _, others = fields.partition("|") if name in _ONEOFS else ("", "", fields)
        for text, one_of in ((alternatives, True), (others, False)):
            for field in text.split():
                _add_field(message, field, one_of=one_of)
    return file


def _add_field(message: Any, text: str, *, one_of: bool) -> None:
    """A field of the table: ``name=number:type``."""
    name, _, rest = text.partition("=")
    number, _, kind = rest.partition(":")
    repeated, kind = kind.startswith(_REPEATED), kind.removeprefix(_REPEATED)
    label = FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
    added = message.field.add(name=name, number=int(number), label=label)
    if kind in _SCALARS:
        added.type = _SCALARS[kind]
    else:
        added.type = FieldDescriptorProto.TYPE_MESSAGE
        added.type_name = f".{kind}" if kind == _STRUCT else f".{_PACKAGE}.{kind}"
    if one_of:
        added.oneof_index = 0


_POOL: Final = DescriptorPool()
_POOL.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
_POOL.Add(_described())


def _class(name: str) -> Any:
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


ProcessingRequest: Final = _class("ProcessingRequest")
ProcessingResponse: Final = _class("ProcessingResponse")
HealthCheckRequest: Final = _class("HealthCheckRequest")
HealthCheckResponse: Final = _class("HealthCheckResponse")
