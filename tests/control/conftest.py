"""What several algorithms' tests set for the time of a test."""

import pytest
import torch


@pytest.fixture
def double():
    """So that two ways to the same number are told from two numbers."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def compiler_front(monkeypatch):
    """Compilation by the compiler's front end alone, which needs no C++ compiler: no loss may break its graph."""
    compile = torch.compile
    monkeypatch.setattr("torch.compile", lambda f, fullgraph, **_: compile(f, fullgraph=fullgraph, backend="eager"))
