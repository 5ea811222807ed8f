"""The compress job: budgets over its stages, a teacher that stays as it is, exact masks, layers that go, what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from compress_runs import BASE, DROP, PLAIN, PRUNE, SOURCES, STUDENT, run, settings, value

from dpbench.compression import config, saved
from dpbench.compression.pruning import Masks, prunable
from dpbench.compression.task import CompressedTask, distillation_losses, load_classifier
from dpbench.data import registry as datasets
from dpbench.errors import DpbenchError
from dpbench.execution.contract import Context
from dpbench.execution.tracking import StepLog
from dpbench.jobs import compression as compress
from dpbench.jobs import public_student
from dpbench.measure import inference
from dpbench.models.stages import blocks_of
from dpbench.privacy import accounting
from dpbench.privacy.composition import release_in, stage_seed
from dpbench.records.store import NAME, read_record
from dpbench.validation import parse


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A teacher's run, trained once for the tests of this file."""
    folder = tmp_path_factory.mktemp("teacher")
    run(folder, parse(compress.Settings, settings(**STUDENT).of_teacher(), "teacher"))
    return folder


def context(folder, **parents):
    return Context(folder, 0, SOURCES, StepLog(folder / "steps.jsonl"), parents=parents)


def digests(folder):
    return {name: (folder / name).read_bytes() for name in saved.FILES}


def test_both_stages_spend_the_target_and_leave_the_teacher(tmp_path, teacher, monkeypatch):
    before, seen = digests(teacher), []
    real = CompressedTask.teacher_logits

    def spied(task, rows, batch):
        batch_losses = real(task, rows, batch)
        seen.append((task.teacher.training, any(p.requires_grad for p in task.teacher.parameters())))
        return batch_losses

    monkeypatch.setattr(CompressedTask, "teacher_logits", spied)
    outcome = run(tmp_path, settings(**STUDENT), parents={"teacher": teacher})
    assert digests(teacher) == before
    assert set(seen) == {(False, False)}, "frozen, and in eval mode"
    record = read_record(teacher / NAME)
    assert 0.99 * 4 <= record.privacy.epsilon <= 4
    assert 0.99 * 8 <= outcome.privacy.epsilon <= 8
    assert outcome.privacy.target_epsilon == 8
    student_release = release_in(outcome.mechanism)
    assert accounting.epsilon((release_in(record.mechanism), student_release), delta=1e-5) == outcome.privacy.epsilon
    assert value(outcome, "epsilon") == outcome.privacy.epsilon
    assert outcome.mechanism["stages_before"][0]["noise_multiplier"] == record.mechanism["noise_multiplier"]
    assert outcome.mechanism["seed"] == stage_seed(0, config.STUDENT) != record.mechanism["seed"]
    assert outcome.facts["teacher_run"] == record.run
    assert outcome.facts["teacher_curve"] == record.facts["curve"]


def test_a_budget_spent_twice_stops_the_run(tmp_path, teacher, monkeypatch):
    """A planted fault: the student is calibrated as if nothing had been spent."""

    calibrate = accounting.calibrate
    monkeypatch.setattr(accounting, "calibrate", lambda target, spent, **setting: calibrate(target, **setting))
    with pytest.raises(DpbenchError, match="all stages together is above the target 8"):
        run(tmp_path, settings(**STUDENT), parents={"teacher": teacher})


def test_a_student_with_its_teachers_noise_is_stopped(tmp_path, teacher, monkeypatch):
    """A planted fault: both stages draw from one seed."""
    monkeypatch.setattr(config, "stage_seed", lambda seed, stage: seed)
    with pytest.raises(DpbenchError, match="the same noise twice"):
        run(tmp_path, settings(**STUDENT), parents={"teacher": teacher})


def test_a_split_below_one_spends_so_much_less(tmp_path, teacher):
    over = STUDENT | {"split": {"teacher": 0.5, "student": 0.1}}
    outcome = run(tmp_path, settings(**over), parents={"teacher": teacher})
    assert 0.99 * 4.8 <= outcome.privacy.epsilon <= 4.8
    assert value(outcome, "spent_share") == pytest.approx(outcome.privacy.epsilon / 8)


