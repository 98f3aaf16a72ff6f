"""What `doctor` makes of the state of each kernel."""

import pytest

from fastlatent import doctor, ops
from fastlatent.ops import OPS, Serving, _load, _register


def raising(error):
    def core():
        raise error

    return core


def test_states_of_a_kernel(monkeypatch):
    op = OPS["pack_bits"]
    monkeypatch.setattr(_register, "_demanded", "auto")
    assert op.serving("privateuse").state == "none"
    for error, state in (
        (_load.CoreMissing("stale"), "missing"),
        (_load.LeftOut("bare"), "left out"),
    ):
        monkeypatch.setattr(_load, "core", raising(error))
        served = op.serving("cpu")
        assert (served.implementation, served.state) == ("torch", state)
        assert served.reason == str(error)
    with ops.use("torch"):
        assert op.serving("cpu").state == "asked for"


@pytest.mark.parametrize(
    ("state", "healthy"),
    [("kernel", True), ("asked for", True), ("none", True), ("left out", True), ("missing", False)],
)
def test_only_a_missing_kernel_is_a_trouble(state, healthy, monkeypatch, capsys):
    """Whatever the sentence says that goes with it."""
    row = Serving("pack_bits", "cpu", "torch", "for a reason of its own, not as asked for", state)
    monkeypatch.setattr(ops, "table", lambda: [row])
    monkeypatch.setattr(doctor, "_self_test", lambda op, device: None)
    assert doctor.main([]) == (0 if healthy else 1)
    said = capsys.readouterr()
    assert ("all well" in said.out) == healthy
    assert ("pack_bits on cpu has no kernel: for a reason of its own" in said.err) != healthy
