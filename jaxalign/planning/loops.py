"""How often the body of a loop in compiled HLO runs."""

import re

from jaxalign.planning.hlo import Computation, Instruction, Module

SAME_VALUE = ("bitcast", "copy", "convert", "reshape", "copy-done")


def trip_count(loop: Instruction, computation: Computation, module: Module) -> int:
    """The runs of a loop that `computation` holds.

    What XLA has noted; or, of a loop that counts up to a constant, (limit - start) / increment. The TPU compiler notes
    nothing, and where it has unrolled a loop the increment is 2.

    Raises:
      ValueError: the loop is of another kind.
    """
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(noted[1])
    condition, body = (module.computations[loop.called(name) or ""] for name in ("condition", "body"))
    if condition.root.opcode == "compare" and "direction=LT" in condition.root.attributes:
        counter, limit = condition.operands(condition.root)
        if counter.opcode == "get-tuple-element" and limit.opcode == "constant":
            index = tuple_index(counter)
            start = number(element(next(computation.operands(loop)), index, computation), computation)
            return -(-(int(limit.literal) - (start or 0)) // increment(body, index, module))
    raise ValueError(f"{loop.name}: the number of its runs is not in the program's text")


def tuple_index(instruction: Instruction) -> int:
    """Which element of its tuple a get-tuple-element takes."""
    match = re.search(r"\bindex=(\d+)", instruction.attributes)
    assert match is not None
    return int(match[1])


def element(value: Instruction, index: int, computation: Computation) -> Instruction | None:
    """The instruction that makes one element of a tuple; None where the tuple comes from elsewhere."""
    return list(computation.operands(value))[index] if value.opcode == "tuple" else None


def number(value: Instruction | None, computation: Computation) -> int | None:
    """The value of a whole-number constant, seen through copies; None of anything else."""
    while value is not None and value.opcode in SAME_VALUE:
        value = next(computation.operands(value), None)
    is_number = value is not None and value.opcode == "constant" and re.fullmatch(r"-?\d+", value.literal)
    return int(value.literal) if value is not None and is_number else None


def increment(body: Computation, index: int, module: Module) -> int:
    """What a loop's body adds to the counter, element `index` of its state."""
    value = element(body.root, index, body)
    while value is not None and value.opcode in SAME_VALUE:
        value = next(body.operands(value), None)
    if value is None:
        return 1
    where, given = body, {}
    if value.opcode == "fusion":
        where = module.computations[value.called("calls") or ""]
        outside = body.operands(value)
        given = {one.name: number(other, body) for one, other in zip(where.parameters, outside, strict=True)}
        value = where.root
    if value.opcode != "add":
        return 1
    steps = [number(operand, where) or given.get(operand.name) for operand in where.operands(value)]
    return next((step for step in steps if step), 1)
