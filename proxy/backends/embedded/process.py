"""Serves one GGUF file with llama.cpp's own server, in a process of its own.

`proxy.backends.embedded.server` runs it; it is not for use by hand. It prints its address after
`LISTENING` and serves until its standard input closes, so it cannot outlive its starter.
"""

import os
import sys

# Before the address; llama.cpp's log goes to the same pipe and may have an unfinished line there.
LISTENING = "motab embedded server at "


def main() -> None:
    """Arguments: model path, host, port (0: any), slots, context tokens a slot, threads."""
    import xllamacpp  # noqa: PLC0415 - the package of an extra, present where this module runs

    path, host, port, num_slots, context_tokens, num_threads = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.hostnames = [host]
    params.port = int(port)
    params.n_parallel = int(num_slots)
    params.n_ctx = int(num_slots) * int(context_tokens)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(num_threads)
    params.endpoint_slots = params.endpoint_metrics = True
    # Without it a sliding-window model (Gemma) forgets what lies before its window, and going
    # back to an earlier step would compute the whole context again.
    params.swa_full = True
    # The slots' own caches are all we use; the server's second one (8 GiB) only costs memory.
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"\n{LISTENING}{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()
    # llama.cpp's threads do not end on their own while a request is running.
    os._exit(0)


if __name__ == "__main__":
    main()
