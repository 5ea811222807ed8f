"""Judge the claims of a table: a verdict for each, with the evidence for it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal

from pydantic import Field

from dpbench.errors import DpbenchError
from dpbench.files import read_json, write_atomic
from dpbench.report.data import Entry, Place, TableData
from dpbench.report.pairing import Pairing, Verdict, judge_pairing, pairs_of, unmet
from dpbench.report.words import short, spell
from dpbench.spec.expand import matches
from dpbench.spec.models import TIERS, Claim, ClaimTest
from dpbench.validation import Strict, parse

_WORST: tuple[Verdict, ...] = ("not reproduced", "inconclusive", "reproduced")
VERDICTS: tuple[Verdict, ...] = ("reproduced", "not reproduced", "inconclusive", "not run")


class Evidence(Strict):
    """The judgement of one claim at one place, which is one tier of one machine.

    reasons: why the verdict is not stronger; missing: comparisons that the claim asks for and that have no values there.
    """

    origin: Literal["recorded", "here"]
    tier: str
    machine: str
    verdict: Verdict
    synthetic: bool
    simulated: bool
    pairings: list[Pairing]
    missing: list[str]
    reasons: list[str]
    runs: list[str]

    @property
    def place(self) -> str:
        return Place(self.origin, self.tier, self.machine).text

    @property
    def decisive(self) -> Pairing:
        """The pairing with the worst verdict; among equals, the one with the least favourable estimate."""
        return min(self.pairings, key=lambda p: (_WORST.index(p.verdict), -math.inf if p.shortfall is None else -p.shortfall))


class Judgement(Strict):
    """A claim with its verdict. evidence: None where nothing was run; others: the evidence from the other places."""

    paper: str
    table: str
    id: str
    says: str
    source: str
    scale: str
    metric: str
    unit: str
    compares: Literal["difference", "ratio"]
    side: Literal["at_least", "at_most"]
    threshold: float
    verdict: Verdict
    sentence: str
    evidence: Evidence | None = None
    others: list[Evidence] = Field(default_factory=list)


def _evidence(claim: Claim, table: TableData, place: Place) -> Evidence | None:
    """Judge a claim on the entries of one place; None where no pair of cells has values."""
    place_entries = [e for e in table.entries if e.place == place]
    entries = [e for e in place_entries if e.metric == claim.test.metric]
    pairings, missing, used, left_out, uninformative = [], [], [], [], []
    cells = next((info.cells for info in table.tiers if info.tier == place.tier), [])
    for of, against, pairs in pairs_of(claim.test, entries, table.rows + table.columns, cells):
        valued = [(a, b) for a, b in pairs if a.value is not None and b.value is not None]
        if not valued:
            notes = dict.fromkeys(e.note for pair in pairs for e in pair if e.value is None and e.note)
            missing.append(f"{spell(of)} against {spell(against)}" + (f" ({'; '.join(notes)})" if notes else ""))
            continue
        used += [e for pair in valued for e in pair]
        if (precondition := claim.test.precondition) is not None:
            unmet_reasons = [unmet(precondition, a.labels, place_entries) for a, _ in valued]
            left_out += [reason for reason in unmet_reasons if reason]
            if all(unmet_reasons):
                uninformative.append(judge_pairing(claim.test, of, against, valued))
                continue
            valued = [pair for pair, reason in zip(valued, unmet_reasons, strict=True) if not reason]
        groups = [valued] if claim.test.quantifier == "mean" else [[pair] for pair in valued]
        judged = [judge_pairing(claim.test, *_compared_labels(of, against, group, claim.test), group) for group in groups]
        if isinstance(count := claim.test.quantifier, int):
            missing += [f"{count - len(judged)} more of {count} settings"] if len(judged) < count else []
            judged = sorted(judged, key=_best)[:count]
        pairings += judged
    preconditions_fail, pairings = not pairings, pairings or uninformative
    if not pairings:
        return None
    verdict = min((p.verdict for p in pairings), key=_WORST.index)
    reasons = list(dict.fromkeys(r for p in pairings if p.verdict == verdict for r in p.reasons))
    if missing and verdict == "reproduced":
        verdict = "inconclusive"
        reasons.append(f"no values for {', '.join(missing)}")
    reasons += [f"left out: {reason}" for reason in dict.fromkeys(left_out)]
    if preconditions_fail:
        verdict = "inconclusive"
    synthetic, simulated = any(e.synthetic for e in used), any(e.simulated for e in used)
    if verdict != "inconclusive":
        weaknesses = {
            "the smoke tier proves that the code runs, not what the paper says": place.tier == "smoke",
            "the data or weights are synthetic": synthetic,
            "the values are simulated": simulated,
        }
        if weak := [reason for reason, holds in weaknesses.items() if holds]:
            reasons.append(f"would be {verdict}, but {' and '.join(weak)}")
            verdict = "inconclusive"
    return Evidence(
        **place._asdict(),
        verdict=verdict,
        synthetic=synthetic,
        simulated=simulated,
        pairings=pairings,
        missing=missing,
        reasons=reasons,
        runs=list(dict.fromkeys(run for e in used for run in e.runs)),
    )


def _compared_labels(
    of: dict[str, str], against: dict[str, str], group: list[tuple[Entry, Entry]], test: ClaimTest
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels of both sides, with those of the setting where each setting is judged by itself."""
    if test.quantifier == "mean":
        return of, against
    setting = {axis: value for axis, value in group[0][0].labels.items() if axis not in of}
    return of | setting, against


