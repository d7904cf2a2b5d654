"""How real engines speak: HTTP, and on it vLLM's and Triton's protocols and metrics."""
