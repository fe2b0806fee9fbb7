"""Identity and overrides of configurations."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from herder.config import digest, encode, override, runtime


@dataclass(frozen=True)
class Inner:
    lr: float = 1e-3
    steps: int = 10
    kind: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class Outer:
    pretrain: Inner = field(default_factory=Inner)
    name: str = "x"
    limit: int | None = None
    flags: tuple[int, ...] = ()
    fast: bool = False
    workers: int = runtime(2)


def test_settings_are_read_as_the_type_of_their_field():
    changed = override(
        Outer(), ["pretrain.lr=3e-4", "pretrain.steps=2e3", "limit=7", "flags=1,2", "fast=true", "pretrain.kind=muon"]
    )
    assert changed == Outer(Inner(3e-4, 2000, "muon"), "x", 7, (1, 2), True)
    assert override(changed, ["limit=none"]).limit is None


@dataclass(frozen=True)
class Table:
    rows: tuple[Inner, ...] = (Inner(), Inner(steps=7))


def test_an_entry_of_a_tuple_is_set_by_its_number():
    rows = override(Table(), ["rows.1.steps=9", "rows.0.kind=muon"]).rows
    assert rows == (Inner(kind="muon"), Inner(steps=9))
    for setting, says in (("rows.2.steps=1", r"did you mean 'rows\.\d\.steps'"), ("rows.1=3", "cannot be set")):
        with pytest.raises(ValueError, match=says):
            override(Table(), [setting])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("pretrian.lr=1", "did you mean 'pretrain.lr'"),
        ("lr=1", "did you mean 'pretrain.lr'"),
        ("pretrain.steps=many", "pretrain.steps = 'many' is not a whole number"),
        ("pretrain.steps=1.5", "not a whole number"),
        ("pretrain.lr=nan", "not a number"),
        ("pretrain.kind=sgd", "one of 'adamw', 'muon'"),
        ("fast=maybe", "true or false"),
        ("pretrain=3", "group of settings"),
        ("name.x=3", "has no fields"),
        ("name", "no '='"),
    ],
)
def test_a_wrong_setting_gets_a_sentence(setting, says):
    with pytest.raises(ValueError, match=says):
        override(Outer(), [setting])


def test_runtime_fields_stay_out_of_identity_and_are_recorded():
    assert encode(Outer(workers=2)) == encode(Outer(workers=8))
    assert encode(Outer()) != encode(Outer(name="y"))
    assert encode(Outer(workers=8), only="runtime") == {"workers": 8}


@pytest.mark.parametrize("value", [len, object(), {1, 2}, float("nan"), {1: 2}, Outer, b"x"])
def test_what_has_no_stable_identity_is_refused_by_name(value):
    with pytest.raises(ValueError, match=r"config\.hook"):
        encode({"hook": value})


def test_the_digest_does_not_depend_on_the_process():
    assert digest(encode(Outer())) == digest(encode(Outer()))
    assert digest({"a": 1, "b": [1, 2.5, None]}) == "f72c61f3"
