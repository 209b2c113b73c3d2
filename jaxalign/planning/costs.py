"""What one device does when it runs a compiled program: arithmetic, memory traffic and collectives.

XLA's own cost analysis counts the body of a loop once; here it counts as often as it runs, and loops within loops
multiply. Only matrix products count as arithmetic, as in flops.py.
"""

import math
import re
from dataclasses import dataclass, field

from jaxalign.planning.hlo import Computation, Instruction, Module, Shape
from jaxalign.planning.loops import trip_count

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

NO_TRAFFIC = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("opt-barrier", "partition-id", "replica-id", "iota", "async-start", "async-update", "async-done"),
}
"""What moves no bytes itself. What ends with -done was counted where it started."""


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

    @property
    def sent(self) -> int:
        return sum(collective.sent for collective in self.collectives.values())


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
        flops = product_flops(instruction, computation) * times
        costs.flops += flops
        costs.bfloat16_flops += flops * passes(instruction, computation)
        add_collective(costs, instruction, computation, times, channels)
        if not is_fused:
            costs.bytes += traffic(instruction, computation, module) * times
        if instruction.opcode == "while":
            body = instruction.called("body")
            assert body is not None
            runs = times * trip_count(instruction, computation, module)
            add_computation(costs, module, body, runs, is_fused, set(channels))
        elif instruction.opcode == "conditional":
            for branch in branches(instruction):
                add_computation(costs, module, branch, times, is_fused, set(channels))
        elif instruction.opcode in ("fusion", "call", "async-start"):
            called = instruction.called("calls") or instruction.called("to_apply")
            if called is not None:
                add_computation(costs, module, called, times, is_fused or instruction.opcode == "fusion", channels)


def branches(conditional: Instruction) -> list[str]:
    """The computations that a conditional chooses among."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    named = (conditional.called("true_computation"), conditional.called("false_computation"))
    return [name for name in named if name]


def product_flops(instruction: Instruction, computation: Computation) -> float:
    """2 for each multiplication of a matrix product, written as `dot` or (on TPU) as `convolution`; else 0."""
    if instruction.opcode == "dot":
        left = next(computation.operands(instruction)).shapes[0]
        contracted = math.prod(left.dims[axis] for axis in instruction.numbers("lhs_contracting_dims"))
        return 2.0 * instruction.shapes[0].size * contracted
    if instruction.opcode == "convolution":
        left, right = (operand.shapes[0] for operand in computation.operands(instruction))
        return 2.0 * convolution_products(instruction, left, right)
    return 0.0


def convolution_products(instruction: Instruction, left: Shape, right: Shape) -> float:
    """Multiplications of a convolution that meet no padding; a batched product is one whose window is mostly padding.

    The rule of XLA's HloCostAnalysis::HandleConvolution.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    of_left, of_right, of_out = labels.groups()
    out = instruction.shapes[0]
    window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or [""])[0]))
    total = float(left.dims[of_left.index("f")] * right.dims[of_right.index("o")] * left.dims[of_left.index("b")])
    for key in ("feature_group_count", "batch_group_count"):
        if group := re.search(rf"{key}=(\d+)", instruction.attributes):
            total /= int(group[1])
    spatial = [axis for axis in of_out if axis.isdigit()]
    for number, axis in enumerate(spatial):

        def setting(name: str, default: str, number: int = number) -> str:
            return window[name].split("x")[number] if name in window else default

        total *= valid_positions(
            left.dims[of_left.index(axis)],
            right.dims[of_right.index(axis)],
            out.dims[of_out.index(axis)],
            int(setting("stride", "1")),
            int(setting("pad", "0_0").split("_")[0]),
            int(setting("lhs_dilate", "1")),
            int(setting("rhs_dilate", "1")),
        )
    return total


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


