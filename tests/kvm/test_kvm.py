"""The ordinary pass: two guests that boot under KVM, and one that is restored, within four minutes."""

import pytest

pytestmark = [pytest.mark.kvm, pytest.mark.root, pytest.mark.tools, pytest.mark.image, pytest.mark.guest]


def test_guests_run_under_kvm(kvm_host):
    told = kvm_host.pytest("tests/kvm/inside/checks_smallest.py", timeout_s=900)
    assert "2 passed" in told, told
    assert "skipped" not in told, told
