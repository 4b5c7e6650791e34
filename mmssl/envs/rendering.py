"""Fast headless pictures of a MuJoCo world: RGB, depth in metres and segmentation ids from any number of cameras.

Shadows, reflections and multisampling cost 4 to 50 times the rest of a small picture in software OpenGL, so they are
off unless `faithful` is asked for. A process has one OpenGL context, made when first needed and shared by all worlds.
"""

import atexit
import contextlib
import importlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmssl.envs.suites import Camera
from mmssl.errors import MmsslError, unknown_name

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # before anything imports mujoco or dm_control

_BACKEND_HELP = (
    "no headless rendering backend works here ({error}); on Debian or Ubuntu: "
    "apt-get install libegl1 libgl1-mesa-dri, then MUJOCO_GL=egl (the default), or libosmesa6 and MUJOCO_GL=osmesa."
)
_CONTEXT: dict[int, Any] = {}  # process id -> OpenGL context; a forked child must not use its parent's


def opengl_context() -> Any:
    """This process's OpenGL context, made current; an `MmsslError` with what to install where none can be made."""
    if os.getpid() not in _CONTEXT:
        backend = os.environ.get("MUJOCO_GL", "").lower()
        try:
            if backend in ("egl", "osmesa"):
                context = importlib.import_module(f"mujoco.{backend}").GLContext(64, 64)
            else:
                import mujoco

                context = mujoco.GLContext(64, 64)
        except Exception as error:  # each backend has its own exceptions, from ImportError to AttributeError
            reason = f"MUJOCO_GL={backend or 'unset'}: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
            raise MmsslError(_BACKEND_HELP.format(error=reason)) from None
        _CONTEXT[os.getpid()] = context
        atexit.register(_free_context, os.getpid())  # before the backend's own end, which would make it fail
    _CONTEXT[os.getpid()].make_current()
    return _CONTEXT[os.getpid()]


def _free_context(process: int) -> None:
    context = _CONTEXT.pop(process, None)
    if context is None or process != os.getpid():
        return
    try:
        context.free()
    except Exception:  # dm_control, imported later, has closed the display already; there is nothing left to free
        context._context = None


def camera_names(model: Any, extra: dict[str, Camera] | None = None) -> list[str]:
    """Names of the model's cameras (`camera<i>` where one has no name), then of the suite's own views."""
    own = [model.camera(i).name or f"camera{i}" for i in range(model.ncam)]
    return own + [name for name in extra or {} if name not in own]


def geom_names(model: Any) -> list[str]:
    """A readable name for each geom id: its own, else its body's with a running number."""
    names, counts = [], {}
    for i in range(model.ngeom):
        geom, body = model.geom(i).name, model.body(int(model.geom_bodyid[i])).name
        counts[body] = counts.get(body, -1) + 1
        names.append(geom or f"{body}#{counts[body]}")
    return names


