"""Serve a GGUF model on loopback with llama.cpp, OpenAI-compatible: ``make llm PORT=8080``.

Without ``--model`` it serves what ``make models-large`` fetched. The address goes to standard
output; point a finetune entry at it:

    qwen: {recipe: pretrained, role: generator, ...,
           from: {base_url: "http://127.0.0.1:8080/v1", model: local, api_key_env: ""}}

It ends with Ctrl-C or a TERM signal. Nothing outside this machine can reach it.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

LARGE = ".quarry/models-large/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"


def main() -> None:
    """Start, say where, wait."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", type=Path, default=Path(LARGE), help="a .gguf file")
    p.add_argument("--port", type=int, default=8080, help="0: a free one")
    p.add_argument("--context", type=int, default=4096, help="tokens of a prompt and its answer")
    p.add_argument("--slots", type=int, default=4, help="requests at once")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    args = p.parse_args()
    if not args.model.is_file():
        sys.exit(f"llm: {args.model} is not there. Run make models-large, or name a --model.")
    try:
        import xllamacpp
    except ImportError:
        sys.exit("llm: xllamacpp is not installed. Run: pip install xllamacpp")

    # Signals are waited for, not handled: blocked before the server starts its threads.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    params = xllamacpp.CommonParams()
    params.model.path = str(args.model)
    params.model_alias = {"local"}
    params.hostnames, params.port = ["127.0.0.1"], args.port
    params.n_parallel, params.n_ctx = args.slots, args.context * args.slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.ui = False
    params.verbosity = 1  # warnings and errors
    server = xllamacpp.Server(params)
    print(f"{server.listening_address}/v1", flush=True)
    signal.sigwait(ends)


if __name__ == "__main__":
    main()