def _best(pairing: Pairing) -> tuple[int, float]:
    """Return a sort key: the best verdict first, then the least shortfall."""
    return -_WORST.index(pairing.verdict), pairing.shortfall if pairing.shortfall is not None else math.inf


def _rank(evidence: Evidence) -> tuple[bool, bool, int, bool, int]:
    """Return how strong evidence is: by real data, by all pairs being present, by tier, by being recorded, by repetitions."""
    clean = not (evidence.synthetic or evidence.simulated)
    repetitions = min(p.n for p in evidence.pairings)
    return clean, not evidence.missing, TIERS.index(evidence.tier), evidence.origin == "recorded", repetitions


def _sentence(claim: Claim, unit: str, evidence: Evidence | None, why_not_run: str) -> str:
    if evidence is None:
        return f"Nothing to judge by: {why_not_run}."
    compares, side, threshold = claim.test.threshold
    worst = evidence.decisive
    points = "percentage points" if unit == "%" else unit
    unit_text = f" {points}" if compares == "difference" and unit else ""
    requirement = f"{side.replace('_', ' ')} {short(threshold)}{unit_text}"
    folds = ", then ".join(f"{fold} over {axis.replace('_', ' ')}" for axis, fold in claim.test.reduce.items())
    text = f"{spell(worst.of)} against {spell(worst.against)}{f' ({folds})' if folds else ''}: "
    text += f"{compares} {short(worst.estimate)}{unit_text}"
    repetitions = f"{worst.n} {worst.over.rstrip('s') if worst.n == 1 else worst.over}"
    if worst.low is not None and worst.high is not None and worst.n > 1:
        text += f", 95 % interval {short(worst.low)} to {short(worst.high)} over {repetitions}"
    elif worst.n:
        text += f" from {repetitions}"
    text += f", where {requirement} is claimed; {evidence.place}"
    if len(evidence.pairings) > 1:
        text += f"; the weakest of {len(evidence.pairings)} comparisons"
    if evidence.reasons:
        reasons = "; ".join(evidence.reasons)
        text += f". {reasons[0].upper()}{reasons[1:]}"
    return text + "."


def judge(table: TableData) -> list[Judgement]:
    """Judge every claim of a table.

    A claim is judged at one place only, the best with evidence: data that is real and measured comes before synthetic or
    simulated data, evidence for every pair before evidence for some, a higher tier before a lower one, recorded before here.
    The verdict is that of the worst pairing: `reproduced` if the paired 95 % t-interval is entirely on the claimed side of the
    threshold, `not reproduced` if it is entirely beyond, else `inconclusive`. Smoke, synthetic, simulated and
    single-repetition evidence is at most `inconclusive`, but one exact count decides. A claim without evidence is `not run`.
    """
    judgements = []
    for claim in table.claims:
        places = dict.fromkeys(e.place for e in table.entries if e.origin != "published")
        evidence = [e for p in places if (e := _evidence(claim, table, p)) is not None]
        evidence.sort(key=_rank, reverse=True)
        best = evidence[0] if evidence else None
        compares, side, threshold = claim.test.threshold
        unit = table.metrics[claim.test.metric].unit
        judgements.append(
            Judgement(
                paper=table.paper,
                table=table.table,
                **claim.model_dump(exclude={"test"}),
                metric=claim.test.metric,
                unit=unit,
                compares=compares,
                side=side,
                threshold=threshold,
                verdict=best.verdict if best else "not run",
                sentence=_sentence(claim, unit, best, _why_not_run(claim, table)),
                evidence=best,
                others=evidence[1:],
            )
        )
    return judgements


def _why_not_run(claim: Claim, table: TableData) -> str:
    test = claim.test
    notes = [
        e.note
        for e in table.entries
        if e.metric == test.metric and e.value is None and e.note
        if matches(e.labels, test.where) and (matches(e.labels, test.of) or matches(e.labels, test.against))
    ]
    return "; ".join(dict.fromkeys(notes)) or "no place has values for both sides of the comparison"


def write_claims(judgements: list[Judgement], path: Path) -> None:
    """Write claims.json, a list of judgements, atomically."""
    values = [j.model_dump(mode="json") for j in judgements]
    write_atomic(path, json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_claims(path: Path) -> list[Judgement]:
    """Read the file that `write_claims` writes.

    Raises:
        DpbenchError: the file is missing, or is not a list of judgements.
    """
    values = read_json(path, hint="judge the claims first (dpbench claims)")
    if not isinstance(values, list):
        raise DpbenchError(f"{path}: not a list of judgements", "delete it and judge the claims again")
    return [parse(Judgement, value, f"{path}: judgement {number}") for number, value in enumerate(values, 1)]
