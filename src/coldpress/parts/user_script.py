"""Functions of the user's own, from a Python file that the request names; nothing else of the user's is ever run."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from coldpress.errors import WORK_FAILED, ColdpressError, NotAtHand, did_you_mean, raised_as


class UserFunction:
    """The function ``name`` of the Python file ``script``.

    What it raises comes back as ColdpressError with its own traceback.
    """

    def __init__(self, script: str | None, name: str | None):
        if not script or not name:
            raise ColdpressError(
                "a function of your own needs 'script', a Python file, and 'function', its name in there"
            )
        self._file, self.name = Path(script).expanduser(), name
        if not self._file.is_file():
            raise NotAtHand(f"script '{script}' does not exist", hint=f"the working directory is {Path.cwd()}")
        with self._marked("loading it"):
            module = _module(self._file)
        self._function = getattr(module, name, None)
        if not callable(self._function):
            known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
            raise ColdpressError(f"{self._file} has no function '{name}'", hint=did_you_mean(name, known))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        assert callable(self._function)
        self._check(arguments, named)
        with self._marked(f"{self.name}()"):
            return self._function(*arguments, **named)

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """What the function gave, one after the other; its code runs on while one takes them."""
        with self._marked(f"{self.name}()"):
            values = iter(values)
        while True:
            with self._marked(f"{self.name}()"):
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value

    def _check(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Refuse arguments that the function does not take, before it runs."""
        assert callable(self._function)
        try:
            inspect.signature(self._function).bind(*arguments, **named)
        except TypeError as error:
            raise ColdpressError(
                f"{self._file}: {self.name}{inspect.signature(self._function)} is called with {len(arguments)} values"
                f"{' and ' if named else ''}{', '.join(named)}: {error}"
            ) from error

    @contextmanager
    def _marked(self, what: str) -> Iterator[None]:
        def told(error: BaseException) -> ColdpressError:
            lines = traceback.format_exception(type(error), error, self._own(error))
            own = "".join(lines).rstrip().replace("\n", "\n  ")
            return ColdpressError(
                f"your script {self._file} failed in {what}: {type(error).__name__}: {error}\n  {own}",
                hint="the traceback is that of your script",
                exit_code=WORK_FAILED,
            )

        with raised_as(told):
            yield

    def _own(self, error: BaseException) -> Any:
        """The traceback from the first frame in the user's file on; the whole one where there is none (a syntax
        error)."""
        frame, file = error.__traceback__, str(self._file.resolve())
        while frame is not None and frame.tb_frame.f_code.co_filename != file:
            frame = frame.tb_next
        return frame


def _module(file: Path) -> Any:
    """The file as a module; what lies beside it can be imported from it."""
    file = file.resolve()
    name = f"coldpress_user_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ColdpressError(f"{file} is no Python file", hint="its name should end in .py")
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module
    with ExitStack() as unless_it_runs:
        unless_it_runs.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        unless_it_runs.pop_all()
    return module
