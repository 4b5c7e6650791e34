"""What stands in for a renderer where no pictures are wanted, or none can be made."""

from typing import Any


class Blind:
    """A renderer without cameras: no OpenGL, and a step costs what the simulator takes."""

    cameras: dict[str, Any] = {}
    depth = segmentation = False
    size: tuple[int, ...] = ()

    def render(self) -> dict[str, dict]:
        """No pictures, as `mmssl.envs.rendering.Renderer.render` gives them."""
        return {"rgb": {}, "pose": {}}

    def close(self) -> None:
        """Nothing to free."""
