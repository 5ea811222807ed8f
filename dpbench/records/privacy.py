"""The privacy statement in the record of a run."""

from __future__ import annotations

from dpbench.privacy import accounting
from dpbench.privacy.mechanism import Mechanism
from dpbench.records.schema import Privacy


def privacy_of(mechanism: Mechanism) -> Privacy | None:
    """Return the privacy statement of a run, with both accountants' epsilon; None for a non-private run."""
    if not mechanism.private:
        return None
    note = ""
    try:
        by_rdp = mechanism.epsilon(accountant="rdp")
    except accounting.Unsupported as error:
        by_rdp, note = None, f"unsupported: {error.what}"
    return Privacy(
        epsilon=mechanism.epsilon(),
        epsilon_rdp=by_rdp,
        rdp_note=note,
        target_epsilon=mechanism.target_epsilon,
        delta=mechanism.delta,
        noise_multiplier=mechanism.noise_multiplier,
        relation=mechanism.relation,
        validity="nominal" if mechanism.reasons else "valid",
        reasons=mechanism.reasons,
        accountants=accounting.versions(),
    )
