"""llama.cpp's own HTTP server, from the xllamacpp package. Run by its virtual environment: GGUF PORT.

Four slots of 2048 tokens on one thread; the model is served as `tiny`.
"""

import sys
import threading

import xllamacpp

SLOTS = 4


def parameters(gguf: str, port: int) -> "xllamacpp.CommonParams":
    """The server's settings: what the command line of llama-server would say."""
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.model_alias = {"tiny"}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = SLOTS
    params.n_ctx = 2048 * SLOTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.n_gpu_layers = 0
    params.endpoint_metrics = params.endpoint_slots = True
    params.offline = True
    params.warmup = params.fit_params = params.ui = False
    return params


if __name__ == "__main__":
    server = xllamacpp.Server(parameters(sys.argv[1], int(sys.argv[2])))
    print("listening on", server.listening_address, flush=True)
    threading.Event().wait()
