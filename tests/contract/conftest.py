"""The backends of this repository that have to pass the contract, and what each needs of a machine."""

import pytest

pytest.register_assert_rewrite("tare.bench.testing.contract")

NEEDS = {
    "tare.bench.testing.fake:Fake": (),
    "bare-metal": (pytest.mark.root, pytest.mark.image),
    "native": (pytest.mark.root, pytest.mark.image),
    "bubblewrap": (pytest.mark.root, pytest.mark.image, pytest.mark.tools),
    "runc": (pytest.mark.root, pytest.mark.image, pytest.mark.tools),
    "vm": (pytest.mark.root, pytest.mark.image, pytest.mark.guest, pytest.mark.tools),
}


def pytest_configure(config: pytest.Config) -> None:
    config.option.tare_backend = config.option.tare_backend or list(NEEDS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("subject")
        for mark in NEEDS.get(name, ()):
            item.add_marker(mark)
