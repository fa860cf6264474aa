"""`[attack]` of a fleet file: who cheats, and how. Pure."""

from typing import Annotated, Literal, TypeAlias

import msgspec

from schemas.strategy import NonNegative
from schemas.task import ShareOrNone

Attack: TypeAlias = Literal["none", "sign-flip", "label-flip", "alie", "scaling", "gaussian"]


class AttackOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Some devices send what harms. What each kind does is in `attacks`.

    Attributes:
        kind: of the attack.
        share: of the devices that take part in it.
        scale: of sign-flip and scaling: by how much the honest delta is multiplied; of gaussian:
            the noise's length, in lengths of the honest delta.
        z: of alie: standard deviations away from the honest mean.
    """

    kind: Attack = "none"
    share: ShareOrNone = 0.2
    scale: NonNegative = 1.0
    z: Annotated[float, msgspec.Meta(ge=-100, le=100)] = 1.0
