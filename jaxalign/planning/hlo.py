"""What one device does when it runs a compiled program: arithmetic, memory traffic and collectives, read from its text.

XLA prints one instruction a line: `%name = type opcode(%operand, ...), attribute=value, ...`. Its own cost analysis
counts the body of a loop once; here it counts as often as it runs, and loops within loops multiply. Only matrix
products count as arithmetic, as in flops.py.
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
    """One array; `on_chip`: it does not lie in main memory."""

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

    @property
    def in_memory(self) -> int:
        """Its bytes in main memory."""
        return 0 if self.on_chip else self.bytes


@dataclass
class HloInstruction:
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
    instructions: dict[str, HloInstruction] = field(default_factory=dict)

    @property
    def root(self) -> HloInstruction:
        return next(instruction for instruction in self.instructions.values() if instruction.is_root)

    def operands(self, instruction: HloInstruction) -> Iterator[HloInstruction]:
        return (self.instructions[name] for name in instruction.operands if name in self.instructions)

    @cached_property
    def users(self) -> dict[str, list[HloInstruction]]:
        """Name -> the instructions that take that one as an operand, in order."""
        users: dict[str, list[HloInstruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @property
    def parameters(self) -> list[HloInstruction]:
        """In the order of their numbers."""
        found = [one for one in self.instructions.values() if one.opcode == "parameter"]
        return sorted(found, key=lambda one: int(one.literal))


@dataclass(frozen=True)
class Module:
    entry: str
    computations: dict[str, Computation]

    def called(self, instruction: HloInstruction, attribute: str = "calls") -> Computation:
        return self.computations[instruction.called(attribute) or ""]


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


def parse_instruction(name: str, rest: str, is_root: bool) -> HloInstruction:
    """`rest`: everything behind the equals sign."""
    end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    type_text, call = rest[:end], rest[end:].lstrip()
    opening = call.index("(")
    close = closing(call, opening)
    literal = call[opening + 1 : close]
    return HloInstruction(
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


SAME_VALUE = ("bitcast", "copy", "convert", "reshape", "copy-done")


def trip_count(loop: HloInstruction, computation: Computation, module: Module) -> int:
    """The runs of a loop that `computation` holds.

    What XLA has noted; or, of a loop that counts up to a constant, (limit - start) / increment. The TPU compiler notes
    nothing, and where it has unrolled a loop the increment is 2.

    Raises:
      ValueError: the loop is of another kind.
    """
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return int(noted[1])
    condition, body = (module.called(loop, name) for name in ("condition", "body"))
    if condition.root.opcode == "compare" and "direction=LT" in condition.root.attributes:
        counter, limit = condition.operands(condition.root)
        if counter.opcode == "get-tuple-element" and limit.opcode == "constant":
            index = int(re.findall(r"\bindex=(\d+)", counter.attributes)[0])
            start = number(element(next(computation.operands(loop)), index, computation), computation)
            return -(-(int(limit.literal) - (start or 0)) // increment(body, index, module))
    raise ValueError(f"{loop.name}: the number of its runs is not in the program's text")


def element(value: HloInstruction, index: int, computation: Computation) -> HloInstruction | None:
    """The instruction that makes one element of a tuple; None where the tuple comes from elsewhere."""
    return list(computation.operands(value))[index] if value.opcode == "tuple" else None


def original(value: HloInstruction | None, computation: Computation) -> HloInstruction | None:
    """What a value is a copy of, in whatever layout or type."""
    while value is not None and value.opcode in SAME_VALUE:
        value = next(computation.operands(value), None)
    return value


def number(value: HloInstruction | None, computation: Computation) -> int | None:
    """The value of a whole-number constant, seen through copies; None of anything else."""
    value = original(value, computation)
    is_number = value is not None and value.opcode == "constant" and re.fullmatch(r"-?\d+", value.literal)
    return int(value.literal) if value is not None and is_number else None


def increment(body: Computation, index: int, module: Module) -> int:
    """What a loop's body adds to the counter, element `index` of its state."""
    value, where, given = original(element(body.root, index, body), body), body, {}
    if value is not None and value.opcode == "fusion":
        where, outside = module.called(value), body.operands(value)
        given = {one.name: number(other, body) for one, other in zip(where.parameters, outside, strict=True)}
        value = where.root
    if value is None or value.opcode != "add":
        return 1
    steps = [number(operand, where) or given.get(operand.name) for operand in where.operands(value)]
    return next((step for step in steps if step), 1)


COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "iota", "async-start", "async-update", "async-done"),
}
"""What moves no bytes itself. What ends with -done was counted where it started."""
SLICES = ("dynamic-slice", "slice", "gather")


@dataclass
class Collective:
    """All collectives of one kind."""

    count: int = 0
    bytes: int = 0
    """of the whole arrays: gathered, or before they are reduced, exchanged or sent"""
    sent: int = 0
    """bytes that leave the device, in a ring"""


