"""The quantizers of the quality benchmark: each makes a 4-bit model from the same float folder and calibration ids.

Groups of 32 weights along the inputs, asymmetric where the format can be; embedding and head as the tool itself would
store them, but never in float where it can do better.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import peers
from benchmarks.measure import Options, Usage, pinned, run_checked

#: What mixed bits may take: as much as llama.cpp's mixture, or where that is not compared, as coldpress' default.
BUDGETS_MB = {"gemma": 303, "smollm2_rotated": 123}
_QUIET = {"CI": "true", "NNCF_CI": "1", "OLIVE_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True)
class Workplace:
    """What a contender starts from: a float Hugging Face folder, token ids [windows, tokens] and the text they are
    from."""

    source: Path
    calibration: Path
    calibration_text: Path
    options: Options

    def run(self, command: Sequence[str | Path], folder: Path) -> Usage:
        """One step of a contender, with a coldpress cache of its own."""
        environment = {**pinned(self.options.threads), **_QUIET, "COLDPRESS_CACHE": str(folder / "cache")}
        return run_checked(["nice", *command], environment, folder)


@dataclass(frozen=True)
class Made:
    """A contender's model: how it is scored (``onnx`` folder or ``gguf`` file), its bytes of weights, what each step
    took."""

    kind: str
    model: Path
    weight_bytes: int
    steps: list[Usage]
    calibration_tokens: int = 0


Maker = Callable[[Workplace, Path], Made]


def pressed(*options: str) -> Maker:
    """``coldpress auto-opt`` with these options and no data but its own."""

    def make(place: Workplace, folder: Path) -> Made:
        step = place.run(_auto_opt(place.source, folder / "out", place, *options), folder)
        return Made("onnx", folder / "out", onnx_bytes(folder / "out"), [step])

    return make


def quantized(algorithm: str, more: Callable[[Workplace], Sequence[str]] = lambda _: ()) -> Maker:
    """``coldpress quantize``, then ``coldpress auto-opt`` on its folder, which keeps the codes; ``more`` are
    options."""

    def make(place: Workplace, folder: Path) -> Made:
        grid = ["--precision", "int4", "--group_size", "32", "--asymmetric"]
        command = [*_coldpress("quantize"), "-m", place.source, "--algorithm", algorithm, *grid]
        windows, tokens = np.load(place.calibration, mmap_mode="r").shape
        text = ["--max_seq_len", str(tokens), "--num_samples", str(windows)]
        steps = [
            place.run([*command, *text, "--no_verify", *more(place), "-o", folder / "codes"], folder),
            place.run(_auto_opt(folder / "codes", folder / "out", place), folder),
        ]
        return Made("onnx", folder / "out", onnx_bytes(folder / "out"), steps, _tokens(place))

    return make


def within_budget(place: Workplace) -> list[str]:
    """Bits for each layer, head and embedding included, so that all fit into the megabytes of `BUDGETS_MB`."""
    return ["--lm_head", "--embeddings", "--max_size", f"{BUDGETS_MB[place.source.name]}MB"]


def builder(place: Workplace, folder: Path) -> Made:
    """onnxruntime-genai's model builder: k-quant, 4 and 8 bits mixed as in llama.cpp.

    It is the builder of Olive's environment: the newest (0.18) asks for a transformers with which it fails on Gemma 3.
    An embedding that is tied shares the codes of the head; one that is not stays float, as k-quant has no Gather.
    """
    config = json.loads((place.source / "config.json").read_text(encoding="utf-8"))
    program: list[str | Path] = [peers.python("olive", place.options), "-m", "onnxruntime_genai.models.builder"]
    grid = ["int4_algo_config=k_quant_mixed", "int4_block_size=32", "int4_is_symmetric=false"]
    tied = ["shared_embeddings=true"] if config["tie_word_embeddings"] else []
    files: list[str | Path] = ["-m", place.source, "-i", place.source, "-o", folder / "out"]
    step = place.run([*program, *files, "-p", "int4", "-e", "cpu", "--extra_options", *grid, *tied], folder)
    return Made("onnx", folder / "out", onnx_bytes(folder / "out"), [step])


def olive(place: Workplace, folder: Path) -> Made:
    """Olive's GPTQ for the layers, its rounding to 8 bits for head and embedding, its builder pass for the graph."""
    program = [peers.python("olive", place.options), peers.script("olive_gptq")]
    step = place.run([*program, place.source, place.calibration, folder / "made"], folder)
    out = next(file.parent for file in sorted((folder / "made").rglob("genai_config.json")))
    return Made("onnx", out, onnx_bytes(out), [step], _tokens(place))


