"""Becomes ``tests/conftest.py`` in the guest: the image there is the disk that the guest itself runs on."""

from pathlib import Path

import pytest

from tare.bench.model import Image

ROOTFS = Path("/mnt")


@pytest.fixture(scope="session")
def image():
    assert (ROOTFS / "usr/bin/python3").exists(), f"the image's disk is not mounted on {ROOTFS}"
    return Image(
        digest="0" * 64,
        recipe="",
        directory=ROOTFS,
        rootfs=ROOTFS,
        disk=None,
        kernel=None,
        initramfs=None,
        kernel_version="",
        packages={},
        size_bytes=0,
    )