@dataclass
class Costs:
    """Of one device, for one run of the program."""

    flops: float = 0.0
    bfloat16_flops: float = 0.0
    """the same, each product times its passes through the matrix unit"""
    bytes: int = 0
    """read from and written to the device's main memory"""
    collectives: dict[str, Collective] = field(default_factory=lambda: {kind: Collective() for kind in COLLECTIVES})


def count(module: Module) -> Costs:
    """The costs of the module's entry computation and of all that it calls."""
    costs = Costs()
    add_computation(costs, module, module.entry, times=1, is_fused=False, channels=set())
    return costs


def add_computation(costs: Costs, module: Module, name: str, times: int, is_fused: bool, channels: set[str]) -> None:
    """Adds a computation that runs `times` times; within a fusion nothing goes through main memory.

    `channels`: of the collectives met so far. The TPU compiler writes a collective that runs beside other work several
    times: where it starts, in what it runs beside (a loop, even), and where it ends.
    """
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        if instruction.opcode in ("dot", "convolution"):
            flops = product_flops(instruction, computation) * times
            costs.flops += flops
            costs.bfloat16_flops += flops * passes(instruction, computation)
        add_collective(costs, instruction, computation, times, channels)
        if not is_fused:
            costs.bytes += traffic(instruction, computation, module) * times
        if instruction.opcode == "while":
            runs = times * trip_count(instruction, computation, module)
            add_computation(costs, module, module.called(instruction, "body").name, runs, is_fused, set(channels))
        elif instruction.opcode == "conditional":
            branches = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
            if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
                branches = re.findall(r"[\w.\-]+", listed[1])
            for branch in branches:
                add_computation(costs, module, branch, times, is_fused, set(channels))
        elif instruction.opcode in ("fusion", "call", "async-start"):
            called = instruction.called("calls") or instruction.called("to_apply")
            if called is not None:
                add_computation(costs, module, called, times, is_fused or instruction.opcode == "fusion", channels)


def product_flops(instruction: HloInstruction, computation: Computation) -> float:
    """2 for each multiplication of a matrix product, written as `dot` or (on TPU) as `convolution`.

    Of a convolution those that meet no padding: a batched product is one whose window is mostly padding. The rule of
    XLA's HloCostAnalysis::HandleConvolution.
    """
    left, right = (operand.shapes[0] for operand in computation.operands(instruction))
    out = instruction.shapes[0]
    if instruction.opcode == "dot":
        return 2.0 * out.size * math.prod(left.dims[axis] for axis in instruction.numbers("lhs_contracting_dims"))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    of_left, of_right, of_out = labels.groups()
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0]))
    total = float(left.dims[of_left.index("f")] * right.dims[of_right.index("o")] * left.dims[of_left.index("b")])
    for key in ("feature_group_count", "batch_group_count"):
        if group := re.search(rf"{key}=(\d+)", instruction.attributes):
            total /= int(group[1])
    defaults = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    for place, axis in enumerate(axis for axis in of_out if axis.isdigit()):
        sizes = (left.dims[of_left.index(axis)], right.dims[of_right.index(axis)], out.dims[of_out.index(axis)])
        settings = [window[name].split("x")[place] if name in window else text for name, text in defaults.items()]
        total *= valid_positions(*sizes, *(int(text.split("_")[0]) for text in settings))
    return 2.0 * total


def valid_positions(
    size: int, kernel: int, out: int, stride: int, padding: int, base_dilation: int, window_dilation: int
) -> int:
    """Pairs of output and kernel positions along one axis whose input is neither padding nor a hole."""
    if kernel == 1 and padding == 0 and base_dilation == 1:
        return out
    found = 0
    for tap in range(kernel):
        for position in range(out):
            at = position * stride - padding + tap * window_dilation
            found += at % base_dilation == 0 and 0 <= at // base_dilation < size
    return found


def passes(instruction: HloInstruction, computation: Computation) -> int:
    """How often the matrix unit, which multiplies bfloat16, runs over a product.

    At precision `highest` float32 is the sum of three bfloat16 numbers, and six of their nine products are added up; at
    `high` it is the sum of two.
    """
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    of_float32 = {"highest": 3, "high": 2}.get(precision[1] if precision else "", 1)
    operands = [operand.shapes[0].dtype for operand in computation.operands(instruction)]
    parts = [of_float32 if dtype == "f32" else 1 for dtype in operands]
    return {(3, 3): 6, (2, 2): 3}.get((parts[0], parts[1]), parts[0] * parts[1])


