"""The corpus of hostile images and commands: the same for a seed, and with every evil in it."""

from itertools import islice

from tests.campaign.hostile import EVILS, commands, images


def test_the_same_images_for_the_same_seed_and_others_for_another():
    first = list(islice(images(3), 6))
    assert first == list(islice(images(3), 6))
    assert [one.archive for one in first] != [one.archive for one in islice(images(4), 6)]


def test_every_evil_comes_in_as_many_images():
    found = {evil for one in islice(images(18), len(EVILS)) for evil in one.evils}
    assert {evil.__name__.strip("_") for evil in EVILS} <= found


def test_every_command_comes_once_in_a_round():
    found = list(islice(commands(18), 49))
    assert len({one.argv[0] + one.evil for one in found}) == 49
    assert found == list(islice(commands(18), 49))
    assert all("{seed}" not in one.argv[-1] for one in found)
