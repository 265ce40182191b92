"""The trials of a search in Optuna's own storage: ``optuna-dashboard FILE`` shows them, and a killed search goes on
from them.

A trial is written when it is finished, in one piece; a point that was being tried when the search was killed is not
there, and is tried again.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.search.space import Dimension
from coldpress.search.trials import Trial, frozen_trial, new_study, thawed_trial

if TYPE_CHECKING:
    from optuna.storages import JournalStorage


class History:
    """The finished trials of one search, in ``file``.

    ``objectives``: the numbers that are Optuna's objectives, each with whether less of it is better.
    """

    def __init__(self, file: Path, objectives: Mapping[str, bool], dimensions: Sequence[Dimension]):
        self.file, self._objectives, self._dimensions = file, objectives, dimensions
        _drop_torn_line(file)
        self._study = new_study(objectives, storage=_journal(file), study_name="coldpress", load_if_exists=True)
        if self._study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna calls this experimental
                self._study.set_metric_names(list(objectives))

    def read(self) -> dict[int, Trial]:
        """The trials by number; of one that was tried again after a failure, the newest."""
        found = (thawed_trial(frozen, self._dimensions) for frozen in self._study.get_trials(deepcopy=False))
        return {trial.number: trial for trial in found}

    def add(self, trial: Trial) -> None:
        self._study.add_trial(frozen_trial(trial, self._dimensions, self._objectives))


def _journal(file: Path) -> JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    class Journal(JournalFileBackend):
        """Optuna's file without its lock and without waiting for the disk after every line.

        Only the process that holds the search's folder writes. What is written survives a killed process; a power cut
        may cost the last points, which are then tried again.
        """

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
            with file.open("ab") as stream:
                stream.write(lines.encode())

    return JournalStorage(Journal(str(file)))


def _drop_torn_line(file: Path) -> None:
    """Cut off what a killed process wrote of a line."""
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with file.open("r+b") as stream:
            stream.truncate(whole)