def test_a_student_alone_spends_what_one_with_a_teacher_does(tmp_path, teacher):
    with_teacher = run(tmp_path / "a", settings(**STUDENT), parents={"teacher": teacher})
    alone = run(tmp_path / "b", settings(student={"layers": 1}, budget="student", split=STUDENT["split"]))
    undivided = run(tmp_path / "c", settings(student={"layers": 1}))
    multipliers = [f.mechanism["noise_multiplier"] for f in (with_teacher, alone, undivided)]
    assert multipliers[0] == multipliers[1] > multipliers[2]
    assert alone.privacy.epsilon < with_teacher.privacy.epsilon
    assert "stages_before" not in alone.mechanism
    assert with_teacher.mechanism["seed"] == alone.mechanism["seed"] == undivided.mechanism["seed"], "paired: the same draws"


def test_a_private_student_of_a_nonprivate_teacher_is_refused(tmp_path):
    plain = tmp_path / "teacher"
    run(plain, settings(**PLAIN))
    with pytest.raises(DpbenchError, match="was not private"):
        run(tmp_path / "student", settings(**STUDENT), parents={"teacher": plain})


def test_without_privacy_only_epsilon_is_missing(tmp_path):
    outcome = run(tmp_path, settings(**STUDENT | PLAIN | {"split": None}))
    assert outcome.privacy is None
    assert next(m for m in outcome.metrics if m.name == "epsilon").text == "none"
    assert outcome.mechanism["noise_multiplier"] == 0
    assert "stages_before" not in outcome.mechanism


def test_the_published_noise_means_an_epsilon_of_hundreds(tmp_path):
    outcome = run(tmp_path, settings(epsilon=None, noise_multiplier=0.1))
    assert outcome.mechanism["noise_multiplier"] == 0.1
    assert outcome.privacy.target_epsilon is None
    assert 100 < outcome.privacy.epsilon < outcome.privacy.epsilon_rdp


