"""vl-convert in a process of its own: what draws charts is V8.

It takes 40 to 110 MB, which are given back when that process ends. It is asked by lines of JSON and answers by them.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from tare.bench.errors import BackendError
from tare.bench.process import PIPE, Popen

_MOST_DRAWN = 40
"""Charts by one process: V8 lets go of little while there is room."""
_PROGRAM = Path(__file__).with_name("draw.py")


class _Drawer:
    """The process, started when it is needed."""

    def __init__(self) -> None:
        self._process: Popen[str] | None = None
        self._drawn = 0

    def ask(self, question: dict[str, Any]) -> str:
        if self._process is None:
            # The same modules as here, wherever this process found them.
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = Popen(
                [sys.executable, "-P", "-S", str(_PROGRAM)], env=environment, stdin=PIPE, stdout=PIPE, encoding="utf-8"
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self.end()
            raise BackendError("the process that draws charts ended", remedy="see whether the host is out of memory")
        self._drawn += 1
        if self._drawn >= _MOST_DRAWN:
            self.end()
        return str(json.loads(answer))

    def end(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process, self._drawn = None, 0


_drawer = _Drawer()


def still_of(spec: dict[str, Any]) -> str:
    """A Vega-Lite specification as SVG."""
    return _drawer.ask({"spec": spec})


def end_drawing() -> None:
    """End the process, if it runs."""
    _drawer.end()
