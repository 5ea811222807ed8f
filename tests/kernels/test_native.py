"""C functions: compiled once, and never a reason for a run to fail."""

import shutil

import numpy as np
import pytest

from dpbench.kernels import native
from dpbench.privacy import gaussian

needs_a_compiler = pytest.mark.skipif(not any(shutil.which(c) for c in ("cc", "gcc", "clang")), reason="no C compiler here")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "answer.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@needs_a_compiler
def test_compiled_once_and_again_when_the_source_changes(source, tmp_path, monkeypatch):
    assert native.library(source, {}).answer() == 42
    with monkeypatch.context() as patch:
        patch.setattr(native, "_compile", lambda *_: pytest.fail("compiled a second time"))
        assert native.library(source, {}).answer() == 42
    source.write_text("int answer(void) { return 43; }\n")
    assert native.library(source, {}).answer() == 43
    assert len(list((tmp_path / "cache" / "native").iterdir())) == 2  # and nothing half-written


@needs_a_compiler
def test_a_source_that_does_not_compile_is_no_library(source):
    source.write_text("int answer(void) { return")
    assert native.library(source, {}) is None


@needs_a_compiler
def test_a_cache_that_cannot_be_written_is_no_library(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DPBENCH_CACHE", str(tmp_path / "file"))
    assert native.library(source, {}) is None


@pytest.mark.parametrize(("name", "value"), [("DPBENCH_NATIVE", "0"), ("CC", "/no/such/compiler")])
def test_without_a_compiler_there_is_no_library(source, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert native.library(source, {}) is None


@needs_a_compiler
@pytest.mark.parametrize("count", [1, 2, 7, 1 << 12])
def test_both_ways_of_the_noise_are_the_same_numbers(count, monkeypatch):
    def draw():
        values = np.linspace(-1, 1, count, dtype=np.float32)
        scratch = gaussian.Scratch.inside(np.zeros(gaussian.Scratch.room_for(count, "f4"), np.uint8), "f4")
        gaussian.Gaussian(bytes(16)).perturb_(values, 0.5, 3.0, scratch)
        return values

    one = draw()
    monkeypatch.setattr(gaussian, "compiled", lambda: None)
    assert one == pytest.approx(draw(), rel=1e-5, abs=1e-4)
