"""Sample with a MODEL and with its patched copies, and print what each had attached.

Run by ComfyUI's Python, with ComfyUI's folder and this library on its path: python sampling_check.py --cpu
"""

import asyncio
import runpy
from pathlib import Path
from typing import Any

import torch

import dummyforcing

WAN: dict[str, Any] = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "patch_size": (1, 2, 2),
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 32,
    "num_heads": 2,
    "num_layers": 1,
    "in_dim": 16,
    "out_dim": 16,
}


class Attachment:
    """Stands for what `attach` gives: this model of ComfyUI's is not autoregressive."""

    cache_bytes = 10**6

    def __init__(self, network: Any, policy: str, plan: object) -> None:
        self.network = network
        self.network.attached = policy

    def detach(self) -> None:
        del self.network.attached

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()


def main() -> None:
    import comfy.options

    comfy.options.enable_args_parsing()  # before anything asks for the device

    import comfy.model_patcher
    import comfy.sample
    import comfy.supported_models

    config = comfy.supported_models.WAN21_T2V(WAN)
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device="cpu").eval()
    for weight in base.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    seen: list[str] = []
    base.diffusion_model.register_forward_pre_hook(
        lambda network, inputs: seen.append(getattr(network, "attached", "nothing"))
    )
    device = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(base, load_device=device, offload_device=device)

    vars(dummyforcing)["attach"] = Attachment
    pack = runpy.run_path(str(Path(__file__).with_name("standin.py")))["import_pack"]()
    nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
    (patch,) = (node for node in nodes if node.define_schema().node_id == "DummyForcingPatch")
    (dummy,) = patch.execute(model, "dummy").args
    (dense,) = patch.execute(dummy, "dense").args

    text, latents = [[torch.zeros(1, 4, 4096), {}]], torch.zeros(1, 16, 1, 4, 4)
    noise = torch.randn_like(latents)
    for one in (model, dummy, dense, dummy.clone(), model):
        seen.clear()
        with torch.inference_mode():
            comfy.sample.sample(one, noise, 2, 1.0, "euler", "simple", text, text, latents, disable_pbar=True)
        print("sampled with", *sorted(set(seen)))


if __name__ == "__main__":
    main()
