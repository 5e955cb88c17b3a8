"""Who speaks? A recurrent network for real speech on faulty targets."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from columns import Row, Script, all_columns, means


def claims(rows: Sequence[Row]) -> Mapping[str, bool]:
    """What must hold: learning on a target repairs some of its damage."""
    return {
        f"{name}: loop above transfer": mean["loop"] > mean["transfer"]
        for name, mean in means(rows).items()
        if name != "bits_8"
    }


SCRIPT = Script(
    "japanese_vowels", "Japanese vowels on faulty targets", ("all",), all_columns, claims
)

if __name__ == "__main__":
    sys.exit(SCRIPT.main())
