import errno
from pathlib import Path

import pytest

from tare.bench.errors import ExitCode, ImageError
from tare.bench.image.tools import ImageBuildError, explain_build_failure, require_space, translated


def test_an_unknown_package_is_bad_input_and_named() -> None:
    error = explain_build_failure("Reading package lists...\nE: Unable to locate package fioo\n", "bookworm")
    assert "fioo" in error.message
    assert "bookworm" in error.message
    assert error.exit_code == ExitCode.BAD_INPUT
    assert error.remedy


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("Err:1 http://x bookworm InRelease\n  Temporary failure resolving 'x'\n", "reached"),
        ("E: Failed to fetch http://x/fio.deb  404  Not Found\n", "reached"),
        ("cannot write: No space left on device\nE: Failed to fetch\n", "full"),
        ("W: GPG error: NO_PUBKEY 1234\nE: The repository is not signed.\n", "signature"),
        ("E: run_chroot failed: dpkg ended with 2\n", "dpkg ended with 2"),
    ],
)
def test_what_the_machine_refuses_is_told_with_the_tail(output: str, word: str) -> None:
    error = explain_build_failure(output, "bookworm")
    assert isinstance(error, ImageBuildError)
    assert error.exit_code == ExitCode.ENVIRONMENT
    assert word in error.message
    assert output.splitlines()[-1].strip() in error.message


def test_a_full_disk_is_an_image_error_with_a_remedy() -> None:
    with pytest.raises(ImageError, match="unpacking: No space left on device") as caught, translated("unpacking"):
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")
    assert "TARE_CACHE_DIR" in str(caught.value.remedy)


def test_too_little_space_is_told_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(ImageBuildError, match="GB"):
        require_space(tmp_path, 2**60)
    require_space(tmp_path, 1)
