"""What a hook is: one vLLM attribute, wrapped once, removable, checked by its source."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MARK = "__vllm_ppsd_hook__"


class HookError(RuntimeError):
    """A hook does not fit the installed vLLM."""


@dataclass(frozen=True)
class Hook:
    """One run-time change of vLLM.

    Attributes:
        name: short name; ``patches/<name>.diff`` holds the same change upstream.
        module: dotted name of the vLLM module.
        attribute: dotted name inside the module, such as ``EngineArgs.add_cli_args``.
        source_sha256: digest of the hooked source it was written for.
        wrap: takes the original function, returns its replacement.
        why: one sentence for ``vllm-ppsd doctor``.
        platform: vLLM platform that needs the hook ("cpu"), or None for all.
    """

    name: str
    module: str
    attribute: str
    source_sha256: str
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
    why: str
    platform: str | None = None

    @property
    def target(self) -> str:
        return f"{self.module}:{self.attribute}"

    def applies(self) -> bool:
        """Whether the platform that vLLM runs on needs this hook."""
        from vllm.platforms import current_platform

        return self.platform in (None, current_platform.device_type)

    def problem(self) -> str | None:
        """Why this hook does not fit the installed vLLM, or None if it does."""
        try:
            _, _, raw = self._locate()
        except (ImportError, AttributeError) as error:
            return f"{self.target} is not there: {error}"
        digest = source_digest(_original(raw))
        if digest != self.source_sha256:
            return (
                f"{self.target} is not the source this hook was written for "
                f"(sha256 {digest[:12]}…, expected {self.source_sha256[:12]}…)"
            )
        return None

    def install(self) -> None:
        """Wrap the target; a second call changes nothing.

        Raises:
            HookError: the target is missing or somebody else's hook of ours is on it.
        """
        try:
            owner, leaf, raw = self._locate()
        except (ImportError, AttributeError) as error:
            raise HookError(f"hook {self.name}: {error}") from error
        function = _function(raw)
        mark = getattr(function, _MARK, None)
        if mark == self.name:
            return
        if mark is not None:
            raise HookError(f"hook {self.name}: {self.target} already carries hook {mark}")
        replacement = functools.wraps(function)(self.wrap(function))
        setattr(replacement, _MARK, self.name)
        if isinstance(raw, property):
            setattr(owner, leaf, property(replacement))
        elif isinstance(raw, staticmethod):
            setattr(owner, leaf, staticmethod(replacement))
        else:
            setattr(owner, leaf, replacement)

    def installed(self) -> bool:
        """Whether this hook is on its target in this process."""
        try:
            raw = self._locate()[2]
        except (ImportError, AttributeError):
            return False
        return getattr(_function(raw), _MARK, None) == self.name

    def _locate(self) -> tuple[Any, str, Any]:
        owner: Any = importlib.import_module(self.module)
        *path, leaf = self.attribute.split(".")
        for part in path:
            owner = getattr(owner, part)
        return owner, leaf, inspect.getattr_static(owner, leaf)


def source_digest(target: Any) -> str:
    """Return the sha256 of a function's or class's source, indentation removed."""
    source = textwrap.dedent(inspect.getsource(target))
    return hashlib.sha256(source.encode()).hexdigest()


def _function(raw: Any) -> Any:
    if isinstance(raw, property):
        return raw.fget
    if isinstance(raw, staticmethod):
        return raw.__func__
    return raw


def _original(raw: Any) -> Any:
    return inspect.unwrap(_function(raw))