def passes(instruction: Instruction, computation: Computation) -> int:
    """How often the matrix unit, which multiplies bfloat16, runs over a product.

    At precision `highest` float32 is the sum of three bfloat16 numbers, and six of their nine products are added up; at
    `high` it is the sum of two.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    precision = re.search(r"operand_precision=\{(\w+)", instruction.attributes)
    of_float32 = {"highest": 3, "high": 2}.get(precision[1] if precision else "", 1)
    operands = [operand.shapes[0].dtype for operand in computation.operands(instruction)]
    parts = [of_float32 if dtype == "f32" else 1 for dtype in operands]
    return {(3, 3): 6, (2, 2): 3}.get((parts[0], parts[1]), parts[0] * parts[1])


def add_collective(
    costs: Costs, instruction: Instruction, computation: Computation, times: int, channels: set[str]
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


def group_size(instruction: Instruction) -> int:
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


def traffic(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Bytes that an instruction reads from and writes to main memory.

    Of an array that is only sliced, or written to in part, that part: a loop over layers reads one layer's weights.
    """
    opcode = instruction.opcode
    if opcode in NO_TRAFFIC or opcode.endswith("-done") or '"AllocateBuffer"' in instruction.attributes:
        return 0
    if opcode.endswith("-start"):
        return sum(in_memory(shape) for shape in instruction.shapes)  # the tuple holds what is read and written
    if opcode == "fusion":
        called = module.computations[instruction.called("calls") or ""]
        passed_on, given = aliases(instruction), zip(called.parameters, computation.operands(instruction), strict=True)
        read = [read_of(parameter, operand, called, module) for parameter, operand in given]
        put = written_by_fusion(instruction, called)
        outputs, operands = map(set, zip(*passed_on, strict=True)) if passed_on else ((), ())
        return sum(bytes for i, bytes in enumerate(read) if i not in operands) + sum(
            bytes for i, bytes in enumerate(put) if i not in outputs
        )
    if opcode in ("dynamic-slice", "slice", "gather"):
        source = next(computation.operands(instruction)).shapes[0]
        return sum(in_memory(shape, source.on_chip) for shape in instruction.shapes) + written(instruction, computation)
    if opcode == "dynamic-update-slice":
        _, update, *_ = computation.operands(instruction)
        return in_memory(update.shapes[0]) + written(instruction, computation)
    read = sum(in_memory(shape) for operand in computation.operands(instruction) for shape in operand.shapes)
    return read + written(instruction, computation)


def in_memory(shape: Shape, on_chip: bool | None = None) -> int:
    """Bytes of an array in main memory; `on_chip` says where it lies in place of the shape."""
    return 0 if (shape.on_chip if on_chip is None else on_chip) else shape.bytes


def read_of(parameter: Instruction, operand: Instruction, called: Computation, module: Module) -> int:
    """What a fusion reads of one operand."""
    if any(shape.on_chip for shape in operand.shapes):
        return 0
    uses = uses_of(parameter, called, module)
    sliced = [user for user, place in uses if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0]
    replaced = [user for user, place in uses if user.opcode == "dynamic-update-slice" and place == 0]
    if uses and len(sliced) + len(replaced) == len(uses):
        return sum(shape.bytes for user in sliced for shape in user.shapes)
    return sum(shape.bytes for shape in operand.shapes)


def uses_of(instruction: Instruction, called: Computation, module: Module) -> list[tuple[Instruction, int]]:
    """Who takes an instruction's value, and as which operand; seen through copies, and into fusions of a fusion."""
    uses: list[tuple[Instruction, int]] = []
    for user in called.users(instruction.name):
        if user.opcode in ("bitcast", "copy"):
            uses += uses_of(user, called, module)
            continue
        for place in (place for place, name in enumerate(user.operands) if name == instruction.name):
            if user.opcode == "fusion":
                inner = module.computations[user.called("calls") or ""]
                uses += uses_of(inner.parameters[place], inner, module)
                if source_of(inner.root, inner) is inner.parameters[place]:  # it only lays the value out anew
                    uses += uses_of(user, called, module)
            else:
                uses.append((user, place))
    return uses


def source_of(instruction: Instruction, computation: Computation) -> Instruction:
    """What an instruction is a copy of, or the instruction itself."""
    while instruction.opcode in ("bitcast", "copy"):
        instruction = next(computation.operands(instruction))
    return instruction


def aliases(fusion: Instruction) -> list[tuple[int, int]]:
    """(output, operand) that are one buffer, which a collective under way fills meanwhile; an operand may be two."""
    listed = re.search(r"output_to_operand_aliasing=\{(.*?\)\})", fusion.attributes)
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}\)", fusion.attributes) if listed else []
    return [(int(output or 0), int(operand)) for output, operand in pairs]


def written_by_fusion(fusion: Instruction, called: Computation) -> list[int]:
    """What a fusion writes of each of its outputs."""
    root = called.root
    parts = list(called.operands(root)) if root.opcode == "tuple" else [root]
    if len(parts) != len(fusion.shapes):
        return [in_memory(shape) for shape in fusion.shapes]
    return [0 if shape.on_chip else written(part, called) for part, shape in zip(parts, fusion.shapes, strict=True)]


def written(instruction: Instruction, computation: Computation) -> int:
    """What an instruction writes: of an array that it only changes in part, that part."""
    source = instruction
    while source.opcode == "bitcast":
        source = next(computation.operands(source))
    if source.opcode == "dynamic-update-slice":
        _, update, *_ = computation.operands(source)
        return update.shapes[0].bytes
    return sum(in_memory(shape) for shape in instruction.shapes)
