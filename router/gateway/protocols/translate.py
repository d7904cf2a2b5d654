"""Whether a call has to be translated for an engine, by the protocol that its kind serves.

Must not depend on sockets, or on the name of any engine: the translations are in ``router.engines``.
"""

from router.core.errors import UnsupportedFeature
from router.engines import OPENAI_PROTOCOL, OpenAICall, Translation
from router.gateway.protocols.answers import Dialect
from router.gateway.protocols.openai import RequestBody
from router.gateway.protocols.target import Target
from router.gateway.protocols.triton import PROTOCOL


def translation(call: RequestBody, target: Target, wire_id: bytes, model: str, shown: str) -> Translation | None:
    """How *call* and its reply change for that engine, which runs *model*; *shown*: the name of it in the reply. None:
    not at all. Raises UnsupportedFeature.
    """
    kind = target.engine
    protocol = PROTOCOL if call.endpoint.dialect is Dialect.TRITON else OPENAI_PROTOCOL
    if protocol == kind.protocol:
        return None
    if protocol != OPENAI_PROTOCOL or kind.translate is None:
        raise UnsupportedFeature(f"{target.name} does not serve the {protocol} protocol", "path")
    return kind.translate(
        OpenAICall(
            backend=target.name,
            path=call.endpoint.path,
            document=call.document or {},
            model=shown,
            engine_model=target.models.get(model, model),
            stream=call.stream,
            output_tokens_max=call.output_tokens_max,
            prompt_tokens=call.prompt_tokens,
            request_id=wire_id.decode("latin-1"),
            chat_template=target.chat_template,
            chat_opening=target.chat_opening,
        )
    )
