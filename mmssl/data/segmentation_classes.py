"""From the geom ids of a simulator to classes that mean the same in every recording.

What a geom belongs to is decided by its name alone, so that all parts of all recordings agree. Geoms without a name of
their own are called `<body>#<number>` in a recording.
"""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

IdKind = Literal["classes", "coarse", "ids"]

NOTHING = -1  # where no geom is hit: the sky, a marker
COMMON = ("background", "table", "robot arm", "gripper")
COARSE = (*COMMON, "object")
OTHER = "other"  # a geom of which neither itself nor its body has a name

_BACKGROUND = re.compile(r"floor|ground|wall|plane|arena|sky|mocap", re.IGNORECASE)
_TABLE = re.compile(r"table|counter", re.IGNORECASE)
# A body that gives a robot away -> (its gripper, all of it): Sawyer (Meta-World), Fetch and the Shadow hand, Panda
_ROBOTS = {
    "right_arm_base_link": (
        r"right_hand|(left|right)(claw|pad|finger).*",
        r"right_(arm_base_link|hand|l\d.*)|head|torso|screen|pedestal.*|controller_box|rail|(left|right)(claw|pad).*",
    ),
    "robot0:": (r"robot0:.*(gripper|finger).*", r"robot0:.*"),
    "panda0_link0": (r"panda0_(hand|.*finger).*", r"panda0_.*"),
}
_ENDINGS = re.compile(r"[_ ]?(link|geom|root|joint)?\d*$|_[ab]$")


def class_name(geom: str, geoms: Sequence[str]) -> str:
    """Class of a geom: one of `COMMON`, the object that it belongs to, or "other".

    An object is named by its body in small letters without numbers and endings such as "link" and "geom":
    "faucet_link2#0" belongs to "faucet". Where something without a robot moves, each part of it is an object.

    Args:
        geom: its name.
        geoms: names of all geoms of its scene.
    """
    body = re.sub(r"#\d+$", "", geom)
    robot = next((rules for sign, rules in _ROBOTS.items() if any(g.startswith(sign) for g in geoms)), None)
    if robot and re.fullmatch(robot[0], body):
        return "gripper"
    if robot and re.fullmatch(robot[1], body) and "mocap" not in body:
        return "robot arm"
    for name, rule in (("background", _BACKGROUND), ("table", _TABLE)):
        if rule.search(body):
            return name
    return _object(body)


def _object(body: str) -> str:
    name, before = body.lower(), None
    while name != before:
        name, before = _ENDINGS.sub("", name), name
    return name or OTHER


def class_names(scenes: Sequence[Sequence[str]]) -> list[str]:
    """Classes of several scenes in the order of their ids: those of `COMMON`, then "other" and the objects by name.

    Args:
        scenes: names of the geoms of each scene.
    """
    found = {class_name(geom, geoms) for geoms in scenes for geom in geoms}
    return [*COMMON, OTHER, *sorted(found - {*COMMON, OTHER})]


class ClassMaps:
    """Geom ids of several recordings -> class ids.

    Args:
        scenes: names of the geoms of each recording.
        kind: "classes", or "coarse" for `COARSE`, which are the same for all recordings there are.

    Attributes:
        names: of the classes, in the order of their ids; -1 is where nothing is hit.
    """

    def __init__(self, scenes: Sequence[Sequence[str]], kind: IdKind):
        self.names = list(COARSE) if kind == "coarse" else class_names(scenes)
        number = {name: k for k, name in enumerate(self.names)}
        self._tables = []  # of each recording: geom id + 1 -> class id
        for geoms in scenes:
            ids = [number.get(class_name(geom, geoms), len(COMMON)) for geom in geoms]
            self._tables.append(np.array([NOTHING, *ids], np.int16))

    def __call__(self, recording: int, ids: np.ndarray) -> np.ndarray:
        """Class ids, int16, in place of the geom ids of a recording; a ValueError for ids that it does not name."""
        table = self._tables[recording]
        if ids.max(initial=NOTHING) + 1 >= len(table):
            raise ValueError(f"geom {ids.max()} has no name among the {len(table) - 1} of the recording")
        return table[ids + 1]
