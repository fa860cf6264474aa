import pytest

from mqtt_session.address import Address, address_of
from mqtt_session.settings import MqttSettings
from schemas.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", Address("broker", 1883)),
        ("mqtts://broker", Address("broker", 8883, tls=True)),
        ("mqtts://broker:8443/", Address("broker", 8443, tls=True)),
        ("ws://broker", Address("broker", 80, "websockets", "/mqtt")),
        ("wss://broker/gate", Address("broker", 443, "websockets", "/gate", tls=True)),
        ("mqtt://[::1]:1884", Address("::1", 1884)),
    ],
)
def test_a_url_says_everything(url, address):
    assert address_of(MqttSettings(mqtt_url=url, mqtt_host="other", mqtt_port=9)) == address


def test_host_and_port_do_without_a_url():
    assert address_of(MqttSettings(mqtt_host="broker", mqtt_port=1884)) == Address("broker", 1884)


def test_an_authority_or_a_certificate_means_tls():
    assert address_of(MqttSettings(mqtt_ca="ca.pem")).tls
    assert address_of(MqttSettings(mqtt_cert="c.pem", mqtt_key="k.pem")).tls


@pytest.mark.parametrize(
    "url", ["mqtt://h:1", "mqtts://h:2", "ws://h:3/mqtt", "wss://h:4/gate"], ids=str
)
def test_an_address_is_written_as_its_url(url):
    assert str(address_of(MqttSettings(mqtt_url=url))) == url


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"mqtt_url": "http://broker"}, "mqtt_url", "wss://"),
        ({"mqtt_url": "broker:1883"}, "mqtt_url", "mqtt://"),
        ({"mqtt_url": "mqtt://broker:port"}, "mqtt_url", "cannot be read"),
        ({"mqtt_url": "mqtt://broker/path"}, "mqtt_url", "path"),
        ({"mqtt_url": "mqtts://me:secret@broker"}, "mqtt_url", "FEDMQ_MQTT_PASSWORD"),
        ({"mqtt_url": "mqtt://broker", "mqtt_ca": "ca.pem"}, "mqtt_ca", "mqtts://"),
        ({"mqtt_cert": "c.pem"}, "mqtt_key", "together"),
        ({"mqtt_key": "k.pem"}, "mqtt_cert", "together"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused_with_its_remedy(given, field, words):
    with pytest.raises(ConfigError) as refused:
        address_of(MqttSettings(**given))
    assert refused.value.field == field
    assert words in refused.value.remedy
    assert "secret" not in str(refused.value)
