"""Has a language model write a short prompt out: the public models want long, detailed ones.

expander = PromptExpander("http://127.0.0.1:11434/v1", "qwen3")
expander.expand("a red ball bounces")
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from dummyforcing.errors import BadRequest, UserError

KEY = "DUMMYFORCING_EXPAND_KEY"
"""The environment variable with the key of the endpoint, if it wants one."""
MOST = 4000
"""Characters of a prompt that is taken."""
MOST_BYTES = 10**6
"""Of a response."""
TASK = (
    "You write prompts for a model that makes videos. Write the user's idea out as one paragraph of 60 to "
    "100 English words: the subject and how it looks, how it moves, what is around it, light and camera. "
    "Keep everything that the user says, and let nothing happen that contradicts it. "
    "Answer with the paragraph alone."
)


class PromptExpander:
    """Asks any endpoint that speaks OpenAI's `/chat/completions`."""

    def __init__(self, url: str, model: str = "default", timeout: float = 10.0) -> None:
        """Only note where to ask.

        Args:
            url: The endpoint, such as http://127.0.0.1:11434/v1.
            model: The name of a language model there.
            timeout: Seconds until it has to answer, and in which the answer has to be there.

        Raises:
            BadRequest: If that is no address.
        """
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            is_address = is_address and parts.username is None  # messages would tell the password
        except ValueError:
            is_address = False
        if not is_address or not url.isascii() or not url.isprintable() or " " in url:
            raise BadRequest(f"'{url}' is no address", "write it like http://127.0.0.1:11434/v1")
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self.model, self.timeout = model, timeout

    def expand(self, prompt: str) -> str:
        """Write a prompt out; blocks meanwhile.

        Raises:
            UserError: If there is no answer in time, or none that could be a prompt.
        """
        messages = [{"role": "system", "content": TASK}, {"role": "user", "content": prompt}]
        body = json.dumps({"model": self.model, "messages": messages, "max_tokens": 1000}).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        until = time.monotonic() + self.timeout
        try:
            request = urllib.request.Request(self.url, body, headers)
            with _OPENER.open(request, timeout=self.timeout) as response:
                answer = _read(response, until)
        except urllib.error.HTTPError as error:
            error.close()
            raise self._failed(f"answered with status {error.code}") from error
        except TimeoutError as error:
            raise self._failed(f"gave no answer within {self.timeout:g} s") from error
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self._failed(f"gave no answer within {self.timeout:g} s") from error
            raise self._failed(f"cannot be asked ({getattr(reason, 'strerror', None) or reason})") from error
        text = _text(answer)
        if text is None:
            raise self._failed("gave an answer that is no prompt")
        return text

    def _failed(self, what: str) -> UserError:
        return UserError(
            f"The language model at {urlsplit(self.url).hostname} {what}", "try again, or write more yourself"
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Lets nobody send the key elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def _read(response: HTTPResponse, until: float) -> bytes:
    """The body, as far as it comes in time and is not too large."""
    body = b""
    while part := response.read1(65536):
        body += part
        if len(body) > MOST_BYTES:
            raise ValueError("its answer is too long")
        if time.monotonic() > until:
            raise TimeoutError
    return body


def _text(answer: bytes) -> str | None:
    """The prompt in a response; None: there is none."""
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not isinstance(text, str):
        return None
    text = re.sub(r"<think>.*?(</think>|$)", "", text, flags=re.DOTALL)  # what some models say to themselves
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    text = text.strip("\"“”'` ")
    return text if 0 < len(text) <= MOST else None