def nncf(place: Workplace, folder: Path) -> Made:
    """NNCF's AWQ and scale estimation on the float ONNX model that coldpress writes, which is not counted."""
    place.run(_auto_opt(place.source, folder / "float", place, "--precision", "fp32", "--logits", "all"), folder)
    shutil.rmtree(folder / "cache")  # onnx refuses to load a data file that has a second hard link
    program = [peers.python("nncf", place.options), peers.script("nncf_awq")]
    step = place.run([*program, folder / "float", place.calibration, folder / "out"], folder)
    return Made("onnx", folder / "out", onnx_bytes(folder / "out"), [step], _tokens(place))


def llama_cpp(place: Workplace, folder: Path) -> Made:
    """llama.cpp's Q4_K_M with an importance matrix from the calibration text, which it cuts into tokens itself."""
    options = place.options
    tools, vendor = peers.llama_tools(options), peers.llama_source(options) / "vendor" / "llama.cpp"
    whole, matrix, out = folder / "float.gguf", folder / "imatrix.gguf", folder / "out.gguf"
    convert: list[str | Path] = [
        peers.python("llama_cpp", options),
        vendor / "convert_hf_to_gguf.py",
        place.source,
        "--outfile",
        whole,
    ]
    threads = str(options.threads)
    weigh: list[str | Path] = [
        tools / "llama-imatrix",
        "-m",
        whole,
        "-f",
        place.calibration_text,
        "-o",
        matrix,
        "-t",
        threads,
    ]
    steps = [
        place.run([*convert, "--outtype", "f32"], folder),
        place.run([*weigh, "-c", "256", "-b", "256", "--chunks", str(_windows(place)), "--no-ppl"], folder),
        place.run([tools / "llama-quantize", "--imatrix", matrix, whole, out, "Q4_K_M", threads], folder),
    ]
    return Made("gguf", out, gguf_bytes(out), steps, _tokens(place))


def llama_logits(model: Path, options: Options) -> list[str]:
    """The command that gives a GGUF file's logits, but for the token ids and the number of threads."""
    program = [peers.python("llama_cpp", options), peers.script("llama_logits")]
    return [str(word) for word in (*program, peers.llama_source(options), peers.llama_tools(options), model)]


def onnx_bytes(folder: Path) -> int:
    """Graph and data files."""
    return sum(file.stat().st_size for file in folder.iterdir() if ".onnx" in file.name)


def gguf_bytes(file: Path) -> int:
    """All tensors of a GGUF file; its tokenizer is not counted."""
    from gguf import GGUFReader

    return sum(int(tensor.n_bytes) for tensor in GGUFReader(str(file)).tensors)


def _coldpress(verb: str) -> list[str | Path]:
    return [sys.executable, "-m", "coldpress", verb]


def _auto_opt(source: Path, out: Path, place: Workplace, *more: str) -> list[str | Path]:
    threads = str(place.options.threads)
    return [*_coldpress("auto-opt"), "--no_verify", "-m", source, "-o", out, "--threads", threads, *more]


def _windows(place: Workplace) -> int:
    return len(np.load(place.calibration, mmap_mode="r"))


def _tokens(place: Workplace) -> int:
    return int(np.load(place.calibration, mmap_mode="r").size)


CONTENDERS: dict[str, Maker] = {
    "coldpress rtn": pressed("--algorithm", "rtn"),
    "coldpress kquant": pressed("--algorithm", "kquant"),
    "coldpress default": pressed(),
    "coldpress gptq": quantized("gptq"),
    "coldpress best": quantized("best"),
    "coldpress best mixed": quantized("best", within_budget),
    "builder k_quant_mixed": builder,
    "olive gptq": olive,
    "nncf awq + scale estimation": nncf,
    "llama.cpp Q4_K_M imatrix": llama_cpp,
}