@dataclass(frozen=True)
class CameraOffset:
    """A small move of a camera around what it looks at: degrees, a factor on the distance, a shift as a share of it."""

    azimuth: float = 0.0
    elevation: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Renderer:
    """Pictures of one world.

    Args:
        model, data: MuJoCo's.
        cameras: names; of the model, or of `views`.
        size: (height, width) in pixels.
        views: the suite's own cameras and rolls.
        faithful: shadows, reflections and multisampling as the model file asks, for pictures like the simulator's own.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        cameras: tuple[str, ...],
        size: tuple[int, int],
        views: dict[str, Camera] | None = None,
        depth: bool = False,
        segmentation: bool = False,
        faithful: bool = False,
    ):
        import mujoco

        self.model, self.data, self.size, self.faithful = model, data, size, faithful
        self.depth, self.segmentation = depth, segmentation
        self.views = views or {}
        known = camera_names(model, self.views)
        for name in cameras:
            if name not in known:
                raise unknown_name("camera", name, known)
        self.cameras = {name: self._camera(name) for name in cameras}
        self.offsets: dict[str, CameraOffset] = {}
        opengl_context()
        self._mujoco = mujoco
        self._context = self._make_context()
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + model.nsite + model.ntendon + 2000)
        self._option = mujoco.MjvOption()
        self._rect = mujoco.MjrRect(0, 0, size[1], size[0])
        if not faithful:
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._scene.flags[flag] = 0

    def _make_context(self) -> Any:
        """MuJoCo's context reads its buffer sizes from the model, which is put back as it was."""
        mujoco, height, width = self._mujoco, *self.size
        vis = self.model.vis
        before = vis.quality.offsamples, vis.quality.shadowsize, vis.global_.offwidth, vis.global_.offheight
        vis.global_.offwidth, vis.global_.offheight = width, height
        if not self.faithful:
            vis.quality.offsamples = vis.quality.shadowsize = 0
        try:
            context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        finally:
            vis.quality.offsamples, vis.quality.shadowsize, vis.global_.offwidth, vis.global_.offheight = before
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        return context

    def _camera(self, name: str) -> Any:
        import mujoco

        camera, view = mujoco.MjvCamera(), self.view(name)
        if view.distance is None:
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = camera_names(self.model).index(name)
            return camera
        camera.distance, camera.azimuth, camera.elevation = view.distance, view.azimuth, view.elevation
        camera.lookat[:] = view.lookat or self.model.stat.center
        if view.track is not None:
            camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
            camera.trackbodyid = self.model.body(view.track).id
        return camera

    def view(self, name: str) -> Camera:
        """What the suite says about a camera; an empty `Camera` for a plain one of the model."""
        return self.views.get(name, Camera())

    def fovy(self, name: str) -> float:
        """Vertical field of view in degrees."""
        camera = self.cameras[name]
        fixed = camera.type == self._mujoco.mjtCamera.mjCAMERA_FIXED
        return float(self.model.cam_fovy[camera.fixedcamid] if fixed else self.model.vis.global_.fovy)

    def render(self) -> dict[str, dict[str, np.ndarray]]:
        """Pictures of the world as it is now: {"rgb": {camera: uint8 (H, W, 3)}, "depth": {camera: float16 (H, W),
        metres along the viewing axis}, "segmentation": {camera: int16 (H, W), geom ids, -1 elsewhere}, "pose": {camera:
        float32 (4, 4), camera to world, x right, y up, looking along -z}}. Depth and segmentation only if asked for."""
        opengl_context()
        pictures: dict[str, dict] = {"rgb": {}, "pose": {}}
        if self.depth:
            pictures["depth"] = {}
        if self.segmentation:
            pictures["segmentation"] = {}
        for name, camera in self.cameras.items():
            pictures["pose"][name] = self._aim(name, camera)
            rgb, z = self._read(with_depth=self.depth)
            pictures["rgb"][name] = rgb
            if self.depth:
                pictures["depth"][name] = self._metres(z)
            if self.segmentation:
                pictures["segmentation"][name] = self._geom_ids()
        return pictures

    def _aim(self, name: str, camera: Any) -> np.ndarray:
        """Fill the scene as `camera` sees it, rolled and moved; returns its pose (4, 4)."""
        mujoco, scene = self._mujoco, self._scene
        mujoco.mjv_updateScene(self.model, self.data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL, scene)
        eyes = scene.camera  # two, for stereo; without stereo MuJoCo renders their mean
        position = (np.array(eyes[0].pos, np.float64) + np.array(eyes[1].pos, np.float64)) / 2
        forward, up = np.array(eyes[0].forward, np.float64), np.array(eyes[0].up, np.float64)
        roll, offset = self.view(name).roll, self.offsets.get(name)
        if roll or offset:
            if roll:
                up = rotation(forward, roll) @ up
            if offset:
                position, forward, up = self._move(camera, position, forward, up, offset)
            for eye in eyes:
                eye.pos[:], eye.forward[:], eye.up[:] = position, forward, up
        pose = np.eye(4, dtype=np.float32)
        pose[:3, :4] = np.stack([np.cross(forward, up), up, -forward, position], axis=1)
        return pose

    def _move(self, camera: Any, position: np.ndarray, forward: np.ndarray, up: np.ndarray, by: CameraOffset) -> tuple:
        """Turn position and axes around the pivot, the point of the viewing axis nearest to the scene's centre."""
        if camera.type == self._mujoco.mjtCamera.mjCAMERA_FIXED:
            follows = self.model.cam_mode[camera.fixedcamid] != 0  # mjCAMLIGHT_FIXED
            body = self.model.cam_bodyid[camera.fixedcamid]
            centre = self.data.subtree_com[body] if follows and body else self.model.stat.center
            distance = float(np.clip((centre - position) @ forward, 0.1, 10 * self.model.stat.extent))
        else:
            distance = camera.distance
        pivot = position + distance * forward
        turn = rotation(np.array([0.0, 0.0, 1.0]), by.azimuth) @ rotation(np.cross(forward, up), by.elevation)
        forward, up = turn @ forward, turn @ up
        axes = np.stack([np.cross(forward, up), up, forward], axis=1)
        return pivot - by.zoom * distance * forward + distance * axes @ np.array(by.shift), forward, up

    def _read(self, with_depth: bool) -> tuple[np.ndarray, np.ndarray | None]:
        rgb = np.empty((*self.size, 3), np.uint8)
        z = np.empty(self.size, np.float32) if with_depth else None
        # Another world of this process may have drawn since: without this we would draw into its buffer, and read ours.
        self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._mujoco.mjr_render(self._rect, self._scene, self._context)
        self._mujoco.mjr_readPixels(rgb, z, self._rect, self._context)
        return rgb[::-1], z if z is None else z[::-1]  # OpenGL counts rows from the bottom

    def _metres(self, z: np.ndarray) -> np.ndarray:
        """Depth-buffer values (1 near, 0 far) to float16 metres along the viewing axis."""
        extent = self.model.stat.extent
        near, far = self.model.vis.map.znear * extent, self.model.vis.map.zfar * extent
        metres = near * far / (near + z.astype(np.float64) * (far - near))
        return np.minimum(metres, np.finfo(np.float16).max).astype(np.float16)

    def _geom_ids(self) -> np.ndarray:
        flags = self._mujoco.mjtRndFlag
        with _flags(self._scene, (flags.mjRND_SEGMENT, flags.mjRND_IDCOLOR)):
            rgb, _ = self._read(with_depth=False)
        rgb = rgb.astype(np.int32)
        drawn = rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)  # 0 is the background
        ids = np.full(self._scene.ngeom + 1, -1, np.int16)
        is_geom = int(self._mujoco.mjtObj.mjOBJ_GEOM)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == is_geom:
                ids[geom.segid + 1] = geom.objid
        return ids[drawn]

    def close(self) -> None:
        """Free the buffers and textures of this world; the process's OpenGL context stays."""
        if self._context is not None:
            opengl_context()
            self._context.free()
            self._context = None


@contextlib.contextmanager
def _flags(scene: Any, on: tuple) -> Any:
    before = scene.flags.copy()
    for flag in on:
        scene.flags[flag] = 1
    try:
        yield
    finally:
        scene.flags[:] = before


def rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    """Matrix (3, 3) that turns by `degrees` about a unit `axis` (Rodrigues)."""
    angle, (x, y, z) = np.radians(degrees), axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
