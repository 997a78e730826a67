"""What is looked into, what is copied, and what stays shared: on objects that do nothing."""

from __future__ import annotations

import collections
import functools
from typing import Any

import pytest
import torch
from torch import nn

from rdc.contracts.parts import found_in, put_in_place


class Part:
    """What is looked for."""

    def __init__(self, name: str, inside: Any = None) -> None:
        self.name, self.inside = name, inside

    def __call__(self) -> str:
        return self.name


class Box:
    """Something with attributes."""

    def __init__(self, **inside: Any) -> None:
        self.__dict__.update(inside)

    def answer(self) -> str:
        return self.part()


class Module(nn.Module):
    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.inside, self.inner = inside, nn.Linear(1, 1)


Pair = collections.namedtuple("Pair", "first second")
OUTSIDE = Part("global")


def closure(inside):
    def answer(more="default", *, word="keyword"):
        return inside() + more + word + OUTSIDE()[:0]

    answer.mark = "kept"
    return answer


#: a way to put something into something else -> how to get it out
WAYS = {
    "attribute": (lambda x: Box(part=x), lambda made: made.part),
    "module": (Module, lambda made: made.inside),
    "list": (lambda x: [0, x], lambda made: made[1]),
    "tuple": (lambda x: ("a", x), lambda made: made[1]),
    "named tuple": (lambda x: Pair(x, 2), lambda made: made.first),
    "dictionary": (lambda x: {"k": x}, lambda made: made["k"]),
    "function of a partial": (
        lambda x: functools.partial(closure(x), 1),
        lambda made: made.func.__closure__[0].cell_contents,
    ),
    "argument of a partial": (lambda x: functools.partial(print, 1, x), lambda made: made.args[1]),
    "keyword of a partial": (lambda x: functools.partial(print, sep=x), lambda made: made.keywords["sep"]),
    "bound method": (lambda x: Box(part=x).answer, lambda made: made.__self__.part),
    "closure": (closure, lambda made: made.__closure__[0].cell_contents),
}


@pytest.mark.parametrize("inner", WAYS)
@pytest.mark.parametrize("outer", WAYS)
def test_a_part_is_found_and_replaced_wherever_it_is(outer, inner):
    part, other, beside = Part("old"), Part("new"), [1]
    thing = WAYS[outer][0](WAYS[inner][0](part))
    root = Box(thing=thing, beside=beside)
    assert found_in(root, Part) == (part,)
    put_in_place(root, {id(part): other}, Part)
    assert root.thing is not thing and type(root.thing) is type(thing) and root.beside is beside
    assert WAYS[inner][1](WAYS[outer][1](root.thing)) is other
    assert WAYS[inner][1](WAYS[outer][1](thing)) is part  # somebody else's: as before
    assert found_in(root, Part) == (other,)


def test_each_once_in_order_and_not_what_is_inside_them():
    one, two, hidden = Part("one"), Part("two"), Part("hidden")
    one.inside = hidden
    assert found_in(Box(a=[two, one], b=two, c={"x": one}), Part) == (two, one)
    assert found_in(one, Part) == (hidden,)  # whatever it is, the root is looked into
    assert found_in(Box(answer=closure(lambda: "")), Part) == ()  # a function's globals are not looked into


def test_how_far_it_is_looked():
    part = Part("deep")

    def nested(depth):
        inside: Any = part
        for _ in range(depth):
            inside = [inside]
        return Box(inside=inside)

    assert found_in(nested(40), Part) == (part,) and found_in(nested(41), Part) == ()
    for container in (list, tuple):
        assert found_in(Box(inside=container([part] * 1000)), Part) == (part,)
        assert found_in(Box(inside=container([part] * 1001)), Part) == ()
    assert found_in(Box(inside=dict.fromkeys(range(1000), part)), Part) == (part,)
    assert found_in(Box(inside=dict.fromkeys(range(1001), part)), Part) == ()


def test_a_function_keeps_what_it_has_beside():
    part, answer = Part("old"), None
    answer = closure(part)
    root = Box(answer=answer)
    put_in_place(root, {id(part): Part("new")}, Part)
    assert (
        root.answer() == "newdefaultkeyword"
        and root.answer("!", word="?") == "new!?"
        and answer() == "olddefaultkeyword"
    )
    assert root.answer.mark == "kept" and root.answer.__name__ == "answer"


def test_cells_in_which_nothing_changes_are_shared():
    part, count = Part("part"), 0

    def answer():
        nonlocal count
        count += 1
        return part(), count

    root = Box(answer=answer)
    put_in_place(root, {id(part): Part("other")}, Part)
    assert [root.answer(), answer(), root.answer()] == [("other", 1), ("part", 2), ("other", 3)]


def test_an_empty_cell_is_left_alone():
    part = Part("old")

    def answer():
        return part(), later

    root = Box(answer=answer)
    assert found_in(root, Part) == (part,)
    put_in_place(root, {id(part): Part("new")}, Part)
    later = "filled"
    assert root.answer() == ("new", "filled")


def test_what_is_reached_twice_is_copied_once_and_circles_close():
    part, shared = Part("old"), Box()
    shared.part, shared.back = part, [shared]
    root = Box(one=shared, two={"k": shared})
    put_in_place(root, {id(part): Part("new")}, Part)
    assert root.one is root.two["k"] is root.one.back[0] is not shared and root.one.part.name == "new"
    assert shared.back[0] is shared and shared.part is part


def test_what_refers_back_to_the_original_refers_to_the_copy():
    part = Part("old")
    first = Box(part=part)
    first.method = first.answer
    copied = Box(part=part, method=first.method)
    put_in_place(copied, {id(part): Part("new"), id(first): copied}, Part)
    assert copied.method() == "new" and first.method() == "old" and copied.method.__self__ is copied


def test_a_module_gets_tables_of_its_own_and_the_same_weights():
    part = Part("old")
    module = Module(part)
    root = Box(module=module)
    put_in_place(root, {id(part): Part("new")}, Part)
    root.module.inner = nn.Identity()
    root.module.register_buffer("more", torch.zeros(1))
    root.module.weight = nn.Parameter(torch.ones(1))
    assert isinstance(module.inner, nn.Linear) and not hasattr(module, "more") and not hasattr(module, "weight")
    again = Box(module=module)
    put_in_place(again, {id(part): Part("new")}, Part)
    assert again.module.inner is module.inner
