"""Finds the files of a public model: on disk, or on the Hugging Face Hub and then in its cache.

path = fetch(HubFile("gdhe17/Self-Forcing", "checkpoints/self_forcing_dmd.pt"))
tokenizer = find_part(fetch(HubFile("Wan-AI/Wan2.1-T2V-1.3B")), "tokenizer")

The Hub's own settings hold: its cache, its token, `HF_HUB_OFFLINE`, its progress bars.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dummyforcing.checkpoints.lora_strength import CONFIG
from dummyforcing.checkpoints.unreadable import no_file, unfinished
from dummyforcing.errors import BadFile

logger = logging.getLogger(__name__)

PARTS = {
    "text_encoder": (
        "text_encoder",
        "models_t5_umt5-xxl-enc-bf16.safetensors",
        "models_t5_umt5-xxl-enc-bf16.pth",
    ),
    "tokenizer": ("tokenizer", "google/umt5-xxl"),
    "vae": ("vae", "Wan2.1_VAE.safetensors", "Wan2.1_VAE.pth"),
}
"""What a model needs besides its transformer, in diffusers' layout, which is also ours, and in Wan's own."""


@dataclass(frozen=True)
class HubFile:
    """A file on the Hub, a folder of safetensors there, or all that `PARTS` names."""

    repo: str
    file: str = ""
    """Without a suffix: a folder. Empty: the files of `PARTS`, in whichever layout they are."""

    def __str__(self) -> str:
        return f"{self.repo}: {self.file}" if self.file else self.repo


def find_base(text: str) -> Path | HubFile:
    """Read the name of a folder, or of a repository on the Hub.

    Raises:
        BadFile: If it can be neither.
    """
    if text and Path(text).is_dir():
        return Path(text)
    if Path(text).is_file():
        problem = f"{text} is a file"
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text):
        return HubFile(text)
    else:
        problem = f"There is no folder {text}"
    raise BadFile(problem, "give the folder or the Hub repository of a Wan 2.1 model", "base")


def find_weights(text: str) -> Path | HubFile:
    """Read the name of a file or folder, here or in a repository on the Hub, `OWNER/NAME:FILE`.

    Raises:
        BadFile: If it is none of these.
    """
    if Path(text).exists():
        return Path(text)
    if found := re.fullmatch(r"([\w-][\w.-]*/[\w.-]+):(.+)", text):
        return HubFile(found[1], found[2].rstrip("/"))
    if unfinished(Path(text)):
        raise no_file(Path(text))
    raise BadFile(
        f"There is no file or folder {text}",
        "give the transformer's weights, or OWNER/NAME:FILE or OWNER/NAME:FOLDER on the Hub",
        "weights",
    )


def fetch(place: Path | HubFile, *, here: bool = False) -> Path:
    """Download what is not here yet.

    Args:
        place: What is wanted.
        here: Download nothing: only look whether it is here.

    Raises:
        BadFile: If it cannot be had; says how to put it in place by hand.
    """
    if isinstance(place, Path):
        return place
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if PurePosixPath(place.file).suffix:
            return Path(hf_hub_download(place.repo, place.file, local_files_only=here))
        if place.file:
            patterns = [f"{place.file}/*.safetensors", f"{place.file}/*.json"]
            found = snapshot_download(place.repo, allow_patterns=patterns, local_files_only=here)
            return Path(found, place.file)
        patterns = [pattern for names in PARTS.values() for name in names for pattern in (name, f"{name}/*")]
        return Path(snapshot_download(place.repo, allow_patterns=patterns, local_files_only=here))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        if here:
            raise BadFile(f"{place} is not downloaded yet", "that happens when a video is made") from error
        what = f"File {place.file}" if place.file else "The text encoder, tokenizer and VAE"
        option = 'weights="FILE" (and lora="FILE" if there is one)' if place.file else 'base="FOLDER"'
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise BadFile(
            f"{what} of {place.repo} cannot be fetched from the Hugging Face Hub ({reason})",
            f"go online and try again, or download by hand and give {option}",
        ) from error


def fetch_lora(place: Path | HubFile, *, here: bool = False) -> Path:
    """Fetch the file of a LoRA, and what PEFT says about its strength in a file beside it, if there is one.

    Args:
        place: The LoRA.
        here: See `fetch`.

    Raises:
        UserError: If it cannot be had.
    """
    path = fetch(place, here=here)
    if isinstance(place, HubFile):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        beside = str(PurePosixPath(place.file).with_name(CONFIG))
        try:
            hf_hub_download(place.repo, beside, local_files_only=here)
        except LocalEntryNotFoundError as error:
            logger.info(
                "whether there is a %s beside %s cannot be found out offline: %s", CONFIG, place, error
            )
        except EntryNotFoundError:
            pass  # most have none
        except (OSError, HfHubHTTPError) as error:
            raise BadFile(f"{beside} of {place.repo} cannot be fetched ({error})", "try again") from error
    return path


def find_part(base: Path, part: str) -> Path:
    """The file or folder of an entry of `PARTS` in a folder of either layout.

    Raises:
        BadFile: If it is not there.
    """
    for name in PARTS[part]:
        if (base / name).exists():
            return base / name
    names = " or ".join(PARTS[part])
    raise BadFile(
        f"{base} holds no {part.replace('_', ' ')}: it has no {names}", 'give another base="FOLDER"'
    )
