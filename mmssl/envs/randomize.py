"""Visual randomisation: camera pose, colours and light, drawn once an episode from its seed.

Fixed cameras let a linear probe of raw pixels read the robot's position; moving the camera and recolouring the scene a
little takes that away. Physics is never touched. Draws of the components come from separate streams, so that changing
one leaves the others as they were.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmssl.envs.rendering import CameraOffset, Renderer
from mmssl.errors import MmsslError

# What strength 1 means; half of it is a mild randomisation. Every draw is uniform.
RANGES = {
    "camera": {"azimuth_degrees": 16.0, "elevation_degrees": 10.0, "zoom": 0.16, "shift_share_of_distance": 0.06},
    "color": {"factor": 0.6},
    "light": {"direction": 0.6, "factor": 0.6},
}


@dataclass(frozen=True)
class RandomizeConfig:
    """How much the picture varies between episodes. A component that is None has the common `strength`."""

    strength: float = 0.0
    """0 none, 1 the ranges of `RANGES`."""
    camera: float | None = None
    color: float | None = None
    light: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value <= 1:
                raise MmsslError(f"randomisation {name} must be from 0 to 1, got {value}.")

    def of(self, component: str) -> float:
        """The strength of "camera", "color" or "light"."""
        own = getattr(self, component)
        return self.strength if own is None else own

    @property
    def any(self) -> bool:
        return any(self.of(c) > 0 for c in RANGES)

    def describe(self) -> dict[str, Any]:
        """Strength and half-width of every uniform draw, for the metadata."""
        widths = {c: {k: v * self.of(c) for k, v in ranges.items()} for c, ranges in RANGES.items()}
        return {"strength": {c: self.of(c) for c in RANGES}, "half_widths": widths}


class VisualRandomizer:
    """Gives the world of a `Renderer` another look for each episode, starting each time from the model's own."""

    def __init__(self, renderer: Renderer, config: RandomizeConfig):
        self.renderer, self.config = renderer, config
        self.model = model = renderer.model
        head = model.vis.headlight
        self._arrays = {
            "geom_rgba": model.geom_rgba,
            "mat_rgba": model.mat_rgba,
            "light_dir": model.light_dir,
            "light_diffuse": model.light_diffuse,
            "head_diffuse": head.diffuse,
            "head_ambient": head.ambient,
        }
        self._base: dict[str, np.ndarray] = {}  # empty while the world has its own look

    def restore(self) -> None:
        """The world's own look. To be called before a reset too: some tasks recolour a part at each reset."""
        self.renderer.offsets = {}
        for name, base in self._base.items():
            self._arrays[name][...] = base
        self._base = {}
        self._refresh()

    def apply(self, seed: np.random.SeedSequence) -> dict[str, Any]:
        """Draw a look from `seed`. Returns what was drawn for the cameras and lights, for the metadata."""
        self.restore()
        self._base = {k: np.array(v) for k, v in self._arrays.items()}
        streams = dict(zip(RANGES, seed.spawn(len(RANGES)), strict=True))
        drawn: dict[str, Any] = {}
        if self.config.of("camera"):
            drawn["camera"] = self._move_cameras(np.random.default_rng(streams["camera"]))
        if self.config.of("color"):
            self._recolour(np.random.default_rng(streams["color"]))
        if self.config.of("light"):
            drawn["light"] = self._relight(np.random.default_rng(streams["light"]))
        self._refresh()
        return drawn

    def _refresh(self) -> None:
        """The lights' directions in the world, computed from the model's."""
        import mujoco

        mujoco.mj_camlight(self.model, self.renderer.data)

    def _move_cameras(self, rng: np.random.Generator) -> dict[str, list[float]]:
        wide = {k: v * self.config.of("camera") for k, v in RANGES["camera"].items()}
        for name in self.renderer.cameras:
            u = rng.uniform(-1, 1, 6)
            shift = tuple(float(x) for x in wide["shift_share_of_distance"] * u[3:])
            zoom = 1 + wide["zoom"] * float(u[2])
            self.renderer.offsets[name] = CameraOffset(
                wide["azimuth_degrees"] * float(u[0]), wide["elevation_degrees"] * float(u[1]), zoom, shift
            )
        return {k: [o.azimuth, o.elevation, o.zoom, *o.shift] for k, o in self.renderer.offsets.items()}

    def _recolour(self, rng: np.random.Generator) -> None:
        width = RANGES["color"]["factor"] * self.config.of("color")
        for name in ("geom_rgba", "mat_rgba"):
            base = self._base[name]
            factor = 1 + width * rng.uniform(-1, 1, (len(base), 3))
            self._arrays[name][:, :3] = np.clip(base[:, :3] * factor, 0, 1)  # alpha stays

    def _relight(self, rng: np.random.Generator) -> dict[str, Any]:
        strength, ranges = self.config.of("light"), RANGES["light"]
        base = self._base["light_dir"]
        direction = base + ranges["direction"] * strength * rng.uniform(-1, 1, base.shape)
        norm = np.linalg.norm(direction, axis=-1, keepdims=True)
        self._arrays["light_dir"][...] = np.where(norm > 1e-6, direction / np.maximum(norm, 1e-6), base)
        factor = 1 + ranges["factor"] * strength * rng.uniform(-1, 1, 3)  # lamps, headlight, ambient
        self._arrays["light_diffuse"][...] = np.clip(self._base["light_diffuse"] * factor[0], 0, 1)
        self._arrays["head_diffuse"][...] = np.clip(self._base["head_diffuse"] * factor[1], 0, 1)
        self._arrays["head_ambient"][...] = np.clip(self._base["head_ambient"] * factor[2], 0, 1)
        return {"factor": [float(f) for f in factor]}
