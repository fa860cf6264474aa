"""LoRaWAN: what a network server hears becomes updates, and models go back in its few windows.

regions    data rates, frame sizes, duty cycle and dwell time, each with its source
events     the network server's JSON becomes an uplink, or a refusal with its reason
commands   a downlink becomes the network server's JSON
pieces     how a model travels in a radio's frames, seen from both ends
transfers  what is said to which device, and when
following  which models there are, and how to get from one to the other
adapter    the process that carries all this between two brokers
"""
