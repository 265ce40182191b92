"""Other quantizers, each in a virtual environment of its own, made from packages in the scratch folder.

The files beside this one run in those environments and import nothing of coldpress.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import Options, run_checked

#: What is installed after torch, without which pip would bring a build for GPUs.
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "olive": (
        "olive-ai==0.13.0",
        "transformers==4.57.6",
        "huggingface-hub==0.36.2",
        "onnxruntime==1.26.0",
        "onnxruntime-genai==0.14.1",
        "onnx==1.23.2",
        "peft==0.21.2",
        "datasets==5.0.1",
        "requests",
        "scipy",
        "accelerate",
        "tabulate",
    ),
    "openvino": (
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "openvino-tokenizers==2026.4.1.0",
        "optimum-intel==2.2.0",
        "nncf==3.4.0",
    ),
    "nncf": ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1"),
    "llama_cpp": (
        "transformers==4.57.6",
        "numpy",
        "sentencepiece",
        "protobuf",
        "pyyaml",
        "requests",
        "typing_extensions",
        "diskcache",
        "jinja2",
    ),
}
TORCH = "torch==2.13.0"
LLAMA_CPP = "llama-cpp-python==0.3.36"
_TOOLS = ("llama-quantize", "llama-imatrix", "llama-bench")
#: What comes with optimum-intel, unused and built for another torch, with which transformers does not open.
_UNWANTED = "torchvision"
#: AMX is off, because decoding with it crashed; no server, no downloads.
_CMAKE = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_AVX512=ON",
    "-DGGML_AVX512_VNNI=ON",
    "-DGGML_OPENMP=OFF",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def script(name: str) -> Path:
    """The path of a file of this folder that runs in a peer's environment."""
    return Path(__file__).parent / f"{name}.py"


def python(name: str, options: Options) -> Path:
    """The interpreter of a peer's environment, which is installed if it is not there: some minutes, up to 2 GB."""
    folder = options.scratch / "peers" / name
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run_checked([sys.executable, "-m", "venv", folder])
        for packages in ([TORCH], [TORCH, *REQUIREMENTS[name]]):
            run_checked([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages])
        run_checked([folder / "bin" / "python", "-m", "pip", "uninstall", "--quiet", "--yes", _UNWANTED])
        (folder / "complete").touch()
    return folder / "bin" / "python"


def versions(name: str, options: Options) -> list[str]:
    """``package==version`` of what a peer's environment holds."""
    return run_checked([python(name, options), "-m", "pip", "freeze"]).output.split()


def llama_source(options: Options) -> Path:
    """The source of llama-cpp-python with llama.cpp inside (``vendor/llama.cpp``)."""
    folder = options.scratch / "peers" / LLAMA_CPP.replace("-", "_").replace("==", "-")
    if not folder.exists():
        packages = options.scratch / "packages"
        wanted: list[str | Path] = ["--no-deps", "--no-binary", ":all:", "--dest", packages, LLAMA_CPP]
        run_checked([sys.executable, "-m", "pip", "download", *wanted])
        made = folder.with_name("source.part")
        shutil.rmtree(made, ignore_errors=True)
        with tarfile.open(next(packages.glob("llama_cpp_python-*.tar.gz"))) as archive:
            archive.extractall(made, filter="data")
        next(made.iterdir()).rename(folder)
        made.rmdir()
    return folder


def llama_tools(options: Options) -> Path:
    """The folder with llama-quantize, llama-imatrix, llama-bench and their libraries, compiled if needed: some
    minutes."""
    build = options.scratch / "peers" / "llama_build"
    if not all((build / "bin" / tool).exists() for tool in _TOOLS):
        vendor = llama_source(options) / "vendor" / "llama.cpp"
        _run(["cmake", "-S", vendor, "-B", build, *_CMAKE])
        _run(["cmake", "--build", build, "--parallel", str(options.threads), "--target", *_TOOLS])
    return build / "bin"


def _run(command: Sequence[str | Path]) -> None:
    run_checked(["nice", *command])
