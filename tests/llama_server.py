"""llama.cpp's server out of xllamacpp's wheel: no compiler is needed.

    python tests/llama_server.py MODEL.gguf [--port 0] [--slots 1] [--window 512] [--threads 2]

Prints its address, and serves until its standard input ends.
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    for name, default in (("port", 0), ("slots", 1), ("window", 512), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_parallel, params.n_ctx = options.slots, options.slots * options.window
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_predict = 1024
    params.warmup = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
