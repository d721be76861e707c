# SPDX-License-Identifier: GPL-2.0-only
"""Check that a configuration kept what the fragments asked for, and say why where it did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import KconfigError
from harness.kernel.fragments import Request
from harness.kernel.kconfig_expression import conjuncts, evaluate, symbols
from harness.kernel.kconfig_reader import Definition, KconfigTree
from harness.kernel.model import read_config, require_kvm
from harness.progress import Progress

_MOST_SHOWN = 12


def check(tree: Path, requests: Sequence[Request], progress: Progress) -> None:
    """Compare ``tree``/.config with the requests, as check_kept() does.

    KconfigError is raised, too, when the result cannot run KVM with MMU notifiers.
    """
    require_kvm(check_kept(tree, requests, progress), "The requested configuration")


def check_kept(
    tree: Path,
    requests: Sequence[Request],
    progress: Progress,
    *,
    objects: Path | None = None,
    architecture: str = "x86",
) -> dict[str, str]:
    """The configuration in ``tree``/.config, if it kept what was requested.

    ``objects`` is where .config is if not in the tree; ``architecture`` a directory below arch/.
    Raises KconfigError that names every symbol which does not exist in this tree or was dropped,
    with its fragment and line, and the dependency that dropped it. Optional ones are noted.
    """
    config = read_config((objects or tree) / ".config")
    unmet = [request for request in requests if not request.satisfied_by(config)]
    if unmet:
        # Reading all Kconfig files takes about a second, so only when there is something to say.
        kconfig = KconfigTree(tree, architecture)
        told = [(request, explain(request, kconfig, config)) for request in unmet]
        for request, reason in told:
            if request.optional:
                progress.note(f"Optional {reason}")
        problems = [reason for request, reason in told if not request.optional]
        if problems:
            raise KconfigError(_sentence(problems))
    return config


def explain(request: Request, kconfig: KconfigTree, config: Mapping[str, str]) -> str:
    """Why the final configuration has not the requested value: one clause, with the place."""
    name = f"CONFIG_{request.symbol}"
    definitions = kconfig.definitions.get(request.symbol)
    if not definitions:
        return f"{name} ({request.where}) does not exist in this kernel."
    seen = config.get(request.symbol, "n")
    subject = f"{name}={request.value} ({request.where}) became {seen}"
    if request.value == "n" or (request.value == "m" and seen == "y"):
        return f"{subject}: {_selected_by(request.symbol, kconfig, config)}."
    reasons = [_dropped(definition, request, kconfig, config) for definition in definitions]
    return f"{subject}: {'; or '.join(dict.fromkeys(reasons))}."


def _sentence(problems: Sequence[str]) -> str:
    shown = "\n  ".join(problems[:_MOST_SHOWN])
    more = len(problems) - _MOST_SHOWN
    rest = f"\n  and {more} more" if more > 0 else ""
    return (
        f"The configuration cannot be had as requested:\n  {shown}{rest}\n"
        "Add what is missing in a fragment of your own (--config), "
        "or mark the block [optional] if kernels may do without it."
    )


def _dropped(
    definition: Definition, request: Request, kconfig: KconfigTree, config: Mapping[str, str]
) -> str:
    """Which condition of one definition did not hold."""
    if not definition.prompt:
        return _selected_by(request.symbol, kconfig, config)
    wanted = {"y": 2, "m": 1}.get(request.value, 1)
    # A bool may be y although what it depends on is m.
    if not definition.tristate:
        wanted = 1
    parts = [part for text in definition.depends + definition.prompt_if for part in conjuncts(text)]
    values = [(part, evaluate(part, config)) for part in parts]
    failing = [part for part, value in values if value is not None and value < wanted]
    if failing:
        return "it depends on " + " and on ".join(_with_values(part, config) for part in failing)
    if definition.choice is not None:
        taken = [n for n in kconfig.choice_members(definition.choice) if config.get(n) == "y"]
        if taken:
            return f"the choice at {definition.choice} took CONFIG_{taken[0]}"
    unknown = [part for part, value in values if value is None]
    if unknown:
        return f"it depends on {' and on '.join(unknown)}, which the compiler or a tool decides"
    return f"see its definition at {definition.place}"


def _with_values(part: str, config: Mapping[str, str]) -> str:
    values = [f"{name}={config.get(name, 'n')}" for name in symbols(part)]
    return f"{part} (here {', '.join(values)})" if values else part


def _selected_by(symbol: str, kconfig: KconfigTree, config: Mapping[str, str]) -> str:
    """Who sets a symbol that the user cannot set, or cannot unset."""
    selectors = kconfig.selectors.get(symbol, [])
    active = [
        name
        for name, condition in selectors
        if config.get(name) in ("y", "m") and evaluate(condition, config) != 0
    ]
    if active:
        return f"it is selected by CONFIG_{active[0]}"
    if selectors:
        names = ", ".join(f"CONFIG_{name}" for name, _ in selectors[:4])
        return f"it cannot be set by hand, only be selected, as by {names}"
    return "it cannot be set by hand in this kernel; its Kconfig default decides"
