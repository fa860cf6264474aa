"""The post office: the only room that knows both MQTT and Redis. It carries envelopes, unopened.

It holds a *bridge*, not an MQTT broker: production brokers are mosquitto or EMQX. The one broker
here, `broker.lab`, is for laptops, demos and tests.
"""
