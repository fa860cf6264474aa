"""The language of fedmq: what devices, bridge and aggregator say to each other.

Pure. Reads no clock, opens no socket or file, draws no random number and writes no log.
"""
