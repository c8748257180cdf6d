"""When torch.compile is used: only on request, and never for worse."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor_config

from excl.models.i3d import compilation
from excl.models.i3d.compilation import Compiler
from excl.models.i3d.network import I3D
from excl.models.i3d.runner import Runner
from excl.models.i3d.weights import load_weights

CPU = torch.device("cpu")


def double(x):
    return x * 2


@pytest.fixture
def compiled_as(monkeypatch, tmp_path):
    """`compiled_as(function)` puts a function in the place of what torch.compile makes; returns the list of its calls."""
    monkeypatch.setenv("EXCL_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation, "_compiled_shapes", [])

    def replace(made):
        calls = []

        def fake(function, **options):
            calls.append(options)
            if isinstance(made, Exception):
                raise made
            return made

        monkeypatch.setattr(torch, "compile", fake)
        return calls

    return replace


def test_a_shape_is_compiled_once_for_itself_alone(compiled_as):
    calls = compiled_as(lambda x: x * 2 + 1e-6)
    compiler = Compiler(tolerance=1e-5)
    small, large = torch.ones(1), torch.ones(2)
    assert torch.equal(compiler(double, small), 2 * small)  # compiles, and gives what was computed without
    assert len(calls) == 1
    assert calls[0]["dynamic"] is False
    for _ in range(2):
        assert compiler(double, small).item() == pytest.approx(2 + 1e-6, abs=3e-7)
    assert len(calls) == 1
    compiler(double, large)
    assert len(calls) == 2


@pytest.mark.parametrize(("compile", "number"), [("never", 0), ("always", 1)])
def test_a_runner_compiles_only_on_request(compiled_as, compile, number):
    calls = compiled_as(lambda frames: frames)
    runner = Runner(load_weights("random:0"), device=CPU, compile=compile)
    runner.submit(np.zeros((1, 16, 16, 16, 3), np.uint8)).result()
    assert len(calls) == number


def test_no_more_shapes_than_the_compiler_takes(compiled_as):
    """PyTorch compiles one function for 8 shapes, and runs others as they are without saying so."""
    calls = compiled_as(double)
    compiler = Compiler(tolerance=1e-5)
    for size in range(1, 20):
        assert compiler(double, torch.ones(size)).tolist() == size * [2]
    assert len(calls) == compilation.MAX_SHAPES == torch._dynamo.config.recompile_limit


def test_the_check_at_the_start_is_not_compiled(compiled_as, monkeypatch):
    """With a network that does nothing: on a CPU without bfloat16 the check takes long."""
    calls, checked = compiled_as(double), []
    monkeypatch.setattr(I3D, "steps", lambda _, x, **__: checked.append(x.dtype) or torch.ones(1, 2, 1024))
    Runner(load_weights("random:0"), device=CPU, precision="bfloat16", compile="always")
    assert checked == [torch.float32, torch.bfloat16]
    assert calls == []


@pytest.mark.parametrize(
    ("made", "message"),
    [(RuntimeError("no C++ compiler\nand more"), "cannot be compiled (RuntimeError: no C++ compiler)"),
     (lambda x: x * 2.1, "off by 5.0e-02"), (lambda x: x * float("nan"), "off by nan")],
)  # fmt: skip
def test_what_fails_or_is_wrong_is_left_as_it_was(compiled_as, caplog, made, message):
    calls = compiled_as(made)
    compiler = Compiler(tolerance=1e-3)
    for _ in range(3):
        assert compiler(double, torch.ones(3)).tolist() == [2, 2, 2]
    assert len(calls) == 1
    assert message in caplog.text


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_real_compiler_gives_the_same(tmp_path, monkeypatch, caplog):
    """As it is set, but that nothing is compiled beside: a header beforehand, a try of vectors, in a pool of processes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(inductor_config, "compile_threads", 1)
    monkeypatch.setattr(inductor_config, "cpp_cache_precompile_headers", False, raising=False)
    monkeypatch.setattr(inductor_config.cpp, "vec_isa_ok", True, raising=False)
    caplog.set_level("INFO")
    compiler = Compiler(tolerance=1e-6)

    def function(x):
        return torch.relu(x.float() / 127.5 - 1).mean(dim=1)

    x = torch.arange(200, dtype=torch.uint8).reshape(10, 20)
    first, second = compiler(function, x), compiler(function, x)
    assert "compiled for clips of (10, 20)" in caplog.text
    assert torch.allclose(first, second, atol=1e-6)
    assert list(tmp_path.rglob("*.so")) or list(tmp_path.rglob("*.cpp"))