def add_collective(
    costs: Costs, instruction: HloInstruction, computation: Computation, times: int, channels: set[str]
) -> None:
    """Adds the instruction where it is a collective whose channel is none of `channels`."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return
    if channel := re.search(r"\bchannel_id=(\d+)", instruction.attributes):
        if channel[1] in channels:
            return
        channels.add(channel[1])
    given = sum(shape.bytes for operand in computation.operands(instruction) for shape in operand.shapes)
    group = group_size(instruction)
    if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # how the TPU compiler writes one
    whole = given * group if kind == "all-gather" else given
    share = 1.0 if kind == "collective-permute" else (group - 1) / group
    total = costs.collectives[kind]
    total.count += times
    total.bytes += whole * times
    total.sent += round(whole * share * (2 if kind == "all-reduce" else 1)) * times


def group_size(instruction: HloInstruction) -> int:
    """How many devices take part.

    XLA writes groups as lists, `{{0,1},{2,3}}`; as groups by members, `[2,2]<=[4]`; or as axes of a mesh,
    `mesh['a'=2,'b'=2] {'b'}`.
    """
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", instruction.attributes):
        sizes = dict(re.findall(r"('\w+')=(\d+)", axes[1]))
        # A part of an axis is written 'a':(first)size.
        members = re.findall(r"('\w+')(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[axis]) for axis, part in members)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.attributes):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.attributes):
        return len(listed[1].split(","))
    return 1


def traffic(instruction: HloInstruction, computation: Computation, module: Module) -> int:
    """Bytes that an instruction reads from and writes to main memory.

    Of an array that is only sliced, or written to in part, that part: a loop over layers reads one layer's weights.
    """
    opcode = instruction.opcode
    if opcode in NO_TRAFFIC or opcode.endswith("-done") or '"AllocateBuffer"' in instruction.attributes:
        return 0
    if opcode.endswith("-start"):
        return sum(shape.in_memory for shape in instruction.shapes)  # the tuple holds what is read and written
    operands = list(computation.operands(instruction))
    if opcode == "fusion":
        return fusion_traffic(instruction, operands, module)
    if opcode in SLICES:
        read = 0 if operands[0].shapes[0].on_chip else sum(shape.bytes for shape in instruction.shapes)
    elif opcode == "dynamic-update-slice":
        read = operands[1].shapes[0].in_memory
    else:
        read = sum(shape.in_memory for operand in operands for shape in operand.shapes)
    return read + written(instruction, computation)


def fusion_traffic(fusion: HloInstruction, operands: list[HloInstruction], module: Module) -> int:
    """What a fusion reads of its operands and writes of its outputs.

    Without those that are one buffer, which a collective under way fills meanwhile; an operand may be two outputs.
    """
    called, outputs = module.called(fusion), fusion.shapes
    listed = re.search(r"output_to_operand_aliasing=\{(.*?\)\})", fusion.attributes)
    passed_on = re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", fusion.attributes) if listed else []
    read = [read_of(one, operand, called, module) for one, operand in zip(called.parameters, operands, strict=True)]
    parts = list(called.operands(called.root)) if called.root.opcode == "tuple" else [called.root]
    put = [shape.in_memory for shape in outputs]
    if len(parts) == len(outputs):
        put = [0 if shape.on_chip else written(part, called) for part, shape in zip(parts, outputs, strict=True)]
    for output, operand in passed_on:
        put[int(output or 0)] = read[int(operand)] = 0
    return sum(read) + sum(put)


def read_of(parameter: HloInstruction, operand: HloInstruction, called: Computation, module: Module) -> int:
    """What a fusion reads of one operand."""
    if any(shape.on_chip for shape in operand.shapes):
        return 0
    uses = uses_of(parameter, called, module)
    if uses and all(user.opcode in (*SLICES, "dynamic-update-slice") and place == 0 for user, place in uses):
        return sum(shape.bytes for user, _ in uses if user.opcode in SLICES for shape in user.shapes)
    return sum(shape.bytes for shape in operand.shapes)


def uses_of(instruction: HloInstruction, called: Computation, module: Module) -> list[tuple[HloInstruction, int]]:
    """Who takes an instruction's value, and as which operand; seen through copies, and into fusions of a fusion."""
    uses: list[tuple[HloInstruction, int]] = []
    for user in called.users.get(instruction.name, []):
        if user.opcode in ("bitcast", "copy"):
            uses += uses_of(user, called, module)
            continue
        for place in (place for place, name in enumerate(user.operands) if name == instruction.name):
            if user.opcode != "fusion":
                uses.append((user, place))
                continue
            inner = module.called(user)
            uses += uses_of(inner.parameters[place], inner, module)
            source = inner.root
            while source.opcode in ("bitcast", "copy"):
                source = next(inner.operands(source))
            if source is inner.parameters[place]:  # it only lays the value out anew
                uses += uses_of(user, called, module)
    return uses


def written(instruction: HloInstruction, computation: Computation) -> int:
    """What an instruction writes: of an array that it only changes in part, that part."""
    source = instruction
    while source.opcode == "bitcast":
        source = next(computation.operands(source))
    if source.opcode == "dynamic-update-slice":
        _, update, *_ = computation.operands(source)
        return update.shapes[0].bytes
    return sum(shape.in_memory for shape in instruction.shapes)
