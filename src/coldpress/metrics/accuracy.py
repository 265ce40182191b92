"""How often a model is right, on labelled data: computed by torchmetrics, batch by batch.

``task`` says what an output means. ``classification`` takes the highest of the logits ``[samples, classes]``,
``token_classification`` of ``[samples, tokens, classes]``; ``speech`` reads characters off ``[samples, frames,
characters]`` as CTC does, or lets an encoder-decoder model speak; ``generation`` lets a language model answer. A
function of one's own may take the place of all that.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Protocol

import numpy as np

from coldpress.data.batches.loader import folder_of
from coldpress.errors import ColdpressError, did_you_mean
from coldpress.measuring.inference import open_model, open_speaker
from coldpress.models.model import Model
from coldpress.parts import Batch, Context, DataSource, Metric, Value, option
from coldpress.parts.olive_script import olive_function
from coldpress.parts.user_script import UserFunction

_NOT_SCORED = -100
_TEXT = ("exact_match", "wer")
#: task -> the numbers it can give
_NUMBERS = {
    "classification": ("accuracy", "f1", "precision", "recall", "auroc"),
    "token_classification": ("accuracy", "f1", "precision", "recall", "exact_match"),
    "speech": _TEXT,
    "generation": _TEXT,
}
_CLASSES = {
    "accuracy": "Accuracy",
    "f1": "F1Score",
    "precision": "Precision",
    "recall": "Recall",
    "auroc": "AUROC",
    "exact_match": "ExactMatch",
}


@dataclass(frozen=True)
class Accuracy(Metric):
    """Predictions against labels.

    ``accuracy`` is the share of right ones; ``average`` decides the other numbers of classes.

    ``exact_match`` is the share of samples that are right from beginning to end; ``wer`` the word error rate.
    ``perplexity`` is a metric of its own. ``auroc`` keeps the scores of all samples, everything else only counts.
    """

    data: DataSource | None = option("labelled data", None)
    task: str = option("what the outputs mean", "classification", tuple(_NUMBERS))
    numbers: tuple[str, ...] = option(
        "accuracy, f1, precision, recall, auroc; exact_match; wer; left out: the first of the task", ()
    )
    average: str = option(
        "over classes: each alike (macro), as often as it occurs (weighted), all together (micro), or class 1 of two"
        " alone (binary)",
        "macro",
        ("macro", "weighted", "micro", "binary"),
    )
    output: str | None = option("the output to look at; left out: logits, or the first one", None)
    script: str | None = option("Python file with a function that reads predictions off the outputs; it is run", None)
    function: str | None = option(
        "its name: function(outputs, inputs) gives scores [samples, classes], the classes themselves, or texts; one"
        " that takes the outputs alone gets tensors of torch, as Olive gives them",
        None,
    )
    arguments: dict[str, Any] = option("what it is called with besides", dict)
    ignore_case: bool = option("compare texts in lower case", False)
    ignore_punctuation: bool = option("compare texts without punctuation", False)
    max_new_tokens: int = option("tokens that a model may answer with", 32)
    max_batches: int | None = option("at most so many batches", None)
    trust_remote_code: bool = option("run model code from a Hugging Face folder", False)

    values: ClassVar[Mapping[str, Value]] = {
        **{name: Value("higher") for name in _CLASSES},
        "wer": Value("lower"),
    }
    accepts: ClassVar[tuple[str, ...]] = ("onnx", "hf")
    reads: ClassVar[tuple[str, ...]] = ("script",)
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "torchmetrics")
    quick: ClassVar[Mapping[str, Any]] = {"max_batches": 4}

    def __post_init__(self) -> None:
        if self.arguments and self.script is None:
            raise ColdpressError("accuracy: arguments have no effect without a script", hint="leave them out")
        possible = _NUMBERS.get(self.task, ())
        for name in self.numbers:
            if name == "perplexity":
                raise ColdpressError("perplexity is a metric of its own", hint="use the metric 'perplexity'")
            if name not in self.values:
                raise ColdpressError(f"accuracy: there is no number '{name}'", hint=did_you_mean(name, self.values))
            if possible and name not in possible:
                raise ColdpressError(
                    f"accuracy: the task {self.task} gives no '{name}'", hint=f"it gives {', '.join(possible)}"
                )
        if (self.script is None) != (self.function is None):
            raise ColdpressError("accuracy: script and function go together: one of them is missing")
        object.__setattr__(self, "values", {name: self.values[name] for name in self.chosen})

    def measure(self, model: Model, ctx: Context) -> dict[str, Any]:
        if self.data is None:
            raise ColdpressError(
                "accuracy needs labelled data", hint="name an entry of the workflow's 'data' as its data"
            )
        predict = self._predictor(model, ctx)
        counts = _Texts(self) if self.task in ("speech", "generation") else _Classes(self)
        samples = 0
        for number, batch in enumerate(self._labelled(self.data, model, ctx), start=1):
            counts.update(predict(batch), batch.labels)
            samples += batch.size
            ctx.progress("accuracy", number, self.max_batches or 0)
        return {**counts.compute(), "samples": samples}

    @property
    def chosen(self) -> tuple[str, ...]:
        """The numbers that are asked for; by default the first of the task."""
        return self.numbers or _NUMBERS.get(self.task, ())[:1]

    def _labelled(self, data: DataSource, model: Model, ctx: Context) -> Iterator[Batch]:
        for batch in islice(data.batches(model, ctx), self.max_batches):
            if batch.labels is None:
                raise ColdpressError(
                    f"data of the kind {data.type} has no labels here, so nothing can be right or wrong"
                )
            yield batch

    def _predictor(self, model: Model, ctx: Context) -> Callable[[Batch], Any]:
        """From a batch to scores, or to texts."""
        if self.task == "generation":
            return self._speaker(model, ctx)
        run = open_model(model, ctx.target, self.trust_remote_code).run
        if self.script is not None:
            return _reader(olive_function(self.script, self.function, "post_process_data"), run, self.arguments)
        if self.task == "speech":
            return self._listener(model, ctx, run)
        return lambda batch: self._scores(run(batch.inputs))

    def _scores(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """The output that counts."""
        if self.output is not None and self.output not in outputs:
            raise ColdpressError(
                f"accuracy: the model has no output '{self.output}'", hint=did_you_mean(self.output, outputs)
            )
        return outputs[self.output or ("logits" if "logits" in outputs else next(iter(outputs)))]

    def _listener(
        self, model: Model, ctx: Context, run: Callable[..., dict[str, np.ndarray]]
    ) -> Callable[[Batch], list[str]]:
        from coldpress.data.texts.tokenization import pretrained_tokenizer

        if _is_encoder_decoder(model):
            return self._speaker(model, ctx)
        decode = pretrained_tokenizer(folder_of(model)).batch_decode
        return lambda batch: list(decode(self._scores(run(batch.inputs)).argmax(axis=-1)))

    def _speaker(self, model: Model, ctx: Context) -> Callable[[Batch], list[str]]:
        from coldpress.data.texts.tokenization import pretrained_tokenizer

        if self.script is not None:
            raise ColdpressError("accuracy: script has no effect where the model answers in words", hint="leave it out")
        answer = open_speaker(model, ctx.target, self.trust_remote_code)
        tokenizer = pretrained_tokenizer(folder_of(model))

        def speak(batch: Batch) -> list[str]:
            samples = [{name: array[i : i + 1] for name, array in batch.inputs.items()} for i in range(batch.size)]
            answers = [answer(sample, self.max_new_tokens) for sample in samples]
            return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in answers]

        return speak


def _is_encoder_decoder(model: Model) -> bool:
    import json

    file = folder_of(model) / "config.json"
    return file.is_file() and bool(json.loads(file.read_text(encoding="utf-8")).get("is_encoder_decoder"))


def _reader(
    function: UserFunction, run: Callable[[Any], dict[str, np.ndarray]], arguments: Mapping[str, Any]
) -> Callable[[Batch], Any]:
    """From a batch to what a function of the user's reads off the outputs for it."""
    if function.takes(2):
        return lambda batch: function(run(batch.inputs), batch.inputs, **arguments)

    def read(batch: Batch) -> Any:
        import torch

        outputs = {name: torch.from_numpy(np.array(one)) for name, one in run(batch.inputs).items()}
        given = function(next(iter(outputs.values())) if len(outputs) == 1 else outputs, **arguments)
        found = given[0] if isinstance(given, tuple) and hasattr(given, "preds") else given
        return found.numpy() if isinstance(found, torch.Tensor) else found

    return read


