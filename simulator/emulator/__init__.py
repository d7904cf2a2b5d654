"""A replica in real time behind HTTP, in the protocols of vLLM and Triton."""
