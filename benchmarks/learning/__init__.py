"""A fleet that learns in virtual time, to tell what an update is worth when it is this short.

    models     networks that train on a flat vector as fast as numpy can
    datasets   digits and engines, dealt to devices
    timeline   who uploads when, and what becomes of it on the way: drawn once a seed
    downlink   how published models come down: as float32, or on the lattice
    fleet      one run: timeline, codec and downlink in, accuracy over bytes out
    contenders who is compared, at which budgets
    study      many runs in two processes, paired by seed
    packets    what an update and its answer are on the wire, MQTT's bytes included
    others     what other systems would have sent for the same update

Everything but `study` is pure: chance comes in with the seed, and the same seed gives every
contender the same split, speeds and batches. What is measured is the product's own: codecs, error
feedback, FedBuff, staleness weights, lattice.
"""
