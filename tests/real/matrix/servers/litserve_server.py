"""A chat server on LitServe with its OpenAISpec. Run by its virtual environment: PORT [usage].

With ``usage`` its last message states token counts, else LitServe itself states 0 of each. A prompt with __error__ or
__error_mid__ raises before or after the first tokens. Its worker does not notice that a client has left.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import litserve

PREFILL_S = 0.2
STEP_S = 0.01
FAULT_AFTER_TOKENS = 3
STATES_USAGE = sys.argv[2:] == ["usage"]


class Numbers(litserve.LitAPI):  # type: ignore[misc]
    """Replies with numbers, one a frame."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def predict(self, messages: Any, context: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The reply's parts."""
        prompt = str(messages)
        if "__error__" in prompt:
            raise ValueError("made to fail at once")
        time.sleep(PREFILL_S)
        count = int(context.get("max_tokens") or 16)
        for number in range(count):
            if number == FAULT_AFTER_TOKENS and "__error_mid__" in prompt:
                raise ValueError("made to fail in the middle")
            counts = {"prompt_tokens": len(prompt.split()), "completion_tokens": number + 1}
            yield {"role": "assistant", "content": f" {number}", **(counts if STATES_USAGE else {})}
            time.sleep(STEP_S)

    def encode_response(self, output: Iterator[dict[str, Any]], context: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """As they are."""
        yield from output


if __name__ == "__main__":
    server = litserve.LitServer(Numbers(spec=litserve.OpenAISpec()), accelerator="cpu")
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