def task_of(folder, taught_by=None, **over):
    parents = {"teacher": taught_by} if taught_by else {}
    return CompressedTask(settings(**over), context(folder, **parents))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train a task that is at hand, in place of the one that a run makes for itself; returns the outcome."""

    def train(task):
        monkeypatch.setattr("dpbench.compression.task.CompressedTask", lambda *_: task)
        return compress.run(task.settings, context(tmp_path))

    return train


def same(block, other):
    return all(torch.equal(a, b) for a, b in zip(block.parameters(), other.parameters(), strict=True))


def test_where_students_start(tmp_path, teacher):
    public = task_of(tmp_path).model
    trained = saved.load_encoder(teacher / saved.ENCODER)
    over = {"layers": 1, "layer_map": [1]}
    pretrained = task_of(tmp_path, student=over).model
    assert same(blocks_of(pretrained.encoder)[0], blocks_of(public.encoder)[1])
    copied = task_of(tmp_path, teacher, **STUDENT | {"student": over | {"start": "teacher"}}).model
    assert same(blocks_of(copied.encoder)[0], blocks_of(trained)[1])
    assert not same(blocks_of(copied.encoder)[0], blocks_of(public.encoder)[1])
    assert torch.equal(copied.head.out.weight, saved.load_head(teacher)["head.out.weight"])
    random = task_of(tmp_path, student=over | {"start": "random"}).model
    assert not any(same(blocks_of(random.encoder)[0], b) for b in blocks_of(public.encoder))
    assert torch.equal(
        random.encoder.model.embeddings.word_embeddings.weight, public.encoder.model.embeddings.word_embeddings.weight
    )
    other = task_of(tmp_path, student=over | {"start": "public", "model": "tiny_bert"}).model
    assert len(blocks_of(other.encoder)) == 1


def test_the_loss_of_a_student_is_the_distillations(tmp_path, teacher):
    task = task_of(tmp_path, teacher, **STUDENT)
    rows = task.index[:7]
    batch = task.batch(rows)
    with torch.no_grad():
        logits = task.model({k: v for k, v in batch.items() if k != "teacher"})
        teacher_logits = load_classifier(task.settings, teacher)(batch)
    torch.testing.assert_close(batch["teacher"], teacher_logits)
    batch_losses = task.losses(task.model, batch).detach()
    torch.testing.assert_close(batch_losses, distillation_losses(logits, teacher_logits, batch["label"], 0.5, 2.0))
    plain = torch.nn.functional.cross_entropy(logits, batch["label"], reduction="none")
    assert not torch.allclose(batch_losses, plain)
    task.teacher.forward = lambda batch: pytest.fail("a row's logits are made once")
    assert torch.equal(task.batch(rows)["teacher"], batch["teacher"])


def zeros_of(masks):
    return sum(int((w == 0).sum()) for w in masks.weights.values())


@pytest.mark.parametrize("rewind", ["encoder", "all", "none"])
def test_sparsity_is_exact_after_every_step_under_noise(tmp_path, trained, monkeypatch, rewind):
    task = task_of(tmp_path, steps=8, prune={"sparsity": 0.5, "steps": 4, "every": 2, "rewind": rewind})
    seen, rates, optimizers, checked = [], [], [], []
    check, zero_gradients, build = Masks.check, Masks.zero_gradients_, type(task.settings.optimizer).build
    start = {n: w.detach().clone() for n, w in prunable(task.encoder).items()}

    def spied_check(masks, sparsity):
        checked.append(masks)
        seen.append((zeros_of(masks), {n: w.detach().clone() for n, w in masks.weights.items()}))
        return check(masks, sparsity)

    def spied_release(masks):
        rates.append([group["lr"] for group in optimizers[0].param_groups])
        zero_gradients(masks)

    def spied_build(options, groups):
        optimizers.append(build(options, groups))
        return optimizers[0]

    monkeypatch.setattr(Masks, "check", spied_check)
    monkeypatch.setattr(Masks, "zero_gradients_", spied_release)
    monkeypatch.setattr(type(task.settings.optimizer), "build", spied_build)
    done = trained(task)
    assert done.mechanism["noise_multiplier"] > 0.3
    masks = checked[0]
    assert all(other is masks for other in checked)
    assert done.facts["prunable_weights"] == masks.size
    assert [zeros for zeros, _ in seen] == [round(masks.size * s) for s in (0, 0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5)]
    assert done.facts["sparsities"] == [zeros / masks.size for zeros, _ in seen]
    for name, weight in masks.weights.items():
        assert weight[~masks.masks[name]].abs().max() == 0
        for key in ("exp_avg", "exp_avg_sq"):
            assert optimizers[0].state[weight][key][~masks.masks[name]].abs().max() == 0
            assert optimizers[0].state[weight][key][masks.masks[name]].abs().min() > 0, "the survivors are trained"
    back = [torch.equal(w, start[n] * masks.masks[n]) for n, w in seen[3][1].items()]
    assert not any(back) if rewind == "none" else all(back)
    assert [round(rate[0] / 0.01, 3) for rate in rates] == [1, 0.75, 0.5, 0.25] * 2, "the sparse model's rate starts anew"


def test_noise_on_a_masked_weight_is_found(tmp_path, monkeypatch):
    """A planted fault: the released gradient is not masked."""
    monkeypatch.setattr(Masks, "zero_gradients_", lambda self: None)
    with pytest.raises(DpbenchError, match="a masked weight is not 0"):
        run(tmp_path, settings(**PRUNE))


def test_layers_go_one_after_another_in_one_budget(tmp_path, trained):
    task = task_of(tmp_path, **DROP)
    first = blocks_of(task.encoder)[0]
    done = trained(task)
    assert {name: done.facts[name] for name in ("dropped", "kept", "phases")} == {"dropped": [[1]], "kept": [0], "phases": [1, 3]}
    assert list(blocks_of(task.encoder)) == [first]
    assert [point[0] for point in done.facts["curve"]] == [0, 2, 4]
    assert 0.99 * 8 <= done.privacy.epsilon <= 8
    steps = [line for line in (tmp_path / "steps.jsonl").read_text().splitlines() if line]
    assert [json.loads(line)["step"] for line in steps] == [0, 1, 2, 3]


def test_layers_can_be_chosen_by_their_private_weights(tmp_path, trained):
    task = task_of(tmp_path, drop={"layers": 1, "block_steps": 1, "choose": "weights"})
    with torch.no_grad():
        for parameter in blocks_of(task.encoder)[0].parameters():
            parameter.mul_(0.01)
    assert trained(task).facts["kept"] == [1]


@pytest.mark.parametrize("over", [DROP, PRUNE, {"student": {"layers": 1}}], ids=["drop", "prune", "student"])
def test_a_saved_compressed_model_is_one_for_transformers(tmp_path, over):
    from transformers import AutoModel

    outcome = run(tmp_path, settings(**over, save_model=True))
    assert outcome.artefacts == saved.FILES
    theirs = AutoModel.from_pretrained(tmp_path / saved.ENCODER, add_pooling_layer=False)
    expected_parameters = value(outcome, "parameters") * 1e6 - sum(
        v.numel() for k, v in saved.load_head(tmp_path).items() if "head" in k
    )
    assert sum(p.numel() for p in theirs.parameters()) == round(expected_parameters)
    if "prune" in over:
        weights = prunable(theirs).values()
        assert sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights) == pytest.approx(0.5, abs=1e-3)


def test_what_a_deployer_gets(tmp_path):
    full_model, half = run(tmp_path / "a", settings()), run(tmp_path / "b", settings(student={"layers": 1}))
    sparse = run(tmp_path / "c", settings(**PRUNE))
    for name in ("parameters", "file_size", "flops"):
        assert value(half, name) < value(full_model, name) == value(sparse, name)
    assert value(sparse, "sparsity") == pytest.approx(50, abs=0.1)
    assert value(sparse, "nonzero_parameters") < value(full_model, "nonzero_parameters")
    assert value(sparse, "packed_size") < value(full_model, "packed_size")
    assert math.isclose(value(full_model, "flops"), 2 * value(half, "flops"), rel_tol=1e-9)


SHAPES = [{"model": "tiny_bert", "layers": 2}, {"model": "tiny_bert", "layers": 1}]


def test_inference_is_timed_in_turn_and_told_to_the_shapes(tmp_path):
    timing = parse(inference.Settings, {"shapes": SHAPES, "tokens": 8, "batch_size": 4, "rounds": 3}, "test")
    outcome = inference.run(timing, context(tmp_path))
    assert [(m.name, m.labels["layers"], len(m.rounds)) for m in outcome.metrics] == [
        ("latency", "2", 3), ("throughput", "2", 3), ("latency", "1", 3), ("throughput", "1", 3)
    ]  # fmt: skip
    assert all(m.value > 0 and m.low <= m.value <= m.high for m in outcome.metrics)
    student_settings = settings(student={"layers": 1}, inference=timing.model_dump())
    asked = compress.parents(student_settings, 0)["inference"]
    assert asked[1] == timing.model_dump(mode="json")
    assert asked[3].threads == "all"


def test_a_public_student_comes_nearer_to_the_whole_model(tmp_path, as_parent):
    student_settings = settings(
        student={"layers": 1, "start": "public", "distilled": {"steps": 12, "batch_size": 32, "learning_rate": 3e-3}}
    )
    job, public_settings, seed, _ = compress.parents(student_settings, 0)["public_student"]
    assert (job, seed) == ("public_student", 0)
    public = tmp_path / "public"
    public.mkdir()
    outcome = public_student.run(parse(public_student.Settings, public_settings, "test"), context(public))
    losses = [loss for _, loss in outcome.facts["loss"]]
    assert losses[-1] < 0.9 * losses[0]
    as_parent(public, "public_student", outcome.artefacts)
    student = run(tmp_path / "student", student_settings, parents={"public_student": public})
    assert 0.99 * 8 <= student.privacy.epsilon <= 8, "public text costs nothing"


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"student": {"layers": 3}}, r"student\.layers 3: deeper than its teacher, which has 2"),
        ({"student": {"layers": 1, "layer_map": [2]}}, "layer_map .*2 is out of range"),
        ({"student": {"layers": 2, "layer_map": [1, 0]}}, "layers must rise"),
        ({"student": {"layers": 2, "layer_map": [1]}}, "1 layers, where layers says 2"),
        (STUDENT | {"distil": {"weight": 1.2}}, r"distil\.weight: .*less than or equal to 1"),
        (STUDENT | {"distil": {"weight": -0.1}}, r"distil\.weight: .*greater than or equal to 0"),
        (STUDENT | {"split": {"teacher": 0.7, "student": 0.4}}, r"split: .*sum to 1\.1, which is more than 1"),
        (STUDENT | {"split": None}, "split: two private stages"),
        (STUDENT | {"teacher": None}, "distil needs teacher"),
        (STUDENT | {"teacher": {"model": "roberta_base"}}, r"teacher\.model: roberta_base has a vocabulary of 50265"),
        ({"student": {"layers": 1, "start": "public", "model": "minilm"}}, r"student\.model: minilm has a vocabulary of 30522"),
        (STUDENT | {"teacher": {"dataset": "trec"}}, r"teacher\.dataset: trec has other classes than sst2"),
        (STUDENT | {"teacher": {"layers": 5}}, r"teacher\.layers 5: tiny_bert has 2"),
        ({"student": {"layers": 1, "start": "public"}}, "exactly one of model and distilled"),
        ({"student": {"layers": 1}, "teacher": {}}, "teacher: neither distil nor start: teacher"),
        ({"distil": {"weight": 0.5}}, "distil: there is no student"),
        (PRUNE | {"prune": {"sparsity": 0.995, "steps": 2}}, r"prune\.sparsity: .*less than or equal to 0\.99"),
        (PRUNE | {"prune": {"sparsity": 0.5, "steps": 4}}, r"prune\.steps 4 leave none of 4 steps"),
        (PRUNE | {"prune": {"sparsity": 0.5, "steps": 3, "every": 2}}, "every 2 does not divide steps 3"),
        (PRUNE | DROP, "at most one of student, drop and prune"),
        ({"drop": {"layers": 1, "block_steps": 4}}, "1 blocks of 4 leave none of 4 steps"),
        ({"drop": {"layers": 3, "block_steps": 1}}, "layers 3: the model that they are taken from has 2"),
        ({"noise_multiplier": 0.1}, "one of epsilon and noise_multiplier"),
        ({"epsilon": None}, "one of epsilon and noise_multiplier"),
        (STUDENT | {"epsilon": None, "noise_multiplier": 0.1}, "a teacher needs epsilon"),
        ({"budget": "student", "student": {"layers": 1}}, "split: two private stages"),
        (STUDENT | {"budget": "student"}, "budget: student is for a private student without a teacher"),
        ({"training": "features"}, "trains full encoders"),
        ({"inference": {"shapes": SHAPES[1:]}}, r"inference\.shapes: 2 layers of tiny_bert are not among them"),
        ({"method": "dpzero"}, "unknown engine 'dpzero'"),
    ],
)
def test_senseless_settings_are_named_before_the_run_starts(over, says):
    with pytest.raises(DpbenchError, match=says):
        settings(**over)


def test_a_check_says_what_both_stages_spend(monkeypatch):
    monkeypatch.setattr(datasets, "check", lambda name, source: {"train": 400})
    remarks = compress.check(settings(**STUDENT), SOURCES)
    (budget_remark,) = [remark for remark in remarks if "with its teacher" in remark]
    assert 0.99 * 8 <= float(budget_remark.split()[1]) <= 8
    assert compress.check(settings(**PRUNE), SOURCES)
    assert compress.check(settings(**STUDENT | PLAIN | {"split": None}), SOURCES)


def test_a_teacher_is_the_whole_models_run_at_its_share():
    teacher_settings = parse(compress.Settings, settings(**STUDENT).of_teacher(), "teacher")
    assert teacher_settings == settings(epsilon=4.0)
    other = settings(**STUDENT | {"teacher": {"steps": 9, "expected_batch_size": 40, "learning_rate": 0.02}}).of_teacher()
    assert (other["steps"], other["expected_batch_size"], other["optimizer"]["learning_rate"]) == (9, 40, 0.02)
    assert set(BASE) <= set(other)
