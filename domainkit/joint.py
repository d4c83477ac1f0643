"""Which tasks are trained in the same steps: one pass through the top, the losses of all that read the same text."""

from __future__ import annotations

from collections.abc import Mapping

from domainkit.kinds import Prepared
from domainkit.spec import Training


def companions(tasks: Mapping[str, Prepared]) -> dict[str, tuple[str, ...]]:
    """Task that leads steps → the tasks that come along in them; those that come along lead none.

    A task comes along where another one trains the same adapter on all of its sequences, each once an epoch.
    """
    found: dict[str, list[str]] = {}
    digests = {name: [s.digest for s in prepared.train] for name, prepared in tasks.items()}
    for name in sorted(tasks, key=lambda name: (-len(digests[name]), name)):
        own, adapter = set(digests[name]), tasks[name].adapter
        leads = (lead for lead in found if tasks[lead].adapter == adapter and own <= set(digests[lead]))
        lead = next((lead for lead in leads if _once(digests[lead]) and _once(digests[name])), None)
        if own and lead:
            found[lead].append(name)
        else:
            found[name] = []
    return {name: tuple(along) for name, along in sorted(found.items())}


def epochs_of(prepared: Prepared, training: Training) -> int:
    """Times the sequences of a task are seen."""
    return min(prepared.epochs or training.epochs, training.epochs)


def trained_tokens(tasks: Mapping[str, Prepared], training: Training) -> dict[str, int]:
    """Task that leads steps → tokens it trains on, over all epochs."""
    return {
        name: epochs_of(tasks[name], training) * sum(len(s.ids) for s in tasks[name].train)
        for name in companions(tasks)
    }


def _once(digests: list[str]) -> bool:
    return len(set(digests)) == len(digests)
