"""Compiled HLO text as computations of instructions, each with its shapes, operands and attributes.

XLA prints one instruction a line: `%name = type opcode(%operand, ...), attribute=value, ...`.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

ITEM_BITS = {"pred": 8, "token": 0, "opaque": 0}

FAST_MEMORY = re.compile(r"S\([1-9]\d*\)")
"""In a layout: the array lies in another memory space than the device's main memory, on the chip."""


@dataclass(frozen=True)
class Shape:
    """One array: its item type, dimensions, and whether it lies on the chip rather than in main memory."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = ITEM_BITS.get(self.dtype)
        if bits is None:
            # The first number is the width: f32, bf16, s4, f8e4m3fn.
            digits = re.search(r"\d+", self.dtype)
            bits = int(digits[0]) if digits else 0
        return -(-self.size * bits // 8)


@dataclass
class Instruction:
    name: str
    opcode: str
    type_text: str
    operands: list[str]
    attributes: str
    literal: str
    """What stands between the brackets: a constant's value, a parameter's number, or the operands."""
    is_root: bool

    @cached_property
    def shapes(self) -> list[Shape]:
        """The array, or those of the tuple."""
        found = re.finditer(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?", self.type_text)
        return [
            Shape(
                match[1],
                tuple(int(size.removeprefix("<=")) for size in match[2].split(",") if size),
                bool(match[3] and FAST_MEMORY.search(match[3])),
            )
            for match in found
        ]

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute (`calls`, `body`, ...) names."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None

    def numbers(self, attribute: str) -> list[int]:
        """A list of numbers, as in `lhs_contracting_dims={1,2}`; empty where there is none."""
        match = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
        return [int(number) for number in match[1].split(",") if number] if match else []


@dataclass
class Computation:
    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in self.instructions.values() if instruction.is_root)

    def operands(self, instruction: Instruction) -> Iterator[Instruction]:
        return (self.instructions[name] for name in instruction.operands if name in self.instructions)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that take this one as an operand, in order."""
        return self._users.get(name, [])

    @cached_property
    def _users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @property
    def parameters(self) -> list[Instruction]:
        """In the order of their numbers."""
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.literal))


@dataclass(frozen=True)
class Module:
    entry: str
    computations: dict[str, Computation]


HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
START = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")


def parse(text: str) -> Module:
    """All computations of a module's text, as `compiled.as_text()` gives it."""
    computations: dict[str, Computation] = {}
    current, entry = None, ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations[header[2]] = Computation(header[2])
            entry = header[2] if header[1] else entry
        elif current is not None and (start := START.match(line)):
            instruction = parse_instruction(start[2], start[3], is_root=start[1] is not None)
            current.instructions[instruction.name] = instruction
    return Module(entry, computations)


def parse_instruction(name: str, rest: str, is_root: bool) -> Instruction:
    """`rest`: everything behind the equals sign."""
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_text, call = rest[:end], rest[end:].lstrip()
    opening = call.index("(")
    close = closing(call, opening)
    literal = call[opening + 1 : close]
    return Instruction(
        name, call[:opening], type_text, re.findall(r"%([\w.\-]+)", literal), call[close + 1 :], literal, is_root
    )


def closing(text: str, opening: int) -> int:
    """The index of the bracket that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"no closing bracket: {text[:200]}")
