from pathlib import Path

import pytest

from tare.bench.image.rootfs import find_debian_sources

DEB822 = """\
# snapshot
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


def test_deb822_entries_are_reduced_to_what_an_image_needs(apt: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    assert find_debian_sources("bookworm", apt) == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        "\n"
        "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def test_one_line_entries_keep_their_options(apt: Path) -> None:
    (apt / "sources.list").write_text(
        "deb [arch=amd64 check-valid-until=no] http://mirror.example/debian bookworm main contrib # ours\n"
        "deb-src http://mirror.example/debian bookworm main\n"
    )
    assert find_debian_sources("bookworm", apt) == (
        "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\nCheck-Valid-Until: no\n"
    )


@pytest.mark.parametrize(
    "foreign",
    [
        "deb http://vendor.example/linux/debian bookworm stable",
        "deb http://vendor.example/linux/debian bookworm main",
        "deb [signed-by=/etc/apt/keyrings/vendor.gpg] http://vendor.example/debian bookworm main",
        "deb http://vendor.example/node bookworm main",
        "deb http://archive.example/ubuntu jammy main",
        "deb http://mirror.example/debian trixie main",
    ],
)
def test_other_archives_are_left_out(apt: Path, foreign: str) -> None:
    (apt / "sources.list").write_text(foreign + "\n")
    assert find_debian_sources("bookworm", apt) is None


def test_disabled_entries_and_other_files_are_left_out(apt: Path) -> None:
    (apt / "sources.list.d/a.sources").write_text("Enabled: no\n" + DEB822.partition("\n\n")[0].partition("\n")[2])
    (apt / "sources.list.d/b.sources.disabled").write_text(DEB822)
    assert find_debian_sources("bookworm", apt) is None


def test_a_key_inside_the_entry_that_is_not_debians_leaves_it_out(apt: Path) -> None:
    (apt / "sources.list.d/a.sources").write_text(
        "Types: deb\nURIs: http://vendor.example/debian\nSuites: bookworm\nComponents: main\nSigned-By:\n"
        " -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abcd\n -----END PGP PUBLIC KEY BLOCK-----\n"
    )
    assert find_debian_sources("bookworm", apt) is None
