"""Functions of the user's own, from a Python file that the request names; nothing else of the user's is ever run.

A script is run in the process of a job, never in the one that reads a request: what that must know before any work, it
reads in the script's text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
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
        names = names_in(script)
        self._file, self.name = Path(script).expanduser(), name
        self._function = names.get(name)
        if not callable(self._function):
            known = [key for key, value in names.items() if inspect.isfunction(value)]
            raise ColdpressError(f"{self._file} has no function '{name}'", hint=did_you_mean(name, known))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        assert callable(self._function)
        self._check(arguments, named)
        with self._marked(f"{self.name}()"):
            return self._function(*arguments, **named)

    def takes(self, count: int) -> bool:
        """Whether it can be called with so many values, or more than none where nobody knows."""
        assert callable(self._function)
        try:
            inspect.signature(self._function).bind(*[None] * count)
        except TypeError:
            return False
        except ValueError:  # one of C, which tells no signature
            return True
        return True

    def each(self, values: Iterable[Any]) -> Iterator[Any]:
        """What the function gave, one after the other; its code runs on while one takes them."""
        return each_of(self._file, f"{self.name}()", values)

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

    def _marked(self, what: str) -> AbstractContextManager[None]:
        return marked(self._file, what)


def names_in(script: str) -> Mapping[str, Any]:
    """What a script defines, by name; the script is run for it, once in a process."""
    file = _file_of(script)
    with marked(file, "loading it"):
        return vars(_module(file))


def require_script(script: str | None) -> None:
    """Refuse a script that is not there or is no Python, without running it."""
    if not script:
        raise ColdpressError("a function of your own needs 'script', a Python file")
    file = _file_of(script)
    with marked(file, "loading it"):
        ast.parse(file.read_bytes(), str(file))


def require_function(script: str | None, name: str | None) -> None:
    """Refuse a script that is not there, is no Python, or has no function of a name, without running it."""
    if not script or not name:
        raise ColdpressError("a function of your own needs 'script', a Python file, and 'function', its name in there")
    file = _file_of(script)
    with marked(file, "loading it"):
        known = list(_bound(ast.parse(file.read_bytes(), str(file)).body))
    if name not in known and "*" not in known:
        raise ColdpressError(f"{file} has no function '{name}'", hint=did_you_mean(name, known))


def _bound(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that statements bind, those inside conditions among them; ``*`` for all of another module."""
    for one in statements:
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield one.name
        elif isinstance(one, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in one.names)
        elif isinstance(one, ast.Assign | ast.AnnAssign):
            targets = one.targets if isinstance(one, ast.Assign) else [one.target]
            yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))
        for inner in ("body", "orelse", "handlers", "finalbody"):
            if not isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from _bound(getattr(one, inner, ()))


def _file_of(script: str) -> Path:
    file = Path(script).expanduser()
    if not file.is_file():
        raise NotAtHand(f"script '{script}' does not exist", hint=f"the working directory is {Path.cwd()}")
    return file


def marked(file: Path, what: str) -> AbstractContextManager[None]:
    """Tell of an error that is raised inside as one of the user's script, with its own traceback."""

    def told(error: BaseException) -> ColdpressError:
        lines = traceback.format_exception(type(error), error, _own(file, error))
        own = "".join(lines).rstrip().replace("\n", "\n  ")
        return ColdpressError(
            f"your script {file} failed in {what}: {type(error).__name__}: {error}\n  {own}",
            hint="the traceback is that of your script",
            exit_code=WORK_FAILED,
        )

    return raised_as(told)


def each_of(file: Path, what: str, values: Iterable[Any]) -> Iterator[Any]:
    """Values one after the other, whose making runs code of the user's script."""
    with marked(file, what):
        found = iter(values)
    while True:
        with marked(file, what):
            try:
                value = next(found)
            except StopIteration:
                return
        yield value


def _own(file: Path, error: BaseException) -> Any:
    """The traceback from the first frame in the user's file on; the whole one where there is none (a syntax error)."""
    frame, name = error.__traceback__, str(file.resolve())
    while frame is not None and frame.tb_frame.f_code.co_filename != name:
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
