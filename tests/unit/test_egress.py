import pytest

from zg_async.errors import ConfigError, EndpointRefusedError
from zg_async.transport.egress import Egress, is_public

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.1",
    "168.63.129.15",
    "169.253.255.255",
    "172.15.255.255",
    "172.32.0.0",
    "192.167.255.255",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2a00:1450::1",
    "2001:200::1",
]
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
    "",
    "localhost",
    "1.2.3",
    "01.1.1.1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_global_unicast_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_local_reserved_or_a_gateway_is_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PRIVATE[:-4])
def test_a_literal_forbidden_address_in_a_url_is_refused(address):
    host = f"[{address.replace('%', '%25')}]" if ":" in address else address
    with pytest.raises(EndpointRefusedError, match="public"):
        Egress().check_url(f"https://{host}/v1/quote")


@pytest.mark.parametrize(
    "host", ["2130706433", "127.1", "0x7f.0.0.1", "0x7f000001", "0177.0.0.1", "127.0.0.0x1", "1.1.1.1.1", "999.1.1.1"]
)
def test_other_spellings_of_an_ipv4_address_are_refused(host):
    with pytest.raises(EndpointRefusedError, match="public"):
        Egress().check_url(f"https://{host}/")


def test_full_width_digits_are_judged_as_what_they_stand_for():
    with pytest.raises(EndpointRefusedError, match="public"):
        Egress().check_url("https://\uff11\uff12\uff17.0.0.1/")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://provider.example", "https"),
        ("https://user:pw@provider.example", "user info"),
        ("https://user@provider.example", "user info"),
        ("ftp://provider.example", "no http URL"),
        ("file:///etc/passwd", "no http URL"),
        ("provider.example", "no http URL"),
        ("https://", "no http URL"),
        ("", "no http URL"),
        ("https://a.example:99999", "no URL"),
        ("https://[::1", "no URL"),
        ("https://a b.example/", "no host name"),
        ("https://a\x1b[31m.example/", "no URL"),
    ],
)
def test_a_url_that_is_not_plain_https_is_refused(url, reason):
    with pytest.raises(EndpointRefusedError, match=reason) as caught:
        Egress().check_url(url, provider="0xab")
    assert "pw" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert caught.value.provider == "0xab"
    assert not caught.value.retryable


def test_an_https_name_passes():
    assert str(Egress().check_url("https://provider.example/v1/quote")) == "https://provider.example/v1/quote"


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("localhost", "http://localhost:8000/"),
        ("LOCALHOST", "http://localhost./"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000/"),
        ("127.0.0.1", "http://127.0.0.1:1/"),
        ("::1", "http://[::1]:8000/"),
        ("[::1]:8000", "http://[0:0:0:0:0:0:0:1]:8000/"),
        ("http://10.0.0.5:8545/rpc?key=1", "http://10.0.0.5:8545/v1"),
        ("https://node.example/x", "https://node.example/"),
        ("bücher.example", "http://xn--bcher-kva.example/"),
    ],
)
def test_what_the_user_allowed_passes(allowed, url):
    assert Egress((allowed,)).check_url(url)


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8001/"),
        ("127.0.0.1", "http://127.0.0.2/"),
        ("localhost", "http://evil.localhost/"),
        ("node.example", "http://node.example.evil.example/"),
        ("http://10.0.0.5:8545", "http://10.0.0.5/"),
    ],
)
def test_an_allowance_covers_one_host_and_port_not_a_range(allowed, url):
    with pytest.raises(EndpointRefusedError):
        Egress((allowed,)).check_url(url)


@pytest.mark.parametrize("entry", ["", "://", "a:b:c:d", "host:99999"])
def test_an_allowance_that_is_no_host_is_a_config_error(entry):
    with pytest.raises(ConfigError):
        Egress((entry,))


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "printer.local", "metadata.google.internal", "intranet"])
def test_behind_a_proxy_local_names_are_refused(host):
    with pytest.raises(EndpointRefusedError, match="local"):
        Egress(by_name_only=True).check_url(f"https://{host}/")


def test_a_resolved_address_is_judged_unless_its_name_is_allowed():
    egress = Egress(("devnet.example:80",))
    assert egress.check_address("devnet.example", 80, "127.0.0.1")
    assert not egress.check_address("devnet.example", 81, "127.0.0.1")
    assert egress.check_address("provider.example", 443, "8.8.8.8")
