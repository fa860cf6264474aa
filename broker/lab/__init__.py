"""An embedded MQTT 3.1.1 broker for laptops, demos and tests. Never for production."""

from broker.lab.limits import Limits
from broker.lab.server import LabBroker

__all__ = ["LabBroker", "Limits"]
