"""A pytest plugin for an emulated host: what has to happen within a deadline may take several times as long there.

The deadlines were made for hosts that execute their instructions themselves. An emulated one shares two CPUs with
whatever else this machine does, and everything in it takes ten times as long to begin with.
"""

import sys

TIMES = 8


def pytest_collection_finish():
    """Whatever is called a deadline, in every module that the tests have loaded."""
    for module in [one for name, one in sys.modules.items() if name.partition(".")[0] in ("tare", "tests")]:
        for name, value in list(vars(module).items()):
            if name.endswith("DEADLINE_S"):
                setattr(module, name, value * TIMES)
