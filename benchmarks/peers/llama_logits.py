"""Logits of a GGUF model in llama.cpp: ``python llama_logits.py SOURCE_TREE LIBRARIES MODEL WINDOWS.npy THREADS``.

Writes a line with the size of the vocabulary to stdout, then float32 [tokens, vocabulary] for each window of token ids.
``SOURCE_TREE`` holds the package llama_cpp, ``LIBRARIES`` the compiled libllama.
"""

import os
import sys

import numpy as np


def main(tree: str, libraries: str, model: str, windows: str, threads: str) -> None:
    os.environ["LLAMA_CPP_LIB_PATH"] = libraries
    sys.path.insert(0, tree)
    from llama_cpp import Llama

    ids = np.load(windows)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library prints must not get between the numbers
    size = ids.shape[1]
    llama = Llama(
        model, n_ctx=size, n_batch=size, n_ubatch=size, logits_all=True, n_threads=int(threads),
        n_threads_batch=int(threads), verbose=False,
    )  # fmt: skip
    out.write(f"{llama.n_vocab()}\n".encode())
    for window in ids:
        llama.reset()
        llama._ctx.kv_cache_clear()
        llama.eval(window.tolist())
        out.write(np.ascontiguousarray(llama.scores[:size], dtype=np.float32).tobytes())
    out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
