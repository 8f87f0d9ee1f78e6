"""Which of many live instances have ended by themselves, asked at every step for the price of one system call."""

import select

from tare.bench.interfaces import Instance


class Alive:
    """Knows instances by their numbers. One whose backend offers no descriptor for it is never told as gone."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._numbers: dict[int, int] = {}

    def add(self, instance: Instance, number: int) -> None:
        """From now on this one is looked at too."""
        descriptor = instance.gone_descriptor()
        if descriptor is not None:
            self._poll.register(descriptor, select.EPOLLIN)
            self._numbers[descriptor] = number

    def find_gone(self, wait_s: float = 0.0) -> int | None:
        """The number of one that has ended; if none has, that of the first to do so within ``wait_s``."""
        gone = [self._numbers[descriptor] for descriptor, _ in self._poll.poll(wait_s)]
        return min(gone, default=None)

    def close(self) -> None:
        """Give up the descriptor behind it. The instances' own are theirs."""
        self._poll.close()
