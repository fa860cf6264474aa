"""A region: a whole site that is one device to its upstream.

`SiteTrainer` is the device's trainer. Its training is a round of the site's own task.
"""

from fedmq.region.trainer import SiteTrainer

__all__ = ["SiteTrainer"]
