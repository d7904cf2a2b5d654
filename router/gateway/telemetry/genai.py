"""OpenTelemetry's GenAI semantic conventions: the names of operations. Depends on nothing else of the project."""

from typing import Final

_OPERATIONS: Final = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def operation(path: str) -> str:
    """The value of ``gen_ai.operation.name`` for requests of a path (its pattern)."""
    return _OPERATIONS.get(path, "generate_content")
