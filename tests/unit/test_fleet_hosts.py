"""Hosts files: what they may say, and one message for each thing that is wrong."""

import pytest

from tare.bench.errors import SuiteError
from tare.bench.fleet.hosts import Start, load_hosts, select_hosts

TWO = """
[ssh]
user = "root"
key = "keys/id"

[[host]]
name = "a"
address = "10.0.0.1"
type = "large"
labels = { rack = "1" }

[[host]]
name = "b"
address = "localhost"
start = "hand"
port = 2222
"""


def hosts_of(tmp_path, text):
    path = tmp_path / "hosts.toml"
    path.write_text(text)
    return load_hosts(path)


def test_hosts_have_the_defaults_of_the_file(tmp_path):
    a, b = hosts_of(tmp_path, TWO)
    assert (a.user, a.port, a.key, a.start) == ("root", 22, str(tmp_path / "keys/id"), Start.SSH)
    assert (b.port, b.start, b.is_loopback, a.is_loopback) == (2222, Start.HAND, True, False)


def test_types_and_labels_select(tmp_path):
    both = hosts_of(tmp_path, TWO)
    assert [one.name for one in select_hosts(both, ["large"], {}, "--type")] == ["a"]
    assert [one.name for one in select_hosts(both, [], {"rack": "1"}, "--label")] == ["a"]
    assert select_hosts(both, [], {}, "") == both
    with pytest.raises(SuiteError, match=r"selects none of the hosts") as raised:
        select_hosts(both, ["small"], {}, "--type")
    assert raised.value.remedy == "types are: large; labels are: rack=1"


ONE = '[[host]]\nname = "a"\naddress = "10.0.0.1"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "host"),
        ("host = []", "host"),
        (f'{ONE}[[host]]\nname = "A"\naddress = "10.0.0.2"', r"host\[1\].name: 'A' is there twice"),
        (f'{ONE}[[host]]\nname = "b"\naddress = "10.0.0.1"', "'b' and 'a' are both at 10.0.0.1:22"),
        ('[[host]]\nname = "a b"\naddress = "x"', r"host\[0\].name: must be letters"),
        ('[[host]]\nname = ".."\naddress = "x"', r"host\[0\].name: must be letters"),
        ('[[host]]\nname = "a\\n"\naddress = "x"', r"host\[0\].name: must be letters"),
        ('[[host]]\nname = "a"\naddress = "root@x"', r"host\[0\].address: must be an IP address"),
        ('[[host]]\nname = "a"\naddress = "-oProxyCommand=x y"', r"host\[0\].address: must be an IP address"),
        (f"{ONE}port = 0", r"host\[0\].port: must be from 1 to 65535"),
        (f'{ONE}start = "telnet"', r"must be one of ssh, hand"),
        (f"{ONE}cores = 3", "unknown key `cores`"),
        (f'{ONE}type = "a\\u001b[31m"', "text without control characters"),
    ],
)
def test_one_message_for_bad_input(tmp_path, text, message):
    with pytest.raises(SuiteError, match=message) as raised:
        hosts_of(tmp_path, text)
    assert str(tmp_path / "hosts.toml") in str(raised.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SuiteError, match="there is no such file"):
        load_hosts(tmp_path / "hosts.toml")