class _Counts(Protocol):
    def update(self, predicted: Any, labels: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...


class _Classes:
    """Numbers about classes, each a metric of torchmetrics; these are made once the number of classes is known."""

    def __init__(self, request: Accuracy):
        self._request = request
        self._metrics: dict[str, Any] = {}
        self._chosen: list[tuple[np.ndarray, np.ndarray]] = []

    def update(self, predicted: Any, labels: Any) -> None:
        import torch

        scores, right = np.asarray(predicted), np.asarray(labels)
        if scores.shape == right.shape and scores.dtype.kind in "iub":  # classes, whose number the last tells
            self._chosen.append((scores.astype(np.int64), right))
            return
        self._check(scores, right)
        classes = scores.shape[-1]
        self._metrics = self._metrics or {name: self._metric(name, classes) for name in self._request.chosen}
        order = np.moveaxis(scores, -1, 1)  # [samples, classes, ...], as torchmetrics has it
        given = torch.from_numpy(np.array(order, dtype=np.float32))
        truth = torch.from_numpy(np.array(right, dtype=np.int64))
        for name, metric in self._metrics.items():
            metric.update(self._shaped(name, given), truth)

    def compute(self) -> dict[str, float]:
        if self._chosen:
            chosen, right = (np.concatenate(one) for one in zip(*self._chosen, strict=True))
            self._chosen = []
            self.update(np.eye(max(int(chosen.max()), int(right.max()), 1) + 1)[chosen], right)
        return {name: float(metric.compute()) for name, metric in self._metrics.items()}

    def _metric(self, name: str, classes: int) -> Any:
        import torchmetrics.classification as known

        average = self._request.average
        if average == "binary" and name not in ("accuracy", "exact_match"):
            if classes != 2:
                raise ColdpressError(f"accuracy: average 'binary' is for two classes; the model has {classes}")
            return getattr(known, f"Binary{_CLASSES[name]}")(ignore_index=_NOT_SCORED)
        options: dict[str, Any] = {"num_classes": classes, "ignore_index": _NOT_SCORED}
        if name == "accuracy":
            options["average"] = "micro"
        elif name == "auroc" and average == "micro":
            raise ColdpressError("accuracy: auroc has no micro average", hint="use macro, weighted or binary")
        elif name != "exact_match":
            options["average"] = average
        return getattr(known, f"Multiclass{_CLASSES[name]}")(**options)

    def _shaped(self, name: str, scores: Any) -> Any:
        """Classes, or for AUROC probabilities."""
        if name == "auroc":
            shares = scores.softmax(dim=1)
            return shares[:, 1] if self._request.average == "binary" else shares
        return scores.argmax(dim=1)

    def _check(self, scores: np.ndarray, right: np.ndarray) -> None:
        tokens = ", tokens" if self._request.task == "token_classification" else ""
        if scores.ndim != (3 if tokens else 2) or scores.shape[:-1] != right.shape:
            raise ColdpressError(
                f"accuracy: outputs {list(scores.shape)} and labels {list(right.shape)} do not belong together; "
                f"{self._request.task} takes [samples{tokens}, classes] and [samples{tokens}]",
                hint="say with 'output' which output it is, or with 'task' what it means, or give a function",
            )
        if not np.isfinite(scores).all():
            raise ColdpressError("accuracy: the model gives numbers that are not finite")
        counted = right[right != _NOT_SCORED]
        if counted.size and (counted.min() < 0 or counted.max() >= scores.shape[-1]):
            raise ColdpressError(
                f"accuracy: a label is {counted.max() if counted.max() >= scores.shape[-1] else counted.min()}, but the"
                f" model tells {scores.shape[-1]} classes apart (0 to {scores.shape[-1] - 1})"
            )


class _Texts:
    """Texts compared with texts."""

    def __init__(self, request: Accuracy):
        from torchmetrics.text import WordErrorRate

        self._request = request
        self._errors = WordErrorRate()
        self._equal = self._seen = 0

    def update(self, predicted: Any, labels: Any) -> None:
        said, right = list(predicted), list(labels)
        if len(said) != len(right) or not all(isinstance(text, str) for text in [*said, *right]):
            raise ColdpressError(
                f"accuracy: the task {self._request.task} compares texts; the data's labels must be texts"
            )
        said, right = [self._plain(text) for text in said], [self._plain(text) for text in right]
        self._errors.update(said, right)
        self._equal += sum(one == other for one, other in zip(said, right, strict=True))
        self._seen += len(said)

    def compute(self) -> dict[str, float]:
        found = {"exact_match": self._equal / self._seen, "wer": float(self._errors.compute())}
        return {name: found[name] for name in self._request.chosen}

    def _plain(self, text: str) -> str:
        text = text.lower() if self._request.ignore_case else text
        if self._request.ignore_punctuation:
            text = text.translate(str.maketrans("", "", string.punctuation))
        return " ".join(text.split())
