"""Engines whose containers are started by a command."""

import contextlib
from abc import abstractmethod
from collections.abc import Sequence

from tare.backends.engines.box import Box
from tare.backends.engines.core import Engine
from tare.backends.engines.start import Begun


class CommandEngine(Engine):
    """An engine whose containers are started by a command."""

    @abstractmethod
    def start_command(self, box: Box) -> Sequence[str]:
        """The command that starts a container whose command is ``LIVE``; files that it needs are written here."""

    def start_files(self) -> Sequence[bytes]:
        """What the start command finds open as descriptors 3, 4, ...: contents of memory files."""
        return ()

    def begin(self, box: Box, stack: contextlib.ExitStack) -> Begun:
        """Start that command."""
        return stack.enter_context(self.spawn(box, self.start_command(box), self.start_files(), box.streams))
