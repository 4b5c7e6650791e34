"""The checks of `mmssl doctor`, each run in a process of its own: they touch drivers and compiled packages.

A check returns plain values, or raises whatever the package under test raises.
"""

import importlib
import importlib.metadata
import io
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "mmssl-doctor-answer:"
_SCENE = """<mujoco><worldbody><light pos="0 0 3"/><geom type="plane" size="2 2 .1"/>
<body pos="0 0 .5"><geom type="capsule" size=".1 .3" rgba=".8 .3 .2 1"/></body>
<camera name="side" pos="0 -2 1" xyaxes="1 0 0 0 .4 1"/></worldbody></mujoco>"""


def answer(name: str) -> None:
    """Run a check in this process and print its answer for `run_check`."""
    try:
        found = CHECKS[name]()
    except Exception as error:  # whatever a broken package raises is what the user should read
        found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
    print(f"\n{MARK}{json.dumps(found)}", flush=True)


def _check_compute() -> dict[str, Any]:
    import torch
    import torchvision

    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads: {_rates(torch, 'cpu', 1024)}"
    devices = [{"kind": "CPU", "text": f"{cpu} ({_cpu_bf16(torch)})"}]
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        text = f"{card.name}, {card.total_memory / 2**30:.0f} GB: {_rates(torch, f'cuda:{i}', 8192)}"
        devices.append({"kind": f"cuda:{i}", "text": text})
    if torch.backends.mps.is_available():
        devices.append({"kind": "mps", "text": _rates(torch, "mps", 2048)})
    problem = (
        "" if len(devices) > 1 else f"none that torch can use (its build is for CUDA {torch.version.cuda or 'none'})"
    )
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    return {**versions, "devices": devices, "cuda_problem": problem}


def _cpu_bf16(torch: Any) -> str:
    """Whether the CPU multiplies bfloat16 itself, which decides if bf16 training is fast on it."""
    has = [flag for flag in ("avx512_bf16", "amx_tile") if getattr(torch.cpu, f"_is_{flag}_supported", bool)()]
    return f"bf16 native: {', '.join(has)}" if has else "bf16 emulated: train in fp32"


def _rates(torch: Any, device: str, size: int, seconds: float = 0.25) -> str:
    """Matrix products of float32 and bfloat16, in multiply-add operations counted as two."""
    texts = []
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        a = torch.randn(size, size, device=device).to(dtype)
        wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
        for _ in range(2):
            a @ a
        wait()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            (a @ a)[0, 0].item()  # waits for the device, whichever it is
            count += 1
        rate = 2 * size**3 * count / (time.perf_counter() - began)
        texts.append(f"{name} {rate / 1e12:.0f} TFLOP/s" if rate > 1e13 else f"{name} {rate / 1e9:.0f} GFLOP/s")
    return ", ".join(texts)


def _check_rendering() -> dict[str, Any]:
    from mmssl.envs.rendering import Renderer

    mujoco = importlib.import_module("mujoco")
    model = mujoco.MjModel.from_xml_string(_SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = Renderer(model, data, ("side",), (84, 84))
    if renderer.render()["rgb"]["side"].max() == 0:
        raise RuntimeError("the rendered picture is black")
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < 0.5:
        renderer.render()
        count += 1
    fps = count / (time.perf_counter() - began)
    return {"backend": os.environ.get("MUJOCO_GL", "default"), "renderer": _gl_renderer(), "fps": fps}


def _gl_renderer() -> str:
    try:
        gl = importlib.import_module("OpenGL.GL")
        return gl.glGetString(gl.GL_RENDERER).decode().split(",")[0].split("(")[0].strip()
    except Exception:  # only a nicer word for the screen
        return "renderer unknown"


def _check_video(name: str) -> dict[str, Any]:
    """Decode the tenth frame of a small video that PyAV wrote; only import the reader where PyAV is not here."""
    module = importlib.import_module(name)
    number = getattr(module, "__version__", "")
    if version("av") is None:
        return {"text": f"{number} imports"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        _write_clip(path)
        frame = _READ_FRAME[name](module, str(path))
    if abs(float(frame[..., 0].mean()) - 100) > 25:
        raise RuntimeError(
            f"frame 10 of a test video was decoded wrongly (mean {float(frame[..., 0].mean()):.0f}, not 100)"
        )
    return {"text": f"{number} decodes H.264"}


def _write_clip(path: Path) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=10, options={"g": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(20):
            grey = np.full((48, 64, 3), i * 10, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode(None))


def _read_av(av: Any, path: str) -> Any:
    with av.open(path) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)][10]


def _read_torchcodec(_: Any, path: str) -> Any:
    return importlib.import_module("torchcodec.decoders").VideoDecoder(path)[10].permute(1, 2, 0).float().numpy()


_READ_FRAME: dict[str, Callable[[Any, str], Any]] = {
    "torchcodec": _read_torchcodec,
    "av": _read_av,
}


def _check_soundfile() -> dict[str, Any]:
    import numpy as np
    import soundfile

    sound = (0.5 * np.sin(np.arange(1600) / 10)).astype(np.float32)
    for kind in ("WAV", "FLAC", "OGG"):
        file = io.BytesIO()
        soundfile.write(file, sound, 16000, format=kind)
        file.seek(0)
        if abs(soundfile.read(file)[0] - sound).max() > 0.1:
            raise RuntimeError(f"{kind} was read wrongly")
    return {"text": f"{soundfile.__version__} reads WAV, FLAC, OGG"}


def _check_torchaudio() -> dict[str, Any]:
    import torch
    import torchaudio

    features = torchaudio.compliance.kaldi.fbank(torch.sin(torch.arange(16000.0) / 10)[None], num_mel_bins=32)
    return {"text": f"{torchaudio.__version__} computes mel features {tuple(features.shape)}"}


def _check_imports() -> dict[str, Any]:
    """Import every required package; {"failed": {name: why}}."""
    modules = {}
    for module, names in importlib.metadata.packages_distributions().items():
        for name in names:
            if not module.startswith("_") and module.isidentifier():
                modules.setdefault(name.lower().replace("-", "_"), []).append(module)
    failed = {}
    for name in map(requirement_name, requirements()[0]):
        key = name.lower().replace("-", "_")
        if version(name) is None:
            continue  # said elsewhere
        for module in [m for m in modules.get(key, []) if m.lower() == key] or modules.get(key, [key])[:1]:
            try:
                importlib.import_module(module)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    return {"failed": failed}


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The required list, and the list of every extra, as requirement lines without their extra marker."""
    required, extras = [], {}
    for line in importlib.metadata.requires("mmssl") or []:
        spec, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        machine = re.search(r"platform_machine == ['\"](\w+)['\"]", marker)
        is_all = spec.startswith("mmssl[") or (extra and extra[1] == "all")  # the others once more
        if is_all or (machine and machine[1] != platform.machine()):
            continue
        (extras.setdefault(extra[1], []) if extra else required).append(spec)
    return required, extras


def requirement_name(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "compute": _check_compute,
    "rendering": _check_rendering,
    "torchcodec": lambda: _check_video("torchcodec"),
    "av": lambda: _check_video("av"),
    "soundfile": _check_soundfile,
    "torchaudio": _check_torchaudio,
    "imports": _check_imports,
}
