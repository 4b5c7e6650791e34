"""The whole of MultiMAE once more, slowly: one sample and one task after the other, in plain torch code.

It takes our parameters and nothing else of ours. Only names are shared with `mmssl.methods.multimae`.
"""

import math

import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def linear(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(x, state, name):
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def mlp(x, state, name):
    x = linear(x, state, f"{name}.fc1")
    return linear(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), state, f"{name}.fc2")


def attention(q, k, v, heads):
    out = []
    for a, b, c in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        out.append((a @ b.T / math.sqrt(a.shape[1])).softmax(1) @ c)
    return torch.cat(out, 1)


def block(x, state, name, heads):
    q, k, v = linear(norm(x, state, f"{name}.norm1"), state, f"{name}.attn.qkv").chunk(3, 1)
    x = x + linear(attention(q, k, v, heads), state, f"{name}.attn.proj")
    return x + mlp(norm(x, state, f"{name}.norm2"), state, f"{name}.mlp")


def position(dim, row, column):
    """Row first: sines and cosines of the row, then of the column."""
    angles = [[p / 10000 ** (k / (dim // 4)) for k in range(dim // 4)] for p in (row, column)]
    return torch.tensor([f(a) for axis in angles for f in (math.sin, math.cos) for a in axis])


class Reference:
    """MultiMAE of a method's settings and weights: image, depth, segmentation, and vectors as they come."""

    def __init__(self, method):
        self.config, self.state = method.config, dict(method.state_dict(keep_vars=True))
        size, patch = self.config.image_size, self.config.patch_size
        size = (size, size) if isinstance(size, int) else size
        self.patch, self.rows, self.columns = patch, size[0] // patch, size[1] // patch

    def count(self, name):
        """Places of a modality: a vector has one."""
        return 1 if name in self.config.widths else self.rows * self.columns

    def position(self, name, dim, place):
        if name in self.config.widths:  # sines of time 0, then cosines
            return torch.tensor([0.0] * (dim // 2) + [1.0] * (dim // 2))
        return position(dim, *divmod(place, self.columns))

    def values(self, kind, x):
        """What one sample looks like to the model: (C, h, w) of pixels or standardised depth, (h, w) of ids."""
        if kind == "image":
            x = x.float() / 255
            return torch.stack([(x[c] - MEAN[c]) / STD[c] for c in range(3)])
        if kind == "depth":
            kept = x.flatten().sort().values
            n = len(kept)
            kept = kept[int(0.1 * n) : int(0.9 * n)]
            return (x - kept.mean()) / (kept.var() + 1e-6).sqrt()
        stride = self.config.class_stride
        ids = x[stride // 2 :: stride, stride // 2 :: stride].clone()
        ids[(ids == 254) | (ids == 255) | (ids < 0)] = -1
        return ids

    def patches(self, kind, x):
        """The values of one sample, place by place: a list of (p * q * C) vectors, channel fastest."""
        if kind in self.config.widths:
            return [x[0]]
        values = self.values(kind, x)
        values = values[None] if values.ndim == 2 else values
        p = self.patch // self.config.class_stride if kind == "segmentation" else self.patch
        out = []
        for r in range(self.rows):
            for c in range(self.columns):
                part = values[:, r * p : (r + 1) * p, c * p : (c + 1) * p]
                out.append(torch.stack([part[:, i, j] for i in range(p) for j in range(p)]).flatten())
        return out

    def token(self, name, patch, place):
        kind, where = name.split("/")[0], f"encoder.tokenizers.{name}"
        if kind == "segmentation":
            zero = torch.zeros(self.config.class_dim)
            patch = torch.cat([self.state[f"{where}.embedding.weight"][i] if i >= 0 else zero for i in patch])
        dim = len(self.state[f"{where}.proj.bias"])
        return linear(patch, self.state, f"{where}.proj") + self.position(name, dim, place)

    def encode(self, sample, masks):
        """Tokens after the encoder, the global one last, and (modality, place) of the others."""
        x, places = [], []
        for name in self.config.in_tasks:
            for place, patch in enumerate(self.patches(name, sample[name]) if name in sample else []):
                if not masks[name][place]:
                    x.append(self.token(name, patch, place))
                    places.append((name, place))
        x = torch.stack([*x, self.state["encoder.cls_token"][0, 0]])
        for i in range(self.config.encoder_shape()["depth"]):
            x = block(x, self.state, f"encoder.blocks.{i}", self.config.encoder_shape()["heads"])
        return x, places

    def decode(self, task, modality, x, places):
        state = {k.removeprefix(f"decoders.{task}."): v for k, v in self.state.items()}
        config, dim = self.config, self.config.decoder_dim
        context = [linear(token, state, "embed") for token in x]
        asking = []
        for place in range(self.count(modality)):
            own = state["mask_token"][0, 0] + self.position(modality, dim, place)
            asking.append(own + (state[f"task_embed.{modality}"][0, 0] if modality in config.in_tasks else 0))
        for i, (name, place) in enumerate(places):
            context[i] = context[i] + self.position(name, dim, place) + state[f"task_embed.{name}"][0, 0]
            if name == modality:
                asking[place] = context[i]
        q = linear(norm(torch.stack(asking), state, "norm_query"), state, "cross.q")
        k, v = linear(norm(torch.stack(context), state, "norm_context"), state, "cross.kv").chunk(2, 1)
        x = linear(attention(q, k, v, config.decoder_heads), state, "cross.proj")
        x = x + mlp(norm(x, state, "norm_mlp"), state, "mlp")
        for i in range(config.decoder_depth):
            x = block(x, state, f"blocks.{i}", config.decoder_heads)
        return linear(x, state, "pred")

    def error(self, task, modality, said, patch):
        """Mean error of one patch; None where it has nothing to compare with."""
        if modality == "segmentation":
            logits, errors = said.view(len(patch), -1), []
            for i, own in enumerate(patch):
                errors += [logits[i].logsumexp(0) - logits[i, own]] if own >= 0 else []
            return errors
        if task.startswith("norm_"):
            patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
        difference = said - patch
        return [difference.abs().mean() if modality == "depth" else difference.square().mean()]

    def __call__(self, batch, masks):
        """(losses of the tasks, predictions of the tasks (B, N, P))."""
        names = [name for name in (*self.config.in_tasks, *self.config.out_tasks) if name in batch]
        tasks = {name: name for name in self.config.out_tasks}
        tasks |= {"norm_image": "image"} if "image" in tasks and self.config.extra_norm_pix else {}
        losses, said = {task: [] for task in tasks}, {task: [] for task in tasks}
        for b in range(len(batch[names[0]])):
            sample = {n: batch[n][b] for n in names if batch.get(f"present/{n}", torch.ones(99))[b]}
            hidden = {n: masks[n][b] if n in masks else torch.ones(self.count(n)) for n in sample}
            x, places = self.encode(sample, hidden)
            for task, modality in tasks.items():
                said[task].append(self.decode(task, modality, x, places))
                errors = []
                for place, patch in enumerate(self.patches(modality, sample[modality]) if modality in sample else []):
                    if hidden[modality][place]:
                        errors += self.error(task, modality, said[task][-1][place], patch)
                losses[task] += [sum(errors) / len(errors)] if errors else []
        means = {task: sum(found) / len(found) for task, found in losses.items() if found}
        return means, {task: torch.stack(found) for task, found in said.items()}
