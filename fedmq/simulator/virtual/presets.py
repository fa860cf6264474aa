"""The fleet that is simulated when no file is given: the text that `--example` prints. Pure."""

import tomllib
from typing import Final

from fedmq.simulator.virtual.fleet import FleetFile, checked_fleet
from schemas.task import convert

PRESET: Final = """\
# A fleet for `fedmq simulate`. Whatever is left out has the default that stands in
# docs/how-to/simulate.md; a misspelt name is refused.

name = "digits"
devices = 1000
seed = 0                    # of everything that is drawn: one seed, one result

[data]                      # who knows what
source = "digits"           # or "turbofan:PATH", or "module:function" of your own
partition = "dirichlet"     # every device prefers some classes
alpha = 0.3                 # small is skewed, large is even
hidden = [32]               # of the ReLU network that learns it

[task.strategy]             # [task...]: the tables of a task.toml, as production reads them
name = "fedbuff"
buffer_size = 10            # K updates make a version

[task.train]
epochs = 3
learning_rate = 0.2

[task.codec]
name = "sq"                 # few bytes up, unbiased

[links]                     # shares of the devices, by profile
nb-iot = 4
lte-m = 3
wifi-bad = 2
perfect = 1

[compute]
steps_per_second = 10.0     # of the median device
spread = 0.5                # sigma of the logarithm: a few are far slower

[participation]
mode = "slots"              # so many train at once; or "free", or "rounds"
concurrency = 50
lease_s = 1800.0            # a device that is not heard of for so long loses its slot
lost = 0.02                 # of the updates nothing is ever heard

[stop]                      # whatever comes first
uploads = 1500
target = { accuracy = 0.9 } # the mean of three samples

[measure]
every = 25                  # uploads between two samples
"""
"""A fleet file."""


def preset() -> FleetFile:
    """Read it."""
    return checked_fleet(convert(tomllib.loads(PRESET), FleetFile))
