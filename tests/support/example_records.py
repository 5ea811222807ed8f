"""Records for tests: a plain one, one in which every key has a value, and the faults that a reader must refuse."""

from __future__ import annotations

import copy
import json
import math

from dpbench.records.schema import Record, digest_of
from dpbench.spec.expand import run_id

ENVIRONMENT = {
    "python": "3.11",
    "platform": "Linux",
    "packages": {},
    "device": "cpu",
    "device_name": "cpu",
    "cpu": "cpu",
    "cores": 2,
    "memory_gib": 4.0,
    "threads": 1,
    "commit": None,
    "dirty": None,
}


def record(value=1.5, **overrides) -> Record:
    config = {"job": "throughput", "settings": {}, "seed": 0, "versions": {}, "sources": {}, "parents": {}}
    values = {
        "run": run_id(config),
        "config": config,
        "metrics": [{"name": "accuracy", "value": value, "unit": "%"}],
        "environment": ENVIRONMENT,
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Record.model_validate(values | overrides)


METRIC = {"name": "accuracy", "value": 1.5, "unit": "%"}
PRIVACY = {
    "epsilon": 3.0,
    "epsilon_rdp": 3.2,
    "rdp_note": "",
    "target_epsilon": 3.0,
    "delta": 1e-5,
    "noise_multiplier": 0.8,
    "relation": "add_or_remove",
    "validity": "valid",
    "reasons": [],
    "accountants": {"pld": "dp-accounting 0.6.0"},
}
MECHANISM = {
    "sampling": {"kind": "poisson", "sample_rate": 0.1},
    "steps": 10,
    "clipping": {"function": "abadi"},
    "noise_multiplier": 0.8,
    "delta": 1e-5,
    "relation": "add_or_remove",
    "seed": 7,
}
SOURCES = {
    "dataset:sst2": {"kind": "local", "files": {"train.parquet": "a" * 64}, "revision": "", "synthetic": False, "says": ""}
}
SAMPLE = {"place": "best", "index": 1, "output": "written", "bleu": 12.5}


def sound() -> dict:
    """The values of a record in which every key is filled."""
    values = record().model_dump(mode="json")
    values["config"]["sources"] = {"dataset:sst2": {"files": {"train.parquet": "a" * 64}}}
    values["config"]["parents"] = {"features": "0123456789ab"}
    values |= {"sources": SOURCES, "mechanism": MECHANISM, "privacy": PRIVACY}
    values["requests"] = [{"paper": "automatic", "table": "glue_base", "tier": "laptop", "key": "0" * 12}]
    values["requests"][0] |= {"labels": {"epsilon": "3"}, "select": {}}
    values["artefacts"] = {"encoder/model.safetensors": "b" * 64}
    values["facts"] = {"curve": [[0, 50.0], [10, 61.5]], "samples": [SAMPLE], "train_rows": 10, "evaluated_rows": 5, "own": [{}]}
    return copy.deepcopy(values)


def put(key: str, value: object):
    """Sets one value, by its dotted key."""

    def change(values: dict) -> None:
        *above, last = key.split(".")
        for part in above:
            values = values[int(part)] if isinstance(values, list) else values[part]
        values[int(last) if isinstance(values, list) else last] = value

    return change


def text_of(values: dict, renamed: bool = True) -> str:
    """As a forger would write it: with the right name and the right digest."""
    if renamed and isinstance(values.get("config"), dict):
        values["run"] = run_id(values["config"])
    try:
        values["digest"] = digest_of(values)
    except ValueError:
        values["digest"] = "0" * 64
    return json.dumps(values)


FAULTS = [
    ("schema_version", True, "schema version True"),
    ("schema_version", 2.0, "schema version 2.0"),
    ("schema_version", "2", "schema version '2'"),
    ("schema_version", [1], "schema version"),
    ("run", "x", "run"),
    ("metrics", [METRIC, METRIC], "accuracy with the labels .* occurs 2 times"),
    ("metrics", [METRIC, METRIC | {"value": None, "note": "x"}], "accuracy with the labels .* occurs 2 times"),
    ("metrics", {}, "metrics"),
    ("metrics.0.value", True, "metrics.0.value"),
    ("metrics.0.value", "1.5", "metrics.0.value"),
    ("metrics.0.value", math.nan, "NaN"),
    ("metrics.0.value", math.inf, "Infinity"),
    ("metrics.0.value", 10**400, "401 characters"),
    ("metrics.0.rounds", [1.0, math.nan], "NaN"),
    ("metrics.0.rounds", [1.0, None], "metrics.0.rounds.1"),
    ("metrics.0.low", -math.inf, "Infinity"),
    ("metrics.0", METRIC | {"low": 2.0, "high": 1.0}, "20 % quantile is above"),
    ("metrics.0.name", "", "metrics.0.name"),
    ("metrics.0.name", "a/b", "metrics.0.name"),
    ("metrics.0.name", "a\nb", "metrics.0.name"),
    ("metrics.0.unit", "\x1b[31m", "metrics.0.unit"),
    ("metrics.0.unit", "u" * 400, "metrics.0.unit"),
    ("metrics.0.labels", {"engine": 3}, "metrics.0.labels.engine"),
    ("metrics.0.labels", {"=1+1": "x"}, "metrics.0.labels"),
    ("metrics.0.note", "n" * 30_000, "metrics: a text of 30000 characters"),
    ("privacy.epsilon", math.nan, "NaN"),
    ("privacy.epsilon", -3.0, "privacy.epsilon"),
    ("privacy.epsilon_rdp", -1, "privacy.epsilon_rdp"),
    ("privacy.target_epsilon", 0, "privacy.target_epsilon"),
    ("privacy.delta", -1.0, "privacy.delta"),
    ("privacy.delta", 0, "privacy.delta"),
    ("privacy.delta", 1.0, "privacy.delta"),
    ("privacy.noise_multiplier", -0.1, "privacy.noise_multiplier"),
    ("privacy.noise_multiplier", 0.9, "privacy.noise_multiplier: 0.9, and its mechanism has 0.8"),
    ("mechanism.noise_multiplier", 0.1, "privacy.noise_multiplier: 0.8, and its mechanism has 0.1"),
    ("mechanism.delta", 1e-3, "privacy.delta: 1e-05, and its mechanism has 0.001"),
    ("mechanism.relation", "replace_one", "privacy.relation"),
    ("privacy.relation", "friends", "privacy.relation"),
    ("privacy.validity", "sound", "privacy.validity"),
    ("privacy.reasons", ["hyper-parameters were not charged"], "validity is valid, and there are reasons"),
    ("privacy.validity", "nominal", "validity is nominal, and no reason"),
    ("privacy", None, "missing for a mechanism"),
    ("mechanism.sampling", {"kind": "possion"}, "mechanism: .*sampling.kind"),
    ("mechanism.sampling", "poisson", "mechanism: .*sampling"),
    ("mechanism.clipping", 3, "mechanism: .*clipping"),
    ("mechanism.steps", 0, "mechanism: .*steps"),
    ("mechanism.seed", "x", "mechanism: .*seed"),
    ("mechanism", [], "mechanism"),
    ("requests.0.tier", "huge", "requests.0.tier"),
    ("requests.0.paper", "../x", "requests.0.paper"),
    ("requests.0.table", "<b>", "requests.0.table"),
    ("requests", [{"paper": "automatic"}], "requests.0.table"),
    ("requests.0.key", "x", "requests.0.key"),
    ("requests.0.labels", {"epsilon": "3\n"}, "requests.0.labels"),
    ("requests.0.labels", {"e/x": "3"}, "requests.0.labels"),
    ("requests.0.select", [], "requests.0.select"),
    ("inherited_sources", {"dataset:x": {"kind": "moon"}}, "inherited_sources"),
    ("config.seed", "abc", "config: .*seed"),
    ("config.seed", -1, "config: .*seed"),
    ("config.seed", 2**70, "config: .*seed"),
    ("config.seed", True, "config: .*seed"),
    ("config.seed", None, "config: .*seed"),
    ("config.seed", 1.0, "config: .*seed"),
    ("config.parents", ["a"], "config: .*parents"),
    ("config.parents", {"start": "../../x"}, "config: .*parents.start"),
    ("config.settings", [], "config: .*settings"),
    ("config.job", 3, "config: .*job"),
    ("config.versions", {"classify": 1}, "config: .*versions"),
    ("config.versions", {"job:text_classification": 1.5}, "config: .*versions"),
    ("config.sources", {}, "sources: dataset:sst2 is not what config.sources says"),
    ("config.sources", {"dataset:sst2": {}}, "config: .*give `files`, or `kind`"),
    ("config.sources", {"planet:mars": {"kind": "hub", "revision": ""}}, "config: .*sources.planet:mars"),
    ("config.sources", {"dataset:sst2": {"files": {"../x": "a" * 64}}}, "config: .*sources.dataset:sst2.files"),
    ("config.colour", "red", "config: .*colour"),
    ("config", "x", "config"),
    ("sources.dataset:sst2.files", {"train.parquet": "c" * 64}, "sources: dataset:sst2 is not what"),
    ("sources.dataset:sst2.kind", "moon", "sources.dataset:sst2.kind"),
    ("sources", {}, "sources: dataset:sst2 is not what"),
    ("environment.cores", "2", "environment.cores"),
    ("environment.memory_gib", math.inf, "Infinity"),
    ("environment.memory_gib", -1, "environment.memory_gib"),
    ("environment.commit", "main; rm -rf", "environment.commit"),
    ("environment.host", "me", "environment.host"),
    ("facts", [], "facts"),
    ("facts.x", math.nan, "NaN"),
    ("facts.curve", [1, 2], "facts: .*curve.0"),
    ("facts.curve", [[0, 1], [1]], "facts: .*curve.1"),
    ("facts.curve", [[0, 1, 2]], "facts: .*curve.0"),
    ("facts.curve", [["0", 1]], "facts: .*curve.0.0"),
    ("facts.curve", {"0": 1}, "facts: .*curve"),
    ("facts.samples", "x", "facts: .*samples"),
    ("facts.samples", [1], "facts: .*samples.0"),
    ("facts.samples", [{}], "facts: .*samples.0"),
    ("facts.samples", [SAMPLE | {"bleu": "high"}], "facts: .*samples.0.bleu"),
    ("facts.samples", [SAMPLE | {"script": "x"}], "facts: .*samples.0.script"),
    ("facts.samples", [SAMPLE | {"references": "x"}], "facts: .*samples.0.references"),
    ("facts.train_rows", "many", "facts: .*train_rows"),
    ("facts.evaluated_rows", -1, "facts: .*evaluated_rows"),
    ("facts.teacher_run", "x", "facts: .*teacher_run"),
    ("facts.note", "n" * 30_000, "facts: a text of 30000 characters"),
    ("facts.deep", json.loads("[" * 250 + "]" * 250), "recursion limit"),
    ("artefacts", {"x": "abc"}, "artefacts.x"),
    ("artefacts", {"/etc/passwd": "a" * 64}, "artefacts"),
    ("artefacts", {"../x": "a" * 64}, "artefacts"),
    ("artefacts", {"a/../x": "a" * 64}, "artefacts"),
    ("artefacts", ["x"], "artefacts"),
    ("warnings", "none", "warnings"),
    ("warnings", ["\ud800"], "hex escape"),
    ("seconds", -1.0, "seconds"),
    ("seconds", math.inf, "Infinity"),
    ("seconds", "12", "seconds"),
    ("created", "yesterday", "created"),
    ("created", "2026-01-01", "created"),
    ("created", "2026-13-01T00:00:00+00:00", "created"),
    ("created", "2026-01-01T00:00:00", "created"),
    ("created", "2026-01-01T00:00:00+02:00", "created"),
    ("colour", "red", "unknown key 'colour'"),
    ("digest", "0" * 64, "does not fit its digest"),
    ("digest", 3, "digest"),
    ("digest", "", "does not fit its digest"),
]
