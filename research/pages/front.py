"""The figures of the README, in English and in Chinese, from the result files."""

from dataclasses import dataclass
from typing import Any

from research.pages.claims import bench_rows
from research.pages.making import table
from research.pages.verdicts import against, negated, number

Result = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """What the table says in one language."""

    header: tuple[str, str, str, str]
    without_vae: str
    with_vae: str
    cache: str
    command: str
    rate: str
    cores: str
    conditions: str
    cost: str


ENGLISH = Words(
    header=("what", "dense cache", "Dummy Forcing", "measured on"),
    without_vae="{size}, {frames} frames, VAE left out",
    with_vae="{size}, Wan's VAE included, second half of the video",
    cache="KV cache after {frames} frames ({seconds:.0f} s) at {size}",
    command="the bundled model's first video, from the command to the mp4",
    rate="{fps:.1f} FPS",
    cores="{name}, {count} cores",
    conditions="Rows of the {device}: Self-Forcing's sizes with random weights ({dtype}, {steps} steps, one "
    "GPU, the same kernels for both caches); weights do not change speed. What it costs, on the bundled "
    "model by exact detectors: {short} points fewer right than dense in 5 s videos, {long} in 30 s "
    "videos (95% intervals): take `--policy window:3,6` for long videos.",
    cost="{mean} ({low} to {high})",
)
CHINESE = Words(
    header=("项目", "稠密缓存", "Dummy Forcing", "测试环境"),
    without_vae="{size}，{frames} 帧，不含 VAE",
    with_vae="{size}，含 Wan VAE，视频后半段",
    cache="{size} 下 {frames} 帧（{seconds:.0f} 秒）之后的 KV 缓存",
    command="自带模型的第一个视频，从敲下命令到得到 mp4",
    rate="{fps:.1f} FPS",
    cores="{name}，{count} 核",
    conditions="{device} 各行：Self-Forcing 的模型尺寸、随机权重（{dtype}，{steps} 步去噪，单卡，"
    "两种缓存使用相同的算子）；权重的取值不影响速度。代价（在自带模型上由精确检测器判定）："
    "与稠密缓存相比，5 秒视频的正确率低 {short}个百分点，30 秒视频低 {long}个百分点"
    "（括号内为 95% 置信区间）；长视频请使用 `--policy window:3,6`。",
    cost="{mean}（{low} 至 {high}）",
)


def figures(results: dict[str, Result], words: Words) -> str:
    """Five figures that matter, with their device, and what the method costs.

    Args:
        results: From `page.read_results`.
        words: The language.
    """
    rows = []

    def add(what: str, cells: list[str], device: str) -> None:
        rows.append([what, *cells, device])

    def both(part: str, figure: str) -> list[float]:
        found = bench_rows(results, part)
        return [found[policy, "none", False][figure] for policy in ("dense", "dummy")]

    def rates(part: str, figure: str) -> list[str]:
        return [words.rate.format(fps=fps) for fps in both(part, figure)]

    near, long, here = results["bench-480p"], results["bench-long"], results["speed"]
    for size in ("480p", "720p"):
        result = results[f"bench-{size}"]
        told = words.without_vae.format(size=size, frames=result["pixel_frames"])
        add(told, rates(f"bench-{size}", "fps_video"), result["device"])
        if size == "480p":
            add(words.with_vae.format(size=size), rates("bench-480p", "fps_end_to_end"), result["device"])
    frames = long["pixel_frames"]
    sizes = [f"{cache / 1e9:.1f} GB" for cache in both("bench-long", "cache_bytes")]
    add(words.cache.format(size="480p", frames=frames, seconds=frames / 16), sizes, long["device"])
    name, _, count = here["device"].rpartition(", ")
    device = words.cores.format(name=name.replace("(R)", ""), count=count.partition(" ")[0])
    add(words.command, [f"{here[policy]['wall_s']:.1f} s" for policy in ("dense", "dummy")], device)
    cost = {run: _cost(negated(against(results, "dummy", "dense", "semantic", run)), words) for run in RUNS}
    conditions = words.conditions.format(
        device=near["device"],
        dtype=near["dtype"],
        steps=len(near["schedule"]),
        short=cost["5 s"],
        long=cost["30 s"],
    )
    return f"{table(list(words.header), rows)}\n\n{conditions}"


RUNS = ("5 s", "30 s")


def _cost(loss: Result, words: Words) -> str:
    mean, _, rest = number(loss, 100).partition(" (")
    low, _, high = rest.rstrip(")").partition(" to ")
    return words.cost.format(mean=mean, low=low, high=high)
